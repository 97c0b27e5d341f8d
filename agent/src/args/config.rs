//! The file that --config names: one flag a line.

use std::{fs::File, io::Read, path::Path};

use super::{Parsed, UsageError, parse_flags, wrong};

/// Flags of which the command line's stand instead of the file's.
pub(super) const INSTEAD: [&str; 15] = [
    "--offsets",
    "--linger",
    "--ecaptureq",
    "--tls-cert",
    "--tls-key",
    "--tls-client-ca",
    "--token-file",
    "--max-clients",
    "--user",
    "--snaplen",
    "--memory-limit",
    "--journal-size",
    "--slow-client",
    "--ring-size",
    "--log-level",
];

/// Takes out flags that have values, with their values.
pub(super) fn drop_flags(args: &mut Vec<String>, flags: &[String]) {
    let mut kept = Vec::new();
    let mut all = args.drain(..);
    while let Some(arg) = all.next() {
        if flags.contains(&arg) {
            all.next();
        } else {
            kept.push(arg);
        }
    }
    drop(all);
    *args = kept;
}

/// The largest config file, in bytes.
const MOST_CONFIG: u64 = 1 << 20;

/// The flags of a config file, one a line; each line makes sense by itself.
pub(super) fn from_file(path: &Path) -> Result<Vec<String>, UsageError> {
    let failed = |error| wrong(format!("can't read --config {}: {error}", path.display()));
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(MOST_CONFIG + 1);
    if file.read_to_string(&mut text).map_err(failed)? as u64 > MOST_CONFIG {
        return Err(wrong(format!("--config {} is larger than 1 MiB", path.display())));
    }
    let (mut all, mut once) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines().map(without_comment)) {
        if !line.is_empty() {
            let words = words_of(line, number, &mut once);
            all.extend(words.map_err(|why| wrong(format!("{} line {number}: {why}", path.display())))?);
        }
    }
    Ok(all)
}

/// The flag of line `number` of a config file, and its value. `once` are the flags that can be given once, and their lines so far.
fn words_of(line: &str, number: u32, once: &mut Vec<(String, u32)>) -> Result<Vec<String>, String> {
    let (flag, value) = match line.split_once(|char: char| char == '=' || char.is_whitespace()) {
        Some((flag, value)) => (flag, Some(value.trim())),
        None => (line, None),
    };
    match flag {
        "--config" | "--help" | "--version" => return Err(format!("{flag} can't stand in a config file")),
        _ if flag.len() > 2 && flag.starts_with("--") => {}
        _ => return Err(format!("{flag:?} is no flag, as --pid 4242")),
    }
    if let Some((_, first)) = once.iter().find(|(known, _)| known == flag) {
        return Err(format!("{flag} is given twice, first in line {first}, and can be given once"));
    }
    let words: Vec<String> = [flag].into_iter().chain(value).map(str::to_owned).collect();
    match parse_flags(&words) {
        Ok(Parsed::Run(_)) => {}
        Err(error) if value.is_none() || parse_flags(&words[..1]).is_err() => return Err(error.why),
        _ => return Err(format!("{flag} takes no value")),
    }
    if parse_flags(&[&words[..], &words].concat()).is_err() {
        once.push((flag.to_owned(), number));
    }
    Ok(words)
}

/// What a line says before its comment. A `#` inside a word, as in a path, begins none.
fn without_comment(line: &str) -> &str {
    let begins = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let end = line.match_indices('#').map(|(at, _)| at).find(begins).unwrap_or(line.len());
    line[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{LogLevel, Pid, Snaplen, tests::parsed},
        *,
    };

    #[test]
    fn a_config_file_holds_flags_and_the_command_line_wins() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# mine\n--pid 7\n --comm=a b \n\n--snaplen 100\n--log-level debug\n").unwrap();
        let path = file.path().to_str().unwrap();
        let Ok(Parsed::Run(args)) = parsed(&["--config", path, "--pid=8", "--snaplen=5"]) else {
            panic!("not a run")
        };
        assert_eq!(args.pid.iter().map(|pid| pid.value).collect::<Vec<_>>(), [Pid(7), Pid(8)]);
        assert_eq!(args.comm[0].value, "a b");
        assert_eq!((args.snaplen, args.log_level), (Snaplen(5), LogLevel(::log::LevelFilter::Debug)));
        std::fs::write(&file, "--nonsense 1\n").unwrap();
        let error = parsed(&["--config", path]).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains("--nonsense") && !error.contains('\n'), "{error}");
        std::fs::write(&file, format!("--config {path}\n")).unwrap();
        assert!(parsed(&["--config", path]).is_err());
        assert!(parsed(&["--config", "/nonexistent"]).is_err());
    }

    #[test]
    fn a_comment_may_stand_behind_a_value_and_a_hash_inside_of_one() {
        for (line, said) in [
            ("--comm curl  # the tool", "--comm curl"),
            ("--comm curl\t#", "--comm curl"),
            ("  # --comm curl # the tool", ""),
            ("#--comm curl", ""),
            ("--library /opt/c#/libssl.so # C# brings it", "--library /opt/c#/libssl.so"),
            ("--ecaptureq ws+unix:@x#1", "--ecaptureq ws+unix:@x#1"),
            ("--no-scan # yet", "--no-scan"),
            ("é # é", "é"),
        ] {
            assert_eq!(without_comment(line), said, "{line}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "--comm curl  # the tool\n--no-scan # yet\n").unwrap();
        let Ok(Parsed::Run(args)) = parsed(&["--config", file.path().to_str().unwrap()]) else {
            panic!("not a run")
        };
        assert_eq!((args.comm[0].value.as_str(), args.no_scan), ("curl", true));
    }

    #[test]
    fn a_config_file_that_is_too_large_is_refused_and_not_cut() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let comment = |length: usize| format!("#{}\n--no-scan\n", "x".repeat(length - 12));
        std::fs::write(&file, comment(1 << 20)).unwrap();
        assert!(matches!(parsed(&["--config", path]), Ok(Parsed::Run(args)) if args.no_scan));
        std::fs::write(&file, comment((1 << 20) + 1)).unwrap();
        let error = parsed(&["--config", path]).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains("larger than 1 MiB"), "{error}");
    }

    #[test]
    fn a_config_files_error_names_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (lines, number, why) in [
            ("# mine\n\n--pid 7\n--snaplen", 4, "No value provided for option '--snaplen'"),
            ("comm=curl\n", 1, "\"comm\" is no flag, as --pid 4242"),
            ("--\n", 1, "\"--\" is no flag"),
            ("--pid 7\n--nonsense 1 # yet\n", 2, "Unrecognized argument: --nonsense"),
            ("--no-scan yes\n", 1, "--no-scan takes no value"),
            ("--no-scan help\n", 1, "--no-scan takes no value"),
            ("--pid 7\n--pid x\n", 2, "\"x\" is no process id"),
            ("--config x\n", 1, "--config can't stand in a config file"),
            ("--help\n", 1, "--help can't stand in a config file"),
            ("--snaplen 5\n--pid 7\n--snaplen=5\n", 3, "--snaplen is given twice, first in line 1"),
        ] {
            std::fs::write(&file, lines).unwrap();
            let error =
                parsed(&["--config", path, "--ecaptureq", "ws://127.0.0.1:0/"]).unwrap_err().to_string();
            let place = format!("{path} line {number}: ");
            assert!(error.starts_with(&place) && error.contains(why), "{lines}: {error}");
        }
        std::fs::write(&file, "--on-demand\n--ecaptureq ws+unix:@a\n--on-demand\n--ecaptureq ws+unix:@b\n")
            .unwrap();
        let Ok(Parsed::Run(args)) = parsed(&["--linger=5", "--config", path]) else { panic!("not a run") };
        assert_eq!((args.on_demand, args.ecaptureq.len()), (true, 2));
    }

    proptest::proptest! {
        #[test]
        fn any_config_file_has_an_answer_that_names_it(lines in "(-?-?[a-z-]{0,10}[ =]?[!-~é]{0,6}\\PC?\n?){0,8}") {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, lines).unwrap();
            let path = file.path().to_str().unwrap();
            if let Err(error) = parsed(&["--config", path]) {
                proptest::prop_assert!(error.to_string().contains(path), "{error}");
            }
        }
    }
}
