//! A WebSocket server on this computer, for programs of this computer: `replay` and `serve` stand behind it.
//!
//! Like the agent it lets no web page in: a foreign page can neither name itself a local origin nor, by a name of its own
//! that leads here, a local host.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tungstenite::{
    Error as WsError, HandshakeError, WebSocket,
    handshake::server::{ErrorResponse, Request, Response},
    http::{HeaderMap, StatusCode},
    protocol::{CloseFrame, WebSocketConfig},
};

use crate::waits::{Restarting, is_timeout};

/// For a client's request, and its answer to our closing.
const PATIENCE: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is gone.
const STUCK: Duration = Duration::from_secs(60);
/// What a client says is read and dropped.
const MAX_SAID: usize = 64 << 10;
/// What one read may take, which is cleared before each. Clients say next to nothing.
const READ_BUFFER: usize = 1 << 10;
/// What one read of a pause may wait. It may wait as long again if it is interrupted.
const SLICE: Duration = Duration::from_secs(1);

/// A client that was let in.
pub type Client = WebSocket<Restarting>;

/// No client can come.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there, say.
    #[error("can't listen on ws://{0}/ (--listen names another place)")]
    Bind(SocketAddr, #[source] io::Error),
}

/// A listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens; port 0 is a free one.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bind = |error| Error::Bind(address, error);
        let listener = TcpListener::bind(address).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Connections, without end. What keeps one from being accepted (too many open files, say) passes, and is waited out.
    pub fn incoming(&self) -> impl Iterator<Item = TcpStream> {
        self.listener.incoming().filter_map(|stream| match stream {
            Ok(stream) => Some(stream),
            Err(_) => {
                thread::sleep(Duration::from_millis(100));
                None
            }
        })
    }
}

/// Makes a connection a WebSocket; else says why it may not come in, as it was told itself.
pub fn admit(stream: TcpStream) -> Result<Client, String> {
    let prepared = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(STUCK)))
        .and_then(|()| stream.set_nodelay(true));
    prepared.map_err(|error| error.to_string())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_SAID))
        .max_frame_size(Some(MAX_SAID));
    let mut refused = None;
    #[expect(clippy::result_large_err, reason = "tungstenite's own type")]
    let judge = |request: &Request, response: Response| match judge(request.headers()) {
        Ok(()) => Ok(response),
        Err(why) => {
            refused = Some(why.to_owned());
            let mut answer = ErrorResponse::new(Some(format!("{why}\n")));
            *answer.status_mut() = StatusCode::FORBIDDEN;
            Err(answer)
        }
    };
    match tungstenite::accept_hdr_with_config(Restarting(stream), judge, Some(config)) {
        Ok(socket) => Ok(socket),
        Err(HandshakeError::Interrupted(_)) => Err("it said nothing".to_owned()),
        Err(HandshakeError::Failure(error)) => Err(refused.unwrap_or_else(|| error.to_string())),
    }
}

/// Source: shared rules of the stream, docs/security.md.
fn judge(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all("host").iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
        return Err("the request has not exactly one Host header");
    };
    if !is_local(host) {
        return Err("the Host header does not name this computer");
    }
    let local = |origin: &str| {
        let authority = origin.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        authority.is_some_and(|authority| authority == "localhost" || authority.eq_ignore_ascii_case(host))
    };
    match headers.get_all("origin").iter().all(|origin| origin.to_str().is_ok_and(local)) {
        true => Ok(()),
        false => Err("pages of other origins may not read this stream"),
    }
}

fn is_local(host: &str) -> bool {
    let address = |text: &str| text.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
            if port.parse::<u16>().is_err() {
                return false;
            }
            name
        }
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost")
        || address(name)
        || name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).is_some_and(address)
}

/// Sends what is buffered and lets `pause` go by, while the client's pings are answered; an error if it leaves.
pub fn wait(socket: &mut Client, pause: Duration) -> Result<(), WsError> {
    socket.flush()?;
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // The system rounds a timeout of less than a millisecond to none at all.
        socket.get_ref().set_read_timeout(Some(left.clamp(Duration::from_millis(1), SLICE)))?;
        match socket.read() {
            Err(WsError::Io(error)) if is_timeout(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

/// Says goodbye and waits for the client to have read it.
pub fn close(mut socket: Client, frame: CloseFrame) -> Result<(), WsError> {
    socket.close(Some(frame))?;
    let end = Instant::now() + STUCK;
    loop {
        socket.get_ref().set_read_timeout(Some(PATIENCE))?;
        match socket.read() {
            Ok(_) if Instant::now() < end => {}
            Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

/// Unix time in seconds.
pub fn now_s() -> i64 {
    now_ns() / 1_000_000_000
}

/// Unix time in nanoseconds.
pub fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_programs_come_in_and_foreign_pages_do_not() {
        for (host, origin, in_order) in [
            ("127.0.0.1:5", None, true),
            ("LocalHost", Some("http://localhost/"), true),
            ("[::1]:5", Some("http://localhost"), true),
            ("localhost:5", Some("http://localhost:5"), true),
            ("localhost:5", Some("http://localhost:6"), false),
            ("localhost:5", Some("http://evil.example"), false),
            ("localhost:5", Some("null"), false),
            ("evil.example:5", None, false),
            ("localhost.evil.example", None, false),
            ("localhost:x", None, false),
            ("", None, false),
            ("10.0.0.1", None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            origin.map(|origin| headers.insert("origin", origin.parse().unwrap()));
            assert_eq!(judge(&headers).is_ok(), in_order, "{host} {origin:?}");
        }
        assert!(judge(&HeaderMap::new()).is_err());
    }
}
