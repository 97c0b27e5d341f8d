//! Bytes and strings that strangers wrote, as text that is safe on a terminal.
//!
//! Nothing that a terminal obeys passes: control characters, and the format characters that hide text or turn it round.
//! They are shown as `\x1b` or `\u{202e}`. A backslash stays as it is, or JSON would be no fun to read; who needs the
//! exact bytes has the hex dump.

use std::fmt::Write;

/// `text` on one line: line feeds and tabs are escaped too.
pub fn one_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        push(c, &mut safe);
    }
    safe
}

/// Whether `bytes` are better shown as text: at most an eighth of them is neither UTF-8 nor printable, as when a line of
/// JSON follows a binary header. A piece of a stream may cut a character in two at either end, which counts for nothing.
pub fn is_text(bytes: &[u8]) -> bool {
    is_strange_for_at_most(bytes, 8)
}

/// Whether `bytes`, which are said to be text, may be: at most a third of them is strange, as when a few accents are in a
/// character set that is not UTF-8. Of what is compressed or random more than half is.
pub fn may_be_text(bytes: &[u8]) -> bool {
    is_strange_for_at_most(bytes, 3)
}

/// Whether at most one in `of` is neither UTF-8 nor printable.
fn is_strange_for_at_most(bytes: &[u8], of: usize) -> bool {
    let whole = without_cut_characters(bytes);
    let strange: usize = whole
        .utf8_chunks()
        .map(|chunk| {
            let obeyed = |c: &char| is_obeyed(*c) && !matches!(c, '\n' | '\r' | '\t');
            chunk.valid().chars().filter(obeyed).count() + chunk.invalid().len()
        })
        .sum();
    bytes.is_empty() || !whole.is_empty() && strange * of <= whole.len()
}

/// `bytes` without the end of a character that began before them, and without the beginning of one that ends after them.
fn without_cut_characters(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().take(3).take_while(|byte| matches!(byte, 0x80..=0xbf)).count();
    let bytes = &bytes[end..];
    let beginning = match bytes.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        Some(invalid) if str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) => {
            invalid.len()
        }
        _ => 0,
    };
    &bytes[..bytes.len() - beginning]
}

/// `bytes` as lines of text: line feeds and tabs pass, and a carriage return before a line feed is left out.
pub fn lines(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\r' if chars.peek() == Some(&'\n') => {}
                '\n' | '\t' => safe.push(c),
                c => push(c, &mut safe),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(safe, "\\x{byte:02x}");
        }
    }
    safe
}

/// `bytes` as lines of 16: the offset, hexadecimal digits, and what is printable ASCII.
pub fn hex_dump(bytes: &[u8]) -> String {
    let mut dump = String::new();
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let _ = write!(dump, "{:08x} ", row * 16);
        for column in 0..16 {
            dump.push_str(if column == 8 { "  " } else { " " });
            match bytes.get(column) {
                Some(byte) => _ = write!(dump, "{byte:02x}"),
                None => dump.push_str("  "),
            }
        }
        let ascii = bytes.iter().map(|&byte| if matches!(byte, b' '..=b'~') { byte.into() } else { '.' });
        let _ = writeln!(dump, "  |{}|", ascii.collect::<String>());
    }
    dump
}

/// `text`, or its first `most` characters and three dots.
pub fn abridged(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn push(c: char, safe: &mut String) {
    match c {
        '\n' | '\r' | '\t' => safe.extend(c.escape_default()),
        c if c.is_ascii_control() => _ = write!(safe, "\\x{:02x}", u32::from(c)),
        c if is_obeyed(c) => safe.extend(c.escape_unicode()),
        c => safe.push(c),
    }
}

/// Whether a terminal does something at `c` other than show it. Source: Unicode's categories Cc, Zl and Zp, and those of
/// Cf that are invisible.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_passes() {
        let hostile = "\u{1b}[2J\u{7}\u{7f}\u{9b}1m\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}";
        let safe = r"\x1b[2J\x07\x7f\u{9b}1m\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}";
        assert_eq!(one_line(hostile), safe);
        assert_eq!(lines(hostile.as_bytes()), safe);
        let every_char: String = (0..=0x10ffff).filter_map(char::from_u32).collect();
        assert!(!one_line(&every_char).chars().any(is_obeyed));
        assert!(!lines(every_char.as_bytes()).chars().any(|c| is_obeyed(c) && c != '\n' && c != '\t'));
    }

    #[test]
    fn lines_and_tabs_pass_in_a_payload_only() {
        assert_eq!(lines(b"a: b\r\n\tc\rd\n"), "a: b\n\tc\\rd\n");
        assert_eq!(one_line("a\r\n\tb"), r"a\r\n\tb");
    }

    #[test]
    fn bytes_that_are_no_utf8_are_shown_by_their_value() {
        assert_eq!(lines(b"caf\xc3\xa9 \xff\xe2\x82"), "caf\u{e9} \\xff\\xe2\\x82");
    }

    #[test]
    fn text_with_a_little_noise_is_text_and_noise_is_not() {
        assert!(is_text(b""));
        assert!(is_text(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(is_text(&"\u{20ac} \u{20ac}".as_bytes()[1..6]));
        assert!(is_text(b"\0\0\x0c\0\x01{\"answer\": \"a json body behind a header\"}"));
        assert!(!is_text(&(0..=255).collect::<Vec<u8>>()));
        assert!(!is_text(b"\x80\x80"));
        assert!(!is_text(b"\0\0\0\x04\x01\0\0\0\0"));
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        assert_eq!(abridged("\u{20ac}\u{20ac}", 2), "\u{20ac}\u{20ac}");
        assert_eq!(abridged("\u{20ac}\u{20ac}", 1), "\u{20ac}...");
    }

    #[test]
    fn a_hex_dump_lines_up_with_offsets() {
        let bytes: Vec<u8> = (b'A'..=b'R').collect();
        assert_eq!(
            hex_dump(&bytes),
            "00000000  41 42 43 44 45 46 47 48  49 4a 4b 4c 4d 4e 4f 50  |ABCDEFGHIJKLMNOP|\n\
             00000010  51 52                                             |QR|\n"
        );
    }
}
