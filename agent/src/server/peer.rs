//! Whose process is at the other end of a connection: asked of the kernel, never of the client.
//!
//! For TCP on this device, sock_diag knows the user of the client's own socket. Source: sock_diag(7), and linux,
//! include/uapi/linux/inet_diag.h.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, getsockopt, recv, send, setsockopt,
        socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address; none on a Unix socket.
    pub address: Option<SocketAddr>,
    /// The address that it connected to; localhost on a Unix socket.
    pub local: IpAddr,
    /// Whether it is a process of this device, so that it has a user id.
    pub is_local: bool,
    /// The user of the process, if it is one of this device and the kernel tells.
    pub uid: Option<u32>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}")?,
            None => write!(f, "unix")?,
        }
        match self.uid {
            Some(uid) => write!(f, " uid={uid}"),
            None => Ok(()),
        }
    }
}

impl Peer {
    /// Who is at the other end of `socket`, of either kind.
    pub fn of(socket: &TcpStream, is_unix: bool) -> io::Result<Self> {
        if is_unix {
            let uid = getsockopt(socket, sockopt::PeerCredentials)?.uid();
            let local = Ipv4Addr::LOCALHOST.into();
            return Ok(Self { address: None, local, is_local: true, uid: Some(uid) });
        }
        let (address, local) = (canonical(socket.peer_addr()?), canonical(socket.local_addr()?));
        // From this device one may also come to an interface's address, and is at that address oneself then.
        let is_local = address.ip().is_loopback() || address.ip() == local.ip();
        let uid = if is_local { uid_of(address, local).unwrap_or(None) } else { None };
        Ok(Self { address: Some(address), local: local.ip(), is_local, uid })
    }
}

/// An IPv4 address in IPv6's clothes as what it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Source: linux, include/uapi/linux/sock_diag.h and netlink.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// Source: linux, include/uapi/linux/in.h.
const IPPROTO_TCP: u8 = 6;
/// Source: linux, include/net/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
const HEADER: usize = 16;
/// struct inet_diag_req_v2: family, protocol, extensions, padding, states, struct inet_diag_sockid.
const REQUEST: usize = HEADER + 8 + 48;
/// struct inet_diag_msg: family, state, timer, retransmits, struct inet_diag_sockid, then five words, of which the fourth is
/// the uid and the fifth the inode.
const ANSWER: usize = HEADER + 4 + 48 + 20;

/// The user of the established socket at `address` that is connected to `local`; none if the kernel knows no such socket.
fn uid_of(address: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // The kernel answers within the call that asks; this is for one that does not.
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    send(netlink.as_raw_fd(), &request(address, local), MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    Ok(answer.get(..length).and_then(|answer| uid_in(answer, address, local)))
}

fn request(from: SocketAddr, to: SocketAddr) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let body = &mut request[HEADER..];
    body[0] = family(from);
    body[1] = IPPROTO_TCP;
    body[4..8].copy_from_slice(&(1_u32 << TCP_ESTABLISHED).to_ne_bytes());
    body[8..48].copy_from_slice(&ends(from, to));
    // The interface stays 0: any. The cookie is "none".
    body[48..56].fill(0xff);
    request
}

/// The ports and addresses at the start of a struct inet_diag_sockid, and its interface.
fn ends(from: SocketAddr, to: SocketAddr) -> [u8; 40] {
    let mut ends = [0; 40];
    ends[..2].copy_from_slice(&from.port().to_be_bytes());
    ends[2..4].copy_from_slice(&to.port().to_be_bytes());
    for (place, address) in [(4, from.ip()), (20, to.ip())] {
        match address {
            IpAddr::V4(address) => ends[place..place + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => ends[place..place + 16].copy_from_slice(&address.octets()),
        }
    }
    ends
}

fn family(address: SocketAddr) -> u8 {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    family as u8
}

/// The uid in the kernel's answer, if it is about that very socket, and somebody holds it: a socket that its process has
/// closed says uid 0 and inode 0, and would pass for root's.
fn uid_in(answer: &[u8], from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let answer = answer.get(..ANSWER)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let body = &answer[HEADER..];
    let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let is_it = kind == SOCK_DIAG_BY_FAMILY && body[1] == TCP_ESTABLISHED && is_about(body, from, to);
    let (uid, inode) = (word(4 + 48 + 12)?, word(4 + 48 + 16)?);
    (is_it && inode != 0).then_some(uid)
}

/// Whether an answer has the ports and addresses that were asked for. A client's IPv6 socket may hold IPv4 addresses.
fn is_about(body: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    let wanted = if body[0] == family(from) { ends(from, to) } else { ends(mapped(from), mapped(to)) };
    let length = if body[0] == AddressFamily::Inet as u8 { [4..8, 20..24] } else { [4..20, 20..36] };
    body[4..8] == wanted[..4] && length.into_iter().all(|part| body[4..][part.clone()] == wanted[part])
}

/// Any answer is taken.
#[cfg(fuzzing)]
pub fn fuzz(answer: &[u8]) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1000));
    let _ = uid_in(answer, address, address);
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair(address: &str, connect_to: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((connect_to, port)).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_local_client_has_its_users_id() {
        let ours = nix::unistd::getuid().as_raw();
        for (address, connect_to) in
            [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")]
        {
            let (_client, server) = pair(address, connect_to);
            let peer = Peer::of(&server, false).unwrap();
            assert_eq!((peer.uid, peer.is_local), (Some(ours), true), "{address}");
        }
    }

    #[test]
    fn a_client_that_has_closed_its_socket_is_nobody() {
        let (client, server) = pair("127.0.0.1", "127.0.0.1");
        drop(client);
        assert_eq!(Peer::of(&server, false).unwrap().uid, None);
    }

    #[test]
    fn a_unix_client_has_its_users_id() {
        let (_client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = TcpStream::from(std::os::fd::OwnedFd::from(server));
        assert_eq!(Peer::of(&server, true).unwrap().uid, Some(nix::unistd::getuid().as_raw()));
    }

    #[test]
    fn an_answer_about_another_socket_or_a_closed_one_says_nothing() {
        let (from, to) = ("127.0.0.1:1000".parse().unwrap(), "127.0.0.1:2000".parse().unwrap());
        let mut answer = vec![0; ANSWER];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        let body = &mut answer[HEADER..];
        (body[0], body[1]) = (family(from), TCP_ESTABLISHED);
        body[4..44].copy_from_slice(&ends(from, to));
        body[64..68].copy_from_slice(&1234_u32.to_ne_bytes());
        body[68] = 1;
        assert_eq!(uid_in(&answer, from, to), Some(1234));
        assert_eq!(uid_in(&answer, to, from), None);
        for (place, value) in [(HEADER + 68, 0), (HEADER + 1, 7), (HEADER + 5, 9), (4, 2)] {
            let mut other = answer.clone();
            other[place] = value;
            assert_eq!(uid_in(&other, from, to), None, "{place}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_taken(answer: Vec<u8>) {
            let address: SocketAddr = "127.0.0.1:1000".parse().unwrap();
            proptest::prop_assert_eq!(uid_in(&answer, address, address), None);
        }
    }
}
