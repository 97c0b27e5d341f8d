//! What a service manager is told, as systemd's: that clients can connect, that we are alive, that we end.
//!
//! A few datagrams of text, and nothing where no manager asks for them. Source: sd_notify(3), sd_watchdog_enabled(3).

use std::{
    env, io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};

/// The service manager, if there is one that wants to be told.
#[derive(Debug, Default)]
pub struct Service {
    to: Option<(OwnedFd, UnixAddr)>,
    /// How often it is to be told that we are alive.
    watchdog: Option<Duration>,
    told_ready: bool,
}

impl Service {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        let Ok(place) = env::var("NOTIFY_SOCKET") else { return Self::default() };
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        Self::at(&place, number("WATCHDOG_USEC").filter(|_| ours)).unwrap_or_else(|error| {
            log::warn!("can't tell the service manager anything: NOTIFY_SOCKET={place}: {error}");
            Self::default()
        })
    }

    /// The one at a path or an abstract `@NAME`, which takes us for dead after `patience` microseconds without a word.
    fn at(place: &str, patience: Option<u64>) -> io::Result<Self> {
        let address = match place.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None if place.starts_with('/') => UnixAddr::new(place)?,
            None => return Err(io::Error::other("neither a path nor an abstract socket")),
        };
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        // Twice in that time, so that one that comes late does no harm.
        let watchdog =
            patience.filter(|micros| *micros > 0).map(|micros| Duration::from_micros((micros / 2).max(1000)));
        Ok(Self { to: Some((socket, address)), watchdog, told_ready: false })
    }

    /// How often [`alive`](Self::alive) is to be called, if at all after the first time.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Both halves do their work. The first time this is: clients can connect.
    pub fn alive(&mut self) {
        if !self.told_ready {
            self.told_ready = self.tell("READY=1");
        }
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// We are about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Never waits: a manager that does not read must not keep us from our work.
    fn tell(&self, text: &str) -> bool {
        let Some((socket, address)) = &self.to else { return true };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let told = sendto(socket.as_raw_fd(), text.as_bytes(), address, flags);
        if let Err(error) = told {
            log::debug!("can't tell the service manager {text}: {error}");
        }
        told.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut text = [0; 64];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn ready_is_told_once_and_being_alive_as_often_as_it_is_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut service = Service::at(path.to_str().unwrap(), Some(3_000_000)).unwrap();
        assert_eq!(service.watchdog(), Some(Duration::from_millis(1500)));
        service.alive();
        service.alive();
        service.stopping();
        for text in ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"] {
            assert_eq!(heard(&manager), text);
        }
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let mut service = Service::at(path.to_str().unwrap(), Some(1)).unwrap();
        service.alive();
        let _manager = UnixDatagram::bind(&path).unwrap();
        for _ in 0..10_000 {
            service.alive();
        }
    }

    #[test]
    fn who_has_no_manager_tells_nobody() {
        let mut service = Service::default();
        assert_eq!(service.watchdog(), None);
        service.alive();
        service.stopping();
        assert!(Service::at("vsock:2:1", None).is_err());
    }
}
