//! Where clients connect: places named on the command line or handed over by the service manager, and their sockets.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::FileTypeExt, fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind,
        getsockname, getsockopt, listen, setsockopt, socket, sockopt,
    },
};

/// The port of eCaptureQ. Source: shared/protocol.md.
pub const DEFAULT_PORT: u16 = 28257;
/// The first descriptor that a service manager hands over. Source: sd_listen_fds(3).
const FIRST_HANDED_OVER: i32 = 3;
const MAX_HANDED_OVER: i32 = 16;
/// Source: netdevice(7), IFNAMSIZ without the final NUL.
const MAX_INTERFACE: usize = 15;

/// A place where clients connect, from an eCaptureQ URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `ws://127.0.0.1:28257/`: a TCP address.
    Tcp(SocketAddr),
    /// `ws://usb0:28257/`: every address of a network interface, as they come and go.
    Interface {
        /// Its name.
        name: String,
        /// The port.
        port: u16,
    },
    /// `wss://…`: an address or interface, where clients speak TLS.
    Tls(Box<Place>),
    /// `ws+unix:/run/plaintap.sock`: a socket in the file system.
    Unix(PathBuf),
    /// `ws+unix:@plaintap`: an abstract Unix socket.
    Abstract(String),
}

impl Default for Place {
    fn default() -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, DEFAULT_PORT).into())
    }
}

impl Place {
    /// Whether only this device's own processes can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Interface { .. } => false,
            Self::Tls(place) => place.is_local(),
            Self::Unix(_) | Self::Abstract(_) => true,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "ws://{address}/"),
            Self::Interface { name, port } => write!(f, "ws://{name}:{port}/"),
            Self::Tls(place) => write!(f, "wss{}", place.to_string().trim_start_matches("ws")),
            Self::Unix(path) => write!(f, "ws+unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "ws+unix:@{name}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{url:?} {why}; try ws://127.0.0.1:{DEFAULT_PORT}/");
        let after = |scheme: &str| {
            let start = url.get(..scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then(|| &url[scheme.len()..])
        };
        if let Some(rest) = after("ws+unix:") {
            return unix(rest).ok_or_else(|| {
                format!("{url:?} names no socket; try ws+unix:/run/plaintap.sock or ws+unix:@plaintap")
            });
        }
        if let Some(rest) = after("wss://") {
            return match format!("ws://{rest}").parse() {
                Ok(place) => Ok(Self::Tls(Box::new(place))),
                Err(_) => Err(wrong("names no place")),
            };
        }
        let rest = after("ws://").ok_or_else(|| wrong("is no ws://, wss:// or ws+unix: URL"))?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address stand inside its brackets.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("has no port number after its colon"))?)
            }
            _ => (authority, DEFAULT_PORT),
        };
        let address: Option<IpAddr> = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => {
                Some(v6.parse::<Ipv6Addr>().map_err(|_| wrong("has no IPv6 address in its brackets"))?.into())
            }
            None if host.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
            None => host.parse::<Ipv4Addr>().ok().map(Into::into),
        };
        match address {
            Some(address) => Ok(Self::Tcp((address, port).into())),
            None if is_interface(host) && port != 0 => Ok(Self::Interface { name: host.to_owned(), port }),
            None => Err(wrong(
                "has neither an IP address nor localhost nor an interface's name with a port as its host",
            )),
        }
    }
}

/// Names of interfaces have no dot as a rule, and those of hosts do.
fn is_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !name.bytes().all(|byte| byte.is_ascii_digit())
}

fn unix(rest: &str) -> Option<Place> {
    let rest = rest.split(['?', '#']).next()?;
    match rest.strip_prefix('@') {
        Some(name) if UnixAddr::new_abstract(name.as_bytes()).is_ok() && !name.is_empty() => {
            Some(Place::Abstract(name.to_owned()))
        }
        Some(_) => None,
        None => {
            // Both ws+unix:/path and ws+unix:///path.
            let path =
                Path::new(rest.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(rest));
            (path.is_absolute() && path.file_name().is_some() && UnixAddr::new(path).is_ok())
                .then(|| Place::Unix(path.to_owned()))
        }
    }
}

/// Why nothing listens at a place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error(
        "{0} is in use; end what listens there, or choose another place with --ecaptureq, as ws://127.0.0.1:9000/"
    )]
    InUse(Place),
    /// The system won't have it.
    #[error("can't listen at {place}")]
    System {
        /// Where.
        place: Place,
        /// What the system said.
        source: io::Error,
    },
    /// There is a file where the socket is to be.
    #[error("{0} is no socket, and is left alone; remove it, or name another place")]
    File(PathBuf),
    /// What the service manager handed over is of no use.
    #[error("descriptor {0} of LISTEN_FDS is no listening stream socket; check the socket unit")]
    HandedOver(i32),
}

/// A socket that listens, and where; an interface's are made later, as its addresses come and go.
#[derive(Debug)]
pub struct Listener {
    /// Where.
    pub place: Place,
    /// The socket; none for an interface.
    pub socket: Option<OwnedFd>,
    /// Whether it was handed over, so that its name is another's.
    pub handed_over: bool,
}

/// Listens at `place`.
pub fn listen_at(place: &Place) -> Result<Listener, Error> {
    let failed = |errno: Errno| match errno {
        Errno::EADDRINUSE => Error::InUse(place.clone()),
        _ => Error::System { place: place.clone(), source: errno.into() },
    };
    let socket = match place {
        Place::Tls(inner) => {
            let listener = listen_at(inner)?;
            return Ok(Listener { place: Place::Tls(Box::new(listener.place)), ..listener });
        }
        Place::Tcp(address) => Some(tcp(*address, None).map_err(failed)?),
        Place::Interface { name, port } => {
            // What is there shows whether the port is free.
            for address in addresses(name, *port) {
                if let Err(errno @ (Errno::EADDRINUSE | Errno::EPERM | Errno::EACCES)) =
                    tcp(address, Some(name))
                {
                    return Err(failed(errno));
                }
            }
            None
        }
        Place::Unix(path) => {
            remove_stale(path, place)?;
            let address = UnixAddr::new(path).map_err(failed)?;
            let socket = stream_socket(AddressFamily::Unix, &address).map_err(failed)?;
            // Who may come in is decided by the peer's user id.
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(path, mode)
                .map_err(|source| Error::System { place: place.clone(), source })?;
            Some(socket)
        }
        Place::Abstract(name) => {
            let address = UnixAddr::new_abstract(name.as_bytes()).map_err(failed)?;
            Some(stream_socket(AddressFamily::Unix, &address).map_err(failed)?)
        }
    };
    let place = match (place, &socket) {
        // Port 0 was any free one.
        (Place::Tcp(_), Some(socket)) => place_of(socket).unwrap_or_else(|| place.clone()),
        _ => place.clone(),
    };
    Ok(Listener { place, socket, handed_over: false })
}

/// A socket that listens at `address`, on `interface` alone if there is one.
pub fn tcp(address: SocketAddr, interface: Option<&str>) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if let Some(interface) = interface {
        setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}

fn stream_socket(family: AddressFamily, address: &dyn SockaddrLike) -> Result<OwnedFd, Errno> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(socket.as_raw_fd(), address)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}

/// Takes away a socket that nobody listens at any more: a killed agent leaves one behind.
fn remove_stale(path: &Path, place: &Place) -> Result<(), Error> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Error::File(path.into()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| Error::System { place: place.clone(), source })
        }
        _ => Err(Error::InUse(place.clone())),
    }
}

/// The addresses of an interface that is there and up, each with `port`.
pub fn addresses(interface: &str, port: u16) -> Vec<SocketAddr> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    all.filter(|found| found.interface_name == interface)
        .filter_map(|found| {
            let address = found.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(SocketAddr::from((v4.ip(), port)));
            }
            let v6 = address.as_sockaddr_in6()?;
            Some(std::net::SocketAddrV6::new(v6.ip(), port, 0, v6.scope_id()).into())
        })
        .collect()
}

/// The sockets that a service manager has handed over. Source: sd_listen_fds(3).
pub fn handed_over() -> Result<Vec<Listener>, Error> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    let ours = number("LISTEN_PID").is_some_and(|pid| pid as u32 == std::process::id());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0).clamp(0, MAX_HANDED_OVER);
    (FIRST_HANDED_OVER..FIRST_HANDED_OVER + count)
        .map(|number| {
            let wrong = Error::HandedOver(number);
            // Not before it is known to be open.
            if nix::sys::stat::fstat(borrowed(number)).is_err() {
                return Err(wrong);
            }
            // SAFETY: it is open, and whoever handed it over says that it is ours.
            #[expect(unsafe_code, reason = "a file descriptor from outside")]
            let socket = unsafe { OwnedFd::from_raw_fd(number) };
            let listens = getsockopt(&socket, sockopt::AcceptConn) == Ok(true)
                && getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream);
            let place = place_of(&socket).filter(|_| listens).ok_or(wrong)?;
            let _ = fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
            let _ = fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            Ok(Listener { place, socket: Some(socket), handed_over: true })
        })
        .collect()
}

fn borrowed(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only asked whether it is open.
    #[expect(unsafe_code, reason = "a file descriptor from outside")]
    unsafe {
        std::os::fd::BorrowedFd::borrow_raw(number)
    }
}

/// Where a socket listens.
fn place_of(socket: &impl AsFd) -> Option<Place> {
    let address: SockaddrStorage = getsockname(socket.as_fd().as_raw_fd()).ok()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(Place::Tcp((v4.ip(), v4.port()).into()));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Some(Place::Tcp((v6.ip(), v6.port()).into()));
    }
    let unix = address.as_unix_addr()?;
    match (unix.path(), unix.as_abstract()) {
        (Some(path), _) => Some(Place::Unix(path.to_owned())),
        (_, Some(name)) => Some(Place::Abstract(String::from_utf8_lossy(name).into_owned())),
        _ => None,
    }
}

/// Takes away what a listener has put into the file system.
pub fn remove(place: &Place) {
    if let Place::Unix(path) = place
        && let Err(error) = std::fs::remove_file(path)
    {
        log::debug!("can't remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_lack_port_slash_or_have_any_path() {
        for (url, address) in [
            ("ws://127.0.0.1:1", "127.0.0.1:1"),
            ("WS://localhost/x?y", "127.0.0.1:28257"),
            ("ws://[::1]:5/", "[::1]:5"),
            ("ws://[::1]", "[::1]:28257"),
            ("ws://127.9.9.9:0/", "127.9.9.9:0"),
        ] {
            assert_eq!(url.parse(), Ok(Place::Tcp(address.parse().unwrap())), "{url}");
        }
    }

    #[test]
    fn interfaces_and_unix_sockets_have_urls() {
        let usb0 = Place::Interface { name: "usb0".into(), port: 28257 };
        assert_eq!("ws://usb0/".parse(), Ok(usb0));
        assert_eq!("ws+unix:/run/x".parse(), Ok(Place::Unix("/run/x".into())));
        assert_eq!("ws+unix:///run/x?a".parse(), Ok(Place::Unix("/run/x".into())));
        assert_eq!("ws+unix:@plaintap".parse(), Ok(Place::Abstract("plaintap".into())));
        for url in [
            "ws://usb0:28257/",
            "ws+unix:/run/x",
            "ws+unix:@plaintap",
            "ws://[::1]:5/",
            "wss://usb0:28257/",
            "wss://[::1]:5/",
        ] {
            assert_eq!(url.parse::<Place>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn only_this_device_reaches_loopback_and_unix_sockets() {
        for (url, local) in [
            ("ws://127.0.0.1/", true),
            ("ws://[::1]/", true),
            ("ws+unix:@x", true),
            ("ws://0.0.0.0/", false),
            ("ws://10.0.0.1/", false),
            ("ws://usb0/", false),
        ] {
            assert_eq!(url.parse::<Place>().unwrap().is_local(), local, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_an_error_that_names_it() {
        let long = format!("ws+unix:/{}", "x".repeat(200));
        for url in [
            "",
            "ws:/",
            "http://127.0.0.1:1/",
            "ws://",
            "ws://:1/",
            "ws://127.0.0.1:x/",
            "ws://127.0.0.1:65536/",
            "ws://::1:5/",
            "ws://[x]/",
            "ws://example.org/",
            "ws://usb0:0/",
            "wss://x.example.org/",
            "wss://",
            "ws+unix:",
            "ws+unix:@",
            "ws+unix:x",
            "ws+unix:/",
            &long,
            "é",
        ] {
            let error = url.parse::<Place>().unwrap_err();
            assert!(error.contains(&format!("{url:?}")), "{error}");
        }
    }

    #[test]
    fn a_dead_agents_socket_is_replaced_and_a_live_ones_or_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let place = Place::Unix(path.clone());
        let first = listen_at(&place).unwrap();
        assert!(matches!(listen_at(&place), Err(Error::InUse(_))));
        drop(first);
        drop(listen_at(&place).unwrap());
        remove(&place);
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(listen_at(&place), Err(Error::File(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_free_port_is_told() {
        let listener = listen_at(&"ws://127.0.0.1:0/".parse().unwrap()).unwrap();
        let Place::Tcp(address) = listener.place else { panic!("{listener:?}") };
        assert_ne!(address.port(), 0);
        assert!(matches!(listen_at(&Place::Tcp(address)), Err(Error::InUse(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_url_is_a_place_or_an_error(url in "(ws://|ws\\+unix:)?[ -~]{0,40}") {
            let _ = url.parse::<Place>();
        }
    }
}
