//! eCaptureQ's messages as Rust types, generated from `ecaptureq.proto`, which says what each field means.
//!
//! `generated.rs` is committed, so that building needs no protobuf compiler; `tests/generated.rs` holds it to the
//! `.proto`, and `examples/generate.rs` writes it anew.
#![forbid(unsafe_code)]

#[cfg(feature = "json")]
pub mod json;

#[expect(missing_docs, reason = "generated from ecaptureq.proto")]
#[rustfmt::skip]
mod generated;

pub use generated::*;

/// What [`Event::type`](Event) says of a connection's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Protocol {
    /// Nothing that we name.
    #[default]
    Unknown = 0,
    /// HTTP/1.0 or HTTP/1.1, from the client.
    Http1Request = 1,
    /// HTTP/2, from the client.
    Http2Request = 2,
    /// HTTP/1.0 or HTTP/1.1, from the server.
    Http1Response = 3,
    /// HTTP/2, from the server.
    Http2Response = 4,
    /// WebSocket frames, after an HTTP/1.1 upgrade.
    WebSocket = 5,
}

impl Protocol {
    /// The protocol of an `Event.type`; a value of a later release is `Unknown`.
    pub fn from_wire(value: u32) -> Self {
        [Self::Http1Request, Self::Http2Request, Self::Http1Response, Self::Http2Response, Self::WebSocket]
            .into_iter()
            .find(|protocol| *protocol as u32 == value)
            .unwrap_or_default()
    }
}
