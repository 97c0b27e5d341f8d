//! Where a stream comes from, as a person types it: `ws://HOST:PORT/`, `ws+unix:/PATH`, `adb:SERIAL` for a device
//! behind adb, or `nats://HOST:PORT/?device=NAME` for what `plaintap relay` stored.

use std::{fmt, path::PathBuf, str::FromStr};

use tungstenite::http::Uri;

use crate::nats::Wanted;

/// The port of eCaptureQ. Source: shared/protocol.md.
const DEFAULT_PORT: u16 = 28257;
const DEFAULT_HOST: &str = "127.0.0.1";

/// A way through adb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The device's serial number; empty: the only device there is.
    pub serial: String,
    /// Where the agent listens there, as adb names it.
    pub place: String,
}

/// How a stream is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over the network.
    Tcp {
        /// A name or an IP address; IPv6 without its brackets.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// Through adb.
    Device(Device),
    /// At this socket.
    Unix(PathBuf),
    /// It is kept in NATS JetStream, and no WebSocket server's.
    Nats(Box<Wanted>),
}

/// Where a stream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// How it is reached.
    pub way: Way,
    /// What to ask a WebSocket server for: path and query.
    pub path: String,
}

/// A text that is no address, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}; try {example}")]
pub struct WrongAddress {
    text: String,
    why: String,
    example: &'static str,
}

impl WrongAddress {
    /// A text that is no address of a WebSocket server.
    pub fn new(text: &str, why: &str) -> Self {
        let example = "ws://127.0.0.1:28257/ or adb:SERIAL";
        Self { text: without_secrets(text), why: why.to_owned(), example }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::over(Way::Tcp { host: DEFAULT_HOST.to_owned(), port: DEFAULT_PORT })
    }
}

impl FromStr for Address {
    type Err = WrongAddress;

    fn from_str(text: &str) -> Result<Self, WrongAddress> {
        let wrong = |why| WrongAddress::new(text, why);
        if ["nats:", "tls:"].iter().any(|scheme| text.starts_with(scheme)) {
            return match text.parse() {
                Ok(wanted) => Ok(Self::over(Way::Nats(Box::new(wanted)))),
                Err(why) => Err(WrongAddress {
                    text: without_secrets(text),
                    why: why.to_string(),
                    example: "nats://127.0.0.1:4222/?device=NAME",
                }),
            };
        }
        if let Some(rest) = text.strip_prefix("adb:") {
            let (serial, query) =
                rest.split_once('?').map_or((rest, None), |(serial, query)| (serial, Some(query)));
            // It becomes part of a request to the adb server, whose serial numbers have none of these.
            if serial.contains(|char: char| char.is_whitespace() || char.is_control() || "/;".contains(char))
            {
                return Err(wrong("names no device by its serial number"));
            }
            let path = query.map_or("/".to_owned(), |query| format!("/?{query}"));
            return Ok(Self { path, ..Self::device(serial.to_owned()) });
        }
        if let Some(rest) = text.strip_prefix("ws+unix:") {
            let (path, query) =
                rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
            // Both ws+unix:/path and ws+unix:///path.
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            if path.starts_with('@') {
                return Err(wrong(
                    "is an abstract socket, which adb leads to: adb forward tcp:28257 localabstract:NAME",
                ));
            }
            if !path.starts_with('/') {
                return Err(wrong("names no socket by its whole path"));
            }
            return Ok(Self {
                path: query.map_or("/".to_owned(), |query| format!("/?{query}")),
                ..Self::over(Way::Unix(path.into()))
            });
        }
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
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = port.ok_or_else(|| wrong("has no port number after its colon"))?;
        Ok(Self { path, ..Self::over(Way::Tcp { host, port }) })
    }
}

/// What a query says of where to start.
const START: [&str; 3] = ["after", "run", "backlog"];
/// What a query says of what to leave out.
const CHOICE: [&str; 6] = ["events", "logs", "pid", "uid", "comm", "host"];

/// The name in `name=value`.
fn key(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}

impl Address {
    /// The agent's usual place on a device, or on the only one if the serial number is empty.
    pub fn device(serial: String) -> Self {
        Self::device_at(serial, format!("tcp:{DEFAULT_PORT}"))
    }

    /// Another place on a device, as adb names it.
    pub fn device_at(serial: String, place: String) -> Self {
        Self::over(Way::Device(Device { serial, place }))
    }

    /// The serial number of the device that it is on, if it is behind adb.
    pub fn serial(&self) -> Option<&str> {
        match &self.way {
            Way::Device(device) => Some(&device.serial),
            _ => None,
        }
    }

    /// The same of another device.
    pub fn of_device(&self, serial: &str) -> Self {
        let Way::Device(device) = &self.way else { return self.clone() };
        let device = Device { serial: serial.to_owned(), place: device.place.clone() };
        Self { way: Way::Device(device), path: self.path.clone() }
    }

    fn over(way: Way) -> Self {
        Self { way, path: "/".to_owned() }
    }

    /// `HOST:PORT`, an IPv6 address in brackets; where there is no network between, what a server expects to be called.
    pub fn authority(&self) -> String {
        match &self.way {
            Way::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Way::Tcp { host, port } => format!("{host}:{port}"),
            _ => format!("{DEFAULT_HOST}:{DEFAULT_PORT}"),
        }
    }

    /// The keys of its query.
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.path.split_once('?').map_or("", |(_, query)| query).split('&').map(key)
    }

    /// Whether its query leaves some messages out.
    pub fn chooses(&self) -> bool {
        self.keys().any(|key| CHOICE.contains(&key))
    }

    /// Whether its query says where to start.
    pub fn says_where(&self) -> bool {
        self.keys().any(|key| START.contains(&key))
    }

    /// It, from all that the server still has.
    pub fn with_backlog(&self) -> Self {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        Self { path: format!("{}{joint}backlog=all", self.path), ..self.clone() }
    }

    /// The path and query that ask a server to go on behind the message `seq` of `run`, with what else the person's query
    /// asks for.
    pub fn path_after(&self, seq: u64, run: &str) -> String {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let says_where = |pair: &&str| pair.is_empty() || START.contains(&key(pair));
        let run: String = run.bytes().map(encoded).collect();
        let rest: String =
            query.split('&').filter(|pair| !says_where(pair)).map(|pair| format!("&{pair}")).collect();
        format!("{path}?after={seq}&run={run}{rest}")
    }
}

/// What a person typed as a URL, without what may be secret in it: users and passwords, and all that is asked for.
pub fn without_secrets(text: &str) -> String {
    // A relay's source has a name before it; what has more than that is part of a password or a query.
    let scheme = text.find("://").filter(|at| !text[..*at].contains([':', '@', '?']));
    let (scheme, rest) = text.split_at(scheme.map_or(0, |at| at + "://".len()));
    let shown = match (rest.rfind('@'), rest.find('?')) {
        // Is it a password with a ? in it, or a query with an @?
        (Some(user), Some(query)) if query < user => "...",
        (Some(user), _) => &rest[user + 1..],
        _ => rest,
    };
    match shown.split_once('?') {
        Some((place, _)) => format!("{scheme}{place}?..."),
        None => format!("{scheme}{shown}"),
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
        match &self.way {
            Way::Device(device) => write!(f, "adb:{}", device.serial),
            Way::Unix(path) => write!(f, "ws+unix:{}", path.display()),
            Way::Nats(wanted) => wanted.fmt(f),
            Way::Tcp { .. } => write!(f, "ws://{}/", self.authority()),
        }
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
    fn a_device_is_named_by_its_serial_number_or_is_the_only_one() {
        for (text, serial, path) in [
            ("adb:", "", "/"),
            ("adb:192.168.1.5:5555", "192.168.1.5:5555", "/"),
            ("adb:0123?backlog=5", "0123", "/?backlog=5"),
        ] {
            let address: Address = text.parse().unwrap();
            let Way::Device(device) = &address.way else { panic!("{text}") };
            assert_eq!((device.serial.as_str(), address.path.as_str()), (serial, path), "{text}");
            assert_eq!(device.place, "tcp:28257");
            assert_eq!(address.to_string(), format!("adb:{serial}"));
        }
    }

    #[test]
    fn a_socket_is_named_by_its_path() {
        for (text, unix, path) in [
            ("ws+unix:/run/p.sock", "/run/p.sock", "/"),
            ("ws+unix:///run/p.sock?comm=a", "/run/p.sock", "/?comm=a"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.way, Way::Unix(unix.into()), "{text}");
            assert_eq!((address.path.as_str(), address.to_string()), (path, format!("ws+unix:{unix}")));
        }
    }

    #[test]
    fn all_that_is_there_is_asked_for_beside_what_the_query_chooses() {
        for (text, path, chooses) in [
            ("ws://h/", "/?backlog=all", false),
            ("ws://h/x?comm=a", "/x?comm=a&backlog=all", true),
            ("adb:A?logs=0", "/?logs=0&backlog=all", true),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.with_backlog().path.as_str(), address.chooses()), (path, chooses), "{text}");
            assert!(!address.says_where(), "{text}");
        }
        for text in ["ws://h/?backlog=5", "adb:A?comm=a&after=3", "ws+unix:/p?run=a"] {
            assert!(text.parse::<Address>().unwrap().says_where(), "{text}");
        }
    }

    #[test]
    fn nothing_secret_of_what_was_typed_is_shown() {
        for (text, shown) in [
            ("h:1", "h:1"),
            ("wss://h/x?token=SECRET", "wss://h/x?..."),
            ("lab=wss://h/?token=SECRET", "lab=wss://h/?..."),
            ("adb:A?token=SECRET", "adb:A?..."),
            ("ws://u:SECRET@h/?token=SECRET", "ws://h/?..."),
            ("nats://u:SEC,RET@h", "nats://h"),
            ("nats://u:SEC?RET@h", "nats://..."),
            ("ws://h/?token=SEC@RET", "ws://..."),
            ("nats://SECRET@a:1,tls://u:SECRET@b:2", "nats://b:2"),
            ("u:SECRET@h", "h"),
            ("u:SEC://RET@h", "h"),
            ("nats://u:SEC://RET@h", "nats://h"),
            ("h?token=SEC://RET", "h?..."),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }

    #[cfg(feature = "relay")]
    #[test]
    fn a_kept_stream_is_named_by_its_server_and_device() {
        let address: Address = "nats://u:secret@h:1/?device=R5&backlog=all".parse().unwrap();
        assert_eq!(address.to_string(), "nats://h:1 device R5");
        let error = "nats://u:secret@h:1/?devise=R5".parse::<Address>().unwrap_err().to_string();
        assert!(error.starts_with("\"nats://h:1/?...\" has an unknown key, \"devise\""), "{error}");
        assert!(error.ends_with("try nats://127.0.0.1:4222/?device=NAME"), "{error}");
    }

    #[cfg(not(feature = "relay"))]
    #[test]
    fn a_kept_stream_wants_another_build() {
        let error = "nats://u:secret@h:1/?device=R5".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("--features relay") && !error.contains("secret"), "{error}");
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
            "wss://h/",
            "http://h:1/",
            "h:1",
            "ws://a b/",
            "ws://::1:5/",
            "adb:a b",
            "ws+unix:",
            "ws+unix:p.sock",
            "adb:a;tcp:1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} ")), "{error}");
            assert!(error.ends_with("try ws://127.0.0.1:28257/ or adb:SERIAL"), "{error}");
        }
        let error = "ws+unix:@plaintap".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("adb forward tcp:28257 localabstract:"), "{error}");
        for text in
            ["ws://u:SECRET@h/", "wss://h/?token=SECRET", "adb:a b?token=SECRET", "ws+unix:p?token=SECRET"]
        {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}
