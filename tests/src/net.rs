//! The kernel's tables of TCP sockets: who listens, and which ports a connection really has.

use std::os::fd::AsRawFd;
use std::{fs, mem};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// A row of `/proc/net/tcp` or `/proc/net/tcp6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its own port.
    pub local_port: u16,
    /// The other end's port, 0 for a listener.
    pub remote_port: u16,
    /// Its state, as the kernel numbers them.
    pub state: u8,
}

/// Source: linux, include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// A port of 127.0.0.1 that nothing listens on, for a program that is told its port: the kernel gives it to nobody else while
/// we run, as a socket of ours keeps it. One that, as servers do, sets SO_REUSEADDR may listen on it all the same.
///
/// Ours never listens: a program that another test starts just now has a copy of it until it runs.
pub fn free_port() -> Result<u16> {
    let what = "looking for a free port";
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context(what)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).context(what)?;
    let port = getsockname::<SockaddrIn>(socket.as_raw_fd())?.port();
    mem::forget(socket);
    Ok(port)
}

/// Whether anything listens on `port`.
pub fn listens(port: u16) -> Result<bool> {
    Ok(sockets()?.iter().any(|socket| socket.state == LISTEN && socket.local_port == port))
}

/// The client's ports of the connections that are established with the server's `port`.
pub fn clients_of(port: u16) -> Result<Vec<u16>> {
    let at_client = |socket: &Socket| socket.state == ESTABLISHED && socket.remote_port == port;
    Ok(sockets()?.into_iter().filter(at_client).map(|socket| socket.local_port).collect())
}

fn sockets() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // There is no tcp6 on a machine without IPv6.
        let Ok(text) = fs::read_to_string(table) else { continue };
        sockets.extend(text.lines().filter_map(parse));
    }
    Ok(sockets)
}

fn parse(row: &str) -> Option<Socket> {
    let mut words = row.split_whitespace().skip(1);
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    Some(Socket {
        local_port: port(words.next()?)?,
        remote_port: port(words.next()?)?,
        state: u8::from_str_radix(words.next()?, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_free_port_can_be_listened_on_while_programs_are_started() {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        Command::new("true").status().unwrap();
                    }
                });
            }
            let refused = (0..500).find_map(|round| {
                let port = free_port().unwrap();
                TcpListener::bind(("127.0.0.1", port)).err().map(|error| (round, error))
            });
            done.store(true, Ordering::Relaxed);
            assert!(refused.is_none(), "{refused:?}");
        });
    }

    #[test]
    fn a_connection_is_found_in_the_kernels_tables() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port).unwrap());
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(clients_of(port).unwrap(), [client.local_addr().unwrap().port()]);
    }
}
