//! HTTP/2 on one connection: frames of either direction, and the streams they belong to.

use std::collections::BTreeMap;

use super::{
    Exchange, Header, Item, Message, Request, Response,
    assembler::Context,
    hpack::Decoder,
    http2_frame::{self as frame, Frame, PREFACE},
};

/// Streams at a time; more than servers let a client open.
const MOST_STREAMS: usize = 1024;
/// A frame other than DATA that is longer is none.
const LONGEST: usize = 256 << 10;
/// A header block in pieces that is longer is none.
const LONGEST_BLOCK: usize = 512 << 10;

#[derive(Debug, Default)]
pub(super) struct Http2 {
    halves: [Half; 2],
    streams: BTreeMap<u32, Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    exchange: Exchange,
    /// The request, and the response, ended.
    ended: [bool; 2],
}

#[derive(Debug, Default)]
struct Half {
    buffer: Vec<u8>,
    hpack: Decoder,
    /// It carries responses, if that is known.
    responds: Option<bool>,
    /// Its beginning was seen: the preface, or first of all the server's SETTINGS.
    begun: bool,
    /// Bytes are missing, and no frame was made out since.
    lost: bool,
    /// A DATA frame that is not all there.
    data: Option<Data>,
    /// A block of headers that goes on in the next frame.
    block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    stream: u32,
    /// Content, and then padding.
    left: u64,
    padding: u64,
    end: bool,
}

#[derive(Debug)]
struct Block {
    stream: u32,
    end: bool,
    promised: bool,
    bytes: Vec<u8>,
}

impl Http2 {
    pub(super) fn held(&self) -> usize {
        let halves = self.halves.iter().map(|half| {
            half.buffer.capacity()
                + half.hpack.held()
                + half.block.as_ref().map_or(0, |block| block.bytes.len())
        });
        halves.sum::<usize>() + self.streams.values().map(|stream| stream.exchange.held()).sum::<usize>()
    }

    /// The next bytes of one side.
    pub(super) fn data(&mut self, side: usize, bytes: &[u8], context: &mut Context) {
        if bytes.is_empty() {
            return;
        }
        let half = &mut self.halves[side];
        if half.lost {
            // Only at a payload's beginning can a frame be told from other bytes.
            if frame::frames(bytes) == 0 {
                return context.raw(bytes.to_vec());
            }
            half.lost = false;
        }
        half.buffer.extend_from_slice(bytes);
        while self.step(side, context) {}
    }

    /// One frame, or a part of a DATA frame; false if there is no more to be done.
    fn step(&mut self, side: usize, context: &mut Context) -> bool {
        let half = &mut self.halves[side];
        if half.buffer.is_empty() {
            return false;
        }
        if let Some(data) = half.data {
            self.content(side, data, context);
            return true;
        }
        if !half.begun && half.buffer.starts_with(PREFACE) {
            half.buffer.drain(..PREFACE.len());
            half.begun = true;
            self.roles(side, false);
            return true;
        }
        if !half.begun && PREFACE.starts_with(&half.buffer) {
            return false;
        }
        let Some(frame) = Frame::read(&half.buffer) else { return false };
        // A frame of a kind that we don't know may be any extension's.
        let known = frame.kind <= frame::CONTINUATION;
        if known && !frame.is_plausible() || frame.kind != frame::DATA && frame.length > LONGEST {
            self.broken(side, "what was sent is no HTTP/2 frame", context);
            return false;
        }
        if !half.begun {
            half.begun = true;
            let first = frame.kind == frame::SETTINGS && frame.flags == 0;
            if first && self.halves[1 - side].responds == Some(false) {
                self.roles(side, true);
            } else if !first {
                context.note("HTTP/2 joined midway: headers sent before are unknown and shown as ?");
            }
        }
        let half = &mut self.halves[side];
        if frame.kind == frame::DATA {
            let padded = usize::from(frame.has(frame::PADDED));
            if half.buffer.len() < frame::HEADER + padded.min(frame.length) {
                return false;
            }
            let padding = match padded {
                1 if frame.length > 0 => u64::from(half.buffer[frame::HEADER]),
                _ => 0,
            };
            let length = frame.length.saturating_sub(padded) as u64;
            half.buffer.drain(..frame::HEADER + padded.min(frame.length));
            let padding = padding.min(length);
            let end = frame.has(frame::END_STREAM);
            let data = Data { stream: frame.stream, left: length - padding, padding, end };
            half.data = Some(data);
            self.content(side, data, context);
            return true;
        }
        if half.buffer.len() < frame::HEADER + frame.length {
            return false;
        }
        let bytes: Vec<u8> = half.buffer.drain(..frame::HEADER + frame.length).collect();
        self.frame(side, frame, &bytes[frame::HEADER..], context);
        true
    }

    fn frame(&mut self, side: usize, frame: Frame, payload: &[u8], context: &mut Context) {
        if self.halves[side].block.is_some() && frame.kind != frame::CONTINUATION {
            return self.broken(side, "a frame within a block of headers", context);
        }
        match frame.kind {
            frame::HEADERS | frame::PUSH_PROMISE => {
                let promised = frame.kind == frame::PUSH_PROMISE;
                let mut payload = payload;
                if frame.has(frame::PADDED) {
                    let padding = payload.first().copied().map_or(0, usize::from);
                    let end = payload.len().saturating_sub(padding).max(1);
                    payload = payload.get(1..end).unwrap_or_default();
                }
                let mut stream = frame.stream;
                if promised {
                    let number = payload.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                    stream = number & 0x7fff_ffff;
                    payload = payload.get(4..).unwrap_or_default();
                } else if frame.has(frame::PRIORITY) {
                    payload = payload.get(5..).unwrap_or_default();
                }
                let end = frame.has(frame::END_STREAM) && !promised;
                let block = Block { stream, end, promised, bytes: payload.to_vec() };
                self.block(side, frame, block, context);
            }
            frame::CONTINUATION => match self.halves[side].block.take() {
                Some(mut block) if block.bytes.len() + payload.len() <= LONGEST_BLOCK => {
                    block.bytes.extend_from_slice(payload);
                    self.block(side, frame, block, context);
                }
                _ => self.broken(side, "headers whose beginning is missing, or that are too long", context),
            },
            frame::RST_STREAM => {
                let code = payload.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                let who = if side == 1 { "process" } else { "peer" };
                self.hand_out(frame.stream, &format!("reset by the {who}: {}", error(code)), context);
            }
            frame::GOAWAY => {
                let code = payload.get(4..8).and_then(|bytes| bytes.first_chunk::<4>());
                match code.map_or(0, |bytes| u32::from_be_bytes(*bytes)) {
                    0 => {}
                    code => context.note(format!("HTTP/2 connection given up: {}", error(code))),
                }
            }
            _ => {}
        }
    }

    fn block(&mut self, side: usize, frame: Frame, block: Block, context: &mut Context) {
        if !frame.has(frame::END_HEADERS) {
            self.halves[side].block = Some(block);
            return;
        }
        let (fields, why) = self.halves[side].hpack.decode(&block.bytes);
        if let Some(why) = why {
            self.halves[side].hpack.forget();
            context.note(format!("HTTP/2 stream {}: {why}", block.stream));
        }
        let has = |name: &str| fields.iter().any(|field| field.name == name);
        let responds = match (has(":status"), has(":method") || has(":path")) {
            (true, _) => true,
            (_, true) => block.promised,
            _ => self.responds(side, context),
        };
        self.roles(side, responds);
        let response = responds && !block.promised;
        self.open(block.stream, context);
        let Some(stream) = self.streams.get_mut(&block.stream) else { return };
        headers(&mut stream.exchange, response, fields, context.event.timestamp);
        if block.promised {
            stream.exchange.notes.push("pushed by the server".to_owned());
            stream.ended[0] = true;
        }
        if block.end {
            self.end(block.stream, response, context);
        }
    }

    /// Bytes of a DATA frame.
    fn content(&mut self, side: usize, mut data: Data, context: &mut Context) {
        let half = &mut self.halves[side];
        let content = half.buffer.len().min(usize::try_from(data.left).unwrap_or(usize::MAX));
        data.left -= content as u64;
        let bytes: Vec<u8> = half.buffer.drain(..content).collect();
        if data.left == 0 {
            let padding = half.buffer.len().min(usize::try_from(data.padding).unwrap_or(usize::MAX));
            half.buffer.drain(..padding);
            data.padding -= padding as u64;
        }
        let over = data.left == 0 && data.padding == 0;
        half.data = (!over).then_some(data);
        let response = self.responds(side, context);
        let (at, limit) = (context.event.timestamp, context.limits.body);
        let message = self.message(data.stream, response, context);
        message.body.add(&bytes, limit);
        message.ended = at;
        if over && data.end {
            self.end(data.stream, response, context);
        }
    }

    /// The message that belongs to a stream, even if its headers were not seen.
    fn message(&mut self, stream: u32, response: bool, context: &mut Context) -> &mut Message {
        self.open(stream, context);
        let exchange = &mut self.streams.entry(stream).or_default().exchange;
        let began = |message: &mut Message| {
            message.version = "HTTP/2".to_owned();
            message.began = context.event.timestamp;
        };
        let seen = if response { exchange.response.is_some() } else { exchange.request.is_some() };
        if !seen {
            exchange.notes.push("its headers were not seen".to_owned());
        }
        if response {
            let response = exchange.response.get_or_insert_default();
            if !seen {
                began(&mut response.message);
            }
            &mut response.message
        } else {
            let request = exchange.request.get_or_insert_default();
            if !seen {
                began(&mut request.message);
            }
            &mut request.message
        }
    }

    fn open(&mut self, stream: u32, context: &mut Context) {
        if !self.streams.contains_key(&stream) {
            if self.streams.len() >= MOST_STREAMS
                && let Some(&oldest) = self.streams.keys().next()
            {
                self.hand_out(oldest, "let go: too many streams are open", context);
            }
            let exchange =
                Exchange { origin: context.origin.clone(), stream: Some(stream), ..Exchange::default() };
            self.streams.insert(stream, Stream { exchange, ended: [false; 2] });
        }
    }

    fn end(&mut self, number: u32, response: bool, context: &mut Context) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.ended[usize::from(response)] = true;
        if let Some(message) = stream.exchange.message(response) {
            message.complete = message.body.missing == 0;
            message.ended = context.event.timestamp;
        }
        // A request whose beginning was not seen is not waited for.
        if stream.ended[1] && (stream.ended[0] || stream.exchange.request.is_none()) {
            self.hand_out(number, "", context);
        }
    }

    fn hand_out(&mut self, number: u32, why: &str, context: &mut Context) {
        let Some(mut stream) = self.streams.remove(&number) else { return };
        // More may be known of the connection by now.
        stream.exchange.origin = context.origin.clone();
        if !why.is_empty() {
            stream.exchange.notes.push(why.to_owned());
        }
        if stream.exchange.request.is_some() || stream.exchange.response.is_some() {
            context.out.push(Item::Exchange(Box::new(stream.exchange)));
        }
    }

    fn roles(&mut self, side: usize, responds: bool) {
        self.halves[side].responds = Some(responds);
        self.halves[1 - side].responds = Some(!responds);
    }

    /// Whether that side sends responses; if nothing tells, the process is taken to be a client.
    fn responds(&self, side: usize, context: &Context) -> bool {
        self.halves[side].responds.unwrap_or(match context.event.r#type {
            2 => false,
            4 => true,
            _ => side == 0,
        })
    }

    fn broken(&mut self, side: usize, why: &str, context: &mut Context) {
        let half = &mut self.halves[side];
        (half.data, half.block, half.lost, half.begun) = (None, None, true, true);
        half.hpack.forget();
        let bytes = std::mem::take(&mut half.buffer);
        context.note(format!("HTTP/2: {why}; shown as it came up to the next frame that can be made out"));
        context.raw(bytes);
    }

    /// Bytes of this side were not seen.
    pub(super) fn gap(&mut self, side: usize, missing: u64, context: &mut Context) {
        let half = &mut self.halves[side];
        if let Some(mut data) = half.data
            && missing <= data.left + data.padding
        {
            // Within one DATA frame: what follows is still known.
            let content = missing.min(data.left);
            data.left -= content;
            data.padding -= missing - content;
            half.data = Some(data);
            let response = self.responds(side, context);
            self.message(data.stream, response, context).body.miss(content);
            self.content(side, data, context);
            return;
        }
        let response = self.responds(side, context);
        for (number, stream) in &mut self.streams {
            let at_hand = self.halves[side].data.is_some_and(|data| data.stream == *number);
            if !stream.ended[usize::from(response)] || at_hand {
                let what = if response { "response" } else { "request" };
                stream.exchange.notes.push(format!("bytes are missing, maybe of its {what}"));
                stream.exchange.notes.dedup();
            }
        }
        let half = &mut self.halves[side];
        (half.data, half.block, half.lost, half.begun) = (None, None, true, true);
        half.hpack.forget();
        half.buffer.clear();
    }

    /// Hands out all that is pending.
    pub(super) fn finish(&mut self, why: &str, context: &mut Context) {
        while let Some(&number) = self.streams.keys().next() {
            self.hand_out(number, why, context);
        }
    }
}

/// Takes the fields of a block into the request or the response: its head, an interim response, or trailers.
fn headers(exchange: &mut Exchange, response: bool, fields: Vec<Header>, at: i64) {
    if let Some(message) = exchange.message(response) {
        message.trailers.extend(fields);
        message.ended = at;
        return;
    }
    let (pseudo, headers): (Vec<_>, Vec<_>) =
        fields.into_iter().partition(|field| field.name.starts_with(':'));
    let get = |name: &str| pseudo.iter().find(|field| field.name == name).map(|field| field.value.clone());
    let message =
        Message { version: "HTTP/2".to_owned(), headers, began: at, ended: at, ..Message::default() };
    if response {
        let status = get(":status").and_then(|status| status.parse().ok()).unwrap_or(0);
        if matches!(status, 100..=199) {
            if exchange.interim.len() < 64 {
                exchange.interim.push(status);
            }
            return;
        }
        exchange.response = Some(Response { status, reason: String::new(), message });
    } else {
        let host = || super::header(&message.headers, "host").map(str::to_owned);
        let authority = get(":authority").or_else(host).unwrap_or_default();
        let method = get(":method").unwrap_or_else(|| "?".to_owned());
        let target =
            get(":path").unwrap_or_else(|| if method == "CONNECT" { String::new() } else { "?".to_owned() });
        exchange.request = Some(Request { method, scheme: get(":scheme"), authority, target, message });
    }
}

/// Source: RFC 9113, section 7.
fn error(code: u32) -> String {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code).copied());
    name.map_or_else(|| format!("error {code}"), str::to_owned)
}
