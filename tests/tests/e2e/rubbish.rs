//! Clients that send rubbish, stall or die disturb nobody else and leave nothing behind.

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, PATIENCE, raw};
use tungstenite::Message;

/// An agent with one good client, which must go on receiving whatever others do.
struct Scene {
    driver: Driver,
    agent: Agent,
    good: Client,
    files: BTreeMap<u32, usize>,
    expected: Vec<u8>,
}

impl Scene {
    fn set() -> Result<Self> {
        let driver = Driver::start(BORINGSSL)?;
        let agent = Agent::watching(driver.pid(), BORINGSSL)?;
        let good = Client::connect(&agent.url)?;
        let mut scene = Self { driver, agent, good, files: BTreeMap::new(), expected: Vec::new() };
        scene.good_client_receives(100)?;
        scene.files = scene.agent.open_files()?;
        Ok(scene)
    }

    fn good_client_receives(&mut self, size: u32) -> Result<()> {
        let seed = u32::try_from(self.expected.len())?;
        self.driver.write(Side::Client, size, seed)?;
        self.expected.extend(pattern(size, seed));
        let half = Half::of_driver(&self.driver, Side::Server, Direction::Read);
        let seen = conversation::wait_for(&mut self.good, &half, self.expected.len())?;
        same_bytes("what the good client got", &seen.bytes, &self.expected)
    }

    /// The good client still receives, and the agent holds no more files than at the start.
    fn goes_on_undisturbed(mut self) -> Result<()> {
        self.good_client_receives(20_000)?;
        self.agent.holds_no_more_than(&self.files)?;
        // And it still takes clients.
        Client::connect(&self.agent.url)?;
        Ok(())
    }
}

#[test]
fn requests_that_are_no_http_are_refused() -> Result<()> {
    let scene = Scene::set()?;
    let port = scene.agent.port;
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello"[..],
        b"NOT HTTP AT ALL\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let mut stream = raw::connect(port)?;
        raw::last_words(&mut stream, request)?;
        let answer = raw::read_answer(&mut stream)?;
        let refused = answer.status == 0 || (400..500).contains(&answer.status);
        assert!(refused, "{}: {}", request.escape_ascii(), answer.text);
    }
    scene.goes_on_undisturbed()
}

#[test]
fn a_head_of_more_than_8_kib_is_refused() -> Result<()> {
    let scene = Scene::set()?;
    let port = scene.agent.port;
    let filler = "x".repeat(9000);
    let answer = raw::ask(port, &raw::handshake("/", port, &[("X-Filler", &filler)]))?;
    assert_eq!(answer.status, 431, "{}", answer.text);
    // One that never ends is not read to its end: our writing fails, or the answer comes.
    let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
    endless.resize(1 << 20, b'x');
    let answer = raw::ask(port, &endless)?;
    assert!(matches!(answer.status, 0 | 431), "{}", answer.text);
    // 7 KiB is fine.
    let filler = "x".repeat(7000);
    let answer = raw::ask(port, &raw::handshake("/", port, &[("X-Filler", &filler)]))?;
    assert_eq!(answer.status, 101, "{}", answer.text);
    scene.goes_on_undisturbed()
}

/// By then whoever does not finish the handshake in 5 s is cut off, even where agent and test are held up for seconds.
const IN_TIME: Duration = Duration::from_secs(30);

#[test]
fn who_does_not_finish_the_handshake_in_time_is_cut_off() -> Result<()> {
    let scene = Scene::set()?;
    let port = scene.agent.port;
    let start = Instant::now();
    let silent = raw::connect(port)?;
    let mut slow = raw::connect(port)?;
    let request = raw::handshake("/", port, &[("X-Filler", &"x".repeat(4000))]);
    // A byte now and then must not prolong it.
    let sent = request.iter().take_while(|byte| {
        thread::sleep(Duration::from_millis(100));
        slow.write_all(&[**byte]).is_ok() && start.elapsed() < PATIENCE
    });
    let sent = sent.count();
    let cut = start.elapsed();
    ensure!(cut < IN_TIME, "cut off after {cut:?} and {sent} bytes");
    ensure!(
        cut > Duration::from_secs(3),
        "cut off after {cut:?} and {sent} bytes: a slow link needs some time"
    );
    raw::wait_for_end(silent)?;
    ensure!(start.elapsed() < IN_TIME, "the silent one after {:?}", start.elapsed());
    scene.goes_on_undisturbed()
}

#[test]
fn frames_that_break_the_rules_end_their_connection_only() -> Result<()> {
    let scene = Scene::set()?;
    let long_ping = [&b"\x89\xfe\x01\x00"[..], &[0; 4 + 256]].concat();
    for garbage in [
        // Reserved bits and opcode; an unmasked text; a fragment of nothing; a control frame that is too long.
        &[0xff; 200][..],
        b"\x81\x05hello",
        b"\x80\x80\0\0\0\0",
        &long_ping,
        // 2^62 bytes announced.
        b"\x82\xff\x40\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let client = Client::connect(&scene.agent.url)?;
        let mut stream = client.tcp().try_clone()?;
        stream.write_all(garbage)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        raw::wait_for_end(stream).with_context(|| format!("after {}", garbage.escape_ascii()))?;
    }
    scene.goes_on_undisturbed()
}

#[test]
fn a_message_of_a_mebibyte_disturbs_nobody() -> Result<()> {
    let scene = Scene::set()?;
    let mut client = Client::connect(&scene.agent.url)?;
    // Whether it is dropped or its sender is cut off is the agent's choice.
    let _ = client.send(Message::binary(vec![7; 1 << 20]));
    let _ = client.ping(b"there?");
    drop(client);
    scene.goes_on_undisturbed()
}

#[test]
fn a_client_that_dies_in_the_middle_of_the_stream_disturbs_nobody() -> Result<()> {
    let mut scene = Scene::set()?;
    // One that never reads a thing; one whose connection breaks with much still to come.
    let idle = Client::connect_with(&scene.agent.url, &[])?;
    for _ in 0..3 {
        let dying = Client::connect_with(&scene.agent.url, &[])?;
        scene.good_client_receives(1_000_000)?;
        drop(dying);
        scene.good_client_receives(1000)?;
    }
    drop(idle);
    scene.goes_on_undisturbed()
}
