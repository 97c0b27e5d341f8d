//! Sockets' calls that have a timeout.
//!
//! Linux begins a socket's calls again by itself after the process was stopped (SIGSTOP), unless the socket has a timeout:
//! they fail with EINTR then. So they do after a freeze, be it a cgroup's or a suspend's. Source: signal(7), "Interruption
//! of system calls and library functions by stop signals", for the first.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    ops::Deref,
    time::{Duration, Instant},
};

/// What `call` does when nothing interrupts it. Each time it waits for its own timeout; interrupted after that, it has timed
/// out, so that it takes twice as long at the most.
pub fn restarted<T>(timeout: Duration, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                if began.elapsed() >= timeout {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            done => return done,
        }
    }
}

/// Whether a call took longer than the socket's timeout.
pub fn is_timeout(error: &io::Error) -> bool {
    // Unix says the one, Windows the other.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A connection of which nothing interrupts a read or a write, for those who take EINTR for its end, as tungstenite does in
/// a handshake.
#[derive(Debug)]
pub struct Restarting(pub TcpStream);

impl Deref for Restarting {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl Read for Restarting {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                restarted(self.0.read_timeout()?.unwrap_or(Duration::MAX), || self.0.read(bytes))
            }
            done => done,
        }
    }
}

impl Write for Restarting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                restarted(self.0.write_timeout()?.unwrap_or(Duration::MAX), || self.0.write(bytes))
            }
            done => done,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_interrupted_is_done_all_the_same_and_other_errors_are_told() {
        let mut calls = 0;
        let done = restarted(Duration::MAX, || {
            calls += 1;
            if calls < 4 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(calls) }
        });
        assert_eq!(done.unwrap(), 4);
        let broken: io::Result<()> = restarted(Duration::MAX, || Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_interrupted_for_ever_times_out() {
        let waited: io::Result<()> = restarted(Duration::from_millis(20), || {
            thread::sleep(Duration::from_millis(1));
            Err(io::ErrorKind::Interrupted.into())
        });
        assert!(is_timeout(&waited.unwrap_err()));
    }
}
