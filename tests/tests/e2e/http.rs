//! The main job: an HTTP conversation between BoringSSL's own server and client, in the clear.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use plaintap_proto::{Direction, Protocol};
use plaintap_tests::agent::Agent;
use plaintap_tests::bssl::{self, Server};
use plaintap_tests::conversation::{self, Half, Joined, ends, same_bytes, uuid};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// Lets the conversation take place under the eyes of `agent` and checks what its client is told of it.
fn is_seen_whole(agent: &Agent) -> Result<()> {
    let mut client = Client::connect(&agent.url)?;
    let server = Server::start()?;
    let (server_pid, server_port) = (server.pid(), server.port);
    let before = now()?;
    let fetched = server.serve(REQUEST)?;
    let after = now()?;
    let page = fetched.printed.as_bytes();

    let mut seen = |pid, direction, bytes: &[u8]| -> Result<Joined> {
        let joined = conversation::wait_for(&mut client, &Half::of(pid, direction), bytes.len())?;
        same_bytes(&format!("{direction:?} by {pid}"), &joined.bytes, bytes)?;
        Ok(joined)
    };
    let request = seen(fetched.client_pid, Direction::Written, REQUEST)?;
    let response = seen(fetched.client_pid, Direction::Read, page)?;
    let request_there = seen(server_pid, Direction::Read, bssl::READ_BY_SERVER)?;
    let response_there = seen(server_pid, Direction::Written, page)?;

    assert_eq!(request.connection_id(), response.connection_id());
    assert_eq!(request_there.connection_id(), response_there.connection_id());
    assert_ne!(request.connection_id(), request_there.connection_id(), "two SSL objects, two connections");
    for (half, protocol) in [
        (&request, Protocol::Http1Request),
        (&response, Protocol::Http1Response),
        (&request_there, Protocol::Http1Request),
        (&response_there, Protocol::Http1Response),
    ] {
        for event in &half.events {
            assert_eq!(
                ends(event),
                format!("127.0.0.1:{}-127.0.0.1:{server_port}", fetched.client_port),
                "{event:?}"
            );
            assert_eq!(event.uuid, uuid(event)?);
            assert_eq!(Protocol::from_wire(event.r#type), protocol, "{event:?}");
            assert_eq!(event.pname, bssl::COMM);
            assert_eq!(event.uid, 0);
            assert!(
                (before..=after).contains(&event.timestamp),
                "{before} <= {} <= {after}",
                event.timestamp
            );
        }
    }
    let times = [&request, &response].map(|half| half.events.first().map(|event| event.timestamp));
    assert!(times[0] < times[1], "the response before the request: {times:?}");
    Ok(())
}

#[test]
fn an_http_conversation_is_seen_whole_in_both_directions_at_both_ends() -> Result<()> {
    is_seen_whole(&Agent::start(&["--library", BORINGSSL, "--comm", bssl::COMM])?)
}

#[test]
fn without_a_library_named_the_systems_copies_are_found() -> Result<()> {
    // What other tests' programs say would take room in its ring.
    let agent = Agent::start(&["--comm", bssl::COMM])?;
    for library in [BORINGSSL, OPENSSL] {
        let attached = format!("attached library={library} functions=SSL_read,SSL_write");
        agent.log().wait_for(0, &attached, |line| line.contains(&attached)).context("at start-up")?;
    }
    is_seen_whole(&agent)
}
