//! `plaintap generate`: what it writes is what a shell and man take.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::{path::Path, process::Command};

use harness::Plaintap;

/// What bash offers at the end of the command line.
fn completed(folder: &Path, line: &[&str]) -> Vec<String> {
    let script = format!(
        "set -eu; . {}; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _plaintap; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        folder.join("plaintap.bash").display()
    );
    let done = Command::new("bash").args(["-c", &script, "bash"]).args(line).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("new");
    let done = Plaintap::run(&["generate", into.to_str().unwrap()]).done();
    assert_eq!((done.code, done.stdout.lines().count()), (Some(0), 4), "{}", done.stderr);
    for (line, expected) in [
        (&["plaintap", "rec"][..], &["record"][..]),
        (&["plaintap", "rep"], &["replay"]),
        (&["plaintap", "record", "--for"], &["--format", "--force"]),
        (&["plaintap", "record", "--format", "p"], &["pb", "pcapng"]),
        (&["plaintap", "record", "--count", ""], &[""]),
    ] {
        assert_eq!(completed(&into, line), expected, "{line:?}");
    }
}

#[test]
fn a_folder_that_can_not_be_is_named() {
    let done = Plaintap::run(&["generate", "/dev/null/x"]).done();
    assert!(done.stderr.contains("/dev/null/x"), "{}", done.stderr);
    assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1));
}
