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

use super::{Exchange, Header, Item, Origin, content};
use plaintap_proto::Event;

/// Parentheses and `not` may be this deep.
const DEEPEST: usize = 50;

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

/// What is wrong with an expression, and where (in characters from 1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--filter: {what} at character {at}; try --filter 'host=example.com and status>=400'")]
pub struct ParseError {
    what: String,
    at: usize,
}

impl std::str::FromStr for Filter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0, end: text.chars().count() + 1, depth: 0 };
        let filter = parser.or()?;
        match parser.tokens.get(parser.at) {
            None => Ok(filter),
            Some((at, token)) => Err(wrong(format!("{} is too much", token.shown()), *at)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(&'static str),
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Word(word) | Self::Quoted(word) => format!("{word:?}"),
            Self::Sign(sign) => format!("{sign:?}"),
        }
    }
}

fn wrong(what: impl Into<String>, at: usize) -> ParseError {
    ParseError { what: what.into(), at }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ParseError> {
    const SIGNS: [&str; 12] = ["&&", "||", "!=", "<=", ">=", "==", "=", "~", "<", ">", "(", ")"];
    let mut tokens = vec![];
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let at = text.chars().count() - rest.chars().count() + 1;
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
        } else if let Some(quoted) = rest.strip_prefix(['"', '\'']) {
            let end = quoted.find(c).ok_or_else(|| wrong("a quote without its end", at))?;
            tokens.push((at, Token::Quoted(quoted[..end].to_owned())));
            rest = &quoted[end + 1..];
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push((at, Token::Sign(sign)));
            rest = &rest[sign.len()..];
        } else if c == '!' {
            tokens.push((at, Token::Sign("!")));
            rest = &rest[1..];
        } else {
            let ends = |c: char| c.is_whitespace() || "=!~<>()\"'&|".contains(c);
            // What follows a comparison may hold such signs, as a query does; it ends with the word.
            let value = matches!(tokens.last(), Some((_, Token::Sign("=" | "==" | "!=" | "~"))));
            let end = match value {
                true => rest.find(|c: char| c.is_whitespace() || c == ')'),
                false => rest.find(ends),
            };
            let end = end.unwrap_or(rest.len());
            if end == 0 {
                return Err(wrong(format!("{c:?} is no operator"), at));
            }
            tokens.push((at, Token::Word(rest[..end].to_owned())));
            rest = &rest[end..];
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn place(&self) -> usize {
        self.tokens.get(self.at).map_or(self.end, |(at, _)| *at)
    }

    fn takes(&mut self, word: &str, sign: &str) -> bool {
        let takes = match self.peek() {
            Some(Token::Word(found)) => found.eq_ignore_ascii_case(word),
            Some(Token::Sign(found)) => *found == sign,
            _ => false,
        };
        self.at += usize::from(takes);
        takes
    }

    fn or(&mut self) -> Result<Filter, ParseError> {
        let mut left = self.and()?;
        while self.takes("or", "||") {
            left = Filter::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Filter, ParseError> {
        let mut left = self.not()?;
        loop {
            if !self.takes("and", "&&") {
                match self.peek() {
                    None | Some(Token::Sign(")" | "||")) => return Ok(left),
                    Some(Token::Word(word)) if word.eq_ignore_ascii_case("or") => return Ok(left),
                    Some(_) => {}
                }
            }
            left = Filter::And(Box::new(left), Box::new(self.not()?));
        }
    }

    fn not(&mut self) -> Result<Filter, ParseError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(wrong("too many parentheses", self.place()));
        }
        let filter = if self.takes("not", "!") {
            Filter::Not(Box::new(self.not()?))
        } else if self.takes("(", "(") {
            let filter = self.or()?;
            if !self.takes(")", ")") {
                return Err(wrong("a ) is missing", self.place()));
            }
            filter
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn term(&mut self) -> Result<Filter, ParseError> {
        let at = self.place();
        let (word, quoted) = match self.tokens.get(self.at) {
            Some((_, Token::Word(word))) => (word.clone(), false),
            Some((_, Token::Quoted(word))) => (word.clone(), true),
            Some((_, token)) => return Err(wrong(format!("{} where a field belongs", token.shown()), at)),
            None => return Err(wrong("a field is missing", at)),
        };
        self.at += 1;
        let (op, not) = match self.peek() {
            Some(Token::Sign("=" | "==")) if !quoted => (Op::Equal, false),
            Some(Token::Sign("!=")) if !quoted => (Op::Equal, true),
            Some(Token::Sign("~")) if !quoted => (Op::Contains, false),
            Some(Token::Sign("<")) if !quoted => (Op::Less, false),
            Some(Token::Sign("<=")) if !quoted => (Op::LessOrEqual, false),
            Some(Token::Sign(">")) if !quoted => (Op::More, false),
            Some(Token::Sign(">=")) if !quoted => (Op::MoreOrEqual, false),
            _ => return Ok(Filter::Is(Field::Text, Op::Contains, word.to_lowercase())),
        };
        self.at += 1;
        let field = match word.to_ascii_lowercase().as_str() {
            "host" => Field::Host,
            "method" => Field::Method,
            "path" => Field::Path,
            "status" => Field::Status,
            "process" => Field::Process,
            "pid" => Field::Pid,
            "uid" => Field::Uid,
            "text" => Field::Text,
            _ => {
                let fields = "host, method, path, status, process, pid, uid or text";
                return Err(wrong(format!("{word:?} is no field (they are {fields})"), at));
            }
        };
        let at = self.place();
        let value = match self.tokens.get(self.at) {
            Some((_, Token::Word(value) | Token::Quoted(value))) => value.to_lowercase(),
            _ => return Err(wrong(format!("a value for {word} is missing"), at)),
        };
        self.at += 1;
        let number = matches!(field, Field::Status | Field::Pid | Field::Uid);
        let compares = !matches!(op, Op::Equal | Op::Contains);
        if compares && !number {
            return Err(wrong(format!("{word} is no number: it takes =, != and ~"), at));
        }
        let class = field == Field::Status && value.len() == 3 && value.ends_with("xx");
        if number && (compares || !class && !value.contains('*')) && value.parse::<i64>().is_err() {
            return Err(wrong(format!("{value:?} is no number, which {word} takes"), at));
        }
        let value = if class { format!("{}*", &value[..1]) } else { value };
        let is = Filter::Is(field, op, value);
        Ok(if not { Filter::Not(Box::new(is)) } else { is })
    }
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
        subject.texts.push(String::from_utf8_lossy(&body.bytes).to_lowercase());
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

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (expression, what, at) in [
            ("", "a field is missing", 1),
            ("hots=a", "\"hots\" is no field", 1),
            ("host=", "a value for host is missing", 6),
            ("status>abc", "\"abc\" is no number", 8),
            ("host<a", "host is no number", 6),
            ("(a or b", "a ) is missing", 8),
            ("a or", "a field is missing", 5),
            ("'a", "a quote without its end", 1),
            ("a )", "\")\" is too much", 3),
            ("a & b", "'&' is no operator", 3),
        ] {
            let error = expression.parse::<Filter>().unwrap_err();
            assert!(error.what.starts_with(what) && error.at == at, "{expression}: {error}");
        }
        assert!("(".repeat(100_000).parse::<Filter>().is_err());
    }
}
