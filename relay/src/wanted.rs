//! What a reader wants, as a URL says it: `nats://HOST:PORT/?device=NAME&backlog=100&comm=curl`.
//!
//! What to leave out is said as to the agent itself (docs/protocol.md), and judged here: NATS knows only subjects.
//! Values of one key are alternatives, different keys must all agree, and what a value after `!` names is left out.

use std::{collections::HashMap, fmt, ops::RangeInclusive, str::FromStr};

use plaintap_proto::{Event, LogEntry, log_entry::Payload};

use crate::connect::{Server, servers, shown};

/// Connections whose first thread is remembered.
const MOST_CONNECTIONS: usize = 8192;

/// One device's messages in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where the stream is.
    pub server: Server,
    /// The stream's name.
    pub stream: String,
    /// The device; `None`: the only one.
    pub device: Option<String>,
    /// Start with so many of its newest events, before the choice; `u64::MAX`: with all.
    pub backlog: u64,
    choice: Choice,
}

/// What to leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Choice {
    no_events: bool,
    no_logs: bool,
    pids: Vec<Chosen<i64>>,
    uids: Vec<Chosen<RangeInclusive<u32>>>,
    comms: Vec<Chosen<String>>,
    hosts: Vec<Chosen<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chosen<T> {
    value: T,
    excluded: bool,
}

/// A URL that makes no sense, in words that follow it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is no server's.
    #[error("is no NATS server's URL")]
    Url,
    /// Neither a server nor a context.
    #[error("names no host, and no context that could")]
    NoHost,
    /// There is no such key.
    #[error(
        "has an unknown key, {0:?}; there are device, stream, backlog, events, logs, pid, uid, comm, host, context, \
         creds and tls-ca"
    )]
    Key(String),
    /// A key's value is none of its kind.
    #[error("has a {0} that is not {1}")]
    Value(&'static str, &'static str),
    /// It is not percent-encoded UTF-8.
    #[error("is not percent-encoded UTF-8")]
    Encoding,
}

impl FromStr for Wanted {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let (url, query) = text.split_once('?').unwrap_or((text, ""));
        let url = url.trim_end_matches('/');
        let mut wanted = Self {
            server: Server::default(),
            stream: "PLAINTAP".to_owned(),
            device: None,
            backlog: 0,
            choice: Choice::default(),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key, true), decoded(value, true));
            wanted.take(&key.ok_or(Wrong::Encoding)?, value.ok_or(Wrong::Encoding)?)?;
        }
        // `nats://?context=NAME`: the context has the host.
        if !url.ends_with(':') {
            if !servers(url).is_ok_and(|servers| !servers.is_empty()) {
                return Err(Wrong::Url);
            }
            wanted.server.url = Some(url.to_owned());
        } else if wanted.server.context.is_none() {
            return Err(Wrong::NoHost);
        }
        Ok(wanted)
    }
}

impl Wanted {
    fn take(&mut self, key: &str, value: String) -> Result<(), Wrong> {
        let choice = &mut self.choice;
        match key {
            "device" if !value.is_empty() => self.device = Some(value),
            "device" => return Err(Wrong::Value("device", "a device's name")),
            "stream" if !value.is_empty() && !value.contains(['.', '*', '>', '/', '\\', ' ']) => {
                self.stream = value;
            }
            "stream" => return Err(Wrong::Value("stream", "a stream's name")),
            "context" => self.server.context = Some(value),
            "creds" => self.server.credentials = Some(value.into()),
            "tls-ca" => self.server.tls_ca = Some(value.into()),
            "backlog" => {
                self.backlog = match value.as_str() {
                    "all" => u64::MAX,
                    "none" => 0,
                    number => number.parse().map_err(|_| Wrong::Value("backlog", "all, none or a number"))?,
                }
            }
            "events" => choice.no_events = !switch("events", &value)?,
            "logs" => choice.no_logs = !switch("logs", &value)?,
            "pid" => choice.pids.push(
                chosen(&value, |pid| pid.parse::<u32>().ok().map(i64::from))
                    .ok_or(Wrong::Value("pid", "a process id, as 42 or !42"))?,
            ),
            "uid" => choice.uids.push(
                chosen(&value, uids)
                    .ok_or(Wrong::Value("uid", "a user id or a range, as 1000, 10000-19999 or !0"))?,
            ),
            "comm" => choice.comms.push(
                chosen(&value, |comm| Some(comm.to_owned()))
                    .ok_or(Wrong::Value("comm", "a thread's name, as curl or !curl"))?,
            ),
            "host" => choice.hosts.push(
                chosen(&value, |host| Some(host.to_lowercase()))
                    .ok_or(Wrong::Value("host", "a host's name, as example.org or !example.org"))?,
            ),
            key => return Err(Wrong::Key(key.chars().take(32).collect())),
        }
        Ok(())
    }

    /// What to leave out, as one reader applies it.
    pub fn sieve(&self) -> Sieve {
        Sieve { choice: self.choice.clone(), first: HashMap::new() }
    }
}

/// Without what may be a secret.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (&self.server.url, &self.server.context) {
            (Some(url), _) => write!(f, "{}", shown(&servers(url).unwrap_or_default()))?,
            (None, context) => write!(f, "nats context {}", context.as_deref().unwrap_or_default())?,
        }
        self.device.as_ref().map_or(Ok(()), |device| write!(f, " device {device}"))
    }
}

/// Leaves messages out.
#[derive(Debug)]
pub struct Sieve {
    choice: Choice,
    /// The name of the thread that each connection's first event was of: all of a connection's events share one, since
    /// to leave out some of them would tear it.
    first: HashMap<u64, String>,
}

impl Sieve {
    /// Whether it lets everything through, whatever it is.
    pub fn lets_all_through(&self) -> bool {
        self.choice == Choice::default()
    }

    /// Whether it lets this message through.
    pub fn lets_through(&mut self, entry: &LogEntry) -> bool {
        match &entry.payload {
            Some(Payload::EventPayload(event)) => self.lets_event_through(event),
            Some(Payload::RunLog(_)) => !self.choice.no_logs,
            _ => true,
        }
    }

    fn lets_event_through(&mut self, event: &Event) -> bool {
        if self.first.len() > MOST_CONNECTIONS {
            self.first.clear();
        }
        let choice = &self.choice;
        // Servers that number no connections share one number.
        let comm = match event.connection_id {
            _ if choice.comms.is_empty() => &event.pname,
            0 => &event.pname,
            id => self.first.entry(id).or_insert_with(|| event.pname.clone()),
        };
        !choice.no_events
            && agrees(&choice.pids, |pid| *pid == event.pid)
            && agrees(&choice.uids, |uids| uids.contains(&event.uid))
            && agrees(&choice.comms, |wanted| wanted == comm)
            && agrees(&choice.hosts, |host| *host == event.server_name.to_lowercase())
    }
}

/// Whether what `is` agrees with these values: with none that excludes, and with one that includes if there is any.
fn agrees<T>(all: &[Chosen<T>], is: impl Fn(&T) -> bool) -> bool {
    let mut included = None;
    for Chosen { value, excluded } in all {
        match (excluded, is(value)) {
            (true, true) => return false,
            (true, false) => {}
            (false, agrees) => included = Some(included.unwrap_or(false) || agrees),
        }
    }
    included.unwrap_or(true)
}

fn chosen<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Chosen<T>> {
    let (value, excluded) = text.strip_prefix('!').map_or((text, false), |value| (value, true));
    let value = Some(value).filter(|value| !value.is_empty()).and_then(read)?;
    Some(Chosen { value, excluded })
}

fn uids(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn switch(key: &'static str, value: &str) -> Result<bool, Wrong> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(Wrong::Value(key, "0 or 1")),
    }
}

/// Percent-decoded text; in a query a plus is a space.
pub(crate) fn decoded(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' if query => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn event(pid: i64, pname: &str, server_name: &str) -> LogEntry {
        let event = Event {
            pid,
            uid: 1000,
            pname: pname.into(),
            server_name: server_name.into(),
            connection_id: 7,
            ..Event::default()
        };
        LogEntry { payload: Some(Payload::EventPayload(event)), ..LogEntry::default() }
    }

    #[test]
    fn a_url_says_where_which_device_and_where_to_start() {
        let all =
            wanted("nats://u:p@a:1,b/?device=R5%2FA&stream=LAB&backlog=all&context=x&creds=/c&tls-ca=/ca");
        assert_eq!(all.server.url.as_deref(), Some("nats://u:p@a:1,b"));
        assert_eq!(all.server.context.as_deref(), Some("x"));
        assert_eq!(all.server.credentials, Some("/c".into()));
        assert_eq!(all.server.tls_ca, Some("/ca".into()));
        assert_eq!(
            (all.device.as_deref(), all.stream.as_str(), all.backlog),
            (Some("R5/A"), "LAB", u64::MAX)
        );
        assert_eq!(all.to_string(), "nats://a:1,nats://b:4222 device R5/A");
        let least = wanted("tls://h");
        assert_eq!((least.device, least.stream.as_str(), least.backlog), (None, "PLAINTAP", 0));
        for text in ["nats://?context=lab", "nats:///?context=lab", "nats:?context=lab"] {
            let wanted = wanted(text);
            assert_eq!((&wanted.server.url, wanted.to_string().as_str()), (&None, "nats context lab"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("nats://h/?devise=a", "unknown key, \"devise\"; there are device, stream"),
            ("nats://h/?after=5&run=a", "unknown key, \"after\""),
            ("nats://h/?device=", "a device's name"),
            ("nats://h/?stream=a.b", "a stream's name"),
            ("nats://h/?backlog=-1", "all, none or a number"),
            ("nats://h/?pid=x", "a process id"),
            ("nats://h/?uid=9-5", "a range"),
            ("nats://h/?comm=!", "a thread's name"),
            ("nats://h/?logs=2", "0 or 1"),
            ("nats://h/?comm=%4", "percent-encoded"),
            ("nats://", "names no host"),
            ("nats://h:x", "no NATS server's URL"),
            ("http://h", "no NATS server's URL"),
        ] {
            let error = text.parse::<Wanted>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_keys_must_all_agree() {
        for (query, through) in [
            ("", true),
            ("pid=1&pid=42", true),
            ("pid=!42", false),
            ("uid=500-1000&comm=curl&host=Example.org", true),
            ("uid=0", false),
            ("comm=!curl", false),
            ("host=www.example.org", false),
            ("events=0", false),
            ("logs=0", true),
        ] {
            let mut sieve = wanted(&format!("nats://h/?{query}")).sieve();
            assert_eq!(sieve.lets_through(&event(42, "curl", "example.org")), through, "{query}");
        }
        let line = LogEntry { payload: Some(Payload::RunLog("a".into())), ..LogEntry::default() };
        assert!(wanted("nats://h/?pid=1&events=0").sieve().lets_through(&line));
        assert!(!wanted("nats://h/?logs=0").sieve().lets_through(&line));
        assert!(wanted("nats://h/?backlog=5").sieve().lets_all_through());
    }

    #[test]
    fn a_connection_that_other_threads_use_later_is_not_torn() {
        let mut sieve = wanted("nats://h/?comm=main").sieve();
        assert!(sieve.lets_through(&event(1, "main", "")) && sieve.lets_through(&event(1, "worker", "")));
    }

    proptest::proptest! {
        #[test]
        fn any_url_is_taken_or_refused(text in "(nats|tls)?:?//?[a-z0-9:@/%.\\[\\]]{0,20}\\??[a-z=&%!0-9+-]{0,40}", any in ".{0,60}") {
            for text in [text, any] {
                if let Ok(wanted) = text.parse::<Wanted>() {
                    let _ = (wanted.to_string(), wanted.sieve());
                }
            }
        }
    }
}
