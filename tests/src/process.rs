//! A program that a test started: its pid, its pipes, its end. Dropping it ends it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lines::Lines;
use crate::{need, until};

/// A running program, and the pipes to and from it.
pub struct Process {
    child: Child,
    name: String,
    /// Its standard input; `None` once closed.
    input: Option<ChildStdin>,
    /// What it prints.
    pub stdout: Lines,
    /// What it complains of.
    pub stderr: Lines,
}

impl Process {
    /// Starts `command`, with pipes at all three ends.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take();
        let stdout = child.stdout.take().context("no pipe for its output")?;
        let stderr = child.stderr.take().context("no pipe for its errors")?;
        let stdout = Lines::of(format!("{name}'s output"), stdout);
        let stderr = Lines::of(format!("{name}'s errors"), stderr);
        Ok(Self { child, name, input, stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("its standard input is closed")?;
        input
            .write_all(bytes)
            .and_then(|()| input.flush())
            .with_context(|| format!("writing to {}", self.name))
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, with a bound.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("the end of {} ({})", self.name, self.pid());
        until(&what, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let children = children(self.pid()).unwrap_or_default();
            // It may end by itself in between; then there is nothing to do.
            let _ = self.child.kill();
            let _ = self.child.wait();
            for child in children {
                let _ = send(child, Signal::SIGKILL);
            }
        }
    }
}

/// Sends the process `pid` a signal.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let target = Pid::from_raw(i32::try_from(pid)?);
    kill(target, signal).with_context(|| format!("sending {signal} to {pid}"))
}

/// The children of the process `pid`, of any of its threads.
pub fn children(pid: u32) -> Result<BTreeSet<u32>> {
    let mut children = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("the threads of {pid}"))? {
        let Ok(text) = fs::read_to_string(task?.path().join("children")) else { continue };
        children.extend(text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(children)
}

/// Whether the process `pid` still runs, any thread of it: one that is dead but not yet waited for doesn't.
pub fn runs(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    // A first thread that has ended stays as a zombie; the others hold the process's files until they end too.
    threads.flatten().any(|thread| {
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { return false };
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    })
}

/// The open files of the process `pid`: what each descriptor is.
pub fn open_files(pid: u32) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("the open files of {pid}"))?
    {
        // A descriptor may be closed while we look.
        if let Ok(target) = fs::read_link(entry?.path()) {
            files.push(target.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the program at `from` to `to`, to be run there.
///
/// Not by this process: while it has a file open to write, so has whatever another test starts just then, for a moment, and
/// until that is over the file can't be run.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new(need::program("cp", "coreutils")?).args([from, to]).status()?;
    ensure!(status.success(), "copying {} to {}: {status}", from.display(), to.display());
    Ok(())
}

/// The program `name` under another name in `folder`, which is its threads' name too: one by which it is told from what other
/// tests start.
pub fn renamed(program: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    symlink(program, &path).with_context(|| format!("naming {} {name}", program.display()))?;
    Ok(path)
}

/// Runs a shell's `script` in a mount namespace of its own; its arguments follow, the first as `$0`.
pub fn in_mount_namespace(script: &str) -> Result<Command> {
    let mut command = Command::new(need::program("unshare", "util-linux")?);
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_watched_to_its_end() {
        let mut program =
            Process::start(Command::new("sh").args(["-c", "read x; echo got $x; exit 7"])).unwrap();
        assert!(runs(program.pid()));
        program.write(b"this\n").unwrap();
        assert_eq!(program.wait().unwrap().code(), Some(7));
        assert_eq!(program.stdout.to_the_end().unwrap(), ["got this"]);
    }

    #[test]
    fn dropping_ends_a_program_and_its_children() {
        let program = Process::start(Command::new("sh").args(["-c", "sleep 60 & echo $!; wait"])).unwrap();
        let (_, line) = program.stdout.wait_for(0, "the child's pid", |_| true).unwrap();
        let (pid, child) = (program.pid(), line.parse().unwrap());
        assert_eq!(children(pid).unwrap(), BTreeSet::from([child]));
        drop(program);
        assert!(!runs(pid));
        until("the child's end", || Ok((!runs(child)).then_some(()))).unwrap();
    }
}
