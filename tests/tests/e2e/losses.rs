//! Every byte that is missing is told of: before the next event, or as lost at the end; and the totals say the same.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use plaintap_proto::{Direction, Event};
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::same_bytes;
use plaintap_tests::driver::{Driver, Side, fact};
use plaintap_tests::pattern::pattern;
use plaintap_tests::process;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL, until};

/// What the agent says of one direction of the driver's only connection.
#[derive(Debug, Default)]
struct Told {
    connection_id: u64,
    /// Bytes that came.
    came: u64,
    /// Bytes that `lost_before` tells of.
    lost: u64,
    /// The offset behind the last call or piece that is known of.
    end: u64,
}

/// Checks the events of the thread at `side` in `direction` against what went over the connection.
fn told(client: &Client, driver: &Driver, side: Side, direction: Direction, bytes: &[u8]) -> Result<Told> {
    let mut told = Told::default();
    for event in client.events() {
        if event.tid != driver.tid(side) || event.direction() != direction {
            continue;
        }
        ensure!(told.connection_id == 0 || told.connection_id == event.connection_id, "two connections");
        ensure!(
            event.stream_offset == told.end + event.lost_before,
            "{side:?} {direction:?}: offset {} after {} and {} lost",
            event.stream_offset,
            told.end,
            event.lost_before
        );
        let start = usize::try_from(event.stream_offset)?;
        let expected = bytes.get(start..start + event.payload.len()).context("more than was written")?;
        same_bytes(&format!("{side:?} {direction:?} at {start}"), &event.payload, expected)?;
        told.connection_id = event.connection_id;
        told.came += event.payload.len() as u64;
        told.lost += event.lost_before;
        told.end = event.stream_offset + event.payload.len() as u64;
    }
    Ok(told)
}

/// What a line `lost at the end` tells of a connection and direction; 0 without one, or with events behind it, which tell it
/// again: who is late with what comes next has let it look like the end.
fn lost_at_the_end(client: &Client, connection_id: u64, direction: Direction) -> Result<u64> {
    let way = if direction == Direction::Written { "written" } else { "read" };
    let start = format!("lost at the end: connection_id={connection_id} direction={way} ");
    let mut lines = Vec::new();
    for message in &client.messages {
        let is_behind =
            |event: &Event| event.connection_id == connection_id && event.direction() == direction;
        if message.event().is_some_and(is_behind) {
            lines.clear();
        }
        lines.extend(message.log().filter(|line| line.contains(&start)));
    }
    match lines[..] {
        [] => Ok(0),
        [line] => fact(line, "lost_bytes"),
        _ => bail!("told more than once: {lines:?}"),
    }
}

/// The totals that a client gets which connects now, of events and bytes.
fn totals(agent: &Agent) -> Result<(u64, u64)> {
    let client = Client::connect(&agent.url)?;
    let heartbeat = client.messages.iter().find_map(|message| message.heartbeat()).context("no heartbeat")?;
    Ok((heartbeat.lost_events, heartbeat.lost_bytes))
}

/// Has the driver write 4 MB while the serving half is stopped, and something after it where `afterwards`; checks that all
/// that is missing is told of.
fn all_that_is_missing_is_told(library: &str, afterwards: bool) -> Result<()> {
    let mut driver = Driver::start(library)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--library", library, "--pid", &pid, "--ring-size", "256K"])?;
    let mut client = Client::connect(&agent.url)?;
    // So that both ends' connection ids are known.
    driver.write(Side::Client, 10, 1)?;
    let mut bytes = pattern(10, 1);
    client.ping(b"before")?;
    let child = agent.child()?;
    process::send(child, Signal::SIGSTOP)?;
    for seed in 2..6 {
        driver.write(Side::Client, 1_000_000, seed)?;
        bytes.extend(pattern(1_000_000, seed));
    }
    process::send(child, Signal::SIGCONT)?;
    let written = (Side::Client, Direction::Written);
    let read = (Side::Server, Direction::Read);
    if afterwards {
        // Once there is room again.
        client.wait_for("an event from before", |messages| {
            messages
                .iter()
                .rev()
                .find_map(|message| message.event().filter(|event| event.length > 10))
                .map(drop)
        })?;
        client.ping(b"drained")?;
        for seed in 6..8 {
            driver.write(Side::Client, 20, seed)?;
            bytes.extend(pattern(20, seed));
        }
    }
    let size = bytes.len() as u64;
    until("all that is missing to be told of", || {
        client.pongs.clear();
        client.ping(b"more?")?;
        let mut complete = true;
        for (side, direction) in [written, read] {
            let told = told(&client, &driver, side, direction, &bytes)?;
            complete &= told.end + lost_at_the_end(&client, told.connection_id, direction)? == size;
        }
        Ok(complete.then_some(()))
    })?;
    let mut lost = 0;
    for (side, direction) in [written, read] {
        let told = told(&client, &driver, side, direction, &bytes)?;
        let at_the_end = lost_at_the_end(&client, told.connection_id, direction)?;
        ensure!(!afterwards || at_the_end == 0, "{at_the_end} bytes lost at the end, and events behind them");
        ensure!(told.came + told.lost + at_the_end == size, "{told:?} and {at_the_end}, should be {size}");
        ensure!(told.lost + at_the_end > 1_000_000, "nearly nothing was lost: {told:?}");
        lost += told.lost + at_the_end;
    }
    let (lost_events, lost_bytes) = totals(&agent)?;
    assert_eq!(lost_bytes, lost, "the heartbeat's total");
    assert!(lost_events * 16_384 >= lost_bytes, "{lost_events} events of {lost_bytes} bytes");
    let line = format!("lost before the journal: lost_events={lost_events} lost_bytes={lost_bytes}");
    client.wait_for(&line, |messages| {
        messages.iter().filter_map(|message| message.log()).any(|log| log.contains(&line)).then_some(())
    })?;
    driver.quit()
}

#[test]
fn what_is_lost_is_told_by_the_next_event() -> Result<()> {
    all_that_is_missing_is_told(BORINGSSL, true)?;
    all_that_is_missing_is_told(OPENSSL, true)
}

#[test]
fn what_snaplen_keeps_out_is_no_loss_where_something_else_is_lost() -> Result<()> {
    const KEPT: u64 = 16_384;
    for afterwards in [true, false] {
        let mut driver = Driver::start(BORINGSSL)?;
        let (pid, kept) = (driver.pid().to_string(), KEPT.to_string());
        let arguments = ["--library", BORINGSSL, "--pid", &pid, "--comm", "drv-client", "--snaplen", &kept];
        let agent = Agent::start(&[&arguments[..], &["--ring-size", "256K"]].concat())?;
        let mut client = Client::connect(&agent.url)?;
        driver.write(Side::Client, 100_000, 1)?;
        client.ping(b"before")?;
        let child = agent.child()?;
        process::send(child, Signal::SIGSTOP)?;
        for seed in 2..40 {
            driver.write(Side::Client, 100_000, seed)?;
        }
        process::send(child, Signal::SIGCONT)?;
        let mut calls = 39;
        if afterwards {
            client.wait_for("an event from before", |messages| {
                (messages.iter().filter(|message| message.event().is_some()).count() > 1).then_some(())
            })?;
            client.ping(b"drained")?;
            driver.write(Side::Client, 100_000, 40)?;
            calls += 1;
        }
        let (mut came, mut lost) = (0, 0);
        until("all that was to be kept and is missing to be told of", || {
            client.pongs.clear();
            client.ping(b"more?")?;
            came = client.events().map(|event| u64::from(event.length)).sum();
            lost = client.events().map(|event| event.lost_before).sum();
            let id = client.events().next().context("no event")?.connection_id;
            lost += lost_at_the_end(&client, id, Direction::Written)?;
            ensure!(came + lost <= calls * KEPT, "{came} came and {lost} are lost, of {calls} calls");
            Ok((came + lost == calls * KEPT).then_some(()))
        })?;
        ensure!(lost > 10 * KEPT, "nearly nothing was lost: {lost}");
        assert_eq!(totals(&agent)?.1, lost, "the heartbeat's total");
        driver.quit()?;
    }
    Ok(())
}

#[test]
fn what_is_lost_last_is_told_in_the_log() -> Result<()> {
    all_that_is_missing_is_told(BORINGSSL, false)?;
    all_that_is_missing_is_told(OPENSSL, false)
}
