//! Bodies that say their characters are of one byte each, as text.
//!
//! What old pages and appliances still send is ISO-8859-1, and browsers take its name for windows-1252, which has
//! printable characters where it has control characters. Anything rarer is shown by its bytes' values.

use std::borrow::Cow;

/// Names of windows-1252, but for those of ASCII: who said that and sent more meant something else.
/// Source: WHATWG Encoding, "Names and labels".
const NAMES: [&str; 10] = [
    "cp1252",
    "cp819",
    "ibm819",
    "iso-8859-1",
    "iso8859-1",
    "iso_8859-1",
    "l1",
    "latin1",
    "windows-1252",
    "x-cp1252",
];

/// What 0x80 to 0x9f are; the rest of the bytes are the characters of the same number.
/// Source: WHATWG Encoding, index windows-1252.
const FROM_80: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', //
    '\u{2c6}', '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}', //
    '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', //
    '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}', '\u{178}',
];

/// `bytes` in UTF-8, as far as their `Content-Type` says that they are something else and they may be: text of one-byte
/// characters has no zeros.
pub(super) fn to_utf8<'a>(bytes: &'a [u8], content_type: &str) -> Cow<'a, [u8]> {
    let known = named(content_type).is_some_and(|name| NAMES.contains(&name.as_str()));
    if !known || bytes.is_ascii() || bytes.contains(&0) {
        return Cow::Borrowed(bytes);
    }
    let text: String = bytes.iter().map(|&byte| character(byte)).collect();
    Cow::Owned(text.into_bytes())
}

fn character(byte: u8) -> char {
    let special = byte.checked_sub(0x80).and_then(|index| FROM_80.get(usize::from(index)));
    special.copied().unwrap_or(char::from(byte))
}

/// The parameter `charset`, in lower case.
fn named(content_type: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is = name.trim().eq_ignore_ascii_case("charset");
        is.then(|| value.trim().trim_matches(['"', '\'']).to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_latin1_is_read_as_browsers_read_it() {
        for said in [
            "text/html; charset=iso-8859-1",
            "text/plain;a=b;CharSet=\"Windows-1252\"",
            "a/b; charset=latin1",
        ] {
            assert_eq!(
                to_utf8(b"caf\xe9 \x80\x93\x9f", said),
                "caf\u{e9} \u{20ac}\u{201c}\u{178}".as_bytes(),
                "{said}"
            );
        }
        for said in ["", "text/html", "text/html; charset=utf-8", "text/html; charset", "charset=latin1"] {
            assert_eq!(to_utf8(b"caf\xe9", said), &b"caf\xe9"[..], "{said}");
        }
    }

    #[test]
    fn binary_data_stay_so_whatever_they_are_called() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(to_utf8(&bytes, "text/html; charset=latin1"), bytes);
    }
}
