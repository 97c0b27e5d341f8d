//! The programs of `driver/cases.c` and `driver/engine.c`: unusual uses of a TLS library, on command.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::driver::{certificate, fact};
use crate::need;
use crate::process::Process;

/// `driver/cases.c`: what programs do with a library besides plain calls.
pub const CASES: &str = env!("PLAINTAP_TLS_CASES");

/// `driver/engine.c`: TLS over memory.
pub const ENGINE: &str = env!("PLAINTAP_TLS_ENGINE");

/// A running program.
pub struct Program {
    process: Process,
    /// Lines before this one were answers to earlier commands.
    answered: usize,
    _certificate: TempDir,
}

impl Program {
    /// Starts the program at `path` over `library`; its threads are named `name`.
    pub fn start(path: impl AsRef<Path>, library: &str, name: &str) -> Result<Self> {
        need::library(library)?;
        let certificate = certificate()?;
        let mut command = Command::new(path.as_ref());
        command.args(["--lib", library, "--name", name]);
        command.arg("--cert").arg(certificate.path().join("cert.pem"));
        command.arg("--key").arg(certificate.path().join("key.pem"));
        let mut program =
            Self { process: Process::start(&mut command)?, answered: 0, _certificate: certificate };
        program.wait_for("ready")?;
        Ok(program)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Gives one command and waits for its end; what the program said of it.
    pub fn command(&mut self, command: &str) -> Result<Vec<String>> {
        self.begin(command, "done")
    }

    /// Gives one command and waits for a line that starts with `word`; what the program said up to there.
    pub fn begin(&mut self, command: &str, word: &str) -> Result<Vec<String>> {
        self.process.write(format!("{command}\n").as_bytes())?;
        self.wait_for(word).with_context(|| command.to_owned())
    }

    /// Waits for a line that starts with `word`; what the program said up to there.
    pub fn wait_for(&mut self, word: &str) -> Result<Vec<String>> {
        let found = self.process.stdout.wait_for(self.answered, word, |line| line.starts_with(word));
        let (number, _) =
            found.with_context(|| format!("it complained: {}", self.process.stderr.all().join("; ")))?;
        let said = self.process.stdout.all()[self.answered..number].to_vec();
        self.answered = number + 1;
        Ok(said)
    }

    /// Ends it; an error if anything went wrong there.
    pub fn quit(mut self) -> Result<()> {
        self.process.close_input();
        let status = self.process.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", self.process.stderr.all().join("; "));
        Ok(())
    }
}

/// A thread's name that no other test's program has.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The line of `lines` that starts with `word`.
pub fn line<'a>(lines: &'a [String], word: &str) -> Result<&'a str> {
    let found = lines.iter().find(|line| line.split(' ').next() == Some(word));
    found.map(String::as_str).with_context(|| format!("no line {word:?} in {lines:?}"))
}

/// The number `name` in the line of `lines` that starts with `word`.
pub fn number(lines: &[String], word: &str, name: &str) -> Result<u32> {
    fact(line(lines, word)?, name)
}

/// The text `name` in the line of `lines` that starts with `word`.
pub fn text(lines: &[String], word: &str, name: &str) -> Result<String> {
    fact(line(lines, word)?, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BORINGSSL, OPENSSL};

    #[test]
    fn every_case_works_over_the_libraries_that_have_it() {
        for library in [BORINGSSL, OPENSSL] {
            let mut program = Program::start(CASES, library, &unique_name()).unwrap();
            let common = ["plain 20 1", "partial 200000 2", "reuse", "clear", "fork", "killed", "leader"];
            for case in
                common.into_iter().chain(["threads 20 3", "name example.org", "open", "again", "shut"])
            {
                program.command(case).unwrap();
            }
            if library == OPENSSL {
                for case in ["ex 20 1", "nothing_ex", "early 5000 1", "refused 5000 1"] {
                    program.command(case).unwrap();
                }
            }
            program.command(&format!("exec {CASES}")).unwrap();
            program.wait_for("ready").unwrap();
            program.quit().unwrap();
        }
    }

    #[test]
    fn every_engine_works_over_either_library() {
        let cases = ["single", "turns", "batch", "crossed", "swapped", "relay", "proxy", "polling"];
        for library in [BORINGSSL, OPENSSL] {
            for case in cases.into_iter().chain(["relayed_polling", "chatter"]) {
                let mut program = Program::start(ENGINE, library, &unique_name()).unwrap();
                program.begin(&format!("{case} mem 3"), "open").unwrap();
                program.command("go").unwrap();
                program.quit().unwrap();
            }
        }
    }
}
