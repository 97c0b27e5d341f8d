//! What each client of the stream is given, and in which order.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use plaintap_proto::{Direction, LogType};
use plaintap_tests::BORINGSSL;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::stream::{Client, Received};
use tungstenite::Message;

/// The messages of the journal, as they came.
fn journal(client: &Client) -> Vec<&Received> {
    client.messages.iter().filter(|message| message.entry.seq > 0).collect()
}

#[test]
fn two_clients_get_the_same_bytes() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut clients = [Client::connect(&agent.url)?, Client::connect(&agent.url)?];
    for (seed, size) in [(1, 10), (2, 100_000), (3, 300)] {
        driver.write(Side::Client, size, seed)?;
        driver.write(Side::Server, size, seed)?;
    }
    let half = Half::of_driver(&driver, Side::Client, Direction::Read);
    for client in &mut clients {
        conversation::wait_for(client, &half, 100_310)?;
    }
    let [first, second] = &clients;
    // They came at different times: the second's arrival is none of the first's log lines, but may be logged.
    let raw = |client: &Client| -> Vec<_> {
        journal(client)
            .into_iter()
            .filter(|message| message.event().is_some())
            .map(|message| message.raw.clone())
            .collect()
    };
    let (first_raw, second_raw) = (raw(first), raw(second));
    assert!(first_raw.len() > 10);
    assert!(first_raw == second_raw, "{} and {} events differ", first_raw.len(), second_raw.len());
    // What both have of the journal's other messages is the same too.
    for message in journal(first) {
        if let Some(other) = journal(second).into_iter().find(|other| other.entry.seq == message.entry.seq) {
            assert_eq!(message.raw, other.raw);
        }
    }
    Ok(())
}

/// `2025-08-02T14:16:10Z INF text key=value`, in one line.
fn is_a_log_line(line: &str) -> bool {
    let digits_as = |text: &str, form: &str| {
        text.len() == form.len()
            && text
                .chars()
                .zip(form.chars())
                .all(|(c, form)| if form == '0' { c.is_ascii_digit() } else { c == form })
    };
    let mut words = line.splitn(3, ' ');
    digits_as(words.next().unwrap_or_default(), "0000-00-00T00:00:00Z")
        && matches!(words.next(), Some("DBG" | "INF" | "WRN" | "ERR"))
        && words.next().is_some_and(|text| !text.is_empty() && !text.contains('\n'))
}

#[test]
fn a_late_client_gets_the_start_up_lines_then_a_heartbeat_then_what_happens_live() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut early = Client::connect(&agent.url)?;
    driver.write(Side::Client, 1000, 1)?;
    for (side, direction) in [(Side::Server, Direction::Read), (Side::Client, Direction::Written)] {
        conversation::wait_for(&mut early, &Half::of_driver(&driver, side, direction), 1000)?;
    }

    let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut late = Client::connect(&agent.url)?;
    let place =
        late.messages.iter().position(|message| message.heartbeat().is_some()).context("no heartbeat")?;
    let (greeting, rest) = late.messages.split_at(place);
    let lines: Vec<&str> = greeting.iter().filter_map(Received::log).collect();
    assert_eq!(lines.len(), greeting.len(), "something else than log lines before the heartbeat");
    assert!(
        greeting
            .iter()
            .all(|message| message.entry.seq > 0 && message.entry.log_type() == LogType::ProcessLog)
    );
    for line in &lines {
        assert!(is_a_log_line(line), "{line:?}");
    }
    let url = format!("listening url={}", agent.url);
    let attached = format!("attached library={BORINGSSL} functions=SSL_read,SSL_write");
    for wanted in [env!("CARGO_PKG_VERSION"), &attached, &url] {
        assert!(lines.iter().any(|line| line.contains(wanted)), "no {wanted:?} in {lines:#?}");
    }

    let heartbeat = rest.first().and_then(Received::heartbeat).cloned().context("no heartbeat")?;
    assert_eq!((heartbeat.count, heartbeat.message.as_str()), (0, "heartbeat:0"));
    let time = u64::try_from(heartbeat.timestamp)?;
    assert!((before..=before + 30).contains(&time), "{time} in seconds, near {before}");
    assert_eq!(Some(heartbeat.run_id.as_str()), late.run_id());
    assert!(heartbeat.run_id.len() == 16 && heartbeat.run_id.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(early.run_id(), late.run_id());
    assert_eq!(heartbeat.clients, 2);
    assert_eq!((heartbeat.captured_events, heartbeat.captured_bytes), (2, 2000));
    assert_eq!((heartbeat.lost_events, heartbeat.lost_bytes), (0, 0));
    assert_eq!((heartbeat.missed_messages, heartbeat.missed_bytes), (0, 0));
    ensure!(greeting.iter().all(|message| message.entry.seq <= heartbeat.last_seq), "a line from the future");

    driver.write(Side::Client, 500, 2)?;
    late.wait_for("the live events", |messages| {
        (messages.iter().filter_map(Received::event).filter(|event| event.length == 500).count() == 2)
            .then_some(())
    })?;
    // Nothing of before, and no number left out from the heartbeat on.
    let live: Vec<_> =
        late.messages[place + 1..].iter().map(|message| message.entry.seq).filter(|seq| *seq > 0).collect();
    let expected: Vec<_> = (heartbeat.last_seq + 1..).take(live.len()).collect();
    assert_eq!(live, expected);
    assert!(late.events().all(|event| event.length == 500));
    Ok(())
}

#[test]
fn a_ping_is_answered_and_messages_are_ignored() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    client.send(Message::text("hello"))?;
    client.send(Message::binary(&b"\x08\x01\xff"[..]))?;
    client.send(Message::text(""))?;
    client.ping(b"still there?")?;
    driver.write(Side::Server, 50, 1)?;
    let half = Half::of_driver(&driver, Side::Server, Direction::Written);
    conversation::wait_for(&mut client, &half, 50)?;
    assert_eq!(client.pongs.len(), 1);
    Ok(())
}

#[test]
fn many_clients_come_and_go_and_leave_nothing_behind() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut steady = Client::connect(&agent.url)?;
    let before = agent.open_files()?;
    for seed in 0..3 {
        let mut clients = (0..20).map(|_| Client::connect(&agent.url)).collect::<Result<Vec<_>>>()?;
        driver.write(Side::Client, 100, seed)?;
        for client in &mut clients {
            client.wait_for("an event", |messages| messages.iter().find_map(Received::event).cloned())?;
        }
    }
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    conversation::wait_for(&mut steady, &half, 300)?;
    agent.holds_no_more_than(&before)
}
