//! Which protocol a connection speaks, from the bytes that go each way.
//!
//! A pure function of what it has seen: the caller keeps one `Classifier` per connection and drops it with the
//! connection. HTTP/2 is sticky once its preface is seen; HTTP/1 becomes WebSocket after a 101. A payload that starts no
//! message goes on with what its direction carried before.

use plaintap_proto::{Direction, Protocol};

/// Source: RFC 9113, section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Source: RFC 9110, section 9.1, RFC 5789, and RFC 4918 for WebDAV's.
const METHODS: [&[u8]; 16] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
];

/// What one connection has shown so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Classifier {
    read: Protocol,
    written: Protocol,
}

impl Classifier {
    /// Names the protocol of `payload`, the next bytes that went in `direction`; `continued` if they are not the first of
    /// their call, and so start no message.
    pub fn observe(&mut self, direction: Direction, payload: &[u8], continued: bool) -> Protocol {
        let (own, other) = match direction {
            Direction::Written => (&mut self.written, &mut self.read),
            Direction::Read | Direction::Unknown => (&mut self.read, &mut self.written),
        };
        match *own {
            // These last as long as the connection.
            Protocol::Http2Request | Protocol::Http2Response | Protocol::WebSocket => {}
            _ if continued => {}
            _ if starts_as(payload, HTTP2_PREFACE) => {
                *own = Protocol::Http2Request;
                *other = Protocol::Http2Response;
            }
            _ if METHODS.iter().any(|method| payload.starts_with(method)) && is_request_line(payload) => {
                *own = Protocol::Http1Request;
            }
            _ if payload.starts_with(b"HTTP/1.") => {
                *own = Protocol::Http1Response;
                if switches_to_websocket(payload) {
                    *own = Protocol::WebSocket;
                    *other = Protocol::WebSocket;
                    return Protocol::Http1Response;
                }
            }
            _ => {}
        }
        *own
    }
}

/// Whether `payload` begins with `start`, or is so short that only `start`'s beginning could be seen: a preface may be
/// written in pieces. Four bytes, so that no other word is taken for it.
fn starts_as(payload: &[u8], start: &[u8]) -> bool {
    payload.len() >= 4 && payload.iter().zip(start).all(|(a, b)| a == b)
}

/// Whether the first line, as far as it is there, could be a request's: a body may begin with a method's name too.
fn is_request_line(payload: &[u8]) -> bool {
    let mut lines = payload.split_inclusive(|byte| *byte == b'\n');
    match lines.next().and_then(|line| line.strip_suffix(b"\n")) {
        Some(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
        }
        None => true,
    }
}

/// Whether a response accepts an upgrade to WebSocket. Its head comes in one piece from every server that we know.
fn switches_to_websocket(response: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    // An error leaves what came before it; only a bad head is in doubt then, and stays HTTP/1.
    let _ = parsed.parse(response);
    parsed.code == Some(101)
        && parsed.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("upgrade") && header.value.eq_ignore_ascii_case(b"websocket")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Read, Written};

    #[test]
    fn http1_is_named_by_how_each_message_starts_and_bodies_go_on_with_it() {
        let mut connection = Classifier::default();
        assert_eq!(connection.observe(Written, b"GET / HTTP/1.1\r\n", false), Protocol::Http1Request);
        assert_eq!(connection.observe(Written, b"Host: x\r\n\r\n", false), Protocol::Http1Request);
        assert_eq!(connection.observe(Read, b"HTTP/1.1 200 OK\r\n\r\n", false), Protocol::Http1Response);
        assert_eq!(connection.observe(Read, b"body", false), Protocol::Http1Response);
    }

    #[test]
    fn the_side_that_sends_the_preface_asks_over_http2_ever_after() {
        let mut server = Classifier::default();
        assert_eq!(server.observe(Read, HTTP2_PREFACE, false), Protocol::Http2Request);
        assert_eq!(server.observe(Written, b"\0\0\0\x04\0\0\0\0\0", false), Protocol::Http2Response);
        assert_eq!(server.observe(Read, b"GET / HTTP/1.1\r\n", false), Protocol::Http2Request);
    }

    #[test]
    fn a_preface_in_pieces_is_still_one() {
        let mut connection = Classifier::default();
        assert_eq!(connection.observe(Written, &HTTP2_PREFACE[..16], false), Protocol::Http2Request);
        assert_eq!(connection.observe(Written, &HTTP2_PREFACE[16..], false), Protocol::Http2Request);
    }

    #[test]
    fn after_an_accepted_upgrade_both_directions_are_websocket() {
        let mut connection = Classifier::default();
        connection.observe(Written, b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", false);
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUPGRADE: WebSocket\r\nConnection: Upgrade\r\n\r\n";
        assert_eq!(connection.observe(Read, answer, false), Protocol::Http1Response);
        assert_eq!(connection.observe(Written, &[0x81, 0x80], false), Protocol::WebSocket);
        assert_eq!(connection.observe(Read, &[0x81, 0x00], false), Protocol::WebSocket);
    }

    #[test]
    fn another_upgrade_is_not_websocket() {
        let mut connection = Classifier::default();
        connection.observe(Read, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tls/1.3\r\n\r\n", false);
        assert_eq!(connection.observe(Written, b"xyz", false), Protocol::Unknown);
    }

    #[test]
    fn a_body_that_looks_like_a_request_is_none() {
        let mut connection = Classifier::default();
        connection.observe(Read, b"HTTP/1.1 200 OK\r\n\r\n", false);
        assert_eq!(connection.observe(Read, b"GET / HTTP/1.1\r\n", true), Protocol::Http1Response);
        assert_eq!(connection.observe(Read, b"GET up, stand up\r\n", false), Protocol::Http1Response);
        assert_eq!(connection.observe(Written, b"GET ", false), Protocol::Http1Request);
    }

    #[test]
    fn what_is_no_http_is_unknown() {
        let mut connection = Classifier::default();
        for payload in [&b""[..], b"P", b"PRI", b"GETAWAY", b"\x16\x03\x01", b"HTTP/2"] {
            assert_eq!(connection.observe(Written, payload, false), Protocol::Unknown, "{payload:?}");
        }
    }
}
