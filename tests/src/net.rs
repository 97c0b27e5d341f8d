//! The kernel's tables of TCP sockets: who listens, and which ports a connection really has.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::{fs, process};

use anyhow::{Result, bail};

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

/// A port that nothing listens on now, which is given once. It is none of those that the kernel gives to whoever asks for any,
/// as other tests do all the time: it stays free while what listened on it is started again. A stranger may take it: try again
/// then.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 10_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Source: linux, Documentation/networking/ip-sysctl.rst.
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok());
    let count = u32::from(end.unwrap_or(FIRST).max(FIRST + 2000) - FIRST);
    for _ in 0..count {
        // Test programs that run side by side begin at different places.
        let number =
            process::id().wrapping_mul(101).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed).into());
        let port = FIRST + u16::try_from(number % count)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {FIRST} on")
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
    use std::collections::BTreeSet;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_free_port_is_given_once_and_not_by_the_kernel() {
        let given = (0..100).map(|_| free_port().unwrap()).collect::<BTreeSet<_>>();
        let of_the_kernel = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        assert!(given.len() == 100 && given.last().unwrap() < &of_the_kernel, "{given:?}, {of_the_kernel}");
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
