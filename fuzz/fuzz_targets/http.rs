//! Payloads, which whoever speaks TLS on the device makes: HTTP/1, HTTP/2 with HPACK, WebSocket, and bodies in all codings.
#![no_main]

use plaintap::http::{Assembler, Item, Limits, content};
use plaintap_proto::Event;

/// Source: RFC 9113, sections 3.4, 6.2 and 11.2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const LIMITS: Limits = Limits { body: 4096, total: 1 << 20, connections: 4 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut assembler = Assembler::new(LIMITS);
    let mut items = Vec::new();
    let mut offsets = [[0; 2]; 4];
    let mut rest = data;
    // Each event begins with two bytes: whose it is, which way it goes, whether some are missing and what stands before it; how
    // long it is.
    while let [what, length, bytes @ ..] = rest {
        let (said, left) = bytes.split_at(bytes.len().min(usize::from(*length) + 1));
        let (connection, way) = (usize::from(what & 3), usize::from(what >> 2 & 1));
        let lost = u64::from(what >> 3 & 1);
        // What chance alone would take long to find: HTTP/2's first words, and the head of a frame of HPACK's.
        let preface = if what >> 4 & 1 == 1 { PREFACE } else { &[] };
        let stream = what >> 6 | 1;
        let head = [0, 0, said.len().min(255) as u8, HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, stream];
        let head = if what >> 5 & 1 == 1 { &head[..] } else { &[] };
        let payload = [preface, head, said].concat();
        let offset: &mut u64 = &mut offsets[connection][way];
        let event = Event {
            connection_id: connection as u64 + 1,
            direction: way as i32 + 1,
            stream_offset: *offset + lost,
            lost_before: lost,
            length: payload.len() as u32,
            payload: payload.clone().into(),
            ..Event::default()
        };
        *offset += lost + payload.len() as u64;
        items.extend(assembler.push(&event));
        rest = left;
    }
    items.extend(assembler.finish());
    for item in items {
        if let Item::Exchange(exchange) = item {
            let request = exchange.request.iter().map(|request| &request.message);
            let response = exchange.response.iter().map(|response| &response.message);
            for message in request.chain(response) {
                let _ = content::decode(message, 1 << 16);
            }
        }
    }
});
