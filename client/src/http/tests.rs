//! Conversations put together, cut at any place, with holes, and hostile ones.

use std::io::Write;

use flate2::{Compress, Compression, FlushCompress, write::GzEncoder};
use plaintap_proto::Event;
use proptest::prelude::*;

use super::{
    Assembler, Exchange, Item, Limits, content,
    http2_frame::{self as frame, PREFACE},
    page::Page,
};
use crate::show::Show;

/// What one side says, and which side: 1 is the client's.
type Said = (usize, Vec<u8>);

fn event(side: usize, offset: u64, bytes: &[u8]) -> Event {
    Event {
        pid: 7,
        pname: "curl".to_owned(),
        connection_id: 1,
        direction: side as i32 + 1,
        stream_offset: offset,
        payload: bytes.to_vec().into(),
        timestamp: 1_754_144_170_000_000_000,
        ..Event::default()
    }
}

/// Puts together what was said, in pieces of these lengths; the bytes `hole` (side, from, to) are not seen.
fn assembled(said: &[Said], cuts: &[usize], hole: (usize, u64, u64)) -> Vec<Item> {
    let mut assembler = Assembler::new(Limits::default());
    let (mut items, mut offsets, mut cut) = (vec![], [0_u64; 2], 0);
    for (side, bytes) in said {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length =
                cuts.get(cut % cuts.len().max(1)).copied().unwrap_or(usize::MAX).clamp(1, rest.len());
            cut += 1;
            // A piece is seen or it is not.
            let edge =
                |edge: u64| edge.checked_sub(offsets[*side]).filter(|left| *side == hole.0 && *left > 0);
            let edges = [edge(hole.1), edge(hole.2)].into_iter().flatten().map(|left| left as usize);
            let length = edges.fold(length, usize::min);
            let (now, later) = rest.split_at(length);
            if *side != hole.0 || !(hole.1..hole.2).contains(&offsets[*side]) {
                items.extend(assembler.push(&event(*side, offsets[*side], now)));
            }
            offsets[*side] += length as u64;
            rest = later;
        }
    }
    items.extend(assembler.finish());
    items
}

fn whole(said: &[Said]) -> Vec<Item> {
    assembled(said, &[], (2, 0, 0))
}

fn exchanges(items: &[Item]) -> Vec<&Exchange> {
    items
        .iter()
        .filter_map(|item| match item {
            Item::Exchange(exchange) => Some(&**exchange),
            _ => None,
        })
        .collect()
}

/// Method, target, status, and the decoded bodies of each exchange.
fn summary(items: &[Item]) -> Vec<String> {
    let body = |message: Option<&super::Message>| {
        message.map_or_else(String::new, |message| {
            let decoded = content::decode(message, 1 << 20);
            assert_eq!(decoded.failed, None);
            let end = if message.complete { "" } else { " cut" };
            format!("{:?}{end}", String::from_utf8_lossy(&decoded.bytes))
        })
    };
    exchanges(items)
        .into_iter()
        .map(|exchange| {
            let request = exchange.request.as_ref();
            let response = exchange.response.as_ref();
            format!(
                "{} {} {} | {} {}",
                request.map_or("-", |request| &request.method),
                request.map_or("-", |request| &request.target),
                body(request.map(|request| &request.message)),
                response.map_or(0, |response| response.status),
                body(response.map(|response| &response.message)),
            )
        })
        .collect()
}

fn client(text: &str) -> Said {
    (1, text.as_bytes().to_vec())
}

fn server(text: &str) -> Said {
    (0, text.as_bytes().to_vec())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn http1() -> Vec<Said> {
    let zipped = gzip(b"{\"zipped\":true}");
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", zipped.len())
            .into_bytes();
    response.extend(zipped);
    vec![
        client("GET /one HTTP/1.1\r\nHost: h\r\n\r\nHEAD /two HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"),
        server("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        client("POST /three HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"),
        server("HTTP/1.1 100 Continue\r\n\r\n"),
        client("3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: 9\r\n\r\n"),
        server("HTTP/1.1 204 No Content\r\n\r\n"),
        client("GET /four HTTP/1.1\r\n\r\n"),
        (0, response),
        client("GET /five HTTP/1.1\r\n\r\n"),
        server("HTTP/1.0 404 Not Found\r\n\r\nto the end"),
    ]
}

const HTTP1: [&str; 5] = [
    r#"GET /one "" | 200 "first""#,
    r#"HEAD /two "" | 200 """#,
    r#"POST /three "abc0123456789" | 204 """#,
    r#"GET /four "" | 200 "{\"zipped\":true}""#,
    r#"GET /five "" | 404 "to the end" cut"#,
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x40, name.len() as u8];
    bytes.extend(name.bytes());
    bytes.push(value.len() as u8);
    bytes.extend(value.bytes());
    bytes
}

/// Two streams at a time, padding, CONTINUATION, trailers, and a table entry that is used again.
fn http2() -> Vec<Said> {
    let path = [&[0x82, 0x87][..], &literal(":path", "/a"), &literal("x-long", "value")].concat();
    let again = [&[0x83, 0x87][..], &literal(":path", "/b"), &[0xbf]].concat();
    let padded = [&[3][..], b"hello", &[0; 3]].concat();
    vec![
        (1, [PREFACE, &frame(frame::SETTINGS, 0, 0, &[])].concat()),
        (0, frame(frame::SETTINGS, 0, 0, &[])),
        (1, frame(frame::HEADERS, frame::END_STREAM, 1, &path[..7])),
        (1, frame(frame::CONTINUATION, frame::END_HEADERS, 1, &path[7..])),
        (1, frame(frame::HEADERS, frame::END_HEADERS, 3, &again)),
        (1, frame(frame::DATA, frame::END_STREAM | frame::PADDED, 3, &padded)),
        (0, frame(frame::HEADERS, frame::END_HEADERS, 3, &[0x88])),
        (0, frame(frame::HEADERS, frame::END_HEADERS, 1, &[0x8d])),
        (0, frame(frame::DATA, 0, 1, b"not ")),
        (0, frame(frame::DATA, frame::END_STREAM, 3, b"answer to b")),
        (0, frame(frame::DATA, 0, 1, b"found")),
        (0, frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &literal("x-sum", "9"))),
    ]
}

const HTTP2: [&str; 2] = [r#"POST /b "hello" | 200 "answer to b""#, r#"GET /a "" | 404 "not found""#];

#[test]
fn http1_messages_are_paired_and_decoded() {
    let items = whole(&http1());
    assert_eq!(summary(&items), HTTP1);
    let third = exchanges(&items)[2];
    assert_eq!(third.interim, [100]);
    assert_eq!(third.request.as_ref().unwrap().message.trailers[0].value, "9");
    assert_eq!(items.len(), 5, "{items:?}");
}

#[test]
fn http2_streams_are_paired_and_their_headers_known() {
    let items = whole(&http2());
    assert_eq!(summary(&items), HTTP2);
    let second = exchanges(&items)[0].request.as_ref().unwrap();
    assert_eq!(second.message.header("x-long"), Some("value"), "from the dynamic table");
    let first = exchanges(&items)[1].response.as_ref().unwrap();
    assert_eq!(first.message.trailers[0].name, "x-sum");
    assert_eq!(items.len(), 2, "{items:?}");
}

#[test]
fn http2_joined_midway_shows_what_it_can_and_says_what_it_cannot() {
    let said: Vec<Said> = http2().split_off(4);
    let items = whole(&said);
    assert_eq!(summary(&items)[0], HTTP2[0]);
    let request = exchanges(&items)[0].request.as_ref().unwrap();
    assert_eq!(request.message.header("?"), Some("?"), "{request:?}");
    assert!(items.iter().any(|item| matches!(item, Item::Note(_, note) if note.contains("joined midway"))));
    assert_eq!(exchanges(&items)[1].response.as_ref().unwrap().status, 404);
}

#[test]
fn a_hole_within_a_body_costs_that_body_only() {
    let said = [
        client("GET /a HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"),
        client("GET /b HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"),
    ];
    let head = said[1].1.len() as u64 - 10;
    let items = assembled(&said, &[head as usize, 4, 3], (0, head + 3, head + 6));
    assert_eq!(summary(&items), [r#"GET /a "" | 200 "0126789" cut"#, r#"GET /b "" | 200 "b""#]);
    assert!(items.iter().any(|item| matches!(item, Item::Gap(gap) if gap.bytes == 3 && !gap.written)));
    assert_eq!(exchanges(&items)[0].response.as_ref().unwrap().message.body.missing, 3);
}

#[test]
fn after_a_hole_between_messages_the_next_answer_is_not_taken_for_the_lost_one() {
    let said = [
        client("GET /a HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlost"),
        client("GET /b HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nb"),
    ];
    let items = assembled(&said, &[], (0, 0, said[1].1.len() as u64));
    let statuses: Vec<u16> =
        exchanges(&items).iter().map(|e| e.response.as_ref().map_or(0, |response| response.status)).collect();
    assert!(!statuses.is_empty() && statuses.contains(&201), "{items:?}");
    assert!(!summary(&items).iter().any(|line| line.contains("/a") && line.contains("201")), "{items:?}");
}

#[test]
fn websocket_messages_are_unmasked_joined_and_inflated() {
    let mut deflate = Compress::new(Compression::best(), false);
    let mut deflated = |text: &[u8]| {
        let mut out = Vec::with_capacity(100);
        deflate.compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        out.truncate(out.len() - 4);
        out
    };
    let (first, second) = (deflated(b"hello hello hello"), deflated(b"hello hello hello again"));
    let mask = [1, 2, 3, 4];
    let masked = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()
    };
    let upgrade = "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let said = [
        client(upgrade),
        server(agreed),
        (1, [&[0x41, 0x80 | first.len() as u8][..], &mask, &masked(&first)].concat()),
        (0, [&[0x01, 3][..], b"one"].concat()),
        (0, [&[0x89, 1][..], b"p"].concat()),
        (0, [&[0x80, 4][..], b" two"].concat()),
        (1, [&[0xc1, 0x80 | second.len() as u8][..], &mask, &masked(&second)].concat()),
    ];
    // The first message's only frame is not its last: an empty one follows.
    let mut said = said.to_vec();
    said.insert(3, (1, [&[0x80, 0x80][..], &mask].concat()));
    for cuts in [&[][..], &[1], &[2, 5]] {
        let items = assembled(&said, cuts, (2, 0, 0));
        let messages: Vec<String> = items
            .iter()
            .filter_map(|item| match item {
                Item::WebSocket(message) => Some(format!(
                    "{} {} {}",
                    message.opcode,
                    if message.from_client { ">" } else { "<" },
                    String::from_utf8_lossy(&message.body.bytes)
                )),
                _ => None,
            })
            .collect();
        let expected = ["1 > hello hello hello", "9 < p", "1 < one two", "1 > hello hello hello again"];
        assert_eq!(messages, expected);
        assert_eq!(items.len(), 5, "{items:?}");
    }
}

#[test]
fn a_server_without_offsets_is_joined_as_it_comes() {
    let mut assembler = Assembler::new(Limits::default());
    let mut items = vec![];
    for (side, bytes) in http1() {
        let uuid = format!("7_{side}_curl_0_{side}_10.0.0.2:4-10.0.0.3:443");
        let event = Event {
            connection_id: 0,
            direction: 0,
            uuid,
            src_port: 4,
            dst_port: 443,
            ..event(side, 0, &bytes)
        };
        items.extend(assembler.push(&event));
    }
    items.extend(assembler.finish());
    assert_eq!(summary(&items), HTTP1);
}

#[test]
fn what_becomes_known_of_a_process_later_is_told_and_makes_no_other_connection() {
    let mut assembler = Assembler::new(Limits::default());
    assembler.push(&event(1, 0, b"GET /a HTTP/1.1\r\n\r\n"));
    let known =
        Event { process_start: 9, app: "/usr/bin/curl".to_owned(), ..event(0, 0, b"HTTP/1.1 204 N\r\n\r\n") };
    let items = assembler.push(&known);
    assert_eq!(summary(&items), [r#"GET /a "" | 204 """#]);
    assert_eq!(exchanges(&items)[0].origin.app, "/usr/bin/curl");
}

#[test]
fn what_was_said_before_our_time_is_no_gap_and_what_was_lost_is() {
    let request = b"GET /a HTTP/1.1\r\n\r\n";
    for (lost_before, gaps) in [(0, 0), (7, 7)] {
        let mut assembler = Assembler::new(Limits::default());
        let mut items = assembler.push(&Event { lost_before, ..event(1, 5000, request) });
        items.extend(assembler.push(&event(0, 9000, b"HTTP/1.1 204 N\r\n\r\n")));
        let told: u64 = items.iter().map(|item| if let Item::Gap(gap) = item { gap.bytes } else { 0 }).sum();
        assert_eq!((told, summary(&items)), (gaps, vec![r#"GET /a "" | 204 """#.to_owned()]));
    }
}

#[test]
fn what_a_server_sends_again_is_not_shown_again() {
    let mut assembler = Assembler::new(Limits::default());
    let request = b"GET /a HTTP/1.1\r\n\r\n";
    let response = b"HTTP/1.1 204 No Content\r\n\r\n";
    let mut items = vec![];
    for _ in 0..2 {
        items.extend(assembler.push(&event(1, 0, request)));
        items.extend(assembler.push(&event(0, 0, response)));
    }
    assert_eq!(summary(&items).len(), 1);
}

#[test]
fn what_is_no_http_is_handed_out_at_once_and_unchanged() {
    let mut assembler = Assembler::new(Limits::default());
    for (at, text) in ["hello", "G", "ood day", "\0\u{1}\u{2}"].iter().enumerate() {
        let event = Event { connection_id: 0, ..event(1, 0, text.as_bytes()) };
        let items = assembler.push(&event);
        assert!(matches!(&items[..], [Item::Raw(raw)] if raw.payload == event.payload), "{at}: {items:?}");
    }
}

#[test]
fn bombs_cost_no_more_than_the_limit() {
    let zipped = gzip(&vec![0; 50 << 20]);
    let mut message = super::Message::default();
    message.headers.push(super::Header { name: "content-encoding".into(), value: "gzip".into() });
    message.body.add(&zipped, usize::MAX);
    let decoded = content::decode(&message, 1000);
    assert_eq!((decoded.bytes.len(), decoded.more, decoded.failed), (1000, true, None));
    assert_eq!(content::length(&message), None, "nor is it counted to its end");
}

#[test]
fn many_open_connections_are_let_go_within_the_budget() {
    let limits = Limits { body: 1 << 20, total: 1 << 20, connections: 50 };
    let mut assembler = Assembler::new(limits);
    let mut items = vec![];
    for number in 0..200_u64 {
        let request = b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n";
        let body = vec![b'x'; 100_000];
        for (offset, bytes) in [(0, &request[..]), (request.len() as u64, &body)] {
            items.extend(assembler.push(&Event { connection_id: number + 1, ..event(1, offset, bytes) }));
            assert!(assembler.held() <= limits.total);
        }
    }
    assert!(assembler.let_go() > 100);
    assert_eq!(exchanges(&items).len() as u64, assembler.let_go());
    assembler.finish();
    assert_eq!(assembler.held(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_the_bytes_are_cut_the_exchanges_are_the_same(cuts in prop::collection::vec(1_usize..40, 1..20)) {
        prop_assert_eq!(summary(&assembled(&http1(), &cuts, (2, 0, 0))), HTTP1);
        prop_assert_eq!(summary(&assembled(&http2(), &cuts, (2, 0, 0))), HTTP2);
    }

    #[test]
    fn a_hole_anywhere_is_told_and_nothing_is_made_up(
        side in 0_usize..2, from in 1_u64..400, length in 1_u64..100,
        cuts in prop::collection::vec(1_usize..40, 1..20),
    ) {
        for said in [http1(), http2()] {
            let total: u64 = said.iter().filter(|said| said.0 == side).map(|said| said.1.len() as u64).sum();
            let items = assembled(&said, &cuts, (side, from, from + length));
            let gaps: u64 = items.iter().map(|item| if let Item::Gap(gap) = item { gap.bytes } else { 0 }).sum();
            // A hole at the very end looks as if no more was said.
            if from + length < total {
                prop_assert_eq!(gaps, length);
            }
            for item in items {
                page().item(&item);
            }
        }
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_reach_the_terminal(
        start in 0_usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        more in prop::collection::vec((0_usize..2, prop::collection::vec(any::<u8>(), 0..80)), 0..6),
        cuts in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let mut said = match start {
            0 => vec![],
            1 | 2 => http1(),
            3 | 4 => http2(),
            _ => vec![
                client("GET /ws HTTP/1.1\r\n\r\n"),
                server("HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
                (0, vec![0xc1, 5, 0xf2, 0x48, 0xcd, 0xc9, 0xc9]),
            ],
        };
        for (index, byte) in changes {
            if let Some((_, bytes)) = said.get_mut(index.index(12)) && !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        }
        said.extend(more);
        for item in assembled(&said, &cuts, (2, 0, 0)) {
            let text = page().item(&item);
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
            let strange = |line: &str| !(line.is_empty() || line.starts_with("  ") || line.starts_with("... "));
            prop_assert!(text.lines().skip(1).all(|line| !strange(line)), "{text}");
        }
    }
}

fn page() -> Page {
    Page { show: Show::default(), no_body: false, max_body: 1 << 16 }
}

/// Events of one process and connection, of which some name the program.
fn named(connection_id: u64, offsets: &mut [u64; 2], said: &[(usize, &str, &str)]) -> Vec<Event> {
    said.iter()
        .map(|(side, text, app)| {
            let event = event(*side, offsets[*side], text.as_bytes());
            offsets[*side] += text.len() as u64;
            Event { connection_id, app: (*app).to_owned(), ..event }
        })
        .collect()
}

#[test]
fn an_exchange_has_the_program_that_any_event_of_its_process_names() {
    const CURL: &str = "/usr/bin/curl";
    const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let by_length = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let until_the_end = "HTTP/1.0 200 OK\r\n\r\nok";
    for (what, events) in [
        ("the response", named(1, &mut [0; 2], &[(1, GET, ""), (0, by_length, CURL)])),
        (
            "a response that ends with its connection",
            named(1, &mut [0; 2], &[(1, GET, ""), (0, until_the_end, CURL)]),
        ),
        (
            "another connection, before",
            [
                named(1, &mut [0; 2], &[(1, GET, ""), (0, by_length, CURL)]),
                named(2, &mut [0; 2], &[(1, GET, ""), (0, by_length, "")]),
            ]
            .concat(),
        ),
        (
            "another connection, meanwhile",
            [
                named(1, &mut [0; 2], &[(1, GET, ""), (0, until_the_end, "")]),
                named(2, &mut [0; 2], &[(1, GET, ""), (0, by_length, CURL)]),
            ]
            .concat(),
        ),
    ] {
        let mut assembler = Assembler::new(Limits::default());
        let mut items: Vec<Item> = events.iter().flat_map(|event| assembler.push(event)).collect();
        items.extend(assembler.rest(i64::MAX));
        let filter: super::filter::Filter = "process=/usr/bin/curl".parse().unwrap();
        assert!(!items.is_empty() && items.iter().all(|item| filter.matches(item)), "{what}: {items:?}");
        let page = Page { show: Show::default(), no_body: true, max_body: 0 };
        let shown: Vec<String> = items.iter().map(|item| page.item(item)).collect();
        assert!(
            shown.iter().all(|block| block.lines().next().unwrap().ends_with(", /usr/bin/curl")),
            "{what}: {shown:?}"
        );
    }
}

#[test]
fn what_is_no_http_has_its_programs_name_where_that_is_known() {
    let events = named(1, &mut [0; 2], &[(1, "\x01\x02 hello", "/bin/x"), (1, "\x01\x02 again", "")]);
    let mut assembler = Assembler::new(Limits::default());
    let items: Vec<Item> = events.iter().flat_map(|event| assembler.push(event)).collect();
    let apps: Vec<&str> = items
        .iter()
        .filter_map(|item| match item {
            Item::Raw(event) => Some(event.app.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(apps, ["/bin/x"; 2], "{items:?}");
}

#[test]
fn text_is_found_in_the_characters_that_it_was_sent_in() {
    let response =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=iso-8859-1\r\nContent-Length: 4\r\n\r\ncaf\xe9";
    let items = whole(&[client("GET / HTTP/1.1\r\n\r\n"), (0, response.to_vec())]);
    let filter: super::filter::Filter = "text~caf\u{e9}".parse().unwrap();
    assert!(items.iter().any(|item| filter.matches(item)), "{items:?}");
}
