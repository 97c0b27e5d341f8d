//! What a client asks for in the query of its request: where to start, and which messages it wants.
//!
//! Values of one key are alternatives, different keys must all agree, and what a value after `!` names is left out whatever
//! else it agrees with: as the flags of the same names. A query that is not understood in full is refused, since to ignore a
//! part of it would send what nobody asked for.

use std::str::FromStr;

use plaintap_abi::choice;

use crate::{
    args::{Chosen, Uids},
    stream::Subject,
};

/// What one client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where in the journal it starts.
    pub start: Start,
    /// Whether it wants events.
    pub events: bool,
    /// Whether it wants process-log lines.
    pub logs: bool,
    pids: Vec<Chosen<u32>>,
    uids: Vec<Chosen<Uids>>,
    comms: Vec<Chosen<String>>,
    hosts: Vec<Chosen<String>>,
}

/// Where in the journal a client starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Before the newest so many events that it wants; `u64::MAX`: before all that there is.
    Newest(u64),
    /// Behind the last message that it knows.
    After {
        /// Its number.
        seq: u64,
        /// The run that it belongs to.
        run: String,
    },
}

/// A query that makes no sense, as its sender is told. Values are not repeated: one may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no such key.
    #[error(
        "The query has an unknown key, {0:?}; there are after, run, backlog, events, logs, pid, uid, comm, host and \
         token."
    )]
    Key(String),
    /// A key's value is none of its kind.
    #[error("The query's {0} must be {1}.")]
    Value(&'static str, &'static str),
    /// A key that is given once at most.
    #[error("The query has {0} more than once.")]
    Repeated(&'static str),
    /// Both say where to start.
    #[error("The query has both after and backlog; use one of them.")]
    TwoStarts,
    /// A number means nothing without its run.
    #[error("The query has only one of after and run; use both, as after=120&run=0123456789abcdef.")]
    HalfPlace,
    /// It is not percent-encoded UTF-8.
    #[error("The query is not percent-encoded UTF-8.")]
    Encoding,
}

/// Characters of an unknown key that its sender is shown.
const MAX_KEY: usize = 32;

/// One key of each kind, as a query has it.
#[derive(Default)]
struct Parts {
    after: Option<u64>,
    run: Option<String>,
    backlog: Option<u64>,
    events: Option<bool>,
    logs: Option<bool>,
}

impl Query {
    /// Reads the query of a request's target, `/path?key=value&…`.
    pub fn parse(target: &str) -> Result<Self, Wrong> {
        let mut parts = Parts::default();
        let (mut pids, mut uids, mut comms, mut hosts) = (vec![], vec![], vec![], vec![]);
        for pair in pairs(target) {
            let (key, value) = pair?;
            match key.as_str() {
                "after" => once(&mut parts.after, "after", &value, number, "a message's number")?,
                "run" => {
                    let run = |value: &str| (!value.is_empty()).then(|| value.to_owned());
                    once(&mut parts.run, "run", &value, run, "a run's id")?;
                }
                "backlog" => once(&mut parts.backlog, "backlog", &value, backlog, "all, none or a number")?,
                "events" => once(&mut parts.events, "events", &value, switch, "0 or 1")?,
                "logs" => once(&mut parts.logs, "logs", &value, switch, "0 or 1")?,
                "pid" => pids.push(chosen(&value, "pid", "a process id, as 42 or !42")?),
                "uid" => {
                    uids.push(chosen(&value, "uid", "a user id or a range, as 1000, 10000-19999 or !0")?)
                }
                "comm" => comms.push(chosen(&value, "comm", "a thread's name, as curl or !curl")?),
                "host" => {
                    hosts.push(chosen(&value, "host", "a host's name, as example.org or !example.org")?)
                }
                // Who comes in is decided elsewhere.
                "token" => {}
                _ => return Err(Wrong::Key(key.chars().take(MAX_KEY).collect())),
            }
        }
        let start = match (parts.after, parts.run, parts.backlog) {
            (Some(_), _, Some(_)) => return Err(Wrong::TwoStarts),
            (Some(seq), Some(run), None) => Start::After { seq, run },
            (None, None, backlog) => Start::Newest(backlog.unwrap_or(0)),
            _ => return Err(Wrong::HalfPlace),
        };
        let (events, logs) = (parts.events.unwrap_or(true), parts.logs.unwrap_or(true));
        Ok(Self { start, events, logs, pids, uids, comms, hosts })
    }

    /// Whether the client wants an event about `subject`.
    pub fn wants_event(&self, subject: &Subject) -> bool {
        self.events
            && agrees(&self.pids, |pid| *pid == subject.pid)
            && agrees(&self.uids, |uids| (uids.first..=uids.last).contains(&subject.uid))
            && agrees(&self.comms, |comm| **comm == *subject.comm)
            && agrees(&self.hosts, |host| host.eq_ignore_ascii_case(&subject.host))
    }

    /// Whether the client wants a message of the journal: an event about a subject, or a log line.
    pub fn wants(&self, subject: Option<&Subject>) -> bool {
        subject.map_or(self.logs, |subject| self.wants_event(subject))
    }
}

/// The query's keys and values, percent-decoded; `+` is a space, as in what browsers make of forms.
pub fn pairs(target: &str) -> impl Iterator<Item = Result<(String, String), Wrong>> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    // A fragment is never sent by those who know the rules.
    let query = query.split('#').next().unwrap_or_default();
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(key)?, decoded(value)?))
    })
}

/// The token in a request's target, for whoever decides who comes in.
pub fn token(target: &str) -> Option<Vec<u8>> {
    let token = pairs(target).filter_map(Result::ok).find(|(key, _)| key == "token");
    token.map(|(_, value)| value.into_bytes())
}

fn decoded(text: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                high.zip(low)
                    .and_then(|(high, low)| u8::try_from(high << 4 | low).ok())
                    .ok_or(Wrong::Encoding)?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| Wrong::Encoding)
}

/// Reads the value of a key that is given once at most.
fn once<T>(
    part: &mut Option<T>,
    key: &'static str,
    value: &str,
    read: impl Fn(&str) -> Option<T>,
    kind: &'static str,
) -> Result<(), Wrong> {
    let value = read(value).ok_or(Wrong::Value(key, kind))?;
    part.replace(value).map_or(Ok(()), |_| Err(Wrong::Repeated(key)))
}

fn number(value: &str) -> Option<u64> {
    // `parse` takes a sign.
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

fn backlog(value: &str) -> Option<u64> {
    match value {
        "all" => Some(u64::MAX),
        "none" => Some(0),
        _ => number(value),
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn chosen<T>(value: &str, key: &'static str, kind: &'static str) -> Result<Chosen<T>, Wrong>
where
    Chosen<T>: FromStr,
{
    value.parse().map_err(|_| Wrong::Value(key, kind))
}

/// Whether what `is` agrees with these values: with none that excludes, and with one that includes if there is any.
fn agrees<T>(all: &[Chosen<T>], is: impl Fn(&T) -> bool) -> bool {
    let mut included = None;
    for Chosen { value, choice } in all {
        if *choice == choice::EXCLUDE {
            if is(value) {
                return false;
            }
        } else {
            included = Some(included.unwrap_or(false) || is(value));
        }
    }
    included.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str, subject: &Subject) -> bool {
        Query::parse(&format!("/?{query}")).unwrap().wants(Some(subject))
    }

    fn curl() -> Subject {
        Subject { pid: 42, uid: 1000, comm: "curl".into(), host: "example.org".into() }
    }

    #[test]
    fn without_a_query_everything_from_now_on_is_wanted() {
        for target in ["/", "", "*", "/stream", "/?", "/x?&&", "http://h/?#pid=1", "/?token=x%20y&token="] {
            let query = Query::parse(target).unwrap();
            assert_eq!(query.start, Start::Newest(0), "{target}");
            assert!(query.wants(Some(&curl())) && query.wants(None), "{target}");
        }
    }

    #[test]
    fn a_start_is_a_backlog_or_a_place() {
        for (query, start) in [
            ("backlog=all", Start::Newest(u64::MAX)),
            ("backlog=none", Start::Newest(0)),
            ("backlog=17", Start::Newest(17)),
            ("run=0a&after=5", Start::After { seq: 5, run: "0a".into() }),
        ] {
            assert_eq!(Query::parse(&format!("/?{query}")).unwrap().start, start);
        }
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_keys_must_all_agree() {
        for query in [
            "pid=42",
            "pid=1&pid=42",
            "pid=!1",
            "uid=1000",
            "uid=0-9&uid=500-1000",
            "uid=!0-999",
            "comm=curl&host=example.org",
            "host=EXAMPLE.org&pid=!41&events=1",
            "comm=%63url",
            "logs=0",
        ] {
            assert!(wanted(query, &curl()), "{query}");
        }
        for query in [
            "pid=41",
            "pid=42&pid=!42",
            "pid=42&uid=0",
            "uid=!1000",
            "comm=cur",
            "comm=Curl",
            "host=www.example.org",
            "host=!example.org&pid=42",
            "events=0",
        ] {
            assert!(!wanted(query, &curl()), "{query}");
        }
    }

    #[test]
    fn log_lines_are_chosen_by_their_own_key_only() {
        for (query, logs) in [("pid=1&events=0", true), ("logs=1", true), ("logs=0", false)] {
            assert_eq!(Query::parse(&format!("/?{query}")).unwrap().wants(None), logs, "{query}");
        }
    }

    #[test]
    fn a_name_may_hold_anything_when_encoded() {
        for (value, comm) in [
            ("a%20b", "a b"),
            ("a+b", "a b"),
            ("g%2b%2B", "g++"),
            ("%E4%BD%A0%26%3D%25%23", "你&=%#"),
            ("x=y?z", "x=y?z"),
            ("%00", "\0"),
        ] {
            let subject = Subject { comm: comm.into(), ..Subject::default() };
            assert!(wanted(&format!("comm={value}"), &subject), "{value}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, named) in [
            ("pids=1", "\"pids\""),
            ("Pid=1", "\"Pid\""),
            ("=", "\"\""),
            ("q%1b%5B=1", "\"q\\u{1b}[\""),
            ("pid", "pid must be a process id"),
            ("pid=", "pid must"),
            ("pid=-1", "pid must"),
            ("pid=4294967296", "pid must"),
            ("pid=!", "pid must"),
            ("uid=9-5", "uid must"),
            ("comm=", "comm must"),
            ("host=!", "host must"),
            ("events=2", "events must be 0 or 1"),
            ("logs=", "logs must"),
            ("backlog=-5", "backlog must be all, none or a number"),
            ("backlog=18446744073709551616", "backlog must"),
            ("backlog=5&backlog=5", "backlog more than once"),
            ("after=5&run=a&after=5", "after more than once"),
            ("after=+5&run=a", "after must be a message's number"),
            ("after=&run=a", "after must"),
            ("after=5&run=", "run must"),
            ("after=5&backlog=all&run=a", "both after and backlog"),
            ("after=5", "only one of after and run"),
            ("run=a", "only one of after and run"),
            ("run=a&backlog=1", "only one of after and run"),
            ("comm=%", "percent-encoded"),
            ("comm=%4", "percent-encoded"),
            ("comm=%+4", "percent-encoded"),
            ("comm=%ff", "percent-encoded"),
            ("%=1", "percent-encoded"),
        ] {
            let error = Query::parse(&format!("/?{query}")).unwrap_err().to_string();
            assert!(error.contains(named), "{query}: {error}");
            assert!(error.ends_with('.') && !error.contains(char::is_control), "{query}: {error}");
        }
        let long = Query::parse(&format!("/?{}=1", "x".repeat(5000))).unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
    }

    proptest::proptest! {
        #[test]
        fn any_target_is_read_or_refused_in_a_short_sentence(target in "\\PC*") {
            if let Err(wrong) = Query::parse(&target) {
                let sentence = wrong.to_string();
                proptest::prop_assert!(sentence.len() < 500 && !sentence.contains(char::is_control), "{sentence}");
            }
        }

        #[test]
        fn any_query_of_known_keys_is_read_or_refused(
            pairs in proptest::collection::vec(("(after|run|backlog|events|logs|pid|uid|comm|host|token)", "[!-~]{0,6}"), 0..6),
        ) {
            let query: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if let Ok(query) = Query::parse(&format!("/?{}", query.join("&"))) {
                let _ = query.wants(Some(&curl()));
            }
        }

        #[test]
        fn every_name_but_a_negation_can_be_asked_for(name in "[^!\n].{0,19}") {
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let subject = Subject { comm: name.as_str().into(), host: name.as_str().into(), ..curl() };
            let asked = wanted(&format!("comm={encoded}&host={encoded}"), &subject);
            let refused = wanted(&format!("comm=!{encoded}"), &subject);
            proptest::prop_assert!(asked && !refused);
        }
    }
}
