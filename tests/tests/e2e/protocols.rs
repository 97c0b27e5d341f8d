//! The protocol that each event names, seen on live connections.

use anyhow::Result;
use plaintap_proto::{Direction, Protocol};
use plaintap_tests::BORINGSSL;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::stream::Client;

/// What a side says, and what both sides' events should be called.
type Line = (Side, &'static [u8], Protocol);

fn are_named(lines: &[Line]) -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    let mut said = [Vec::new(), Vec::new()];
    for &(side, bytes, protocol) in lines {
        driver.write_bytes(side, bytes)?;
        let said = &mut said[usize::from(side == Side::Server)];
        said.extend_from_slice(bytes);
        for (side, direction) in [(side, Direction::Written), (side.other(), Direction::Read)] {
            let half = Half::of_driver(&driver, side, direction);
            let seen = conversation::wait_for(&mut client, &half, said.len())?;
            same_bytes(&format!("what the {side:?} has {direction:?}"), &seen.bytes, said)?;
            let named = seen.events.last().map(|event| Protocol::from_wire(event.r#type));
            assert_eq!(named, Some(protocol), "{} at the {side:?}", bytes.escape_ascii());
        }
    }
    Ok(())
}

#[test]
fn http1_and_websocket_are_named() -> Result<()> {
    are_named(&[
        (
            Side::Client,
            b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            Protocol::Http1Request,
        ),
        (
            Side::Server,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            Protocol::Http1Response,
        ),
        (Side::Server, b"\x81\x02hi", Protocol::WebSocket),
        (Side::Client, b"\x81\x82\0\0\0\0yo", Protocol::WebSocket),
    ])
}

#[test]
fn http2_is_named() -> Result<()> {
    are_named(&[
        (Side::Client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Protocol::Http2Request),
        (Side::Server, b"\0\0\0\x04\0\0\0\0\0", Protocol::Http2Response),
        (Side::Client, b"\0\0\0\x04\x01\0\0\0\0", Protocol::Http2Request),
    ])
}

#[test]
fn what_is_no_http_is_unknown() -> Result<()> {
    are_named(&[
        (Side::Client, b"EHLO example.org\r\n", Protocol::Unknown),
        (Side::Server, b"250 hello\r\n", Protocol::Unknown),
    ])
}
