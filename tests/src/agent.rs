//! A running `plaintapd`, or one that refuses to run.

use std::collections::BTreeMap;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::lines::Lines;
use crate::need;
use crate::process::{self, Process};
use crate::until;

/// An agent that accepts clients.
pub struct Agent {
    process: Process,
    /// Where it listens: `ws://127.0.0.1:PORT/`.
    pub url: String,
    /// Where it listens.
    pub port: u16,
}

impl Agent {
    /// Starts an agent on a port of the kernel's choice and waits until it has attached and listens.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_at("ws://127.0.0.1:0/", arguments)
    }

    /// Starts an agent that sees only the process `pid`, and `library` there.
    pub fn watching(pid: u32, library: &str) -> Result<Self> {
        Self::start(&["--library", library, "--pid", &pid.to_string()])
    }

    /// Starts an agent that finds no description of the kernel's types.
    pub fn without_btf(arguments: &[&str]) -> Result<Self> {
        Self::start_after(
            "for file in /sys/kernel/btf/vmlinux; do [ ! -e $file ] || mount --bind /dev/null $file || exit; done",
            arguments,
        )
    }

    /// Starts an agent in a mount namespace of its own, in which a shell's `script` changes something first.
    pub fn start_after(script: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = process::in_mount_namespace(&format!("{script}\nexec \"$0\" \"$@\""))?;
        command.arg(need::binary("plaintapd")?);
        Self::run(&mut command, "ws://127.0.0.1:0/", arguments)
    }

    /// Starts an agent in an environment with these variables more.
    pub fn start_with(variables: &[(&str, &str)], arguments: &[&str]) -> Result<Self> {
        Self::run(plaintapd()?.envs(variables.iter().copied()), "ws://127.0.0.1:0/", arguments)
    }

    /// Starts an agent at the address that `url` gives.
    pub fn start_at(url: &str, arguments: &[&str]) -> Result<Self> {
        Self::run(&mut plaintapd()?, url, arguments)
    }

    fn run(command: &mut Command, url: &str, arguments: &[&str]) -> Result<Self> {
        need::root()?;
        let mut process = Process::start(command.args(["--ecaptureq", url]).args(arguments))?;
        let listening = process.stderr.wait_for(0, "a line `listening url=`", |line| url_in(line).is_some());
        let (_, line) = listening.with_context(|| format!("the agent ended with {:?}", process.ended()))?;
        let url = url_in(&line).context("no URL in its line")?.to_owned();
        let port = url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("no port in {url}"))?;
        Ok(Self { process, url, port })
    }

    /// What it says on standard error.
    pub fn log(&self) -> &Lines {
        &self.process.stderr
    }

    /// The pid of the half that attaches.
    pub fn parent(&self) -> u32 {
        self.process.pid()
    }

    /// The pid of the half that serves.
    pub fn child(&self) -> Result<u32> {
        process::children(self.parent())?.pop_first().context("the agent has no second process")
    }

    /// Both pids.
    pub fn pids(&self) -> Result<[u32; 2]> {
        Ok([self.parent(), self.child()?])
    }

    /// How many files each half has open, by pid.
    pub fn open_files(&self) -> Result<BTreeMap<u32, usize>> {
        self.pids()?.into_iter().map(|pid| Ok((pid, process::open_files(pid)?.len()))).collect()
    }

    /// Waits until its halves are those that `first` names and have no more files open than then.
    ///
    /// Fewer are fine: at first it may have been looking something up.
    pub fn holds_no_more_than(&self, first: &BTreeMap<u32, usize>) -> Result<()> {
        let no_more = |now: &BTreeMap<u32, usize>| {
            now.len() == first.len()
                && now.iter().zip(first).all(|(now, first)| now.0 == first.0 && now.1 <= first.1)
        };
        until("the agent to close what it opened", || Ok(no_more(&self.open_files()?).then_some(())))
            .with_context(|| format!("at first {first:?}, now {:?}", self.open_files()))
    }

    /// Sends a signal to the half that attaches, whose pid a person sees first.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait()
    }

    /// Asks it to end and waits until it has.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }
}

/// How an agent that did not run ended.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it said on standard error.
    pub lines: Vec<String>,
}

impl Refusal {
    /// The one line that says what is wrong; an error where there are none, several, or a panic.
    pub fn error(&self) -> Result<&str> {
        let told =
            |line: &&String| ![" TRC ", " DBG ", " INF ", " WRN "].iter().any(|level| line.contains(level));
        let errors: Vec<&String> = self.lines.iter().filter(told).collect();
        ensure!(!self.lines.iter().any(|line| line.contains("panicked")), "it panicked: {:#?}", self.lines);
        match errors[..] {
            [line] => Ok(line),
            _ => bail!("{} error lines where one is due: {:#?}", errors.len(), self.lines),
        }
    }
}

/// Runs `command` to its end, which should come by itself.
pub fn refusal(command: &mut Command) -> Result<Refusal> {
    let mut process = Process::start(command)?;
    process.close_input();
    let ended = process.wait();
    let status = ended.with_context(|| format!("it went on: {}", process.stderr.all().join("\n")))?;
    Ok(Refusal { code: status.code(), lines: process.stderr.to_the_end()? })
}

/// The agent's command line, without arguments.
pub fn plaintapd() -> Result<Command> {
    let mut command = Command::new(need::binary("plaintapd")?);
    // What the person's shell has set must not change what the tests see.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
    Ok(command)
}

fn url_in(line: &str) -> Option<&str> {
    line.split_once(" listening url=")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_read_from_the_log() {
        let line = "2026-11-23T14:16:10Z INF listening url=ws://127.0.0.1:40123/";
        assert_eq!(url_in(line), Some("ws://127.0.0.1:40123/"));
        assert_eq!(url_in("2026-11-23T14:16:10Z INF attached library=/x"), None);
    }
}
