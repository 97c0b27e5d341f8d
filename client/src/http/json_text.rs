//! JSON with line feeds and indents, and otherwise as it was sent: numbers, escapes and the order of keys stay.

/// Deeper than this the indent would be most of the text.
const DEEPEST: usize = 64;

/// `text` indented, if it has the shape of JSON: its brackets match and its strings end. `None` if it does not.
pub(super) fn indented(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() * 3 / 2);
    let mut open: Vec<char> = vec![];
    let mut chars = text.trim().chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push('"');
                loop {
                    let c = chars.next()?;
                    out.push(c);
                    match c {
                        '\\' => out.push(chars.next()?),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                out.push(c);
                open.push(if c == '{' { '}' } else { ']' });
                if open.len() > DEEPEST {
                    return None;
                }
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if chars.peek() == open.last() {
                    out.extend(chars.next());
                    open.pop();
                } else {
                    line(&mut out, open.len());
                }
            }
            '}' | ']' => {
                if open.pop() != Some(c) {
                    return None;
                }
                line(&mut out, open.len());
                out.push(c);
            }
            ',' => {
                out.push(',');
                // One value a line, in a body of such lines, has commas in brackets only.
                if open.is_empty() {
                    return None;
                }
                line(&mut out, open.len());
            }
            ':' => out.push_str(": "),
            '\n' if open.is_empty() => out.push('\n'),
            c if c.is_ascii_whitespace() => {}
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') => out.push(c),
            _ => return None,
        }
    }
    open.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::indented;

    #[test]
    fn json_is_indented_and_otherwise_unchanged() {
        assert_eq!(
            indented(r#"{"a":[1.50,{"b\"}":null}],"c":{},"d":[ ]}"#).unwrap(),
            "{\n  \"a\": [\n    1.50,\n    {\n      \"b\\\"}\": null\n    }\n  ],\n  \"c\": {},\n  \"d\": []\n}"
        );
    }

    #[test]
    fn what_is_no_json_or_is_too_deep_is_left_alone() {
        for text in ["{", "[1}", "\"open", "{a;b}", "1,2", &"[".repeat(100_000)] {
            assert_eq!(indented(text), None, "{}", &text[..text.len().min(9)]);
        }
    }
}
