//! Viewers that were there before us: they know the fields 1 to 11 only, and must be shown sensible values.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side, certificate};
use plaintap_tests::pattern::pattern;
use plaintap_tests::process::Process;
use plaintap_tests::program::unique_name;
use plaintap_tests::stream::Client;
use plaintap_tests::waits::Restarting;
use plaintap_tests::{BORINGSSL, OPENSSL, PATIENCE, need, net, process, until};
use prost::Message as _;
use tungstenite::Message;

/// `event.LogEntry` as eCaptureQ has it, without our fields.
#[derive(Clone, PartialEq, prost::Message)]
struct LogEntry {
    #[prost(int32, tag = "1")]
    log_type: i32,
    #[prost(oneof = "Payload", tags = "2, 3, 4")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    #[prost(message, tag = "2")]
    Event(Event),
    #[prost(message, tag = "3")]
    Heartbeat(Heartbeat),
    #[prost(string, tag = "4")]
    RunLog(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(int64, tag = "1")]
    timestamp: i64,
    #[prost(string, tag = "2")]
    uuid: String,
    #[prost(string, tag = "3")]
    src_ip: String,
    #[prost(uint32, tag = "4")]
    src_port: u32,
    #[prost(string, tag = "5")]
    dst_ip: String,
    #[prost(uint32, tag = "6")]
    dst_port: u32,
    #[prost(int64, tag = "7")]
    pid: i64,
    #[prost(string, tag = "8")]
    pname: String,
    #[prost(uint32, tag = "9")]
    r#type: u32,
    #[prost(uint32, tag = "10")]
    length: u32,
    #[prost(bytes = "vec", tag = "11")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Heartbeat {
    #[prost(int64, tag = "1")]
    timestamp: i64,
    #[prost(int64, tag = "2")]
    count: i64,
    #[prost(string, tag = "3")]
    message: String,
}

#[test]
fn old_clients_decode_every_message_and_show_sensible_values() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    // As the Go client connects.
    let mut client = Client::connect_with(&agent.url, &[("Origin", "http://localhost/")])?;
    client.wait_for("a heartbeat", |messages| {
        messages.iter().find_map(|message| message.heartbeat().cloned())
    })?;
    let connection = driver.open()?;
    let request = b"GET /old HTTP/1.1\r\nHost: localhost\r\n\r\n";
    driver.write_bytes(Side::Client, request)?;
    driver.write(Side::Server, 20_000, 1)?;
    client.wait_for("all events", |messages| {
        let bytes: u32 =
            messages.iter().filter_map(|message| message.event()).map(|event| event.length).sum();
        (bytes as usize == 2 * (request.len() + 20_000)).then_some(())
    })?;

    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let (mut logs, mut heartbeats, mut types) = (0, 0, Vec::new());
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for message in &client.messages {
        let entry = LogEntry::decode(message.raw.clone())?;
        match (entry.log_type, entry.payload) {
            (0, Some(Payload::Heartbeat(heartbeat))) => {
                assert_eq!(heartbeat.message, format!("heartbeat:{}", heartbeat.count));
                assert!((now.as_secs() as i64 - heartbeat.timestamp).abs() < 60, "{heartbeat:?}");
                heartbeats += 1;
            }
            (1, Some(Payload::RunLog(line))) => {
                assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
                logs += 1;
            }
            (2, Some(Payload::Event(event))) => {
                assert!(event.timestamp > 1_000_000_000_000_000, "not nanoseconds: {}", event.timestamp);
                assert!(
                    (now.as_nanos() as i64 - event.timestamp).abs() < 60_000_000_000,
                    "{}",
                    event.timestamp
                );
                assert_eq!((event.src_ip.as_str(), event.dst_ip.as_str()), ("127.0.0.1", "127.0.0.1"));
                assert_eq!(event.src_port, u32::from(connection.client_port));
                assert_eq!(event.dst_port, u32::from(connection.server_port));
                assert_eq!(event.pid, i64::from(driver.pid()));
                assert_eq!(event.length as usize, event.payload.len());
                assert!(event.pname.starts_with("drv-"), "{}", event.pname);
                let parts: Vec<&str> = event.uuid.split('_').collect();
                let ends = format!("{}:{}-{}:{}", event.src_ip, event.src_port, event.dst_ip, event.dst_port);
                assert_eq!((parts.len(), parts[2], parts[5]), (6, event.pname.as_str(), ends.as_str()));
                types.push(event.r#type);
                if event.pname == "drv-client" {
                    if parts[4] == "1" { &mut asked } else { &mut answered }.extend(event.payload);
                }
            }
            (log_type, payload) => bail!("log_type {log_type} with {payload:?}"),
        }
    }
    assert!(logs >= 2 && heartbeats >= 1, "{logs} lines, {heartbeats} heartbeats");
    assert_eq!(asked, request);
    assert!(answered == pattern(20_000, 1), "the answer differs");
    assert!(types.contains(&1), "no request among {types:?}");
    Ok(())
}

#[test]
fn behind_serve_they_read_http2_and_compressed_bodies_as_text() -> Result<()> {
    let certificate = certificate()?;
    let folder = certificate.path();
    fs::write(folder.join("page"), "the page, line after line\n".repeat(100))?;
    let port = net::free_port()?;
    let mut command = Command::new(need::program("nghttpd", "nghttp2-server")?);
    command.args(["--address=127.0.0.1", "-d"]).arg(folder).arg(port.to_string());
    command.arg(folder.join("key.pem")).arg(folder.join("cert.pem"));
    let mut server = Process::start(&mut command)?;
    until("nghttpd to listen", || {
        ensure!(server.ended()?.is_none(), "nghttpd ended: {}", server.stderr.all().join("\n"));
        Ok(net::listens(port)?.then_some(()))
    })?;
    // Other tests have a curl too.
    let name = unique_name();
    let agent = Agent::start(&["--library", OPENSSL, "--comm", &name])?;
    let mut command = Command::new(need::binary("plaintap")?);
    let serve = Process::start(command.args(["serve", "--listen", "ws://127.0.0.1:0/", &agent.url]))?;
    let (_, line) =
        serve.stderr.wait_for(0, "where it listens", |line| line.contains("listening on ws://"))?;
    let url = line.split_whitespace().find(|word| word.starts_with("ws://")).context("no URL")?.to_owned();
    agent.log().wait_for(0, "a client", |line| line.contains("client connected"))?;
    // Not the tests' own client, which asks for more of an agent than an old one gives.
    let stream = TcpStream::connect(url.trim_start_matches("ws://").trim_end_matches('/'))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut viewer, _) = tungstenite::client(&url, Restarting(stream))?;

    let mut curl = Command::new(process::renamed(&need::program("curl", "curl")?, folder, &name)?);
    curl.args(["--silent", "--insecure", "--max-time", "15", "--http2", "-o", "/dev/null"]);
    let mut curl = Process::start(curl.arg(format!("https://127.0.0.1:{port}/page")))?;
    ensure!(curl.wait()?.success(), "curl: {}", curl.stderr.all().join("\n"));

    let mut texts = Vec::new();
    while texts.len() < 2 {
        let Message::Binary(bytes) = viewer.read().context("waiting for both messages")? else { continue };
        // No other field: ours would be among what is left over.
        let entry = LogEntry::decode(&bytes[..])?;
        ensure!(entry.encoded_len() == bytes.len(), "fields that they don't know: {bytes:?}");
        if let Some(Payload::Event(event)) = entry.payload {
            texts.push(String::from_utf8_lossy(&event.payload).into_owned());
        }
    }
    ensure!(texts[0].starts_with("GET /page HTTP/2"), "{texts:?}");
    ensure!(texts[1].starts_with("HTTP/2 200") && texts[1].ends_with("line after line\n"), "{texts:?}");
    Ok(())
}
