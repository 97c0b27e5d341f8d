//! Accepting clients: from each socket that listens, and from an interface's addresses as they come and go.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    rc::Rc,
    time::Duration,
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use smol::{Async, LocalExecutor, Task, Timer, future};

use super::{Server, peer::Peer};
use crate::listen::{self, Listener, Place};

/// After something could not be done that may be possible later.
const RETRY: Duration = Duration::from_secs(1);
/// Where the kernel does not tell what becomes of interfaces.
const LOOK: Duration = Duration::from_secs(5);

enum Socket {
    Tcp(Async<TcpListener>),
    Unix(Async<UnixListener>),
}

impl Socket {
    fn new(socket: OwnedFd, is_unix: bool) -> io::Result<Self> {
        if is_unix {
            Async::new(UnixListener::from(socket)).map(Self::Unix)
        } else {
            Async::new(TcpListener::from(socket)).map(Self::Tcp)
        }
    }

    /// The next client. A Unix socket is read and written as a TCP one is, so that all clients are of one type.
    async fn accept(&self) -> io::Result<(Async<TcpStream>, Peer)> {
        let (socket, is_unix) = match self {
            Self::Tcp(listener) => (listener.accept().await?.0, false),
            Self::Unix(listener) => {
                let socket = listener.accept().await?.0.into_inner()?;
                (Async::new(TcpStream::from(OwnedFd::from(socket)))?, true)
            }
        };
        let peer = Peer::of(socket.get_ref(), is_unix)?;
        Ok((socket, peer))
    }
}

impl Server {
    /// Accepts clients from `listener` from now on.
    pub fn listen<'a>(self: &Rc<Self>, executor: &Rc<LocalExecutor<'a>>, listener: Listener) -> io::Result<()>
    where
        Self: 'a,
    {
        let Listener { place, socket, .. } = listener;
        let (inner, tls) = match &place {
            Place::Tls(inner) => (&**inner, true),
            place => (place, false),
        };
        if !place.is_local() && !tls {
            log::warn!("what is sent at {place} is not encrypted, and other devices can connect there");
        }
        match (inner, socket) {
            (Place::Interface { name, port }, _) => {
                let (server, on) = (Rc::clone(self), Rc::clone(executor));
                let (name, port) = (name.clone(), *port);
                executor.spawn(async move { server.follow(on, name, port, tls).await }).detach();
            }
            (_, Some(socket)) => {
                let is_unix = matches!(inner, Place::Unix(_) | Place::Abstract(_));
                let socket = Socket::new(socket, is_unix)?;
                executor.spawn(Rc::clone(self).accept(Rc::clone(executor), socket, tls)).detach();
                log::info!("listening url={place}");
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Accepts clients at a socket for ever.
    async fn accept<'a>(self: Rc<Self>, executor: Rc<LocalExecutor<'a>>, listener: Socket, tls: bool)
    where
        Self: 'a,
    {
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => {
                    let server = Rc::clone(&self);
                    let serve = async move {
                        match &server.tls {
                            Some(acceptor) if tls => server.encrypted(acceptor, socket, peer).await,
                            _ => server.connection(socket, peer).await,
                        }
                    };
                    executor.spawn(serve).detach();
                }
                // It was gone before it was taken.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => {
                    // Out of descriptors, as a rule.
                    self.note(|| format!("can't accept a client: {error}"));
                    Timer::after(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Listens at each address that the interface `name` has, for as long as it has it.
    async fn follow<'a>(self: Rc<Self>, executor: Rc<LocalExecutor<'a>>, name: String, port: u16, tls: bool)
    where
        Self: 'a,
    {
        let news = news().and_then(Async::new);
        if let Err(error) = &news {
            log::warn!(
                "the kernel does not tell when interface={name} changes, so it is looked at every 5 s: {error}"
            );
        }
        // By the interface's number too: another one of that name is another one.
        let mut listening: HashMap<(u32, SocketAddr), Task<()>> = HashMap::new();
        let told = Cell::new(false);
        let scheme = if tls { "wss" } else { "ws" };
        if listen::addresses(&name, port).is_empty() {
            log::info!("no address yet, waiting for one: {scheme}://{name}:{port}/");
        }
        loop {
            let number = if_nametoindex(name.as_str()).unwrap_or(0);
            let there: Vec<_> =
                listen::addresses(&name, port).into_iter().map(|address| (number, address)).collect();
            listening.retain(|place, _| {
                let stays = there.contains(place);
                if !stays {
                    log::info!("no longer listening url={scheme}://{}/ interface={name}", place.1);
                }
                stays
            });
            let mut wait = if news.is_ok() { Duration::MAX } else { LOOK };
            for place in there {
                if listening.contains_key(&place) {
                    continue;
                }
                let socket = listen::tcp(place.1, Some(&name)).map_err(io::Error::from);
                match socket.and_then(|socket| Socket::new(socket, false)) {
                    Ok(socket) => {
                        log::info!("listening url={scheme}://{}/ interface={name}", place.1);
                        let accept = Rc::clone(&self).accept(Rc::clone(&executor), socket, tls);
                        listening.insert(place, executor.spawn(accept));
                    }
                    Err(error) => {
                        // An IPv6 address is not usable for a second or two after it came.
                        wait = RETRY;
                        if !told.replace(true) {
                            log::warn!(
                                "can't listen yet url={scheme}://{}/ interface={name}: {error}",
                                place.1
                            );
                        }
                    }
                }
            }
            let something = async {
                match &news {
                    Ok(news) => drop(news.readable().await),
                    Err(_) => future::pending().await,
                }
            };
            let late = async {
                match wait {
                    Duration::MAX => future::pending().await,
                    wait => drop(Timer::after(wait).await),
                }
            };
            future::or(something, late).await;
            if let Ok(news) = &news {
                let mut message = [0; 4096];
                // What it says does not matter, nor whether some of it was lost.
                while recv(news.get_ref().as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT)
                    .is_ok_and(|length| length > 0)
                {}
            }
        }
    }
}

/// A socket on which the kernel tells that interfaces or their addresses have changed.
/// Source: rtnetlink(7), linux, include/uapi/linux/rtnetlink.h.
fn news() -> io::Result<OwnedFd> {
    const LINK: u32 = 1;
    const IPV4_ADDRESS: u32 = 0x10;
    const IPV6_ADDRESS: u32 = 0x100;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK | IPV4_ADDRESS | IPV6_ADDRESS))?;
    Ok(socket)
}
