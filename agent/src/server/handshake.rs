//! Who may come in: the request's head, read bounded in size and time, and the answer to it.
//!
//! `judge` decides, a pure function of the head. Whoever is refused is told why, in an HTTP answer (`tell`); before the
//! decision not a byte is sent.

use std::{
    borrow::Cow,
    cell::RefCell,
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use smol::{
    Async,
    io::{AsyncReadExt, AsyncWriteExt},
};
use tungstenite::handshake::derive_accept_key;

#[cfg(feature = "page")]
use super::page;
use super::{
    gate::{Gate, Lack},
    peer::Peer,
    query::{self, Query},
    within,
};

/// Bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// From the connection's acceptance to the end of the request's head.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How much of a refused client's request is read before the connection is closed, so that it sees the answer.
const MAX_DRAINED: usize = 64 << 10;

/// Why a client did not come in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is to be refused, and told so.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// It wanted the page, and has it.
    #[cfg(feature = "page")]
    #[error("it has the page")]
    Page,
    /// It left, or was too slow.
    #[error("no whole request")]
    Io(#[from] io::Error),
}

/// A refusal, as the client is told it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    status: &'static str,
    sentence: Cow<'static, str>,
}

impl Refusal {
    const fn new(status: &'static str, sentence: &'static str) -> Self {
        Self { status, sentence: Cow::Borrowed(sentence) }
    }
}

const TOO_LARGE: Refusal =
    Refusal::new("431 Request Header Fields Too Large", "The request's head is larger than 8 KiB.");
const BROKEN: Refusal = Refusal::new("400 Bad Request", "This is no HTTP/1.1 request.");
const NOT_GET: Refusal = Refusal::new("405 Method Not Allowed", "Only GET is answered here.");
const NO_HOST: Refusal = Refusal::new("400 Bad Request", "The request has not exactly one Host header.");
const FOREIGN_HOST: Refusal =
    Refusal::new("403 Forbidden", "The Host header names neither localhost nor this listener's address.");
const FOREIGN_ORIGIN: Refusal =
    Refusal::new("403 Forbidden", "Pages of other origins may not read this stream.");
const NO_UPGRADE: Refusal =
    Refusal::new("426 Upgrade Required", "This is an eCaptureQ stream: connect with a WebSocket client.");
const BAD_KEY: Refusal =
    Refusal::new("400 Bad Request", "The Sec-WebSocket-Key header is not 16 bytes in base64.");
const FULL: Refusal =
    Refusal::new("503 Service Unavailable", "As many clients as are allowed are connected.");
/// There is no place for one more handshake.
pub const CROWDED: Refusal = Refusal::new("503 Service Unavailable", "Too many handshakes are unfinished.");

/// Reads the request of a new client and answers it; gives what the client asks for, and what it sent after its head.
pub async fn admit(
    socket: &mut Async<TcpStream>,
    run_id: &str,
    peer: &Peer,
    gate: &RefCell<Gate>,
    full: impl Fn() -> bool,
) -> Result<(Query, Vec<u8>), Error> {
    let (mut head, end) = match within(DEADLINE, read_head(socket)).await? {
        Some(read) => read,
        None => return Err(TOO_LARGE.into()),
    };
    let target = target(&head[..end]);
    let key = match judge(&head[..end], peer.local) {
        Ok(Request { key, bearer }) => {
            let token = bearer.or_else(|| query::token(target));
            let lack = gate.borrow_mut().lacks(peer, token.as_deref());
            match lack {
                Some(lack) => return Err(Refusal::from(lack).into()),
                None if full() => return Err(FULL.into()),
                None => key,
            }
        }
        #[cfg(feature = "page")]
        Err(refusal) if refusal == NO_UPGRADE && page::is_asked(&head[..end], target) => {
            let lack = gate.borrow_mut().lacks(peer, query::token(target).as_deref());
            if let Some(lack) = lack {
                return Err(Refusal::from(lack).into());
            }
            within(DEADLINE, page::send(socket)).await?;
            return Err(Error::Page);
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let query = match Query::parse(target) {
        Ok(query) => query,
        Err(wrong) => {
            let refusal = Refusal { status: "400 Bad Request", sentence: wrong.to_string().into() };
            return Err(refusal.into());
        }
    };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
         {key}\r\nplaintap-run-id: {run_id}\r\n\r\n"
    );
    within(DEADLINE, socket.write_all(answer.as_bytes())).await?;
    Ok((query, head.split_off(end)))
}

/// What a request asks for, of a head that passed `judge`.
fn target(head: &[u8]) -> &str {
    let line = head.split(|byte| *byte == b'\r').find(|line| !line.is_empty()).unwrap_or_default();
    let target = line.trim_ascii_start().split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    str::from_utf8(target).unwrap_or_default()
}

/// What the client sent, and where in it the head ends; none if the head is too large.
async fn read_head(socket: &mut Async<TcpStream>) -> io::Result<Option<(Vec<u8>, usize)>> {
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 1024];
    loop {
        let length = socket.read(&mut chunk).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The end may stand astride two reads.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..length]);
        if let Some(at) = head[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let end = from + at + 4;
            return Ok((end <= MAX_HEAD).then_some((head, end)));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

/// Tells the client why it is refused, whether or not it has asked yet; says whether it may still send something.
///
/// Nothing was sent to it before, so that there is room, and nobody is waited for.
pub fn tell(socket: &mut Async<TcpStream>, refusal: &Refusal) -> bool {
    let Refusal { status, sentence } = refusal;
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n{sentence}\n",
        sentence.len() + 1,
    );
    let mut socket = socket.get_ref();
    let told = socket.write_all(answer.as_bytes()).and_then(|()| socket.shutdown(Shutdown::Write));
    // To close with bytes unread resets the connection, and may take the answer with it.
    let mut rest = [0; 1024];
    told.is_ok() && !matches!(socket.read(&mut rest), Ok(0))
}

/// Reads what a refused client still sends, bounded in size and time, so that it sees its answer.
pub async fn hear_out(socket: &mut Async<TcpStream>) {
    let rest = async {
        let mut rest = [0; 1024];
        let mut left = MAX_DRAINED;
        while left > 0 {
            match socket.read(&mut rest).await? {
                0 => break,
                length => left = left.saturating_sub(length),
            }
        }
        Ok(())
    };
    // It may be gone already.
    let _ = within(DEADLINE, rest).await;
}

/// What a sound request says.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// The answer's `Sec-WebSocket-Accept`.
    key: String,
    /// The token of its `Authorization`, if it has one.
    bearer: Option<Vec<u8>>,
}

/// Looks at a request to the listener's address `local`, whoever sent it.
fn judge(head: &[u8], local: IpAddr) -> Result<Request, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) if request.version == Some(1) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
        _ => return Err(BROKEN),
    }
    if request.method != Some("GET") {
        return Err(NOT_GET);
    }
    let all = |name: &'static str| {
        request
            .headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    let only = |name| {
        let mut values = all(name);
        let first = values.next()?;
        values.next().is_none().then(|| first.trim_ascii())
    };
    let has_token = |name, token: &str| {
        all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|value| value.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };

    let host = only("host").and_then(|host| str::from_utf8(host).ok()).ok_or(NO_HOST)?;
    if !is_local(host, local) {
        return Err(FOREIGN_HOST);
    }
    if all("origin").next().is_some() && !only("origin").is_some_and(|origin| is_own_origin(origin, host)) {
        return Err(FOREIGN_ORIGIN);
    }
    if !has_token("upgrade", "websocket")
        || !has_token("connection", "upgrade")
        || only("sec-websocket-version") != Some(b"13")
    {
        return Err(NO_UPGRADE);
    }
    let key = only("sec-websocket-key").filter(|key| is_key(key)).ok_or(BAD_KEY)?;
    let bearer = only("authorization").and_then(bearer).map(<[u8]>::to_vec);
    Ok(Request { key: derive_accept_key(key), bearer })
}

/// The token in an Authorization header. Source: RFC 6750, section 2.1.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// How a client is told what it lacks.
impl From<Lack> for Refusal {
    fn from(lack: Lack) -> Self {
        const FORBIDDEN: &str = "403 Forbidden";
        match lack {
            Lack::User(uid) => Self {
                status: FORBIDDEN,
                sentence: format!(
                    "User id {uid} may not read this stream; start plaintapd with --allow-uid {uid} if it is to."
                )
                .into(),
            },
            Lack::Unknown => Self::new(
                FORBIDDEN,
                "The system does not say whose process this connection is of; connect to a Unix socket (--ecaptureq ws+unix:).",
            ),
            Lack::Token => Self::new(
                "401 Unauthorized",
                "This stream wants its token, as Authorization: Bearer TOKEN or as ?token=TOKEN.",
            ),
            Lack::Patience => {
                Self::new("429 Too Many Requests", "Too many wrong tokens came from here; wait a minute.")
            }
        }
    }
}

/// Whether a Host header means this device, by an address and not by a name that somebody's DNS could point here.
fn is_local(host: &str, local: IpAddr) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return address.ip().is_loopback() || address.ip() == local,
        // A name with a port, a name alone, or an address alone.
        Err(_) => match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() && !name.contains(':') => name,
            _ => host,
        },
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address == local)
}

/// Whether an Origin is that of known clients, or of a page that this very server gave out.
fn is_own_origin(origin: &[u8], host: &str) -> bool {
    // With its final slash, no browser sends it: it is what the protocol's own clients say.
    origin == b"http://localhost/"
        || origin.strip_prefix(b"http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_bytes()))
}

/// Whether a Sec-WebSocket-Key is 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(digit))
}

/// Any bytes are judged.
#[cfg(fuzzing)]
pub fn fuzz(head: &[u8]) {
    let _ = (judge(head, std::net::Ipv4Addr::LOCALHOST.into()), target(head));
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn judged(lines: &str) -> Result<String, Refusal> {
        judge(format!("GET /x?y=z HTTP/1.1\r\n{lines}\r\n").as_bytes(), "127.0.0.1".parse().unwrap())
            .map(|request| request.key)
    }

    fn with(lines: &str) -> Result<String, Refusal> {
        judged(&format!(
            "{lines}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{KEY}"
        ))
    }

    #[test]
    fn the_answer_to_the_rfcs_example_is_the_rfcs() {
        // Source: RFC 6455, section 1.3.
        assert_eq!(with("Host: localhost\r\n").unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn known_clients_come_in_whatever_the_case_of_their_headers() {
        for lines in [
            format!(
                "host: 127.0.0.1:28257\r\nUPGRADE: WebSocket\r\nconnection: keep-alive, UPGRADE\r\n\
                     sec-websocket-version: 13\r\n{KEY}Origin: http://localhost/\r\n"
            ),
            format!(
                "Host: [::1]\r\nupgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n{KEY}"
            ),
        ] {
            assert!(judged(&lines).is_ok(), "{lines}");
        }
    }

    #[test]
    fn only_hosts_that_mean_this_device_pass() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:80", "[::1]", "[::1]:9"] {
            assert!(with(&format!("Host: {host}\r\n")).is_ok(), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "10.0.0.1",
            "127.0.0.1.nip.io:28257",
            "[::2]:1",
            "::",
        ] {
            assert_eq!(with(&format!("Host: {host}\r\n")), Err(FOREIGN_HOST), "{host}");
        }
        assert_eq!(with(""), Err(NO_HOST));
        assert_eq!(with("Host: localhost\r\nHost: localhost\r\n"), Err(NO_HOST));
    }

    #[test]
    fn a_web_page_of_another_origin_is_refused() {
        let from = |origin: &str| with(&format!("Host: 127.0.0.1:28257\r\nOrigin: {origin}\r\n"));
        for origin in ["http://localhost/", "http://127.0.0.1:28257"] {
            assert!(from(origin).is_ok(), "{origin}");
        }
        for origin in
            ["http://localhost", "null", "", "https://127.0.0.1:28257", "http://127.0.0.1:80", "http://evil"]
        {
            assert_eq!(from(origin), Err(FOREIGN_ORIGIN), "{origin}");
        }
    }

    #[test]
    fn what_is_no_websocket_request_is_told_what_to_do() {
        let host = "Host: localhost\r\n";
        assert_eq!(judged(host), Err(NO_UPGRADE));
        assert_eq!(
            judged(&format!("{host}Upgrade: websocket\r\nConnection: Upgrade\r\n{KEY}")),
            Err(NO_UPGRADE)
        );
        for key in ["", "short==", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25j!Q=="] {
            let lines =
                format!("{host}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
            assert_eq!(judged(&format!("{lines}Sec-WebSocket-Key: {key}\r\n")), Err(BAD_KEY), "{key}");
        }
        let local = "127.0.0.1".parse().unwrap();
        assert_eq!(judge(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", local), Err(NOT_GET));
        for head in [&b"\x16\x03\x01\r\n\r\n"[..], b"GET / HTTP/1.0\r\n\r\n", b"GET /\r\n\r\n", b"\r\n\r\n"] {
            assert_eq!(judge(head, local), Err(BROKEN), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(judge(many.as_bytes(), local), Err(TOO_LARGE));
    }

    #[test]
    fn the_target_is_found_in_the_head() {
        for (head, expected) in [
            (&b"GET /x?y=z HTTP/1.1\r\n\r\n"[..], "/x?y=z"),
            (b"\r\nGET /a HTTP/1.1\r\nHost: b c\r\n\r\n", "/a"),
            (b"", ""),
        ] {
            assert_eq!(target(head), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_get_an_answer(head: Vec<u8>) {
            let _ = judge(&head, "127.0.0.1".parse().unwrap());
        }

        #[test]
        fn any_headers_get_an_answer_and_foreign_hosts_never_pass(host in "[ -~]{0,40}", origin in "[ -~]{0,40}") {
            let lines = format!("Host: {host}\r\nOrigin: {origin}\r\n");
            if with(&lines).is_ok() {
                let name = host.trim().rsplit_once(':').map_or(host.trim(), |(name, _)| name).to_lowercase();
                proptest::prop_assert!(
                    name == "localhost" || name.starts_with("127.") || name.starts_with('['),
                    "{host}"
                );
                proptest::prop_assert!(origin.trim().to_lowercase().starts_with("http://"), "{origin}");
            }
        }
    }
}
