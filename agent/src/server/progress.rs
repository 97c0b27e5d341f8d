//! A client's socket: what it holds, what the client has accepted, and how much is read of it at a time.
//!
//! A client may be as slow as it likes, since it costs no more than its socket's buffer; one that takes nothing at all keeps a
//! place that others want. And one that sends without end must not keep the others waiting.

use std::{
    cell::Cell,
    io,
    net::TcpStream,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use smol::{
    Async, Timer,
    io::{AsyncRead, AsyncWrite},
};

/// How long a client may accept no byte of what was sent.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that the kernel holds for a client, which it doubles for its own bookkeeping. It would let them grow to megabytes;
/// the journal, which all clients share, holds more than that for all of them.
const SEND_BUFFER: usize = 128 << 10;

/// Reads in a row before other tasks get a turn. A message in endless fragments would be read for ever.
const READS: u32 = 4;

mod raw {
    use nix::libc;

    // Bytes that the other end has not yet accepted. Source: tcp(7), SIOCOUTQ; unix(7), SIOCOUTQ is the same.
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
}

/// Prepares a client's socket for a stream.
pub fn prepare(socket: &Async<TcpStream>) {
    // An event is one small message at most times, and somebody is waiting for it.
    let _ = socket.get_ref().set_nodelay(true);
    let _ = setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER);
}

/// Ends a connection at once, so that nothing of it lingers in the kernel.
pub fn reset(socket: Async<TcpStream>) {
    let _ = setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// A client's socket that counts what is written and bounds what is read at a time.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    socket: &'a Async<TcpStream>,
    written: &'a Cell<u64>,
    reads: u32,
}

impl<'a> Counted<'a> {
    /// Counts in `written`.
    pub fn new(socket: &'a Async<TcpStream>, written: &'a Cell<u64>) -> Self {
        Self { socket, written, reads: 0 }
    }

    /// Waits until the client has accepted nothing for `patience` though there was something. Found out after a third more
    /// than that at the latest.
    pub async fn stuck(self, patience: Duration) {
        let mut last = self.accepted();
        let mut since = Instant::now();
        loop {
            Timer::after(patience / 3).await;
            let now = self.accepted();
            if now != last || self.waiting() == 0 {
                last = now;
                since = Instant::now();
            } else if since.elapsed() >= patience {
                return;
            }
        }
    }

    fn accepted(&self) -> u64 {
        self.written.get().wrapping_sub(self.waiting())
    }

    /// Bytes that were sent and not accepted yet.
    fn waiting(&self) -> u64 {
        use std::os::fd::AsRawFd;
        let mut bytes = 0;
        // SAFETY: the descriptor is open for as long as the socket is borrowed, and `bytes` is the int that is written to.
        #[expect(unsafe_code, reason = "an ioctl")]
        let asked = unsafe { raw::outq(self.socket.as_raw_fd(), &mut bytes) };
        asked.ok().and_then(|_| u64::try_from(bytes).ok()).unwrap_or(0)
    }
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.reads >= READS {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.socket).poll_read(cx, into);
        self.reads = if polled.is_ready() { self.reads + 1 } else { 0 };
        polled
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, from);
        if let Poll::Ready(Ok(length)) = polled {
            self.written.set(self.written.get().wrapping_add(length as u64));
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use smol::{
        future,
        io::{AsyncReadExt, AsyncWriteExt},
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(40);

    fn pair() -> (Async<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Async::new(listener.accept().unwrap().0).unwrap();
        prepare(&socket);
        (socket, client)
    }

    async fn is_stuck_within(counted: Counted<'_>, limit: Duration) -> bool {
        let stuck = async {
            counted.stuck(SHORT).await;
            true
        };
        let late = async {
            Timer::after(limit).await;
            false
        };
        future::or(stuck, late).await
    }

    #[test]
    fn who_sends_without_end_lets_others_have_a_turn() {
        smol::block_on(async {
            let (socket, mut client) = pair();
            client.write_all(&[7; 1000]).unwrap();
            let written = Cell::new(0);
            let mut counted = Counted::new(&socket, &written);
            let (mut read, turns) = (0, Cell::new(0));
            let reading = async {
                while read < 1000 {
                    let mut byte = [0];
                    counted.read_exact(&mut byte).await.unwrap();
                    read += 1;
                }
            };
            let others = async {
                loop {
                    future::yield_now().await;
                    turns.set(turns.get() + 1);
                }
            };
            future::or(reading, others).await;
            // But for the first and the last turn.
            assert!(turns.get() >= 1000 / READS - 2, "{turns:?}");
        });
    }

    #[test]
    fn who_reads_nothing_is_found_and_reset() {
        smol::block_on(async {
            let (socket, mut client) = pair();
            let written = Cell::new(0);
            let mut counted = Counted::new(&socket, &written);
            let full = async {
                while counted.write_all(&[0; 1 << 16]).await.is_ok() {}
                false
            };
            assert!(future::or(full, is_stuck_within(Counted::new(&socket, &written), SHORT * 100)).await);
            assert!(written.get() > 0);
            reset(socket);
            let ended = loop {
                match client.read(&mut [0; 1 << 16]) {
                    Ok(0) => break io::ErrorKind::UnexpectedEof,
                    Ok(_) => {}
                    Err(error) => break error.kind(),
                }
            };
            assert_eq!(ended, io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn who_reads_slowly_or_has_nothing_to_read_is_not_stuck() {
        smol::block_on(async {
            let (socket, client) = pair();
            let written = Cell::new(0);
            let mut counted = Counted::new(&socket, &written);
            assert!(!is_stuck_within(counted, SHORT * 5).await);
            let mut client = Async::new(client).unwrap();
            let sending = async {
                while counted.write_all(&[0; 1 << 16]).await.is_ok() {}
                true
            };
            let reading = async {
                for _ in 0..20 {
                    Timer::after(SHORT / 4).await;
                    client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
                }
                false
            };
            let stuck = is_stuck_within(Counted::new(&socket, &written), SHORT * 100);
            assert!(!future::or(future::or(sending, reading), stuck).await);
        });
    }
}
