//! The language of `--filter`: which items are shown.
//!
//! ```text
//! expr  = and { ("or" | "||") and }
//! and   = not { ["and" | "&&"] not }
//! not   = ("not" | "!") not | "(" expr ")" | term
//! term  = field op value | value            (a value alone is text~value)
//! field = host | method | path | status | process | pid | uid | text
//! op    = "=" | "!=" | "~" (contains) | "<" | "<=" | ">" | ">=" (numbers)
//! value = a word, or "in quotes"; with = and !=, * stands for anything, and status takes 4xx
//! ```
//! Case does not matter.

pub use super::filter_text::ParseError;
use super::{Exchange, Header, Item, Origin, content};
use plaintap_proto::Event;

/// A filter that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Either.
    Or(Box<Filter>, Box<Filter>),
    /// Both.
    And(Box<Filter>, Box<Filter>),
    /// Not.
    Not(Box<Filter>),
    /// A field's value.
    Is(Field, Op, String),
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named after what a person types")]
pub enum Field {
    Host,
    Method,
    Path,
    Status,
    Process,
    Pid,
    Uid,
    Text,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named after what a person types")]
pub enum Op {
    Equal,
    Contains,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

/// What a filter looks at.
#[derive(Default)]
struct Subject {
    hosts: Vec<String>,
    method: Option<String>,
    path: Option<String>,
    status: Option<i64>,
    process: Vec<String>,
    pid: Option<i64>,
    uid: Option<i64>,
    texts: Vec<String>,
}

impl Filter {
    /// Whether an item is to be shown. Gaps and notes have no more than their connection.
    pub fn matches(&self, item: &Item) -> bool {
        let subject = match item {
            Item::Exchange(exchange) => of_exchange(exchange),
            Item::WebSocket(message) => {
                let text = String::from_utf8_lossy(&message.body.bytes).to_lowercase();
                Subject { texts: vec![text], ..of_origin(&message.origin) }
            }
            Item::Raw(event) => return self.matches_event(event),
            Item::Gap(gap) => of_origin(&gap.origin),
            Item::Note(origin, note) => Subject { texts: vec![note.to_lowercase()], ..of_origin(origin) },
        };
        self.holds(&subject)
    }

    /// Whether an event is to be shown as it is. It has no method, path and status.
    pub fn matches_event(&self, event: &Event) -> bool {
        self.holds(&Subject {
            hosts: vec![event.server_name.to_lowercase()],
            process: vec![event.pname.to_lowercase(), event.app.to_lowercase()],
            pid: Some(event.pid),
            uid: (event.connection_id != 0).then_some(event.uid.into()),
            texts: vec![String::from_utf8_lossy(&event.payload).to_lowercase()],
            ..Subject::default()
        })
    }

    fn holds(&self, subject: &Subject) -> bool {
        match self {
            Self::Or(left, right) => left.holds(subject) || right.holds(subject),
            Self::And(left, right) => left.holds(subject) && right.holds(subject),
            Self::Not(filter) => !filter.holds(subject),
            Self::Is(field, op, value) => {
                let number =
                    |number: Option<i64>| number.is_some_and(|number| compare_number(number, *op, value));
                let text = |text: &String| compare_text(text, *op, value);
                match field {
                    Field::Host => subject.hosts.iter().any(text),
                    Field::Method => subject.method.iter().any(text),
                    Field::Path => subject.path.iter().any(text),
                    Field::Process => subject.process.iter().any(text),
                    Field::Text => subject.texts.iter().any(text),
                    Field::Status => number(subject.status),
                    Field::Pid => number(subject.pid),
                    Field::Uid => number(subject.uid),
                }
            }
        }
    }
}

fn of_origin(origin: &Origin) -> Subject {
    Subject {
        hosts: vec![origin.server_name.to_lowercase()],
        process: vec![origin.process.to_lowercase(), origin.app.to_lowercase()],
        pid: Some(origin.pid),
        uid: origin.uid.map(i64::from),
        ..Subject::default()
    }
}

fn of_exchange(exchange: &Exchange) -> Subject {
    let mut subject = of_origin(&exchange.origin);
    if let Some(request) = &exchange.request {
        // With and without the port.
        let host = request.authority.to_lowercase();
        let bare = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        subject.hosts.extend(bare.map(|(host, _)| host.to_owned()));
        subject.hosts.push(host);
        subject.method = Some(request.method.to_lowercase());
        subject.path = Some(request.target.to_lowercase());
        subject.texts.push(format!("{} {}", request.method, request.target).to_lowercase());
    }
    subject.status = exchange.response.as_ref().map(|response| response.status.into());
    for message in exchange.messages() {
        let line = |header: &Header| format!("{}: {}", header.name, header.value).to_lowercase();
        subject.texts.extend(message.headers.iter().chain(&message.trailers).map(line));
        let body = content::decode(message, 1 << 20);
        let content_type = message.header("content-type").unwrap_or_default();
        subject.texts.push(content::searchable(&body.bytes, content_type).to_lowercase());
    }
    subject
}

fn compare_number(number: i64, op: Op, value: &str) -> bool {
    let Ok(wanted) = value.parse::<i64>() else { return compare_text(&number.to_string(), op, value) };
    match op {
        Op::Equal => number == wanted,
        Op::Contains => number.to_string().contains(value),
        Op::Less => number < wanted,
        Op::LessOrEqual => number <= wanted,
        Op::More => number > wanted,
        Op::MoreOrEqual => number >= wanted,
    }
}

fn compare_text(text: &str, op: Op, value: &str) -> bool {
    match op {
        Op::Contains => text.contains(value),
        _ => glob(text, value),
    }
}

/// `*` stands for anything.
fn glob(text: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(expression: &str) -> bool {
        let subject = Subject {
            hosts: vec!["api.example.com".into()],
            method: Some("get".into()),
            path: Some("/a?b=c".into()),
            status: Some(404),
            process: vec!["curl".into()],
            pid: Some(7),
            uid: Some(10_123),
            texts: vec!["not found here".into()],
        };
        expression.parse::<Filter>().unwrap_or_else(|error| panic!("{error}")).holds(&subject)
    }

    #[test]
    fn terms_compare_and_combine() {
        for yes in [
            "host=api.example.com",
            "host=*.example.com",
            "HOST=API.*",
            "host~example",
            "method=get",
            "status=404",
            "status=4xx",
            "status>=400 and status<500",
            "path=/a?b=c",
            "process=curl pid=7",
            "uid>10000",
            "found",
            "\"not found\"",
            "text~'found here'",
            "not status=200",
            "!(status=200 or method=post)",
            "status!=200",
            "method=post or status=404 and host~api",
            "method=get && (status=5xx || status=4xx)",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "host=example.com",
            "status=4",
            "status<404",
            "nowhere",
            "not found not",
            "method=get method=post",
        ] {
            let parsed = no.parse::<Filter>();
            assert!(parsed.is_err() || !holds(no), "{no}");
        }
    }
}
