//! RFC 6455, as the running agent has it: what a client sends, and how either side ends.

use std::io::Write;
use std::net::Shutdown;
use std::thread;

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::raw::{ask, handshake, wait_for_end};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, PATIENCE};

const CONTINUED: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;

/// A masked frame, its length in as few bytes as it needs. Source: RFC 6455, section 5.2.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0xab, 0xcd];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(FINAL | length as u8),
        length @ 126..=0xffff => {
            bytes.push(FINAL | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(FINAL | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn frames(all: &[(u8, &[u8])]) -> Vec<u8> {
    all.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
}

/// A client that has sent these bytes behind its handshake.
fn sent(agent: &Agent, bytes: &[u8]) -> Result<Client> {
    let client = Client::connect(&agent.url)?;
    let mut stream = client.tcp().try_clone()?;
    // The agent may have seen enough before it is all sent.
    let _ = stream.write_all(bytes);
    Ok(client)
}

#[test]
fn whatever_the_rules_allow_is_taken_and_dropped() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let long = vec![b'x'; 60_000];
    for (name, bytes) in [
        ("an empty text", frames(&[(FINAL | TEXT, b"")])),
        (
            "a text with a ping inside",
            frames(&[(TEXT, b"a"), (FINAL | PING, b"1"), (FINAL | CONTINUED, b"b")]),
        ),
        ("empty fragments", frames(&[(BINARY, b""), (CONTINUED, b""), (FINAL | CONTINUED, b"")])),
        ("a character in two fragments", frames(&[(TEXT, b"\xc3"), (FINAL | CONTINUED, b"\xa9")])),
        ("binary that is no text", frames(&[(FINAL | BINARY, b"\xff\xfe\0")])),
        ("60,000 bytes", frames(&[(FINAL | BINARY, &long)])),
        ("a pong that nobody asked for", frames(&[(FINAL | PONG, b"hello")])),
        ("the longest ping", frames(&[(FINAL | PING, &[7; 125])])),
        ("a length in more bytes than it needs", [&b"\x82\xfe\x00\x01\0\0\0\0"[..], b"x"].concat()),
    ] {
        let mut client = sent(&agent, &bytes)?;
        client.ping(b"still there?").with_context(|| name.to_owned())?;
    }
    // Byte by byte too.
    let mut client = Client::connect(&agent.url)?;
    let mut stream = client.tcp().try_clone()?;
    stream.set_nodelay(true)?;
    for byte in frames(&[(TEXT, b"slow"), (FINAL | CONTINUED, b" text"), (FINAL | PING, b"ping")]) {
        stream.write_all(&[byte])?;
    }
    client.ping(b"still there?")?;
    ensure!(client.pongs.iter().any(|pong| &pong[..] == b"ping"), "{:?}", client.pongs);
    Ok(())
}

#[test]
fn whoever_breaks_the_rules_is_told_which_kind_of_rule() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let half = vec![b'x'; 40_000];
    for (name, bytes, code) in [
        ("a data opcode that is not there", frames(&[(FINAL | 3, b"")]), 1002),
        ("a control opcode that is not there", frames(&[(FINAL | 11, b"")]), 1002),
        ("a reserved bit", frames(&[(FINAL | 0x40 | TEXT, b"deflated?")]), 1002),
        ("a frame without a mask", b"\x81\x05hello".to_vec(), 1002),
        ("a continuation of nothing", frames(&[(FINAL | CONTINUED, b"a")]), 1002),
        ("a text inside a text", frames(&[(TEXT, b"a"), (FINAL | TEXT, b"b")]), 1002),
        ("a ping in fragments", frames(&[(PING, b"a")]), 1002),
        ("a ping of 126 bytes", frames(&[(FINAL | PING, &[0; 126])]), 1002),
        ("a close of one byte", frames(&[(FINAL | CLOSE, b"\x03")]), 1002),
        ("a text that is no UTF-8", frames(&[(FINAL | TEXT, b"a\xff")]), 1007),
        ("no UTF-8 over two fragments", frames(&[(TEXT, b"\xc3"), (FINAL | CONTINUED, b"a")]), 1007),
        ("a close whose reason is no UTF-8", frames(&[(FINAL | CLOSE, b"\x03\xe8\xff")]), 1007),
        ("80,000 bytes in a message", frames(&[(BINARY, &half), (FINAL | CONTINUED, &half)]), 1009),
        ("70,000 bytes in a frame", frames(&[(FINAL | BINARY, &[0; 70_000])]), 1009),
        ("2^62 bytes announced", b"\x82\xff\x40\0\0\0\0\0\0\0\0\0\0\0".to_vec(), 1009),
    ] {
        let mut client = sent(&agent, &bytes)?;
        let frame = client.wait_for_close().with_context(|| name.to_owned())?;
        let frame = frame.with_context(|| format!("{name}: closed without a code"))?;
        assert_eq!(u16::from(frame.code), code, "{name}: {frame:?}");
    }
    Ok(())
}

#[test]
fn a_close_is_answered_with_its_code_and_whoever_ends_its_side_is_gone() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    for (payload, answer) in [
        (&b""[..], None),
        (b"\x03\xe8", Some(1000)),
        (b"\x03\xe9going", Some(1001)),
        (b"\x0f\xa0mine", Some(4000)),
        // Codes that no frame may carry. Source: RFC 6455, section 7.4.
        (b"\x03\xed", Some(1002)),
        (b"\x00\x05", Some(1002)),
        (b"\x03\xec", Some(1002)),
    ] {
        let mut client = sent(&agent, &frame(FINAL | CLOSE, payload))?;
        let closed = client.wait_for_close()?;
        assert_eq!(closed.map(|frame| u16::from(frame.code)), answer, "{payload:?}");
        wait_for_end(client.tcp().try_clone()?)?;
    }
    // Half-closed, with or without a word.
    for bytes in [&b""[..], &frame(FINAL | CLOSE, b"\x03\xe8"), &frame(TEXT, b"half a message"), b"\x81"] {
        let client = sent(&agent, bytes)?;
        let stream = client.tcp().try_clone()?;
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        wait_for_end(stream)?;
    }
    Ok(())
}

#[test]
fn a_message_in_endless_fragments_keeps_nobody_waiting() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut good = Client::connect(&agent.url)?;
    let flood = Client::connect_with(&agent.url, &[])?;
    let mut stream = flood.tcp().try_clone()?;
    stream.write_all(&frame(TEXT, b""))?;
    let flooding = thread::spawn(move || {
        let fragments = frame(CONTINUED, b"").repeat(20_000);
        // Until the connection is shut down.
        while stream.write_all(&fragments).is_ok() {}
    });
    let half = Half::of_driver(&driver, Side::Server, Direction::Read);
    for count in 1..=50 {
        driver.write(Side::Client, 100, count)?;
        conversation::wait_for(&mut good, &half, 100 * count as usize)?;
    }
    // A new client comes in too.
    Client::connect(&agent.url)?;
    flood.tcp().shutdown(Shutdown::Both)?;
    flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))
}

#[test]
fn compression_is_not_agreed_to() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
    let answer = ask(agent.port, &handshake("/", agent.port, &offer))?;
    assert_eq!(answer.status, 101, "{}", answer.text);
    ensure!(!answer.text.to_lowercase().contains("sec-websocket-extensions"), "{}", answer.text);
    Ok(())
}
