//! Life as a service: a manager that watches hears of an agent that hangs.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use plaintap_tests::agent::Agent;
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
