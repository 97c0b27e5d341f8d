//! Sockets' calls that have a timeout.
//!
//! Where a process was stopped or frozen (SIGSTOP, a freezer cgroup, a system's suspend), Linux begins a socket's calls again
//! by itself, but not those of a socket with a timeout: they fail with EINTR. Source: signal(7), "Interruption of system calls
//! and library functions by stop signals".

use std::{
    io::{self, IoSlice, Read, Write},
    ops::Deref,
};

/// What `call` does when nothing interrupts it.
pub fn restarted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Whether a call took longer than the socket's timeout.
pub fn is_timeout(error: &io::Error) -> bool {
    // Unix says the one, Windows the other.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A stream of which nothing interrupts a read or a write, for those who take EINTR for its end, as tungstenite does in a
/// handshake. A wait that was interrupted has its whole timeout again.
#[derive(Debug)]
pub struct Restarting<S>(pub S);

impl<S> Deref for Restarting<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S: Read> Read for Restarting<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        restarted(|| self.0.read(bytes))
    }
}

impl<S: Write> Write for Restarting<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        restarted(|| self.0.write(bytes))
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        restarted(|| self.0.write_vectored(pieces))
    }

    fn flush(&mut self) -> io::Result<()> {
        restarted(|| self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interrupted each second time, from the first on.
    struct Frozen<S> {
        stream: S,
        calls: usize,
    }

    impl<S> Frozen<S> {
        fn call<T>(&mut self, call: impl FnOnce(&mut S) -> io::Result<T>) -> io::Result<T> {
            self.calls += 1;
            if self.calls % 2 == 1 { Err(io::ErrorKind::Interrupted.into()) } else { call(&mut self.stream) }
        }
    }

    impl<S: Read> Read for Frozen<S> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.call(|stream| stream.read(bytes))
        }
    }

    impl<S: Write> Write for Frozen<S> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.call(|stream| stream.write(bytes))
        }

        fn flush(&mut self) -> io::Result<()> {
            self.call(Write::flush)
        }
    }

    #[test]
    fn what_is_interrupted_is_done_all_the_same_and_other_errors_are_told() {
        let mut from = Restarting(Frozen { stream: &b"ab"[..], calls: 0 });
        let mut bytes = [0; 4];
        assert_eq!((from.read(&mut bytes).unwrap(), from.read(&mut bytes[2..]).unwrap()), (2, 0));
        let mut room = [0; 2];
        let mut to = Restarting(Frozen { stream: &mut room[..], calls: 0 });
        assert_eq!((to.write(&bytes).unwrap(), to.write(b"c").unwrap()), (2, 0));
        to.flush().unwrap();
        assert_eq!(&room, b"ab");
        let broken: io::Result<()> = restarted(|| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
