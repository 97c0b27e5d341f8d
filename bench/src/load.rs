//! The load: a child process that makes TLS calls when told to, and times them.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Paths;

/// A running load; killed when dropped.
pub struct Load {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// How a size is measured: so many calls at a time that what one batch captures, written and read, leaves the default ring
/// room.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Bytes of a call.
    pub size: u32,
    /// Calls of a batch.
    pub calls: u32,
    /// Batches of a round.
    pub batches: u32,
}

impl Load {
    /// Starts it, and waits until its connection stands.
    pub fn start(paths: &Paths, library: &str, transport: &str) -> Result<Self> {
        let mut child = Command::new(&paths.load)
            .arg(library)
            .args([paths.certificate.join("cert.pem"), paths.certificate.join("key.pem")])
            .arg(transport)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", paths.load.display()))?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut load = Self { child, input, output };
        ensure!(load.line()? == "ready", "the load did not get ready");
        Ok(load)
    }

    /// Ends it from elsewhere.
    pub fn killer(&self) -> Killer {
        Killer(Pid::from_raw(self.child.id() as i32))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The medians of what writing and reading a call's bytes cost, in nanoseconds.
    pub fn cost(&mut self, batch: Batch, pause_us: u32) -> Result<[f64; 2]> {
        let Batch { size, calls, batches } = batch;
        self.ask(&format!("cost {size} {calls} {batches} {pause_us}"))
    }

    /// Writes `size` bytes `per_second` times a second, 0 for as fast as it can: the number of calls, and the nanoseconds
    /// that they took.
    pub fn rate(&mut self, size: u32, per_second: u64, milliseconds: u64) -> Result<[f64; 2]> {
        self.ask(&format!("rate {size} {per_second} {milliseconds}"))
    }

    fn ask(&mut self, question: &str) -> Result<[f64; 2]> {
        writeln!(self.input, "{question}").context("telling the load")?;
        let answer = self.line()?;
        let mut words = answer.split(' ').skip(1).map(str::parse);
        match (words.next(), words.next()) {
            (Some(Ok(one)), Some(Ok(other))) => Ok([one, other]),
            _ => Err(anyhow::anyhow!("the load answered {question:?} with {answer:?}")),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("listening to the load")?;
        Ok(line.trim_end().to_owned())
    }
}

/// Ends a load that is still there, as its thread has it.
#[derive(Clone, Copy, Debug)]
pub struct Killer(Pid);

impl Killer {
    /// Ends it.
    pub fn kill(self) {
        // It may have ended.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
