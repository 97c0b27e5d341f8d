//! A table of functions by build ID, for libraries that name none: what a person found out, with a disassembler perhaps.
//!
//! A text file; each line has a build ID and then `function=address` with addresses as `nm` and `objdump` print them. A `#` begins
//! a comment.

use std::{fs::File, io::Read, path::Path, str::FromStr};

use super::Function;

/// The largest such file, in bytes.
const MOST: u64 = 1 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    entries: Vec<(String, Vec<(Function, u64)>)>,
}

impl Offsets {
    /// The functions of the file with this build ID, and their addresses.
    pub fn of(&self, build_id: &str) -> Option<&[(Function, u64)]> {
        let entry = self.entries.iter().find(|(known, _)| known == build_id);
        entry.map(|(_, functions)| &functions[..])
    }

    /// Of the text of such a file; an error names the line.
    fn of_text(text: &str) -> Result<Self, String> {
        let mut offsets = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(build_id) = words.next() else { continue };
            let entry = entry(build_id, words).map_err(|why| format!("line {number}: {why}"))?;
            if offsets.of(&entry.0).is_some() {
                return Err(format!("line {number}: {build_id} is there already"));
            }
            offsets.entries.push(entry);
        }
        Ok(offsets)
    }
}

impl FromStr for Offsets {
    type Err = String;

    /// Reads the file at a path.
    fn from_str(path: &str) -> Result<Self, String> {
        let mut text = String::new();
        let file = File::open(Path::new(path)).map_err(|error| format!("can't read {path}: {error}"))?;
        let size = file.take(MOST + 1).read_to_string(&mut text);
        match size.map_err(|error| format!("can't read {path}: {error}"))? as u64 {
            0..=MOST => Self::of_text(&text).map_err(|why| format!("{path}: {why}")),
            _ => Err(format!("{path} is larger than 1 MiB")),
        }
    }
}

fn entry<'a>(
    build_id: &str,
    words: impl Iterator<Item = &'a str>,
) -> Result<(String, Vec<(Function, u64)>), String> {
    if build_id.is_empty() || !build_id.chars().all(|char| char.is_ascii_hexdigit()) {
        return Err(format!("{build_id:?} is no build ID in hexadecimal"));
    }
    let mut functions = Vec::new();
    for word in words {
        let wrong = || format!("{word:?} is no function=address, as SSL_read=0x2d5ac0");
        let (name, address) = word.split_once('=').ok_or_else(wrong)?;
        let known = Function::ALL.into_iter().find(|function| function.name() == name);
        let function = known.ok_or_else(|| format!("{name} is no function that is watched"))?;
        let digits = address.strip_prefix("0x").unwrap_or(address);
        functions.push((function, u64::from_str_radix(digits, 16).map_err(|_| wrong())?));
    }
    functions.sort_by_key(|(function, _)| *function);
    let (all, carries) = (functions.len(), functions.iter().any(|(function, _)| function.carries()));
    functions.dedup_by_key(|(function, _)| *function);
    match (functions.len() == all, carries) {
        (true, true) => Ok((build_id.to_ascii_lowercase(), functions)),
        (true, false) => Err("it names no function that reads or writes".into()),
        (false, _) => Err("it names a function twice".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_has_a_build_id_and_functions() {
        let text = "# mine\n\nAB12 SSL_write=2d5ed0 SSL_read=0x2d5ac0 # curl\n";
        let offsets = Offsets::of_text(text).unwrap();
        let expected = [(Function::Read, 0x2d_5ac0), (Function::Write, 0x2d_5ed0)];
        assert_eq!(offsets.of("ab12"), Some(&expected[..]));
        assert_eq!(offsets.of("ab13"), None);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (line, why) in [
            ("xy SSL_read=1", "no build ID"),
            ("ab SSL_read", "no function=address"),
            ("ab SSL_read=g", "no function=address"),
            ("ab main=1", "main is no function"),
            ("ab SSL_read=1 SSL_read=2", "twice"),
            ("ab SSL_free=1", "reads or writes"),
            ("ab", "reads or writes"),
            ("00 SSL_read=1", "there already"),
        ] {
            let error = Offsets::of_text(&format!("00 SSL_read=1\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 2: ") && error.contains(why), "{error}");
        }
        assert!("/nonexistent".parse::<Offsets>().unwrap_err().contains("/nonexistent"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Offsets::of_text(&text);
        }
    }
}
