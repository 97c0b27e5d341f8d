//! Exchanges of HTTP as `.har`, which browsers' developer tools and proxies open. Source: the HAR 1.2 specification.
//!
//! The file is whole JSON at any time: what ends it is written behind each entry, and written over by the next one.
//! WebSocket messages and what is no HTTP have no place in a HAR.

use base64::{Engine, prelude::BASE64_STANDARD};
use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::bytes::Bytes;
use serde_json::{Value, json};

use super::Recording;
use crate::{
    http::{
        Assembler, Exchange, Header, Item, Limits, Message, Request, Response,
        content::{self, Decoded},
    },
    time,
};

/// Bytes of a body, decoded.
const MAX_BODY: usize = 16 << 20;
/// A body that ends with its connection is complete when there was no more of it for so many seconds.
const QUIET: i64 = 2;

/// What a file holds, and the connections that are followed.
pub struct Har {
    assembler: Assembler,
    run_id: String,
    entries: u64,
}

impl Default for Har {
    fn default() -> Self {
        let limits = Limits { body: MAX_BODY, total: 256 << 20, ..Limits::default() };
        Self { assembler: Assembler::new(limits), run_id: String::new(), entries: 0 }
    }
}

impl Recording for Har {
    fn begin(&mut self) -> Vec<u8> {
        self.entries = 0;
        let creator = json!({ "name": "plaintap", "version": env!("CARGO_PKG_VERSION") });
        format!("{{\"log\":{{\"version\":\"1.2\",\"creator\":{creator},\"entries\":[").into_bytes()
    }

    fn message(&mut self, _: &Bytes, entry: &LogEntry) -> Vec<Vec<u8>> {
        let items = match &entry.payload {
            Some(Payload::EventPayload(event)) => self.assembler.push(event),
            Some(Payload::HeartbeatPayload(heartbeat)) if heartbeat.run_id != self.run_id => {
                // Another run gives its connections the same numbers.
                self.run_id.clone_from(&heartbeat.run_id);
                self.assembler.finish()
            }
            Some(Payload::HeartbeatPayload(heartbeat)) => {
                self.assembler.rest(heartbeat.timestamp.saturating_sub(QUIET).saturating_mul(1_000_000_000))
            }
            _ => vec![],
        };
        self.items(&items)
    }

    fn end(&mut self) -> Vec<Vec<u8>> {
        let items = self.assembler.finish();
        self.items(&items)
    }

    fn trailer(&self) -> &'static [u8] {
        b"\n]}}\n"
    }

    fn holds_exchanges(&self) -> bool {
        true
    }
}

impl Har {
    fn items(&mut self, items: &[Item]) -> Vec<Vec<u8>> {
        let mut entries = vec![];
        for item in items {
            if let Item::Exchange(exchange) = item {
                let separator = if self.entries == 0 { "\n" } else { ",\n" };
                entries.push(format!("{separator}{}", entry(exchange)).into_bytes());
                self.entries += 1;
            }
        }
        entries
    }
}

fn entry(exchange: &Exchange) -> Value {
    let ms = |from: i64, to: i64| to.saturating_sub(from).max(0) as f64 / 1e6;
    let (mut send, mut wait, mut receive) = (0.0, 0.0, 0.0);
    if let Some(request) = &exchange.request {
        send = ms(request.message.began, request.message.ended);
    }
    if let Some(response) = &exchange.response {
        receive = ms(response.message.began, response.message.ended);
        if let Some(request) = &exchange.request {
            wait = ms(request.message.ended, response.message.began);
        }
    }
    let origin = &exchange.origin;
    let mut comment = vec![format!("{}[{}]", origin.process, origin.pid)];
    comment.extend([origin.app.clone()].into_iter().filter(|app| !app.is_empty()));
    let mut notes = exchange.notes.clone();
    if exchange.request.is_none() {
        notes.push("the request was not seen".to_owned());
    }
    let request = request(exchange.request.as_ref(), &url(exchange), &mut notes);
    let response = response(exchange.response.as_ref(), &mut notes);
    comment.extend(notes);
    let mut entry = json!({
        "startedDateTime": time::utc(exchange.began()),
        "time": send + wait + receive,
        "request": request,
        "response": response,
        "cache": {},
        "timings": { "send": send, "wait": wait, "receive": receive },
    });
    if !origin.server.0.is_empty() {
        entry["serverIPAddress"] = json!(origin.server.0);
    }
    if origin.connection_id != 0 {
        entry["connection"] = json!(origin.connection_id.to_string());
    }
    entry["comment"] = json!(comment.join("; "));
    entry
}

fn request(request: Option<&Request>, url: &str, notes: &mut Vec<String>) -> Value {
    let none = Request::default();
    let request = request.unwrap_or(&none);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query: Vec<Value> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    let mut object = json!({
        "method": request.method,
        "url": url,
        "httpVersion": request.message.version,
        "cookies": cookies(&request.message, "cookie"),
        "headers": headers(&request.message),
        "queryString": query,
        "headersSize": -1,
        "bodySize": request.message.body.length,
    });
    if request.message.body.length > 0 {
        let decoded = body(&request.message, "request", notes);
        if str::from_utf8(&decoded.bytes).is_err() {
            notes.push("the request's body is no text".to_owned());
        }
        object["postData"] = json!({
            "mimeType": content_type(&request.message),
            "params": [],
            "text": String::from_utf8_lossy(&decoded.bytes),
        });
    }
    object
}

fn response(response: Option<&Response>, notes: &mut Vec<String>) -> Value {
    let none = Response::default();
    if response.is_none() {
        notes.push("the response was not seen".to_owned());
    }
    let response = response.unwrap_or(&none);
    let decoded = body(&response.message, "response", notes);
    let mut content = json!({
        "size": decoded.bytes.len(),
        "mimeType": content_type(&response.message),
    });
    match str::from_utf8(&decoded.bytes) {
        Ok(text) => content["text"] = json!(text),
        Err(_) => {
            content["text"] = json!(BASE64_STANDARD.encode(&decoded.bytes));
            content["encoding"] = json!("base64");
        }
    }
    json!({
        "status": response.status,
        "statusText": response.reason,
        "httpVersion": response.message.version,
        "cookies": cookies(&response.message, "set-cookie"),
        "headers": headers(&response.message),
        "content": content,
        "redirectURL": response.message.header("location").unwrap_or_default(),
        "headersSize": -1,
        "bodySize": response.message.body.length,
    })
}

/// A body as it was meant, and notes on what of it is not there.
fn body(message: &Message, whose: &str, notes: &mut Vec<String>) -> Decoded {
    let decoded = content::decode(message, MAX_BODY);
    if message.body.missing > 0 {
        notes.push(format!("{} bytes of the {whose}'s body were not seen", message.body.missing));
    }
    if decoded.more || message.body.left_out() > 0 {
        notes.push(format!("the {whose}'s body is longer than what is kept"));
    }
    if let Some(why) = &decoded.failed {
        notes.push(format!("the {whose}'s body could not be decoded: {why}"));
    }
    decoded
}

fn headers(message: &Message) -> Vec<Value> {
    let all = message.headers.iter().chain(&message.trailers);
    all.map(|Header { name, value }| json!({ "name": name, "value": value })).collect()
}

/// Names and values only: what a server says of a cookie besides is in the headers.
fn cookies(message: &Message, header: &str) -> Vec<Value> {
    let values = message.headers.iter().filter(|found| found.name.eq_ignore_ascii_case(header));
    let pairs = values.flat_map(|found| {
        // A request names many in one header, a response one and then what it says of it.
        let many = if header == "cookie" { usize::MAX } else { 1 };
        found.value.split(';').take(many)
    });
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect()
}

fn content_type(message: &Message) -> &str {
    message.header("content-type").unwrap_or("application/octet-stream")
}

/// All that is captured is TLS, whatever the request says.
fn url(exchange: &Exchange) -> String {
    let target = exchange.request.as_ref().map_or("/", |request| &request.target);
    let authority = exchange.request.as_ref().map_or("", |request| &request.authority);
    let (ip, port) = &exchange.origin.server;
    let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let host = match (authority, exchange.origin.server_name.as_str(), ip.as_str()) {
        ("", "", "") => "unknown",
        ("", "", _) => &address,
        ("", name, _) => name,
        (authority, ..) => authority,
    };
    match target.starts_with('/') {
        true => format!("https://{host}{target}"),
        false if target.contains("://") => target.to_owned(),
        // As in OPTIONS *, or CONNECT.
        false => format!("https://{host}/{target}"),
    }
}

#[cfg(test)]
mod tests {
    use plaintap_proto::{Direction, Event};

    use super::*;

    fn event(direction: Direction, at: i64, payload: &str) -> LogEntry {
        let event = Event {
            timestamp: 1_754_144_170_000_000_000 + at,
            src_ip: "10.0.0.2".to_owned(),
            src_port: 1000,
            dst_ip: "10.0.0.3".to_owned(),
            dst_port: 443,
            pname: "curl".to_owned(),
            pid: 7,
            direction: direction.into(),
            r#type: if direction == Direction::Written { 1 } else { 3 },
            payload: payload.as_bytes().to_vec().into(),
            ..Event::default()
        };
        LogEntry { payload: Some(Payload::EventPayload(event)), ..LogEntry::default() }
    }

    #[test]
    fn an_exchange_is_an_entry_and_the_file_is_json_after_each() {
        let mut har = Har::default();
        let mut file = har.begin();
        let request =
            "POST /a?b=c&d HTTP/1.1\r\nHost: h.example\r\nCookie: x=1; y=2\r\nContent-Length: 2\r\n\r\nhi";
        let response = "HTTP/1.1 201 Created\r\nSet-Cookie: z=3; Path=/\r\nContent-Type: text/plain\r\n\
                        Content-Length: 5\r\n\r\nthere";
        for n in 1..=2 {
            file.extend(
                har.message(&Bytes::new(), &event(Direction::Written, n * 10_000_000, request)).concat(),
            );
            let response = event(Direction::Read, n * 10_000_000 + 5_000_000, response);
            file.extend(har.message(&Bytes::new(), &response).concat());
            let whole: Value = serde_json::from_slice(&[&file[..], har.trailer()].concat()).unwrap();
            assert_eq!(whole["log"]["entries"].as_array().unwrap().len(), n as usize);
            let entry = &whole["log"]["entries"][0];
            assert_eq!(entry["startedDateTime"], "2025-08-02T14:16:10.010Z");
            assert_eq!((&entry["time"], &entry["comment"]), (&json!(5.0), &json!("curl[7]")));
            assert_eq!(entry["request"]["url"], "https://h.example/a?b=c&d");
            assert_eq!(entry["request"]["queryString"][0], json!({ "name": "b", "value": "c" }));
            assert_eq!(entry["request"]["cookies"].as_array().unwrap().len(), 2);
            assert_eq!(entry["request"]["postData"]["text"], "hi");
            assert_eq!(entry["response"]["cookies"], json!([{ "name": "z", "value": "3" }]));
            assert_eq!(
                (&entry["response"]["status"], &entry["response"]["content"]["text"]),
                (&json!(201), &json!("there"))
            );
        }
    }

    #[test]
    fn a_file_without_entries_is_json_too() {
        let mut har = Har::default();
        let file = [&har.begin()[..], &har.end().concat(), har.trailer()].concat();
        assert!(serde_json::from_slice::<Value>(&file).is_ok());
    }

    #[test]
    fn what_was_begun_only_is_an_entry_that_says_so() {
        let mut har = Har::default();
        har.begin();
        let mut text =
            har.message(&Bytes::new(), &event(Direction::Written, 0, "GET / HTTP/1.1\r\n\r\n")).concat();
        text.extend(har.end().concat());
        let entry: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&entry["response"]["status"], &entry["request"]["url"]),
            (&json!(0), &json!("https://10.0.0.3:443/"))
        );
        assert!(entry["comment"].as_str().unwrap().contains("the response was not seen"), "{entry}");
    }
}
