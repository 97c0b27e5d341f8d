//! Where a stream comes from, as a person types it: `ws://HOST:PORT/`.

use std::{fmt, str::FromStr};

use tungstenite::http::Uri;

/// The port of eCaptureQ. Source: shared/protocol.md.
const DEFAULT_PORT: u16 = 28257;

/// A WebSocket server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address; IPv6 without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// What to ask the server for: path and query.
    pub path: String,
}

/// A text that is no address, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}; try ws://127.0.0.1:28257/")]
pub struct WrongAddress {
    text: String,
    why: &'static str,
}

impl Default for Address {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT, path: "/".to_owned() }
    }
}

impl FromStr for Address {
    type Err = WrongAddress;

    fn from_str(text: &str) -> Result<Self, WrongAddress> {
        let wrong = |why| WrongAddress { text: text.to_owned(), why };
        let uri: Uri = text.parse().map_err(|_| wrong("is no URL"))?;
        if !uri.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("ws")) {
            return Err(wrong("is no ws:// URL"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
        // What follows the host, which is all of the authority unless a user's name stands before it.
        let port = match uri.authority().and_then(|authority| authority.as_str().strip_prefix(host)) {
            Some("") => Some(DEFAULT_PORT),
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse().ok()).filter(|port| *port != 0),
            None => return Err(wrong("has a user's name")),
        };
        // http takes `ws://host?query`, whose path is empty, and a request's target begins with a slash.
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.ok_or_else(|| wrong("has no port number after its colon"))?,
            path,
        })
    }
}

impl Address {
    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The path and query that ask a server to go on behind the message `seq` of `run`, with what else the person's query
    /// asks for.
    pub fn path_after(&self, seq: u64, run: &str) -> String {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let says_where = |pair: &&str| {
            let key = pair.split('=').next().unwrap_or_default();
            pair.is_empty() || ["after", "run", "backlog"].contains(&key)
        };
        let run: String = run.bytes().map(encoded).collect();
        let rest: String =
            query.split('&').filter(|pair| !says_where(pair)).map(|pair| format!("&{pair}")).collect();
        format!("{path}?after={seq}&run={run}{rest}")
    }
}

/// A byte as it may stand in a query.
fn encoded(byte: u8) -> String {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

/// Without path and query, which may hold a secret.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ws://{}/", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_slash_and_path_may_be_there_or_not() {
        for (text, authority, path) in [
            ("ws://127.0.0.1:1", "127.0.0.1:1", "/"),
            ("WS://localhost/", "localhost:28257", "/"),
            ("ws://[::1]:5/", "[::1]:5", "/"),
            ("ws://[::1]", "[::1]:28257", "/"),
            ("ws://a.example?backlog=5", "a.example:28257", "/?backlog=5"),
            ("ws://a.example:7/x?y=z", "a.example:7", "/x?y=z"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.authority().as_str(), address.path.as_str()), (authority, path), "{text}");
        }
    }

    #[test]
    fn a_place_to_go_on_from_replaces_the_start_that_was_asked_for() {
        for (text, path) in [
            ("ws://h", "/?after=5&run=a%261"),
            ("ws://h/x?", "/x?after=5&run=a%261"),
            ("ws://h/?backlog=all&pid=1&&run=b&after=3&comm=!a", "/?after=5&run=a%261&pid=1&comm=!a"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().path_after(5, "a&1"), path);
        }
    }

    #[test]
    fn a_wrong_address_is_named_with_an_example_of_a_right_one() {
        for text in [
            "",
            "/",
            "ws:/",
            "ws://",
            "ws://:1/",
            "ws://h:/",
            "ws://h:x/",
            "ws://h:0/",
            "ws://h:65536/",
            "ws://u@h/",
            "wss://h/",
            "http://h:1/",
            "h:1",
            "ws://a b/",
            "ws://::1:5/",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} ")), "{error}");
            assert!(error.ends_with("try ws://127.0.0.1:28257/"), "{error}");
        }
    }
}
