//! Who may connect, and what those who may not are told.

use anyhow::Result;
use plaintap_tests::BORINGSSL;
use plaintap_tests::agent::Agent;
use plaintap_tests::raw::{ask, handshake};
use plaintap_tests::stream::Client;

#[test]
fn clients_as_they_are_in_the_world_are_admitted() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let port = agent.port;
    let own_host = format!("127.0.0.1:{port}");
    let own_origin = format!("http://127.0.0.1:{port}");
    let local_host = format!("localhost:{port}");
    for headers in [
        &[][..],
        &[("Origin", "http://localhost/")],
        &[("Host", "localhost"), ("Origin", "http://localhost")],
        &[("Host", &own_host), ("Origin", &own_origin)],
        &[("Host", "127.0.0.1")],
        &[("Host", "localhost")],
        &[("hOsT", &local_host), ("oRiGiN", "http://localhost/")],
        &[("Host", "LocalHost")],
        &[("Host", "[::1]")],
    ] {
        let answer = ask(port, &handshake("/", port, headers))?;
        assert_eq!(answer.status, 101, "{headers:?}: {}", answer.text);
    }
    for path in ["/stream", "/stream?logs=1", "//"] {
        let answer = ask(port, &handshake(path, port, &[]))?;
        assert_eq!(answer.status, 101, "{path}: {}", answer.text);
    }
    let shouted = String::from_utf8(handshake("/", port, &[]))?
        .replace("Upgrade: websocket", "UPGRADE: WebSocket")
        .replace("Connection: Upgrade", "connection: keep-alive, UPGRADE");
    let answer = ask(port, shouted.as_bytes())?;
    assert_eq!(answer.status, 101, "{shouted}: {}", answer.text);
    // A URL without its final slash.
    Client::connect(agent.url.trim_end_matches('/'))?;
    Ok(())
}

#[test]
fn strangers_are_refused_with_a_reason() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let port = agent.port;
    for headers in [
        &[("Origin", "http://evil.example")][..],
        &[("Origin", "http://evil.example/")],
        // A browser's page on port 80: only a native client writes the final slash.
        &[("Origin", "http://localhost")],
        &[("Origin", "null")],
        &[("Origin", "")],
        &[("Origin", "http://localhost.evil.example")],
        &[("Origin", "http://localhost/ http://evil.example")],
        &[("Host", "evil.example")],
        &[("Host", "evil.example"), ("Origin", "http://evil.example")],
        &[("Host", "127.0.0.1.evil.example")],
        &[("Host", "8.8.8.8:80")],
        &[("Origin", "http://localhost/"), ("Origin", "http://evil.example")],
    ] {
        let answer = ask(port, &handshake("/", port, headers))?;
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text);
        let body = answer.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(body.trim().contains(' '), "no reason for {headers:?}: {}", answer.text);
    }
    Ok(())
}

#[test]
fn a_plain_get_is_told_what_this_is() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let request =
        format!("GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", agent.port);
    let answer = ask(agent.port, request.as_bytes())?;
    assert_eq!(answer.status, 426, "{}", answer.text);
    let (head, body) = answer.text.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
    assert!(body.contains("WebSocket"), "{body}");
    Ok(())
}

#[test]
fn the_agent_listens_on_ipv6_too() -> Result<()> {
    let agent = Agent::start_at("ws://[::1]:0", &["--library", BORINGSSL])?;
    assert!(agent.url.starts_with("ws://[::1]:"), "{}", agent.url);
    Client::connect(&agent.url).map(drop)
}
