//! One device: what it is, and how a command becomes root there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    Error, files, said,
    server::Server,
    shell::{self, Output, Shell, quoted, within},
};
use crate::note::note;

/// For a command that only looks.
const QUICK: u64 = 20;
/// For the person to find the phone and answer it.
const APPROVAL: u64 = 60;
/// For adbd to come back as root.
const RESTART: u64 = 20;

/// What is asked once. Each line is a fact behind its name; what a device lacks leaves a name alone.
const QUESTIONS: &str = "echo machine $(uname -m); echo kernel $(uname -r); \
    echo android $(getprop ro.build.version.release 2>/dev/null); \
    echo debuggable $(getprop ro.debuggable 2>/dev/null); echo clock $(date +%s); \
    for d in /data/local/tmp \"${HOME%/}\" /tmp; do \
    if [ -d \"$d\" ] && [ -w \"$d\" ]; then echo folder \"$d\"; break; fi; done";

/// A device that can be used.
#[derive(Clone)]
pub struct Device {
    /// The adb server that leads to it.
    pub server: Server,
    /// What the server calls it.
    pub serial: String,
}

/// What a device is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// As `uname -m` says it.
    pub machine: String,
    /// As `uname -r` says it.
    pub kernel: String,
    /// Android's release; empty on other systems.
    pub android: String,
    /// It is an eng or userdebug image.
    pub debuggable: bool,
    /// Seconds by which its clock is ahead of this computer's.
    pub clock_ahead: i64,
    /// Where the agent can be put.
    pub folder: String,
}

/// How a command becomes root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// adbd is root.
    Already,
    /// `su -c COMMAND`, as Magisk's.
    SuDashC,
    /// `su 0 COMMAND`, as on AOSP's userdebug images.
    Su0,
}

impl Root {
    /// The command that runs `script` as root.
    pub fn command(self, script: &str) -> String {
        match self {
            Self::Already => script.to_owned(),
            // Without an input: a su that asks for a password must not wait for one.
            Self::SuDashC => format!("su -c {} </dev/null", quoted(script)),
            Self::Su0 => format!("su 0 sh -c {} </dev/null", quoted(script)),
        }
    }

    /// In words.
    pub fn how(self) -> &'static str {
        match self {
            Self::Already => "adbd is root",
            Self::SuDashC => "by su -c",
            Self::Su0 => "by su 0",
        }
    }
}

impl Device {
    /// The device that is meant, waited for as long as its owner has to allow USB debugging.
    pub fn find(server: Server, serial: &str) -> Result<Self, Error> {
        let deadline = within(APPROVAL);
        let mut told = false;
        loop {
            match server.choose(serial) {
                Err(error @ Error::Unauthorized(_)) if Instant::now() < deadline => {
                    if !told {
                        note(&format!("{error}; waiting {APPROVAL} s"));
                        told = true;
                    }
                    thread::sleep(Duration::from_millis(500));
                }
                chosen => return chosen.map(|serial| Self { server, serial }),
            }
        }
    }

    /// A command that runs there.
    pub fn shell(&self, command: &str) -> Result<Shell, Error> {
        Ok(Shell::new(self.server.open(&self.serial, &shell::service(command))?))
    }

    /// Runs a command to its end, in `seconds` at most.
    pub fn run(&self, what: &str, command: &str, seconds: u64) -> Result<Output, Error> {
        let output = self.shell(command)?.output(within(seconds))?;
        output.ok_or_else(|| Error::Late(what.to_owned(), seconds))
    }

    /// What it is.
    pub fn facts(&self) -> Result<Facts, Error> {
        let asked = now();
        let output = self.run("the device's shell", QUESTIONS, QUICK)?;
        let facts = facts(&output.out, (asked + now()) / 2.0);
        if facts.machine.is_empty() || facts.folder.is_empty() {
            return Err(Error::Failed {
                what: "can't ask for the machine and a folder",
                said: output.last_words(),
            });
        }
        Ok(facts)
    }

    /// How commands become root. Asks the person at the phone, and has adbd restart on images that allow it; both are told
    /// before.
    pub fn root(&self, facts: &Facts, tell: impl Fn(&str)) -> Result<Root, Error> {
        if self.is_root(Root::Already, QUICK)? {
            return Ok(Root::Already);
        }
        let mut why = String::new();
        if self.run("the device's shell", "command -v su", QUICK)?.code == 0 {
            if self.is_root(Root::Su0, QUICK)? {
                return Ok(Root::Su0);
            }
            tell(&format!("asking for root: if the phone asks, approve it there ({APPROVAL} s)"));
            match self.is_root(Root::SuDashC, APPROVAL) {
                Ok(true) => return Ok(Root::SuDashC),
                Ok(false) => ", whose su says no",
                Err(Error::Late(..)) => ", whose su was not answered",
                Err(error) => return Err(error),
            }
            .clone_into(&mut why);
        }
        if facts.debuggable {
            tell("restarting the device's adbd as root (adb root)");
            return self.restart_as_root();
        }
        Err(Error::NoRoot(self.serial.clone(), why))
    }

    fn is_root(&self, root: Root, seconds: u64) -> Result<bool, Error> {
        let output = self.run("su", &root.command("id -u"), seconds)?;
        // A su may greet before it does what it is told.
        Ok(output.code == 0 && output.out.lines().any(|line| line.trim() == "0"))
    }

    fn restart_as_root(&self) -> Result<Root, Error> {
        // It may be gone before it has answered.
        let _ = self.server.open(&self.serial, "root:").map(drop);
        let deadline = within(RESTART);
        while Instant::now() < deadline {
            if matches!(self.is_root(Root::Already, 5), Ok(true)) {
                return Ok(Root::Already);
            }
            thread::sleep(Duration::from_millis(250));
        }
        Err(Error::NoRoot(self.serial.clone(), ", where adb root did not make it so".to_owned()))
    }

    /// Puts the program to `path` unless the same is there; whether it had to.
    pub fn install(&self, program: &[u8], path: &str) -> Result<bool, Error> {
        if self.holds(program, path)? {
            return Ok(false);
        }
        let (path, new) = (quoted(path), format!("{path}.new"));
        files::push(self.server.open(&self.serial, "sync:")?, &new, program)?;
        let moved = format!("chmod 755 {new} && mv -f {new} {path}", new = quoted(&new));
        let output = self.run("the device's shell", &moved, QUICK)?;
        match output.code {
            0 => Ok(true),
            _ => Err(Error::Failed { what: "can't put plaintapd in its place", said: output.last_words() }),
        }
    }

    /// Whether just this program is there.
    pub fn holds(&self, program: &[u8], path: &str) -> Result<bool, Error> {
        let output = self.run("the device's shell", &format!("sha256sum {}", quoted(path)), QUICK)?;
        let digest: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(output.code == 0 && output.out.split_whitespace().next() == Some(&digest))
    }
}

/// The program for a machine: the one that was named, else the one beside this program.
pub fn program(named: Option<&PathBuf>, machine: &str) -> Result<(PathBuf, Vec<u8>), Error> {
    let path = program_path(named, machine)?;
    let bytes = read_program(&path)?;
    Ok((path, bytes))
}

/// Where that is.
pub fn program_path(named: Option<&PathBuf>, machine: &str) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        return Ok(path.clone());
    }
    let name = match machine {
        // A 32-bit shell on a 64-bit kernel says the latter.
        "aarch64" | "armv8l" => "plaintapd-aarch64",
        "x86_64" => "plaintapd-x86_64",
        other => return Err(Error::Machine(other.to_owned())),
    };
    let beside = env::current_exe().ok().and_then(|own| own.canonicalize().ok());
    let beside = beside.and_then(|own| Some(own.parent()?.join(name)));
    beside.filter(|path| path.is_file()).ok_or_else(|| Error::NoAgent(name.to_owned()))
}

/// What is in its file.
pub fn read_program(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::Agent(path.display().to_string(), error))
}

/// This computer's clock, in seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What the device's answers say, at this time of this computer's clock.
fn facts(answers: &str, now: f64) -> Facts {
    let mut facts = Facts::default();
    for line in answers.lines() {
        let (name, value) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match name {
            "machine" => facts.machine = said(value),
            "kernel" => facts.kernel = said(value),
            "android" => facts.android = said(value),
            "debuggable" => facts.debuggable = value == "1",
            // Whole seconds, cut: half of one more is the likeliest.
            "clock" => {
                facts.clock_ahead = value.parse().map_or(0, |clock: f64| (clock + 0.5 - now).round() as i64)
            }
            "folder" => facts.folder = value.to_owned(),
            _ => {}
        }
    }
    facts
}

/// How far the device's clock is from this computer's, in words; nothing if it is close.
pub fn clock(ahead: i64) -> Option<String> {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    (ahead.abs() > 1).then(|| {
        format!("the device's clock is {} s {way} this computer's; times are the device's", ahead.abs())
    })
}

/// Whether plaintapd is known to work on such a kernel.
pub fn new_enough(kernel: &str) -> bool {
    let mut numbers =
        kernel.split(|char: char| !char.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_none_or(|version| version >= (5, 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_answers_are_its_facts() {
        let phone = facts(
            "machine aarch64\nkernel 5.10.43-android12-9\r\nandroid 14\ndebuggable 1\nclock 1000\nfolder /data/local/tmp\n",
            900.5,
        );
        assert_eq!(
            (phone.machine.as_str(), phone.android.as_str(), phone.debuggable),
            ("aarch64", "14", true)
        );
        assert_eq!((phone.clock_ahead, phone.folder.as_str()), (100, "/data/local/tmp"));
        let board = facts("machine x86_64\nkernel 6.1.0\nandroid\ndebuggable\nclock x\n", 1.0);
        assert_eq!((board.android.as_str(), board.debuggable, board.clock_ahead), ("", false, 0));
        assert_eq!(facts("what?", 0.0), Facts::default());
    }

    #[test]
    fn a_clock_that_is_close_is_not_spoken_of() {
        assert_eq!(clock(1), None);
        assert!(clock(7).unwrap().contains("7 s ahead of"));
        assert!(clock(-86_400).unwrap().contains("86400 s behind"));
    }

    #[test]
    fn an_old_kernel_is_known_by_its_release() {
        assert!(!new_enough("4.19.191+") && !new_enough("5.4.0"));
        assert!(new_enough("5.10.43-android12") && new_enough("6.12.1") && new_enough("strange"));
    }

    #[test]
    fn a_script_reaches_su_as_one_word() {
        assert_eq!(Root::Already.command("id -u"), "id -u");
        assert_eq!(Root::SuDashC.command("echo 'a'"), r"su -c 'echo '\''a'\''' </dev/null");
        assert_eq!(Root::Su0.command("id -u"), "su 0 sh -c 'id -u' </dev/null");
    }
}
