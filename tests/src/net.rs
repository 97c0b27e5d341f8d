//! The kernel's tables of TCP sockets: who listens, and which ports a connection really has.

use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd};

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

/// A port that nothing listens on. Until the tests' process ends no program is given it that takes any port; one that asks for it
/// with SO_REUSEADDR, as servers do, gets it.
pub fn free_port() -> Result<u16> {
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&own, sockopt::ReuseAddr, &true)?;
    bind(own.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).context("looking for a free port")?;
    let port = getsockname::<SockaddrIn>(own.as_raw_fd())?.port();
    // Bound, but no listener: whoever listens there does so alone.
    let _ = own.into_raw_fd();
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

    use super::*;

    #[test]
    fn a_free_port_is_for_who_asks_for_it_again_and_again() {
        let port = free_port().unwrap();
        for _ in 0..2 {
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            // What stays behind of a connection is not in the way.
            let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            drop(listener.accept().unwrap());
            assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
            drop(client);
        }
        assert!(!listens(port).unwrap());
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
