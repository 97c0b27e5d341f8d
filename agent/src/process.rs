//! Which program a process is, and when it started.
//!
//! `look_up` reads /proc, in the attaching half. `Processes` is what the serving half knows of it: it asks, goes on, and
//! takes the answer when it comes.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::unistd::{SysconfVar, sysconf};

use crate::recent::Recent;

/// A question without an answer is asked again after this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions on their way; more are asked when the process is seen again.
const MAX_QUESTIONS: usize = 256;

/// The longest name that is kept, in bytes.
pub const MAX_APP: usize = 512;

/// A process, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Android application id, or the executable's path; empty: unknown.
    pub app: String,
    /// When it started: nanoseconds since boot; 0: unknown.
    pub start_ns: u64,
}

/// One life of a process id: from a start, or from an exec, to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// The process id.
    pub pid: u32,
    /// As in [`Header`](plaintap_abi::Header).
    pub life: u64,
}

#[derive(Debug)]
struct Entry {
    process: Option<Process>,
    asked: Option<Instant>,
}

/// What is known of processes, and what is to be asked.
#[derive(Debug)]
pub struct Processes {
    known: Recent<Program, Entry>,
    questions: Vec<Program>,
}

impl Processes {
    /// Knows none yet, and remembers the last `processes`.
    pub fn new(processes: usize) -> Self {
        Self { known: Recent::new(processes), questions: Vec::new() }
    }

    /// Takes note that `program` is there.
    pub fn seen(&mut self, program: Program) {
        let entry = self.known.get_or_insert_with(program, || Entry { process: None, asked: None });
        let ask = entry.process.is_none() && entry.asked.is_none_or(|asked| asked.elapsed() > PATIENCE);
        if ask && self.questions.len() < MAX_QUESTIONS {
            entry.asked = Some(Instant::now());
            self.questions.push(program);
        }
    }

    /// What is known of `program`.
    pub fn get(&self, program: Program) -> Process {
        self.known.peek(&program).and_then(|entry| entry.process.clone()).unwrap_or_default()
    }

    /// The programs to look up; each is told once.
    pub fn questions(&mut self) -> Vec<Program> {
        std::mem::take(&mut self.questions)
    }

    /// Takes in what was found out of `program`.
    pub fn answer(&mut self, program: Program, process: Process) {
        self.known.get_or_insert_with(program, || Entry { process: None, asked: None }).process =
            Some(process);
    }
}

/// What `proc` (normally `/proc`) says of process `pid`; none if it is gone.
pub fn look_up(proc: &Path, pid: u32) -> Option<Process> {
    let folder = proc.join(pid.to_string());
    let start_ns = start(&fs::read(folder.join("stat")).ok()?)?;
    let executable = fs::read_link(folder.join("exe")).ok();
    let executable = executable.as_deref().and_then(Path::to_str).unwrap_or_default();
    // Every Android app runs the zygote's executable, and calls itself by its application id.
    let is_zygote = executable.rsplit('/').next().is_some_and(|name| name.starts_with("app_process"));
    let mut app = if is_zygote {
        let line = fs::read(folder.join("cmdline")).ok()?;
        let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    } else {
        executable.to_owned()
    };
    while app.len() > MAX_APP {
        app.pop();
    }
    Some(Process { app, start_ns })
}

/// Field 22 of /proc/PID/stat, in nanoseconds. Source: proc_pid_stat(5).
fn start(stat: &[u8]) -> Option<u64> {
    // Field 2 is the comm in parentheses, which may hold spaces and parentheses itself.
    let after_comm = stat.rsplit(|byte| *byte == b')').next()?;
    let ticks: u64 = str::from_utf8(after_comm).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(ticks * (1_000_000_000 / u64::try_from(per_second).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_executable_and_its_start() {
        let process = look_up(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(Path::new(&process.app), std::env::current_exe().unwrap());
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!(process.start_ns > 0 && process.start_ns as f64 <= uptime * 1e9);
    }

    #[test]
    fn an_android_app_is_its_application_id() {
        let proc = tempfile::tempdir().unwrap();
        let folder = proc.path().join("42");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("stat"), "42 (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 300 0 0").unwrap();
        fs::write(folder.join("cmdline"), "org.example.app:remote\0--x\0").unwrap();
        std::os::unix::fs::symlink("/system/bin/app_process64", folder.join("exe")).unwrap();
        let process = look_up(proc.path(), 42).unwrap();
        assert_eq!(process, Process { app: "org.example.app:remote".into(), start_ns: 3_000_000_000 });
        assert_eq!(look_up(proc.path(), 43), None);
    }

    #[test]
    fn a_program_is_asked_for_once_and_the_next_with_its_process_id_anew() {
        let (first, second) = (Program { pid: 7, life: 0 }, Program { pid: 7, life: 99 });
        let mut processes = Processes::new(1024);
        processes.seen(first);
        processes.seen(first);
        assert_eq!((processes.questions(), processes.questions()), (vec![first], vec![]));
        processes.answer(first, Process { app: "x".into(), start_ns: 1 });
        processes.seen(first);
        processes.seen(second);
        assert_eq!(processes.questions(), [second]);
        assert_eq!((processes.get(first).app, processes.get(second)), ("x".into(), Process::default()));
    }

    #[test]
    fn questions_are_bounded() {
        let mut processes = Processes::new(1024);
        (0..10_000).for_each(|pid| processes.seen(Program { pid, life: 0 }));
        assert_eq!(processes.questions().len(), MAX_QUESTIONS);
    }
}
