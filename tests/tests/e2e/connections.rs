//! A connection id is one life of one SSL object in one process: nothing is mixed up when addresses, objects, process ids
//! and threads come again or change hands.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use plaintap_proto::{Direction, Event};
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Joined, ends, same_bytes};
use plaintap_tests::pattern::pattern;
use plaintap_tests::program::{self, CASES, Program};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

/// What a case said and what the agent saw of it: by thread name, so that a program's children are seen too.
fn observe(library: &str, case: &str, bytes: usize) -> Result<(Program, Vec<String>, Vec<Event>)> {
    let name = program::unique_name();
    let mut program = Program::start(CASES, library, &name)?;
    let agent = Agent::start(&["--library", library, "--comm", &name])?;
    let mut client = Client::connect(&agent.url)?;
    let mut said = program.command(case)?;
    if case.starts_with("exec") {
        program.wait_for("ready")?;
        said.extend(program.command("reuse")?);
    }
    client.wait_for(&format!("{bytes} bytes of {case:?}"), |messages| {
        let events = messages.iter().filter_map(|message| message.event());
        (events.map(|event| event.payload.len()).sum::<usize>() >= bytes).then_some(())
    })?;
    client.ping(b"end")?;
    let events: Vec<Event> = client.events().cloned().collect();
    let all: usize = events.iter().map(|event| event.payload.len()).sum();
    ensure!(all == bytes, "{all} bytes, should be {bytes}");
    Ok((program, said, events))
}

/// Streams by what they carry: each of `expected` must be there as often as it stands there, with a connection's own
/// addresses throughout and no connection id in two processes.
fn carry(streams: &[(Direction, Joined)], expected: &[(Direction, Vec<u8>)]) -> Result<()> {
    ensure!(streams.len() == expected.len(), "{} streams, should be {}", streams.len(), expected.len());
    let mut left: Vec<_> = expected.iter().collect();
    for (direction, stream) in streams {
        let place = left.iter().position(|(way, bytes)| way == direction && *bytes == stream.bytes);
        let size = stream.bytes.len();
        left.remove(place.with_context(|| format!("{direction:?}, {size} bytes: not expected (any more)"))?);
        let ends = stream.distinct(ends);
        ensure!(ends.len() == 1, "one connection, several addresses: {ends:?}");
    }
    Ok(())
}

fn ids(events: &[Event]) -> BTreeSet<u64> {
    events.iter().map(|event| event.connection_id).collect()
}

fn ends_said(said: &[String], word: &str) -> Result<String> {
    let (client, server) =
        (program::number(said, word, "client_port")?, program::number(said, word, "server_port")?);
    Ok(format!("127.0.0.1:{client}-127.0.0.1:{server}"))
}

/// Two lives of the SSL objects at the same addresses, both ways with pattern 1, then with pattern 2.
fn are_two_lives(said: &[String], events: &[Event]) -> Result<()> {
    for end in ["client", "server"] {
        let (before, after) = (program::text(said, "before", end)?, program::text(said, "after", end)?);
        ensure!(end == "server" || before == after, "another address: {said:?}");
    }
    let streams = conversation::streams(events.iter())?;
    let both = |seed| [(Direction::Written, pattern(100, seed)), (Direction::Read, pattern(100, seed))];
    carry(&streams, &[both(1), both(1), both(2), both(2)].concat())?;
    assert_eq!(ids(events).len(), 4, "two ends, two lives");
    for (_, stream) in &streams {
        let word = if stream.bytes == pattern(100, 1) { "before" } else { "after" };
        assert_eq!(stream.distinct(ends), [ends_said(said, word)?]);
    }
    Ok(())
}

#[test]
fn an_ssl_object_at_the_address_of_a_freed_one_is_another_connection() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, "reuse", 800)?;
        are_two_lives(&said, &events)?;
        program.quit()?;
    }
    Ok(())
}

#[test]
fn a_cleared_ssl_object_is_another_connection() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, "clear", 800)?;
        are_two_lives(&said, &events)?;
        program.quit()?;
    }
    Ok(())
}

#[test]
fn a_forked_childs_copy_of_an_ssl_object_is_another_connection() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, "fork", 400 + 120 + 60)?;
        let child = program::number(&said, "child", "pid")?;
        let (of_child, of_parent): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| event.pid == i64::from(child));
        assert!(of_parent.iter().all(|event| event.pid == i64::from(program.pid())));
        assert!(ids(&of_child).is_disjoint(&ids(&of_parent)));
        let both = |bytes: Vec<u8>| [(Direction::Written, bytes.clone()), (Direction::Read, bytes)];
        let streams = conversation::streams(of_child.iter())?;
        carry(&streams, &both(pattern(60, 2)))?;
        let pair = ends_said(&said, "pair")?;
        assert!(of_child.iter().chain(&of_parent).all(|event| ends(event) == pair), "should be {pair}");
        let forth = [pattern(100, 1), pattern(30, 3)].concat();
        carry(&conversation::streams(of_parent.iter())?, &[both(forth), both(pattern(100, 1))].concat())?;
        program.quit()?;
    }
    Ok(())
}

#[test]
fn a_program_that_takes_anothers_place_has_connections_of_its_own() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, &format!("exec {CASES}"), 200 + 800)?;
        assert!(events.iter().all(|event| event.pid == i64::from(program.pid())));
        let pair = ends_said(&said, "pair")?;
        let (first, second): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| ends(event) == pair);
        let streams = conversation::streams(first.iter())?;
        carry(&streams, &[(Direction::Written, pattern(100, 1)), (Direction::Read, pattern(100, 1))])?;
        are_two_lives(&said, &second)?;
        assert!(ids(&first).is_disjoint(&ids(&second)));
        program.quit()?;
    }
    Ok(())
}

#[test]
fn a_connection_outlives_its_processs_first_thread() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, "leader", 200 + 120)?;
        let child = program::number(&said, "child", "pid")?;
        assert!(events.iter().all(|event| event.pid == i64::from(child)));
        assert!(
            events.iter().any(|event| event.tid == child) && events.iter().any(|event| event.tid != child)
        );
        let bytes = [pattern(100, 1), pattern(60, 2)].concat();
        let streams = conversation::streams(events.iter())?;
        carry(&streams, &[(Direction::Written, bytes.clone()), (Direction::Read, bytes)])?;
        assert_eq!(ids(&events).len(), 2, "its two ends");
        program.quit()?;
    }
    Ok(())
}

#[test]
fn a_process_with_the_id_of_one_killed_in_a_read_has_connections_of_its_own() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let (program, said, events) = observe(library, "killed", 200 + 120)?;
        let child = program::number(&said, "child", "pid")?;
        assert!(events.iter().all(|event| event.pid == i64::from(child) && event.tid == child));
        for end in ["client", "server"] {
            assert_eq!(program::text(&said, "before", end)?, program::text(&said, "after", end)?);
        }
        let streams = conversation::streams(events.iter())?;
        let both = |bytes: Vec<u8>| [(Direction::Written, bytes.clone()), (Direction::Read, bytes)];
        carry(&streams, &[both(pattern(100, 1)), both(pattern(60, 2))].concat())?;
        for (_, stream) in &streams {
            let word = if stream.bytes.len() == 100 { "before" } else { "after" };
            assert_eq!(stream.distinct(ends), [ends_said(&said, word)?]);
        }
        assert_eq!(ids(&events).len(), 4);
        program.quit()?;
    }
    Ok(())
}

/// Lines that threads wrote under locks: all there, each whole, each by its own thread.
fn lines_of_threads(library: &str, threads: usize, connections: usize) -> Result<()> {
    let name = program::unique_name();
    let mut program = Program::start(CASES, library, &name)?;
    let agent = Agent::start(&["--library", library, "--comm", &name])?;
    let mut client = Client::connect(&agent.url)?;
    program.command(&format!("threads {threads} {connections}"))?;
    client.wait_for("every line, written and read", |messages| {
        (messages.iter().filter(|message| message.event().is_some()).count() >= 2 * threads).then_some(())
    })?;
    client.ping(b"end")?;
    let streams = conversation::streams(client.events())?;
    assert_eq!(streams.len(), 2 * connections, "each client writes, each server reads");
    for way in [Direction::Written, Direction::Read] {
        let mut numbers = BTreeSet::new();
        for (_, stream) in streams.iter().filter(|(direction, _)| *direction == way) {
            let mut on = BTreeSet::new();
            for event in &stream.events {
                let line = str::from_utf8(&event.payload)?;
                let words: Vec<&str> = line.split_whitespace().collect();
                let ["thread", number, "tid", tid] = words[..] else { anyhow::bail!("no line: {line:?}") };
                assert_eq!(event.tid.to_string(), tid, "{line:?}");
                let number: usize = number.parse()?;
                on.insert(number % connections);
                ensure!(numbers.insert(number), "twice: {line:?}");
            }
            assert_eq!(on.len(), 1, "lines of several connections in one: {on:?}");
            assert_eq!(stream.distinct(ends).len(), 1);
        }
        assert_eq!(numbers, (0..threads).collect());
    }
    program.quit()
}

#[test]
fn an_ssl_object_that_threads_use_in_turn_is_one_connection() -> Result<()> {
    lines_of_threads(BORINGSSL, 20, 1)?;
    lines_of_threads(OPENSSL, 20, 1)
}

#[test]
fn what_two_thousand_threads_write_all_arrives() -> Result<()> {
    lines_of_threads(BORINGSSL, 2000, 8)?;
    lines_of_threads(OPENSSL, 2000, 8)
}

#[test]
fn what_is_written_twice_in_a_row_is_seen_twice() -> Result<()> {
    let name = program::unique_name();
    let mut program = Program::start(CASES, BORINGSSL, &name)?;
    let agent = Agent::start(&["--library", BORINGSSL, "--comm", &name])?;
    let mut client = Client::connect(&agent.url)?;
    for case in ["open", "again", "again", "shut"] {
        program.command(case)?;
    }
    client.wait_for("800 bytes", |messages| {
        let events = messages.iter().filter_map(|message| message.event());
        (events.map(|event| event.payload.len()).sum::<usize>() >= 800).then_some(())
    })?;
    for (direction, stream) in conversation::streams(client.events())? {
        let twice = [pattern(100, 1), pattern(100, 1)].concat();
        same_bytes(&format!("{direction:?}"), &stream.bytes, &twice)?;
    }
    program.quit()
}
