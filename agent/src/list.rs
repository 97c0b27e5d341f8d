//! `plaintapd list`: what a survey found, as a table or as JSON.

use std::{fmt::Write, path::Path};

use crate::{
    args::ListArgs,
    discover::{
        find::{Flavour, Found},
        survey::{Row, Survey, container, survey},
    },
    run::chain,
};

/// What stands for a field that is not known.
const NONE: &str = "-";

/// Looks, and writes what it saw.
pub fn list(args: &ListArgs) -> String {
    let survey = survey(Path::new("/"), Path::new("/proc"), &args.options());
    if args.json { json(&survey) } else { table(&survey) }
}

/// Why a file has no probe though others have: what `list` can know of it.
const LEFT_OUT: &str = "probes stand elsewhere and not in it: plaintapd's flags leave it out, or it could not be attached, for which \
    plaintapd's log has the reason";

/// In one word, whether a file is captured.
fn state(survey: &Survey, row: &Row) -> &'static str {
    match &row.found {
        Err(_) => "refused",
        Ok(_) if row.attached => "attached",
        Ok(_) if is_left_out(survey, row) => "left-out",
        Ok(_) => "ready",
    }
}

/// Whether a file that a process maps has no probe, while others have.
fn is_left_out(survey: &Survey, row: &Row) -> bool {
    row.found.is_ok() && !row.attached && !row.pids.is_empty() && survey.rows.iter().any(|row| row.attached)
}

/// As a table, for people.
pub fn table(survey: &Survey) -> String {
    let mut lines =
        vec![["STATE", "PROCESSES", "ABI", "LIBRARY", "FOUND BY", "IN", "FILE"].map(str::to_owned)];
    for row in &survey.rows {
        let found = row.found.as_ref().ok();
        lines.push([
            state(survey, row).to_owned(),
            row.pids.len().to_string(),
            row.abi.to_owned(),
            found.map_or_else(|| NONE.into(), library),
            found.map_or_else(|| NONE.into(), |found| found.how.to_string()),
            container(&row.path).unwrap_or_else(|| NONE.into()),
            format!("{}{}", printable(&row.path), if row.deleted { " (deleted)" } else { "" }),
        ]);
    }
    let widths: Vec<usize> = (0..7)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(field, width)| format!("{field:width$}")).collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    for row in &survey.rows {
        if let Err(error) = &row.found {
            let _ = writeln!(text, "refused: {}", chain(error));
        } else if is_left_out(survey, row) {
            let _ = writeln!(text, "left out: {}: {LEFT_OUT}", printable(&row.path));
        }
    }
    if let Some(hidden) = survey.hidden() {
        let _ = writeln!(text, "{hidden}");
    }
    text
}

/// Whose library it is, and which version.
fn library(found: &Found) -> String {
    let flavour = match found.flavour {
        Flavour::Unknown => NONE.to_owned(),
        flavour => flavour.to_string(),
    };
    found.version.as_ref().map_or(flavour.clone(), |version| format!("{flavour} {version}"))
}

/// A path in one line, whatever its owner called it.
fn printable(path: &Path) -> String {
    path.to_string_lossy().chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// As JSON, for programs.
pub fn json(survey: &Survey) -> String {
    let rows: Vec<String> = survey.rows.iter().map(|row| row_json(survey, row)).collect();
    format!(
        "{{\n\"targets\": [{}\n],\n\"processes\": {},\n\"unreadable_processes\": {}\n}}\n",
        rows.iter().map(|row| format!("\n{row}")).collect::<Vec<_>>().join(","),
        survey.processes,
        survey.unreadable
    )
}

fn row_json(survey: &Survey, row: &Row) -> String {
    let found = row.found.as_ref().ok();
    let flavour = found.map(|found| found.flavour).filter(|flavour| *flavour != Flavour::Unknown);
    let functions = found.map_or_else(String::new, |found| {
        let fields =
            found.functions.iter().map(|(function, offset)| format!("{}: {offset}", quoted(function.name())));
        fields.collect::<Vec<_>>().join(", ")
    });
    let left_out = is_left_out(survey, row).then(|| LEFT_OUT.to_owned());
    let reason = row.found.as_ref().err().map(|error| chain(error)).or(left_out);
    let pids: Vec<String> = row.pids.iter().map(u32::to_string).collect();
    let fields = [
        ("path", quoted(&row.path.to_string_lossy())),
        ("deleted", row.deleted.to_string()),
        ("container", optional(container(&row.path))),
        ("abi", optional(Some(row.abi).filter(|abi| *abi != NONE))),
        ("library", optional(flavour)),
        ("version", optional(found.and_then(|found| found.version.as_ref()))),
        ("build_id", optional(found.and_then(|found| found.build_id.as_ref()))),
        ("found_by", optional(found.map(|found| found.how))),
        ("functions", format!("{{{functions}}}")),
        ("pids", format!("[{}]", pids.join(", "))),
        ("state", quoted(state(survey, row))),
        ("reason", optional(reason)),
    ];
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{}: {value}", quoted(name))).collect();
    format!("{{{}}}", fields.join(", "))
}

fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "null".into(), |value| quoted(&value.to_string()))
}

/// A JSON string. Source: RFC 8259, section 7.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => drop(write!(quoted, "\\u{:04x}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{Error, Function, find::How};

    fn survey() -> Survey {
        let found = Found {
            functions: vec![(Function::Read, 4096)],
            how: How::Symbols,
            flavour: Flavour::BoringSsl,
            version: None,
            build_id: Some("0a".into()),
        };
        let row = |path: &str, found| Row {
            path: path.into(),
            deleted: false,
            abi: "aarch64",
            found,
            pids: vec![1, 22],
            attached: true,
            part: None,
        };
        let error = Error::NoFunctions { path: "/b".into() };
        let rows = vec![row("/apex/com.x@3/lib64/a\"\n\\.so", Ok(found)), row("/b", Err(error))];
        Survey { rows, processes: 9, unreadable: 2 }
    }

    #[test]
    fn a_table_has_a_line_for_each_file_and_the_reasons_below() {
        let text = table(&survey());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[0].starts_with("STATE     PROCESSES  ABI"), "{text}");
        assert!(
            lines[1].starts_with("attached  2          aarch64  BoringSSL  symbols   APEX com.x"),
            "{text}"
        );
        assert!(lines[2].starts_with("refused   2"), "{text}");
        assert!(lines[3].starts_with("refused: /b has symbols for neither"), "{text}");
        assert!(lines[4].starts_with("2 of 9 processes"), "{text}");
    }

    #[test]
    fn a_file_without_a_probe_is_left_out_where_others_have_one() {
        let mut survey = survey();
        let mut other = survey.rows.remove(0);
        let found = other.found.as_ref().unwrap().clone();
        other.attached = false;
        survey.rows.push(other);
        assert!(
            json(&survey).contains(r#""state": "refused""#)
                && json(&survey).contains(r#""state": "left-out""#)
        );
        survey.rows[0].attached = false;
        assert!(json(&survey).contains(r#""state": "ready", "reason": null"#));
        survey.rows[0].found = Ok(found);
        survey.rows[0].attached = true;
        assert!(table(&survey).contains("\nleft out: /apex/com.x@3/lib64/a"), "{}", table(&survey));
        // Nobody maps it now: plaintapd would put a probe there as soon as somebody does.
        survey.rows[1].pids.clear();
        assert!(json(&survey).contains(r#""state": "ready""#));
    }

    #[test]
    fn json_is_escaped() {
        let text = json(&survey());
        assert!(text.contains(r#""path": "/apex/com.x@3/lib64/a\"\u000a\\.so""#), "{text}");
        assert!(
            text.contains(r#""functions": {"SSL_read": 4096}, "pids": [1, 22], "state": "attached""#),
            "{text}"
        );
        assert!(text.contains(r#""version": null, "build_id": "0a", "found_by": "symbols""#), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn a_string_is_one_json_string(text: String) {
            let quoted = quoted(&text);
            let mut chars = quoted[1..quoted.len() - 1].chars();
            let mut back = String::new();
            while let Some(char) = chars.next() {
                proptest::prop_assert!(char != '"' && !char.is_control());
                back.push(if char != '\\' { char } else {
                    match chars.next().unwrap() {
                        'u' => {
                            let digits: String = chars.by_ref().take(4).collect();
                            char::from_u32(u32::from_str_radix(&digits, 16).unwrap()).unwrap()
                        }
                        char => char,
                    }
                });
            }
            proptest::prop_assert_eq!(back, text);
        }
    }
}
