//! Life as a service: a manager that watches hears of an agent that hangs, and who reads no log keeps nobody waiting.

use std::fs;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::unistd::pipe;
use plaintap_proto::Direction;
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, process, until};
use tempfile::TempDir;

/// What stands in for a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { socket, folder })
    }

    /// An agent of this manager, which is to say every half `patience` that it is alive.
    fn agent(&self, patience: Duration) -> Result<Agent> {
        let path = self.folder.path().join("notify");
        let (path, patience) = (path.to_str().context("its path")?, patience.as_micros().to_string());
        let variables = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", &patience)];
        Agent::start_with(&variables, &["--library", BORINGSSL])
    }

    fn hears(&self) -> Result<String> {
        let mut text = [0; 64];
        let length = self.socket.recv(&mut text).context("nothing was said")?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }
}

#[test]
fn the_watchdog_hears_nothing_while_either_half_hangs() -> Result<()> {
    let manager = Manager::start()?;
    let agent = manager.agent(Duration::from_millis(200))?;
    assert_eq!(manager.hears()?, "READY=1");
    for pid in agent.pids()? {
        assert_eq!(manager.hears()?, "WATCHDOG=1");
        process::send(pid, Signal::SIGSTOP)?;
        until("it to be stopped", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(stat.contains(") T ").then_some(()))
        })?;
        // What was on its way between the halves arrives first, however much a busy machine let pile up.
        manager.socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        until("two seconds of silence about who is stopped", || match manager.socket.recv(&mut [0; 64]) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some(())),
            Err(error) => Err(error.into()),
        })?;
        process::send(pid, Signal::SIGCONT)?;
        manager.socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    assert_eq!(manager.hears()?, "WATCHDOG=1");
    assert_eq!(agent.stop()?.code(), Some(0));
    Ok(())
}

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The URL that an agent says it listens at, read byte by byte: nothing behind that is read.
fn url_in(mut log: &File) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        log.read_exact(&mut byte)?;
        line.push(byte[0]);
        let text = String::from_utf8_lossy(&line);
        match text.split_once(" listening url=") {
            Some((_, url)) if url.ends_with('\n') => return Ok(url.trim_end().to_owned()),
            _ if byte == *b"\n" => line.clear(),
            _ => {}
        }
    }
}

/// An agent that captures, serves and ends, while there is no room for its log and nobody makes any.
fn does_well_unread(reader: OwnedFd, stderr: OwnedFd) -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let mut command = agent::plaintapd()?;
    command.args(["--ecaptureq", "ws://127.0.0.1:0/", "--library", BORINGSSL, "--pid", &pid]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
    let mut agent = Running(command.spawn()?);
    let reader = File::from(reader);
    let url = url_in(&reader)?;
    until("the log to be full", || {
        // Each is a line of the one half's, each client one or two of the other's.
        process::send(agent.0.id(), Signal::SIGHUP)?;
        Client::connect(&url)?;
        let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        Ok((poll(&mut room, PollTimeout::ZERO)? == 0).then_some(()))
    })?;
    let mut client = Client::connect(&url)?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    for seed in 0..10 {
        process::send(agent.0.id(), Signal::SIGHUP)?;
        driver.write(Side::Client, 1000, seed)?;
    }
    let seen = conversation::wait_for(&mut client, &half, 10_000)?;
    let expected = (0..10).flat_map(|seed| pattern(1000, seed)).collect::<Vec<_>>();
    same_bytes("what the client wrote", &seen.bytes, &expected)?;
    process::send(agent.0.id(), Signal::SIGTERM)?;
    let status = until("the agent's end", || Ok(agent.0.try_wait()?))?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[test]
fn an_agent_whose_log_nobody_reads_captures_and_ends_all_the_same() -> Result<()> {
    let terminal = openpty(None, None)?;
    does_well_unread(terminal.master, terminal.slave).context("on a terminal")?;
    let (reader, writer) = pipe()?;
    does_well_unread(reader, writer).context("on a pipe")
}
