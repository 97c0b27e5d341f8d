//! Reading `--filter`: words, signs, and what they say. The grammar is at [`filter`](super::filter).

use super::filter::{Field, Filter, Op};

/// Parentheses and `not` may be this deep.
const DEEPEST: usize = 50;

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

#[cfg(test)]
mod tests {
    use super::*;

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
