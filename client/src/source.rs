//! One connection to a server: how it comes about, what it delivers, and how it ends.
//!
//! A `Source` owns the connection, be it a WebSocket server's or NATS's. It never blocks while there is something to
//! deliver, and says when there is nothing, so that its user can flush what it has shown.

use std::{
    io::{self, Read},
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    time::{Duration, Instant},
};

use tungstenite::{
    ClientRequestBuilder, Error, HandshakeError, Message, WebSocket,
    error::ProtocolError,
    http::{StatusCode, Uri},
    protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
};

use crate::{
    adb,
    address::{Address, Way},
    nats::{self, Place, Reader, Wanted},
    waits::{Restarting, is_timeout, restarted},
};

/// What the original's own clients send, so that every server lets us in.
const ORIGIN: &str = "http://localhost/";

/// An event holds at most 16 KiB, and the original's a few times that.
const MAX_MESSAGE: usize = 1 << 20;

/// What one read may take. tungstenite clears as much before each, and keeps it for each connection: with its own 128 KiB a relay
/// of 1,000 devices takes 110 MiB more.
const READ_BUFFER: usize = 16 << 10;

/// How much of a refusal's body is shown.
const MAX_REFUSAL: usize = 1024;

/// How long a server may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until the connection stands, for each address of the server's name.
    pub connect: Duration,
    /// Between two messages: heartbeats come every 15 seconds.
    pub stream: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), stream: Duration::from_secs(45) }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("{0} can't be found")]
    Resolve(Address, #[source] io::Error),
    /// adb does not lead there.
    #[error(transparent)]
    Adb(#[from] adb::Error),
    /// Nobody listens there, or nobody is there.
    #[error("no connection to {0}")]
    Connect(Address, #[source] io::Error),
    /// The server answered in HTTP, and it was no.
    #[error("{address} refuses: {status}{}{sentence}", if sentence.is_empty() { "" } else { ": " })]
    Refused {
        /// The server.
        address: Address,
        /// HTTP's status.
        status: StatusCode,
        /// The answer's body, or as much as is worth showing.
        sentence: String,
    },
    /// The server did not answer in time.
    #[error("{0} accepts the connection but does not answer as a WebSocket server")]
    Silent(Address),
    /// The server is not what we came for.
    #[error("{0} does not answer as a WebSocket server")]
    Handshake(Address, #[source] Box<Error>),
    /// The stream that is kept can't be read.
    #[error(transparent)]
    Nats(#[from] nats::Error),
}

impl ConnectError {
    /// Whether it may be better later: nobody listens yet, or too many do. Behind `adb forward` a missing agent is a
    /// connection that is accepted and ends at once.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Resolve(..) | Self::Connect(..) | Self::Silent(_) => true,
            Self::Adb(error) => error.may_pass(),
            Self::Nats(error) => error.may_pass(),
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Handshake(_, error) => {
                matches!(**error, Error::Io(_) | Error::Protocol(ProtocolError::HandshakeIncomplete))
            }
        }
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The server closed it, and may have said why.
    #[error("the server closed the connection{}", said(.0))]
    Closed(Option<CloseFrame>),
    /// It was cut without a word.
    #[error("the connection was cut")]
    Cut,
    /// It broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The server does not follow the WebSocket protocol, or sent a message that is too long.
    #[error("the server sent what it must not")]
    Wrong(#[source] Box<Error>),
    /// The one to a stream that is kept.
    #[error(transparent)]
    Nats(#[from] nats::Ended),
}

impl Ended {
    /// Whether the server ended it in good order: done, or shutting down.
    pub fn in_good_order(&self) -> bool {
        matches!(self, Self::Closed(Some(CloseFrame { code: CloseCode::Normal | CloseCode::Away, .. })))
    }
}

fn said(frame: &Option<CloseFrame>) -> String {
    match frame {
        Some(CloseFrame { code, reason }) if reason.is_empty() => format!(" ({})", u16::from(*code)),
        Some(CloseFrame { code, reason }) => format!(" ({}: {reason})", u16::from(*code)),
        None => String::new(),
    }
}

/// A connection that stands.
pub enum Source {
    /// To a server.
    Socket(Box<Socket>),
    /// To a stream that is kept.
    Nats(Reader),
}

impl Source {
    /// Connects to a server, trying all addresses of its name, and asks it for the address's path.
    pub fn connect(address: &Address, patience: Patience) -> Result<Self, ConnectError> {
        Self::connect_for(address, &address.path, patience)
    }

    /// Connects to a server and asks it for another `path` than the address's own.
    pub fn connect_for(address: &Address, path: &str, patience: Patience) -> Result<Self, ConnectError> {
        Ok(Self::Socket(Box::new(Socket::connect(address, path, patience)?)))
    }

    /// Connects to a stream that is kept and goes on behind a place in it. Says what the person should know, too.
    pub fn connect_behind(
        wanted: &Wanted,
        place: Option<&Place>,
    ) -> Result<(Self, Vec<String>), ConnectError> {
        let (reader, told) = Reader::connect(wanted, place)?;
        Ok((Self::Nats(reader), told))
    }

    /// The next text or binary message; `None`: nothing more has come yet, and the next call waits until something
    /// does.
    pub fn receive(&mut self) -> Result<Option<Message>, Ended> {
        match self {
            Self::Socket(socket) => socket.receive(),
            Self::Nats(reader) => Ok(reader.receive()?.map(Message::Binary)),
        }
    }
}

/// A connection to a WebSocket server.
pub struct Socket {
    socket: WebSocket<Restarting>,
    patience: Patience,
    /// There was nothing left to read.
    idle: bool,
}

impl Socket {
    fn connect(address: &Address, path: &str, patience: Patience) -> Result<Self, ConnectError> {
        let stream = match &address.way {
            Way::Device(device) => adb::connect(&device.serial, &device.place)?,
            Way::Unix(path) => {
                connect_unix(path).map_err(|error| ConnectError::Connect(address.clone(), error))?
            }
            Way::Tcp { host, port } => connect_tcp(address, host, *port, patience.connect)?,
            Way::Nats(_) => {
                let error = io::Error::new(io::ErrorKind::Unsupported, "it is no agent but what one sent");
                return Err(ConnectError::Connect(address.clone(), error));
            }
        };
        let broken = |error| ConnectError::Connect(address.clone(), error);
        stream.set_read_timeout(Some(patience.connect)).map_err(broken)?;
        stream.set_write_timeout(Some(patience.connect)).map_err(broken)?;
        // A second handle, for the rest of a refusal.
        let rest = stream.try_clone().map_err(broken)?;

        let wrong = |error| ConnectError::Handshake(address.clone(), Box::new(error));
        let uri = Uri::builder().scheme("ws").authority(address.authority()).path_and_query(path).build();
        let request = ClientRequestBuilder::new(uri.map_err(|error| wrong(error.into()))?)
            .with_header("Origin", ORIGIN);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        match tungstenite::client::client_with_config(request, Restarting(stream), Some(config)) {
            Ok((socket, _)) => {
                socket.get_ref().set_nonblocking(true).map_err(broken)?;
                Ok(Self { socket, patience, idle: false })
            }
            Err(HandshakeError::Interrupted(_)) => Err(ConnectError::Silent(address.clone())),
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(ConnectError::Refused {
                address: address.clone(),
                status: answer.status(),
                sentence: sentence(answer.into_body().unwrap_or_default(), rest, patience.connect),
            }),
            Err(HandshakeError::Failure(error)) => Err(wrong(error)),
        }
    }

    fn receive(&mut self) -> Result<Option<Message>, Ended> {
        if self.idle {
            self.wait()?;
            self.idle = false;
        }
        loop {
            match self.socket.read() {
                Ok(message @ (Message::Binary(_) | Message::Text(_))) => return Ok(Some(message)),
                Ok(Message::Close(frame)) => {
                    // The answer is a courtesy.
                    let _ = self.socket.flush();
                    return Err(Ended::Closed(frame));
                }
                // tungstenite answers a ping at the next read.
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.idle = true;
                    return Ok(None);
                }
                Err(Error::Io(error)) => return Err(Ended::Broken(error)),
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Err(Ended::Cut),
                Err(error) => return Err(Ended::Wrong(Box::new(error))),
            }
        }
    }

    /// Waits until there is something to read, be it the end.
    fn wait(&self) -> Result<(), Ended> {
        let stream = self.socket.get_ref();
        let waited = stream.set_nonblocking(false).and_then(|()| {
            stream.set_read_timeout(Some(self.patience.stream))?;
            restarted(self.patience.stream, || stream.peek(&mut [0]))
        });
        match waited.and_then(|_| stream.set_nonblocking(true)) {
            Err(error) if is_timeout(&error) => Err(Ended::Silent(self.patience.stream)),
            waited => waited.map_err(Ended::Broken),
        }
    }
}

/// A Unix socket is read and written as a TCP one is, so that all sources are of one type.
#[cfg(unix)]
fn connect_unix(path: &Path) -> io::Result<TcpStream> {
    let stream = std::os::unix::net::UnixStream::connect(path)?;
    Ok(TcpStream::from(std::os::fd::OwnedFd::from(stream)))
}

#[cfg(not(unix))]
fn connect_unix(_: &Path) -> io::Result<TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}

fn connect_tcp(
    address: &Address,
    host: &str,
    port: u16,
    patience: Duration,
) -> Result<TcpStream, ConnectError> {
    let all =
        (host, port).to_socket_addrs().map_err(|error| ConnectError::Resolve(address.clone(), error))?;
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for one in all {
        match TcpStream::connect_timeout(&one, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect(address.clone(), last))
}

/// A refusal's body from its first bytes on, as far as it comes before the deadline. It may be that the server keeps the
/// connection open behind it.
fn sentence(mut body: Vec<u8>, mut stream: TcpStream, patience: Duration) -> String {
    let deadline = Instant::now() + patience.min(Duration::from_secs(1));
    let mut piece = [0; MAX_REFUSAL];
    while body.len() < MAX_REFUSAL {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut piece) {
            Ok(length @ 1..) => body.extend(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    body.truncate(MAX_REFUSAL);
    String::from_utf8_lossy(&body).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::mpsc, thread};

    use super::*;

    const SHORT: Patience =
        Patience { connect: Duration::from_millis(200), stream: Duration::from_millis(50) };
    const LONG: Patience = Patience { connect: Duration::from_secs(60), stream: Duration::from_secs(60) };

    fn listener() -> (TcpListener, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        (listener, address)
    }

    #[test]
    fn a_stream_that_falls_silent_ends() {
        let (listener, address) = listener();
        let (done, until_done) = mpsc::channel::<()>();
        let server = thread::spawn(move || {
            let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
            socket.send(Message::binary(b"one".as_slice())).unwrap();
            let _ = until_done.recv();
        });
        let mut source = Source::connect(&address, LONG).unwrap();
        let one = loop {
            if let Some(message) = source.receive().unwrap() {
                break message;
            }
        };
        assert_eq!(one, Message::binary(b"one".as_slice()));
        // It may take its time to say something, but has no more to say.
        let Source::Socket(socket) = &mut source else { panic!() };
        socket.patience = SHORT;
        let ended = loop {
            match source.receive() {
                Ok(message) => assert_eq!(message, None),
                Err(ended) => break ended,
            }
        };
        assert!(matches!(ended, Ended::Silent(_)), "{ended}");
        drop(done);
        server.join().unwrap();
    }

    #[test]
    fn a_server_that_never_answers_is_given_up() {
        let (_listener, address) = listener();
        assert!(matches!(Source::connect(&address, SHORT), Err(ConnectError::Silent(_))));
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let address: Address = "ws://127.0.0.1:1/".parse().unwrap();
        let error = Source::connect(&address, SHORT).err().unwrap();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
