//! Life as a service: what a service manager is told, and what it costs the device to have the agent there.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half};
use plaintap_tests::driver::{Driver, Side};
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
    fn agent(&self, patience: Option<Duration>) -> Result<Agent> {
        let path = self.folder.path().join("notify");
        let mut environment = vec![("NOTIFY_SOCKET", path.to_str().context("its path")?.to_owned())];
        environment.extend(patience.map(|patience| ("WATCHDOG_USEC", patience.as_micros().to_string())));
        Agent::start_with(&environment, &["--library", BORINGSSL])
    }

    fn hears(&self) -> Result<String> {
        let mut text = [0; 64];
        let length = self.socket.recv(&mut text).context("nothing was said")?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Takes what was said so far.
    fn skip(&self) -> Result<()> {
        self.socket.set_nonblocking(true)?;
        while self.socket.recv(&mut [0; 64]).is_ok() {}
        Ok(self.socket.set_nonblocking(false)?)
    }
}

#[test]
fn a_service_manager_hears_when_clients_can_connect_and_when_it_ends() -> Result<()> {
    let manager = Manager::start()?;
    let agent = manager.agent(None)?;
    assert_eq!(manager.hears()?, "READY=1");
    Client::connect(&agent.url)?;
    assert_eq!(agent.stop()?.code(), Some(0));
    assert_eq!(manager.hears()?, "STOPPING=1");
    Ok(())
}

#[test]
fn the_watchdog_hears_nothing_while_either_half_hangs() -> Result<()> {
    let manager = Manager::start()?;
    let agent = manager.agent(Some(Duration::from_millis(200)))?;
    assert_eq!(manager.hears()?, "READY=1");
    for pid in agent.pids()? {
        assert_eq!(manager.hears()?, "WATCHDOG=1");
        process::send(pid, Signal::SIGSTOP)?;
        until("it to be stopped", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(stat.contains(") T ").then_some(()))
        })?;
        // What was on its way between the halves arrives first.
        manager.socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        manager.skip()?;
        let mut late = 0;
        let silence = loop {
            match manager.socket.recv(&mut [0; 64]) {
                Ok(_) if late < 2 => late += 1,
                Ok(_) => bail!("{pid} is stopped, and still said to be alive"),
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(silence, ErrorKind::WouldBlock);
        process::send(pid, Signal::SIGCONT)?;
        manager.socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    assert_eq!(manager.hears()?, "WATCHDOG=1");
    assert_eq!(agent.stop()?.code(), Some(0));
    Ok(())
}

#[test]
fn one_that_was_killed_is_started_again_on_its_port_at_once() -> Result<()> {
    let mut agent = Agent::start(&["--library", BORINGSSL])?;
    let url = agent.url.clone();
    for _ in 0..3 {
        let _client = Client::connect(&url)?;
        agent.signal(Signal::SIGKILL)?;
        agent.wait()?;
        // As a supervisor does, which tries again as long as the other half still lets go of the port.
        agent = until("the port", || match Agent::start_at(&url, &["--library", BORINGSSL]) {
            Ok(agent) => Ok(Some(agent)),
            Err(error) if format!("{error:#}").contains("ended with") => Ok(None),
            Err(error) => Err(error),
        })?;
        assert_eq!(agent.url, url);
    }
    Ok(())
}

#[test]
fn nothing_is_written_to_any_disk() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    for seed in 0..4 {
        driver.write(Side::Client, 1_000_000, seed)?;
    }
    conversation::wait_for(&mut client, &half, 4_000_000)?;
    for pid in agent.pids()? {
        // What was to go to a disk, whether it has gone there or not. Source: proc(5), /proc/PID/io.
        let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
        ensure!(io.lines().any(|line| line == "write_bytes: 0"), "the agent's {pid} wrote: {io}");
    }
    driver.quit()
}
