//! HTTP put together from the pieces of a stream: requests with their responses, and WebSocket messages.
//!
//! [`Assembler`] takes events and gives [`Item`]s. The way through: `assembler` keeps the connections and their budget,
//! `joined` puts the bytes of one direction in order, `http1`, `http2` (with `hpack`) and `websocket` take them apart.
//! `content` then decodes bodies, `page` shows items to people and `filter` chooses among them.
//!
//! All that comes in was written by strangers: whatever it says, nothing panics, and memory stays within [`Limits`].

mod assembler;
mod charset;
pub mod content;
pub mod filter;
mod filter_text;
mod hpack;
mod hpack_table;
mod http1;
mod http1_head;
mod http2;
mod http2_frame;
pub(crate) mod joined;
mod json_text;
pub mod page;
mod programs;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::Arc;

use plaintap_proto::Event;

pub use assembler::Assembler;

/// How much is kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes kept of each body and WebSocket message; the rest is counted.
    pub body: usize,
    /// Bytes kept for all connections together; beyond it the connection that was quiet for longest is let go.
    pub total: usize,
    /// Connections followed at a time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 1 << 20, total: 64 << 20, connections: 1024 }
    }
}

/// What was put together.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A request and its response, as far as they were seen.
    Exchange(Box<Exchange>),
    /// A WebSocket message.
    WebSocket(Box<WebSocketMessage>),
    /// Bytes that are no HTTP, as they came; the payload may be put together from several events or be a part of one.
    Raw(Box<Event>),
    /// Bytes that were not seen.
    Gap(Gap),
    /// Something that a person should know about a connection.
    Note(Arc<Origin>, String),
}

/// Whose connection it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The agent's number for it; 0 if the server gives none.
    pub connection_id: u64,
    /// The process.
    pub pid: i64,
    /// Its thread's name.
    pub process: String,
    /// Android application or executable; empty if unknown.
    pub app: String,
    /// The process's user; `None` from servers that don't say.
    pub uid: Option<u32>,
    /// SNI; empty if unknown.
    pub server_name: String,
    /// Who opened it: address (empty if unknown) and port.
    pub client: (String, u16),
    /// Who accepted it.
    pub server: (String, u16),
}

/// A request with its response. At least one of the two is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The connection.
    pub origin: Arc<Origin>,
    /// The HTTP/2 stream.
    pub stream: Option<u32>,
    /// The request, if its beginning was seen.
    pub request: Option<Request>,
    /// The final response, if its beginning was seen.
    pub response: Option<Response>,
    /// The 1xx responses before it.
    pub interim: Vec<u16>,
    /// What is odd about it: reset, cut short, joined midway.
    pub notes: Vec<String>,
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, say.
    pub method: String,
    /// HTTP/2's `:scheme`; HTTP/1 does not say.
    pub scheme: Option<String>,
    /// `Host` or `:authority`; may be empty.
    pub authority: String,
    /// As sent: a path, mostly.
    pub target: String,
    /// Headers and body.
    pub message: Message,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// 0 if it was not seen.
    pub status: u16,
    /// HTTP/1's words for it.
    pub reason: String,
    /// Headers and body.
    pub message: Message,
}

/// What requests and responses have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `HTTP/1.1`, say.
    pub version: String,
    /// In order; HTTP/2's without the pseudo-headers.
    pub headers: Vec<Header>,
    /// What came after the body.
    pub trailers: Vec<Header>,
    /// The body, un-chunked but still encoded; see [`content::decode`].
    pub body: Body,
    /// When its first and its last bytes were captured, in ns since 1970.
    pub began: i64,
    /// See `began`.
    pub ended: i64,
    /// Its end was seen.
    pub complete: bool,
}

/// A header or trailer; bytes that are no UTF-8 are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// As sent; `?` where HPACK referred to what was not seen.
    pub name: String,
    /// As sent; see `name`.
    pub value: String,
}

/// A body, or the payload of a WebSocket message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// The bytes kept, missing ones left out.
    pub bytes: Vec<u8>,
    /// Its length in bytes, as far as it came, missing ones included.
    pub length: u64,
    /// How many of them were not seen.
    pub missing: u64,
}

/// A WebSocket message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebSocketMessage {
    /// The connection.
    pub origin: Arc<Origin>,
    /// The client sent it (it was masked).
    pub from_client: bool,
    /// RFC 6455's: 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    pub opcode: u8,
    /// Unmasked and inflated.
    pub body: Body,
    /// It came deflated and could not be inflated: the body is as it came.
    pub still_deflated: bool,
    /// When its last bytes were captured, in ns since 1970.
    pub at: i64,
}

/// Bytes that were not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The connection.
    pub origin: Arc<Origin>,
    /// The process wrote them; else it read them.
    pub written: bool,
    /// How many.
    pub bytes: u64,
    /// When the bytes after them were captured, in ns since 1970.
    pub at: i64,
}

impl Message {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

impl Exchange {
    /// From the first byte of the request to the last of the response, in ns, if both were seen.
    pub fn took(&self) -> Option<i64> {
        let (request, response) = (self.request.as_ref()?, self.response.as_ref()?);
        Some(response.message.ended.saturating_sub(request.message.began))
    }

    /// When its first byte was captured, in ns since 1970.
    pub fn began(&self) -> i64 {
        let request = self.request.as_ref().map(|request| request.message.began);
        request.or_else(|| self.response.as_ref().map(|response| response.message.began)).unwrap_or(0)
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        let request = self.request.as_ref().map(|request| &request.message);
        request.into_iter().chain(self.response.as_ref().map(|response| &response.message))
    }

    /// The message of one side.
    fn message(&mut self, response: bool) -> Option<&mut Message> {
        match response {
            true => self.response.as_mut().map(|response| &mut response.message),
            false => self.request.as_mut().map(|request| &mut request.message),
        }
    }

    /// Bytes of memory, about.
    fn held(&self) -> usize {
        let headers = |headers: &[Header]| -> usize {
            headers.iter().map(|header| 48 + header.name.len() + header.value.len()).sum()
        };
        512 + self
            .messages()
            .map(|message| {
                message.body.bytes.capacity() + headers(&message.headers) + headers(&message.trailers)
            })
            .sum::<usize>()
    }
}

impl Body {
    /// Adds bytes, and keeps at most `limit`.
    fn add(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.length += bytes.len() as u64;
    }

    /// Counts bytes that were not seen.
    fn miss(&mut self, bytes: u64) {
        self.length = self.length.saturating_add(bytes);
        self.missing = self.missing.saturating_add(bytes);
    }

    /// Bytes that came and were not kept.
    pub fn left_out(&self) -> u64 {
        self.length.saturating_sub(self.missing).saturating_sub(self.bytes.len() as u64)
    }
}

fn header<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
}
