//! Life as a service: a manager that watches hears of an agent that hangs, and who reads no log keeps nobody waiting.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
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
use plaintap_tests::waits::restarted;
use plaintap_tests::{BORINGSSL, PATIENCE, process, until};
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
        let length = restarted(PATIENCE, || self.socket.recv(&mut text)).context("nothing was said")?;
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
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
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

/// The URL that `agent` says it listens at, read byte by byte: nothing behind that is read.
fn url_in(mut log: &File, agent: &mut Running) -> Result<String> {
    let mut said = String::new();
    until("the agent to say where it listens", || {
        let ended = agent.0.try_wait()?;
        while poll(&mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? > 0 {
            let mut byte = [0];
            log.read_exact(&mut byte)?;
            said.push(char::from(byte[0]));
            if let Some((_, url)) = said.split_once(" listening url=")
                && url.ends_with('\n')
            {
                return Ok(Some(url.trim_end().to_owned()));
            }
        }
        ended.map_or(Ok(None), |status| bail!("it ended with {status}: {said}"))
    })
}

/// Leaves no room for a byte in what `writer` writes to.
fn fill(writer: &OwnedFd) -> Result<()> {
    // Opened anew: whether to wait is a matter of an open file, and the agent is to find this one as it was.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut writer = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    // A terminal moves what it holds to where it is read, which makes room once more: full is what stays so.
    let mut looks = 0;
    until("no room to be left", || {
        looks += 1;
        loop {
            match writer.write(b".") {
                Ok(_) => looks = 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok((looks > 10).then_some(()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    })
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
    let url = url_in(&reader, &mut agent)?;
    fill(&stderr)?;
    // Each client is a line of the one half's, each signal one of the other's.
    let mut client = Client::connect(&url)?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    for seed in 0..10 {
        process::send(agent.0.id(), Signal::SIGHUP)?;
        Client::connect(&url)?;
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

#[test]
fn to_serve_clients_as_root_is_warned_of() -> Result<()> {
    for (user, warns) in [("root", true), ("0", true), ("nobody", false)] {
        let agent = Agent::start(&["--library", BORINGSSL, "--user", user])?;
        let said = agent.log().all();
        let warned = said.iter().any(|line| line.contains(" WRN clients are served by root"));
        assert_eq!(warned, warns, "{user}: {said:#?}");
    }
    Ok(())
}
