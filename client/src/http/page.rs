//! Items as text for people: a line for each, and below it what was said, `>` before what the client sent and `<` before
//! what the server sent. That keeps what strangers wrote from passing for a line of ours.

use std::fmt::Write;

use super::{
    Exchange, Gap, Header, Item, Message, Origin, WebSocketMessage,
    content::{self, Decoded, Kind},
};
use crate::{
    note::counted,
    show::{Show, time_of_day},
    text,
};

const EXCHANGE_COLOUR: &str = "\x1b[32m";
const FAILURE_COLOUR: &str = "\x1b[31m";
const NOTE_COLOUR: &str = "\x1b[35m";
const PLAIN: &str = "\x1b[0m";

/// How items are shown.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// How raw bytes are shown, and whether there is colour.
    pub show: Show,
    /// No bodies, only their kinds and sizes.
    pub no_body: bool,
    /// Bytes shown of a body.
    pub max_body: usize,
}

impl Page {
    /// An item's block, with an empty line after it.
    pub fn item(&self, item: &Item) -> String {
        match item {
            Item::Exchange(exchange) => self.exchange(exchange),
            Item::WebSocket(message) => self.websocket(message),
            Item::Raw(event) => self.show.event(event),
            Item::Gap(gap) => self.gap(gap),
            Item::Note(origin, note) => {
                format!(
                    "{}\n\n",
                    self.coloured(NOTE_COLOUR, &format!("... {}: {}", who(origin), text::one_line(note)))
                )
            }
        }
    }

    fn coloured(&self, colour: &str, line: &str) -> String {
        if self.show.colour { format!("{colour}{line}{PLAIN}") } else { line.to_owned() }
    }

    fn gap(&self, gap: &Gap) -> String {
        let did = if gap.written { "wrote" } else { "read" };
        let bytes = counted(gap.bytes, "byte");
        let line = format!("{} {} {did} {bytes} that were not seen", time_of_day(gap.at), who(&gap.origin));
        format!("{}\n\n", self.coloured(NOTE_COLOUR, &line))
    }

    fn exchange(&self, exchange: &Exchange) -> String {
        let mut line = format!("{} {}", time_of_day(exchange.began()), who(&exchange.origin));
        match &exchange.request {
            Some(request) => _ = write!(line, " {} {}", text::one_line(&request.method), url(exchange)),
            None => line += " (request not seen)",
        }
        let status = exchange.response.as_ref().map(|response| response.status);
        match status {
            Some(0) | None => line += " (no response seen)",
            Some(status) => _ = write!(line, " {status}"),
        }
        if let (Some(took), Some(_)) = (exchange.took(), status) {
            let us = took.max(0) / 1000;
            let _ = write!(line, " in {}.{:03} ms", us / 1000, us % 1000);
        }
        if let Some(stream) = exchange.stream {
            let _ = write!(line, ", stream {stream}");
        }
        if !exchange.origin.app.is_empty() {
            let _ = write!(line, ", {}", text::one_line(&exchange.origin.app));
        }
        let failed = status.is_none_or(|status| status == 0 || status >= 400);
        let mut block = self.coloured(if failed { FAILURE_COLOUR } else { EXCHANGE_COLOUR }, &line) + "\n";
        if let Some(request) = &exchange.request {
            let message = &request.message;
            self.message(
                &mut block,
                ">",
                &format!("{} {} {}", request.method, request.target, message.version),
                message,
            );
        }
        for status in &exchange.interim {
            let _ = writeln!(block, "  < {status} (interim)");
        }
        if let Some(response) = &exchange.response {
            let message = &response.message;
            let start = format!("{} {} {}", message.version, response.status, response.reason);
            self.message(&mut block, "<", start.trim_end(), message);
        }
        for note in &exchange.notes {
            let _ = writeln!(block, "... {}", text::one_line(note));
        }
        block.push('\n');
        block
    }

    fn message(&self, block: &mut String, mark: &str, start: &str, message: &Message) {
        let headers = |block: &mut String, headers: &[Header]| {
            for Header { name, value } in headers {
                let _ = writeln!(block, "  {mark} {}: {}", text::one_line(name), text::one_line(value));
            }
        };
        let _ = writeln!(block, "  {mark} {}", text::one_line(start));
        headers(block, &message.headers);
        if message.body.length > 0 {
            let _ = writeln!(block, "  {mark}");
            let decoded = content::decode(message, self.max_body);
            self.body(
                block,
                mark,
                &decoded,
                message.header("content-type").unwrap_or_default(),
                message.body.length,
                || content::length(message),
            );
        }
        if message.body.missing > 0 {
            let _ = writeln!(block, "... {} of it missing", counted(message.body.missing, "byte"));
        }
        if !message.trailers.is_empty() {
            let _ = writeln!(block, "  {mark}");
            headers(block, &message.trailers);
        }
        if !message.complete && message.body.missing == 0 {
            block.push_str("... its end was not seen\n");
        }
    }

    /// A body; `sent` is its length in bytes before it was decoded, `length` what it is decoded, if that can be told.
    fn body(
        &self,
        block: &mut String,
        mark: &str,
        decoded: &Decoded,
        content_type: &str,
        sent: u64,
        length: impl FnOnce() -> Option<u64>,
    ) {
        let kind = content::kind(&decoded.bytes, content_type);
        let lines = match &kind {
            _ if self.no_body => format!("({} sent)", counted(sent, "byte")),
            Kind::Empty => format!("({} sent, nothing decoded)", counted(sent, "byte")),
            _ if self.show.hex => text::hex_dump(&decoded.bytes),
            Kind::Json(json) => text::lines(json.as_bytes()),
            Kind::Text(text) => text::lines(text),
            Kind::Binary(name) => format!("({}, {} sent)", text::one_line(name), counted(sent, "byte")),
            Kind::Grpc(messages) => {
                let mut lines = String::new();
                for (index, (compressed, length)) in messages.iter().take(1000).enumerate() {
                    let compressed = if *compressed { ", compressed" } else { "" };
                    let length = counted(u64::from(*length), "byte");
                    let _ = writeln!(lines, "(gRPC message {}: {length}{compressed})", index + 1);
                }
                lines + &text::hex_dump(&decoded.bytes)
            }
        };
        for line in lines.lines() {
            let _ = writeln!(block, "  {mark} {line}");
        }
        if matches!(kind, Kind::Binary(_)) && !self.no_body && !self.show.hex {
            block.push_str("... not shown (see --hex of plaintap watch)\n");
        } else if decoded.more && !self.no_body {
            let left = match length().map(|length| length.saturating_sub(decoded.bytes.len() as u64)) {
                Some(left) => format!("{} more of it", counted(left, "byte")),
                None => format!("more of it ({} sent in all)", counted(sent, "byte")),
            };
            let _ = writeln!(block, "... {left} not shown (see --max-body)");
        }
        if let Some(why) = decoded.failed.as_ref().filter(|_| !self.no_body) {
            let _ = writeln!(block, "... not decoded to its end: {}", text::one_line(why));
        }
    }

    fn websocket(&self, message: &WebSocketMessage) -> String {
        let (mark, sender) = if message.from_client { (">", "client") } else { ("<", "server") };
        let kind = match message.opcode {
            1 => "text",
            2 => "binary",
            8 => "close",
            9 => "ping",
            10 => "pong",
            _ => "continued",
        };
        let length = counted(message.body.length, "byte");
        let line = format!(
            "{} {} {sender} sent WebSocket {kind}, {length}",
            time_of_day(message.at),
            who(&message.origin)
        );
        let mut block = self.coloured(EXCHANGE_COLOUR, &line) + "\n";
        let bytes = &message.body.bytes[..message.body.bytes.len().min(self.max_body)];
        match (message.opcode, bytes) {
            (_, []) => {}
            (8, [a, b, reason @ ..]) => {
                let code = u16::from(*a) << 8 | u16::from(*b);
                let _ =
                    writeln!(block, "  {mark} {code} {}", text::one_line(&String::from_utf8_lossy(reason)));
            }
            _ => {
                let length = message.body.bytes.len() as u64 + message.body.left_out();
                let more = length > bytes.len() as u64;
                let decoded = Decoded { bytes: bytes.to_vec(), more, failed: None };
                // RFC 6455: text is UTF-8.
                let said = if message.opcode == 1 && !message.still_deflated { "text/plain" } else { "" };
                self.body(&mut block, mark, &decoded, said, message.body.length, || Some(length));
            }
        }
        if message.still_deflated {
            block.push_str("... deflated with what was sent before and not seen: shown as it came\n");
        }
        if message.body.missing > 0 {
            let _ = writeln!(block, "... {} of it missing", counted(message.body.missing, "byte"));
        }
        block.push('\n');
        block
    }
}

/// The process, and whom it speaks to.
fn who(origin: &Origin) -> String {
    let side = |(ip, port): &(String, u16)| match (ip.as_str(), *port) {
        ("" | "0.0.0.0" | "::", 0) => "(address unknown)".to_owned(),
        (ip, port) if ip.contains(':') => format!("[{}]:{port}", text::one_line(ip)),
        (ip, port) => format!("{}:{port}", text::one_line(ip)),
    };
    let (client, server) = (side(&origin.client), side(&origin.server));
    format!("{}[{}] {client} -> {server}", text::one_line(&origin.process), origin.pid)
}

/// The request's URL. All that is captured is TLS, whatever the request says.
fn url(exchange: &Exchange) -> String {
    let Some(request) = &exchange.request else { return String::new() };
    let target = text::one_line(&request.target);
    let host = match request.authority.as_str() {
        "" => exchange.origin.server_name.as_str(),
        authority => authority,
    };
    match host {
        "" => target,
        _ if !target.starts_with('/') => target,
        host => format!("https://{}{target}", text::one_line(host)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Request, Response},
        *,
    };

    fn page() -> Page {
        Page { show: Show::default(), no_body: false, max_body: 8 }
    }

    fn exchange() -> Exchange {
        let mut message = Message { version: "HTTP/1.1".to_owned(), complete: true, ..Message::default() };
        let request = Request {
            method: "GET".to_owned(),
            authority: "h".to_owned(),
            target: "/\u{202e}\u{1b}[2J".to_owned(),
            message: message.clone(),
            ..Request::default()
        };
        message.headers.push(Header { name: "a\nb".to_owned(), value: "\u{9b}1m".to_owned() });
        message.body.add(b"one\n18:00 two", 100);
        message.ended = 1_500_000;
        let response = Response { status: 200, reason: "OK".to_owned(), message };
        Exchange { request: Some(request), response: Some(response), ..Exchange::default() }
    }

    #[test]
    fn an_exchange_is_a_line_and_what_was_said_below_it() {
        let who = "00:00:00.000Z [0] (address unknown) -> (address unknown)";
        let target = r"/\u{202e}\x1b[2J";
        let expected = [
            &format!("{who} GET https://h{target} 200 in 1.500 ms"),
            &format!("  > GET {target} HTTP/1.1"),
            "  < HTTP/1.1 200 OK",
            r"  < a\nb: \u{9b}1m",
            "  <",
            "  < one",
            "  < 18:0",
            "... 5 bytes more of it not shown (see --max-body)",
            "",
            "",
        ];
        assert_eq!(page().item(&Item::Exchange(Box::new(exchange()))), expected.join("\n"));
    }

    #[test]
    fn without_bodies_their_sizes_are_shown() {
        let shown = Page { no_body: true, ..page() }.item(&Item::Exchange(Box::new(exchange())));
        assert!(shown.contains("  < (13 bytes sent)\n") && !shown.contains("one"), "{shown}");
    }

    #[test]
    fn colour_is_in_the_first_line_only_and_ends_with_it() {
        let show = Show { colour: true, ..Show::default() };
        let shown = Page { show, ..page() }.item(&Item::Exchange(Box::new(exchange())));
        let first = shown.lines().next().unwrap();
        assert!(first.starts_with(EXCHANGE_COLOUR) && first.ends_with(PLAIN));
        assert_eq!(shown.matches('\u{1b}').count(), 2);
    }

    fn answered(content_type: &str, body: &[u8]) -> String {
        let mut exchange = exchange();
        let message = &mut exchange.response.as_mut().unwrap().message;
        message.headers = vec![Header { name: "Content-Type".to_owned(), value: content_type.to_owned() }];
        message.body = Default::default();
        message.body.add(body, 100);
        Page { max_body: 100, ..page() }.item(&Item::Exchange(Box::new(exchange)))
    }

    #[test]
    fn text_of_old_and_odd_kinds_is_shown() {
        for (said, body, shown) in [
            ("text/html; charset=iso-8859-1", &b"caf\xe9 cr\xe8me"[..], "caf\u{e9} cr\u{e8}me"),
            ("text/plain", b"caf\xe9 cr\xe8me", r"caf\xe9 cr\xe8me"),
            (
                "text/plain; charset=utf-8",
                b"\x1b[1mbold\x1b[0m\x07 \xe2\x80\xaeturned",
                r"\x1b[1mbold\x1b[0m\x07 \u{202e}turned",
            ),
        ] {
            let block = answered(said, body);
            assert!(block.contains(&format!("  < {shown}\n")), "{block}");
        }
    }

    #[test]
    fn a_body_that_is_not_shown_names_the_flag_that_shows_it() {
        let block = answered("application/x-thing", b"\0\x01\x02\x03");
        assert!(
            block.contains(
                "  < (application/x-thing, 4 bytes sent)\n... not shown (see --hex of plaintap watch)\n"
            ),
            "{block}"
        );
        assert!(!answered("text/plain", b"text").contains("--hex"));
    }

    #[test]
    fn how_much_of_a_body_is_not_shown_is_told_as_it_would_be_shown() {
        let gzip = Header { name: "Content-Encoding".to_owned(), value: "gzip".to_owned() };
        let text = "0123456789".repeat(10);
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        let zipped = encoder.finish().unwrap();
        for (kept, told) in [
            (zipped.len(), "... 92 bytes more of it not shown (see --max-body)\n".to_owned()),
            (
                zipped.len() - 1,
                format!("... more of it ({} bytes sent in all) not shown (see --max-body)\n", zipped.len()),
            ),
        ] {
            let mut exchange = exchange();
            let message = &mut exchange.response.as_mut().unwrap().message;
            message.headers = vec![gzip.clone()];
            message.body = Default::default();
            message.body.add(&zipped, kept);
            let block = page().item(&Item::Exchange(Box::new(exchange)));
            assert!(block.contains("  < 01234567\n") && block.contains(&told), "{block}");
        }
        let mut body = super::super::Body::default();
        body.add(text.as_bytes(), 50);
        let message = WebSocketMessage { opcode: 1, body, ..WebSocketMessage::default() };
        let block = page().item(&Item::WebSocket(Box::new(message)));
        assert!(block.contains("... 92 bytes more of it not shown"), "{block}");
    }
}
