//! Bodies as their senders meant them: decoded, and told apart by kind.

use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::{Message, charset, json_text};
use crate::text;

/// The largest window that a zstd frame is given memory for; brotli's is at most 16 MiB.
/// Source: RFC 8878, section 3.1.1.1.2.
const LARGEST_WINDOW: u64 = 8 << 20;

/// A body is decoded as far as this to learn its length.
const MOST_COUNTED: u64 = 8 << 20;

/// A body without its content codings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// At most as many bytes as were asked for.
    pub bytes: Vec<u8>,
    /// There were more.
    pub more: bool,
    /// Why the rest, or all, could not be decoded; then `bytes` is what could be.
    pub failed: Option<String>,
}

/// Takes off what `Content-Encoding` names, and keeps at most `limit` bytes, so that a bomb costs no more than that.
pub fn decode(message: &Message, limit: usize) -> Decoded {
    let plain = |more| {
        let bytes = &message.body.bytes[..message.body.bytes.len().min(limit)];
        Decoded { bytes: bytes.to_vec(), more, failed: None }
    };
    let codings = codings(message);
    let left_out = message.body.left_out() > 0;
    if codings.is_empty() || message.body.bytes.is_empty() {
        return plain(left_out || message.body.bytes.len() > limit);
    }
    if codings.len() > 3 {
        return Decoded { failed: Some("too many codings".to_owned()), ..plain(true) };
    }
    let mut decoded = Decoded { bytes: message.body.bytes.clone(), ..Decoded::default() };
    for coding in codings.iter().rev() {
        let input = std::mem::take(&mut decoded.bytes);
        match decoder(coding, &input) {
            Ok(reader) => {
                // One more tells whether there is more.
                let read = reader.take((limit as u64).saturating_add(1)).read_to_end(&mut decoded.bytes);
                decoded.more = decoded.bytes.len() > limit;
                decoded.bytes.truncate(limit);
                if let Err(error) = read {
                    // A body that was not kept whole ends early, of course.
                    decoded.more |= left_out;
                    if !left_out {
                        decoded.failed = Some(format!("{coding}: {error}"));
                    }
                    return decoded;
                }
            }
            Err(why) => {
                return Decoded {
                    bytes: input[..input.len().min(limit)].to_vec(),
                    failed: Some(why),
                    more: false,
                };
            }
        }
    }
    decoded
}

/// The length in bytes of what [`decode`] gives with no limit, missing bytes left out; none if it can't be told at a bounded
/// price: the body was not kept whole, is too large, has no good end, or several codings.
pub fn length(message: &Message) -> Option<u64> {
    let body = &message.body;
    match &codings(message)[..] {
        [] => Some(body.length.saturating_sub(body.missing)),
        [coding] if body.left_out() == 0 => {
            let reader = decoder(coding, &body.bytes).ok()?;
            let length = io::copy(&mut reader.take(MOST_COUNTED), &mut io::sink()).ok()?;
            (length < MOST_COUNTED).then_some(length)
        }
        _ => None,
    }
}

/// What `Content-Encoding` names, in the order in which it was put on.
fn codings(message: &Message) -> Vec<String> {
    message
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("content-encoding"))
        .flat_map(|header| header.value.split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect()
}

fn decoder<'a>(coding: &str, input: &'a [u8]) -> Result<Box<dyn Read + 'a>, String> {
    match coding {
        "gzip" | "x-gzip" => Ok(Box::new(MultiGzDecoder::new(input))),
        // Some servers leave out zlib's wrapping. Its first byte is 0x?8, and the first two are a multiple of 31.
        "deflate" => match input {
            [a, b, ..] if a & 15 == 8 && (u32::from(*a) << 8 | u32::from(*b)) % 31 == 0 => {
                Ok(Box::new(ZlibDecoder::new(input)))
            }
            _ => Ok(Box::new(DeflateDecoder::new(input))),
        },
        // RFC 7932 has no such window size; the decoder would take it for one of up to 1 GiB.
        "br" if input.first().is_some_and(|byte| byte & 0x7f == 0x11) => {
            Err("br: it asks for a large window".to_owned())
        }
        "br" => Ok(Box::new(brotli_decompressor::Decompressor::new(input, 4096))),
        "zstd" => match window(input) {
            Some(size) if size <= LARGEST_WINDOW => match ruzstd::decoding::StreamingDecoder::new(input) {
                Ok(decoder) => Ok(Box::new(decoder)),
                Err(error) => Err(format!("zstd: {error}")),
            },
            Some(size) => Err(format!("zstd: it asks for a window of {size} bytes")),
            None => Err("zstd: not a frame".to_owned()),
        },
        coding => Err(format!("content coding {coding} is not known")),
    }
}

/// The memory that a zstd frame asks for. Source: RFC 8878, section 3.1.1.
fn window(frame: &[u8]) -> Option<u64> {
    let (&[0x28, 0xb5, 0x2f, 0xfd, descriptor], rest) = frame.split_first_chunk::<5>()? else { return None };
    if descriptor & 0x20 == 0 {
        let window = rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let skip = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = rest.get(skip..skip + length)?;
    let size =
        size.iter().rev().try_fold(0_u64, |size, byte| Some(size.checked_mul(256)? + u64::from(*byte)))?;
    Some(if length == 2 { size + 256 } else { size })
}

/// What a body is, for showing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Empty,
    /// JSON, indented.
    Json(String),
    /// Text: UTF-8, as far as it is any.
    Text(Vec<u8>),
    /// gRPC's messages: whether each is compressed, and its length as said.
    Grpc(Vec<(bool, u32)>),
    /// Anything else, by name: `PNG image`, say.
    Binary(String),
}

/// Names what `bytes`, a decoded body or the beginning of one, are.
pub fn kind(bytes: &[u8], content_type: &str) -> Kind {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if bytes.is_empty() {
        return Kind::Empty;
    }
    if media.starts_with("application/grpc") && !media.starts_with("application/grpc-web-text") {
        return Kind::Grpc(grpc(bytes));
    }
    for (magic, name) in [
        (&b"\x89PNG\r\n\x1a\n"[..], "PNG image"),
        (b"\xff\xd8\xff", "JPEG image"),
        (b"GIF8", "GIF image"),
        (b"%PDF-", "PDF"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x1f\x8b", "gzip data"),
        (b"wOF2", "WOFF2 font"),
        (b"\0asm", "WebAssembly"),
    ] {
        if bytes.starts_with(magic) {
            return Kind::Binary(name.to_owned());
        }
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Kind::Binary("WebP image".to_owned());
    }
    let said_binary = ["image/", "audio/", "video/", "font/"].iter().any(|kind| media.starts_with(kind));
    let utf8 = charset::to_utf8(bytes, content_type);
    let is_text = if says_text(&media) { text::may_be_text(&utf8) } else { text::is_text(&utf8) };
    if said_binary && media != "image/svg+xml" || !is_text {
        return Kind::Binary(if media.is_empty() { "binary data".to_owned() } else { media });
    }
    let json = media.ends_with("json") || matches!(utf8.trim_ascii_start(), [b'{' | b'[', ..]);
    match str::from_utf8(&utf8).ok().filter(|_| json).and_then(json_text::indented) {
        Some(json) => Kind::Json(json),
        None => Kind::Text(utf8.into_owned()),
    }
}

/// Whether a type, in lower case and without parameters, is one of text.
fn says_text(media: &str) -> bool {
    let plainly = ["application/javascript", "application/x-www-form-urlencoded"];
    media.starts_with("text/")
        || plainly.contains(&media)
        || media.ends_with("json")
        || media.ends_with("xml")
}

/// All of a decoded body that can be looked for as text.
pub fn searchable(bytes: &[u8], content_type: &str) -> String {
    String::from_utf8_lossy(&charset::to_utf8(bytes, content_type)).into_owned()
}

fn grpc(mut bytes: &[u8]) -> Vec<(bool, u32)> {
    let mut messages = vec![];
    while let Some((&[compressed, a, b, c, d], rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([a, b, c, d]);
        messages.push((compressed & 1 != 0, length));
        bytes = rest.get(length as usize..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::{super::Header, *};

    fn encoded(coding: &str, hex: &str) -> Message {
        let mut message = Message::default();
        message.headers.push(Header { name: "Content-Encoding".to_owned(), value: coding.to_owned() });
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        message.body.add(&bytes, usize::MAX);
        message
    }

    // Made by node's zlib and by zstd's program.
    const BROTLI: &str = "1b3700f88d54b5bf061193a393696c6f614f2470ed03";
    const ZSTD: &str = "28b52ffd04585d0000287a73746420010040162daf01fba6";

    #[test]
    fn brotli_and_zstd_are_decoded() {
        assert_eq!(decode(&encoded("br", BROTLI), 1000).bytes, "brotli ".repeat(8).as_bytes());
        assert_eq!(decode(&encoded("zstd", ZSTD), 1000).bytes, "zstd ".repeat(8).as_bytes());
        assert_eq!(decode(&encoded("br", BROTLI), usize::MAX).bytes.len(), 7 * 8);
        let cut = decode(&encoded("br", BROTLI), 3);
        assert_eq!((&cut.bytes[..], cut.more), (&b"bro"[..], true));
        assert_eq!(
            (length(&encoded("br", BROTLI)), length(&encoded("zstd", ZSTD))),
            (Some(7 * 8), Some(5 * 8))
        );
    }

    #[test]
    fn what_cannot_be_decoded_is_kept_and_says_why() {
        for (coding, hex) in [
            ("lzma", "0102"),
            ("zstd", "0102"),
            ("zstd", "28b52ffd00ff0000"),
            ("gzip", "1f8b"),
            ("br", "ff"),
            ("br", "111e00"),
        ] {
            let decoded = decode(&encoded(coding, hex), 1000);
            assert!(decoded.failed.as_ref().is_some_and(|why| why.contains(coding)), "{decoded:?}");
            assert_eq!(length(&encoded(coding, hex)), None, "{coding} {hex}");
        }
        let window = decode(&encoded("zstd", "28b52ffd00ff0000"), 1000);
        assert!(window.failed.is_some_and(|why| why.contains("window")));
    }

    #[test]
    fn what_is_said_to_be_text_is_text_unless_it_is_mostly_something_else() {
        let escapes = "an \u{1b}[1mESC\u{1b}[0m \u{7} \u{202e}RLO".as_bytes();
        for (bytes, said) in [
            (escapes, "text/plain; charset=utf-8"),
            (b"caf\xe9 cr\xe8me", "text/plain"),
            (b"caf\xe9 cr\xe8me", "application/xml"),
            (b"{\"a\": \"\xe9\xe9\"}", "application/problem+json"),
        ] {
            assert_eq!(kind(bytes, said), Kind::Text(bytes.to_vec()));
            assert!(matches!(kind(bytes, "application/x-thing"), Kind::Binary(_)), "{said}");
        }
        let every: Vec<u8> = (0..=255).collect();
        for said in ["text/plain", "text/html; charset=iso-8859-1"] {
            assert!(matches!(kind(&every, said), Kind::Binary(_)), "{said}");
        }
    }

    #[test]
    fn bodies_are_told_apart() {
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n...", ""), Kind::Binary("PNG image".to_owned()));
        assert_eq!(
            kind(b"\0\x01\x02\x03", "application/x-thing; a=b"),
            Kind::Binary("application/x-thing".to_owned())
        );
        assert_eq!(kind(b"plain", "text/plain"), Kind::Text(b"plain".to_vec()));
        assert_eq!(kind(b"{\"a\":1}", ""), Kind::Json("{\n  \"a\": 1\n}".to_owned()));
        let named = kind(b"{\"a\":\"\xe9\"}", "application/json; charset=latin1");
        assert_eq!(named, Kind::Json("{\n  \"a\": \"\u{e9}\"\n}".to_owned()));
        let grpc = b"\0\0\0\0\x02hi\x01\0\0\0\x01!";
        assert_eq!(kind(grpc, "application/grpc+proto"), Kind::Grpc(vec![(false, 2), (true, 1)]));
    }
}
