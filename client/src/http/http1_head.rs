//! Heads of HTTP/1 messages: whether bytes begin one, and what it says.

use super::{Exchange, Header, Message, Request, Response, header};

/// A head longer than this is none.
pub(super) const LONGEST: usize = 256 << 10;

/// So is a first line; it is looked at again with each piece of it.
const LONGEST_LINE: usize = 64 << 10;

/// Source: IANA's registry of HTTP methods, without those that nobody sends.
const METHODS: [&str; 26] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "QUERY",
    "MKCALENDAR",
    "ACL",
    "BIND",
    "LINK",
    "UNLINK",
    "NOTIFY",
    "SUBSCRIBE",
];

/// What bytes may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    Request,
    Response,
    /// It takes more bytes to know.
    Unsure,
    Other,
}

/// Looks at the beginning of a message.
pub(super) fn looks(bytes: &[u8]) -> Looks {
    let line = &bytes[..bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len())];
    let whole = line.len() < bytes.len();
    if line.starts_with(b"HTTP/1.") {
        return match line.get(7..13) {
            Some([b'0' | b'1', b' ', code @ .., _]) if code.iter().all(u8::is_ascii_digit) => Looks::Response,
            Some([b'0' | b'1', b' ', a, b, c, _]) if [a, b, c].iter().all(|d| d.is_ascii_digit()) => {
                Looks::Response
            }
            None if !whole => Looks::Unsure,
            _ => Looks::Other,
        };
    }
    if !whole && b"HTTP/1.".starts_with(line) {
        return Looks::Unsure;
    }
    let Some(space) = line.iter().position(|&byte| byte == b' ') else {
        let may_be = !whole && METHODS.iter().any(|method| method.as_bytes().starts_with(line));
        return if may_be { Looks::Unsure } else { Looks::Other };
    };
    if !METHODS.iter().any(|method| method.as_bytes() == &line[..space]) {
        return Looks::Other;
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match (whole, line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")) {
        (true, true) => Looks::Request,
        (true, false) => Looks::Other,
        (false, _) if line.len() > LONGEST_LINE || line.iter().any(|byte| byte.is_ascii_control()) => {
            Looks::Other
        }
        (false, _) => Looks::Unsure,
    }
}

/// Where the head that `bytes` begin with ends; `from` bytes were looked at before.
pub(super) fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from.saturating_sub(3);
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        at += found + 1;
        match bytes.get(at..) {
            Some([b'\n', ..]) => return Some(at + 1),
            Some([b'\r', b'\n', ..]) => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// A request's head, as [`looks`] found one.
pub(super) fn request(head: &[u8], at: i64) -> Request {
    let (line, headers) = parts(head);
    let mut words = line.splitn(2, ' ');
    let method = words.next().unwrap_or_default().to_owned();
    let (target, version) = words.next().unwrap_or_default().rsplit_once(' ').unwrap_or_default();
    let authority = header(&headers, "host").unwrap_or_default().to_owned();
    let target = target.to_owned();
    Request { method, scheme: None, authority, target, message: message(version, headers, at) }
}

/// A response's head, as [`looks`] found one.
pub(super) fn response(head: &[u8], at: i64) -> Response {
    let (line, headers) = parts(head);
    let mut words = line.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse().ok()).unwrap_or(0);
    let reason = words.next().unwrap_or_default().to_owned();
    Response { status, reason, message: message(version, headers, at) }
}

fn message(version: &str, headers: Vec<Header>, at: i64) -> Message {
    Message { version: version.to_owned(), headers, began: at, ended: at, ..Message::default() }
}

fn parts(head: &[u8]) -> (String, Vec<Header>) {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let first = lines.next().unwrap_or_default().to_owned();
    (first, lines.filter(|line| !line.is_empty()).map(header_line).collect())
}

/// `Name: value`; a line without a colon is all name.
pub(super) fn header_line(line: &str) -> Header {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    Header { name: name.to_owned(), value: value.trim_matches([' ', '\t']).to_owned() }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// Source: RFC 9112, section 6.3.
pub(super) fn framing(exchange: &Exchange, response: bool) -> Framing {
    let message = match response {
        true => exchange.response.as_ref().map(|response| &response.message),
        false => exchange.request.as_ref().map(|request| &request.message),
    };
    let Some(message) = message else { return Framing::Length(0) };
    if response {
        let status = exchange.response.as_ref().map_or(0, |response| response.status);
        let head = exchange.request.as_ref().is_some_and(|request| request.method == "HEAD");
        if head || matches!(status, 100..200 | 204 | 304) {
            return Framing::Length(0);
        }
    }
    let mut codings = message.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("transfer-encoding"));
    if let Some(coding) = codings.next_back() {
        let last = coding.value.rsplit(',').next().unwrap_or_default().trim();
        return if last.eq_ignore_ascii_case("chunked") { Framing::Chunked } else { Framing::Close };
    }
    let length = message.header("content-length").map(|length| length.split(',').next().unwrap_or("").trim());
    match length.map(str::parse) {
        Some(Ok(length)) => Framing::Length(length),
        _ if response => Framing::Close,
        _ => Framing::Length(0),
    }
}
