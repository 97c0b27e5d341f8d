//! Every call that carries plaintext counts once: those that end in ex, repeated ones, early data, and very large ones.

use anyhow::{Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, Joined, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::program::{self, CASES, Program};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

/// A program, the agent that watches it, and its client.
struct Scene {
    program: Program,
    client: Client,
    _agent: Agent,
}

impl Scene {
    fn set(library: &str, arguments: &[&str]) -> Result<Self> {
        let program = Program::start(CASES, library, &program::unique_name())?;
        let pid = program.pid().to_string();
        let agent = Agent::start(&[&["--library", library, "--pid", &pid], arguments].concat())?;
        let client = Client::connect(&agent.url)?;
        Ok(Self { program, client, _agent: agent })
    }

    /// All streams, once there are `bytes` bytes of them in all, and nothing more.
    fn streams(&mut self, bytes: usize) -> Result<Vec<(Direction, Joined)>> {
        let what = format!("{bytes} bytes");
        self.client.wait_for(&what, |messages| {
            let events = messages.iter().filter_map(|message| message.event());
            (events.map(|event| event.payload.len()).sum::<usize>() >= bytes).then_some(())
        })?;
        self.client.ping(b"end")?;
        let streams = conversation::streams(self.client.events())?;
        let all: usize = streams.iter().map(|(_, stream)| stream.bytes.len()).sum();
        ensure!(all == bytes, "{all} bytes, should be {bytes}");
        Ok(streams)
    }
}

/// What a case that goes both ways carries: written, read, written, read, each `bytes`.
fn are_each(streams: &[(Direction, Joined)], bytes: &[u8]) -> Result<()> {
    let directions: Vec<_> = streams.iter().map(|(direction, _)| *direction).collect();
    let (written, read) = (Direction::Written, Direction::Read);
    ensure!(
        directions.len() == 4 && directions.iter().filter(|direction| **direction == written).count() == 2,
        "{directions:?}, should be twice {written:?} and twice {read:?}"
    );
    streams
        .iter()
        .try_for_each(|(direction, stream)| same_bytes(&format!("{direction:?}"), &stream.bytes, bytes))
}

fn every_byte_once(library: &str, case: &str, size: u32) -> Result<Vec<String>> {
    let mut scene = Scene::set(library, &[])?;
    let said = scene.program.command(&format!("{case} {size} 1"))?;
    are_each(&scene.streams(4 * size as usize)?, &pattern(size, 1))?;
    scene.program.quit()?;
    Ok(said)
}

#[test]
fn calls_that_end_in_ex_are_seen_whole_whatever_their_size() -> Result<()> {
    for size in [1, 16_385, 1_000_000] {
        every_byte_once(OPENSSL, "ex", size)?;
    }
    Ok(())
}

#[test]
fn a_call_that_ends_in_ex_and_carries_nothing_makes_no_event() -> Result<()> {
    let mut scene = Scene::set(OPENSSL, &[])?;
    let said = scene.program.command("nothing_ex")?;
    assert_eq!(program::line(&said, "write_ex")?, "write_ex result=1 moved=0");
    assert_eq!(program::line(&said, "read_ex")?, "read_ex result=0 moved=777");
    are_each(&scene.streams(40)?, &pattern(10, 1))?;
    scene.program.quit()
}

#[test]
fn a_call_that_is_repeated_until_the_socket_takes_it_counts_once() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let said = every_byte_once(library, "plain", 1_000_000)?;
        assert!(program::number(&said, "transfer", "retries")? > 0, "nothing was repeated: {said:?}");
        assert_eq!(program::number(&said, "transfer", "writes")?, 1);
    }
    Ok(())
}

#[test]
fn calls_that_take_a_part_count_what_they_took() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let said = every_byte_once(library, "partial", 1_000_000)?;
        assert!(program::number(&said, "transfer", "writes")? > 1, "no call took a part: {said:?}");
    }
    Ok(())
}

#[test]
fn early_data_that_is_accepted_is_seen_once() -> Result<()> {
    let mut scene = Scene::set(OPENSSL, &[])?;
    scene.program.command("early 5000 7")?;
    let streams = scene.streams(40 + 2 * 5000 + 40)?;
    are_each(&streams[..4], &pattern(10, 1))?;
    let (usual, early) = (pattern(10, 1), pattern(5000, 7));
    for (index, (direction, stream)) in streams[4..].iter().enumerate() {
        let expected = if index < 2 { [early.clone(), usual.clone()].concat() } else { usual.clone() };
        same_bytes(&format!("stream {index}, {direction:?}"), &stream.bytes, &expected)?;
    }
    assert!(!scene.client.logs().any(|line| line.contains("early data")), "it was accepted");
    scene.program.quit()
}

#[test]
fn early_data_that_is_rejected_and_sent_again_is_said() -> Result<()> {
    let mut scene = Scene::set(OPENSSL, &[])?;
    scene.program.command("refused 5000 7")?;
    let streams = scene.streams(40 + 3 * 5000 + 40)?;
    let (usual, early) = (pattern(10, 1), pattern(5000, 7));
    let (direction, written) = &streams[4];
    assert_eq!(*direction, Direction::Written);
    same_bytes("written", &written.bytes, &[early.clone(), early.clone(), usual.clone()].concat())?;
    let (direction, read) = &streams[5];
    assert_eq!(*direction, Direction::Read);
    same_bytes("read", &read.bytes, &[early, usual].concat())?;
    let expected = format!(
        "early data was rejected, and may be sent again: connection_id={} bytes=5000",
        written.connection_id()
    );
    let said: Vec<_> = scene.client.logs().filter(|line| line.contains("early data")).collect();
    assert!(matches!(said[..], [line] if line.contains(&expected)), "{said:?}, should say {expected}");
    scene.program.quit()
}

#[test]
fn a_call_of_16_mib_arrives_whole() -> Result<()> {
    const SIZE: u32 = 16 << 20;
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    // The ring holds all of one call at one end: nothing need be lost, however long the agent is held up.
    let sizes = ["--ring-size", "32M", "--journal-size", "64M"];
    let arguments = ["--library", BORINGSSL, "--pid", &pid, "--comm", Side::Client.comm()];
    let agent = Agent::start(&[&arguments[..], &sizes].concat())?;
    let mut client = Client::connect(&agent.url)?;
    for (seed, (side, direction)) in
        (1..).zip([(Side::Client, Direction::Written), (Side::Server, Direction::Read)])
    {
        driver.write(side, SIZE, seed)?;
        let half = Half::of_driver(&driver, Side::Client, direction);
        let seen = conversation::wait_for(&mut client, &half, SIZE as usize)?;
        same_bytes(&format!("{direction:?}"), &seen.bytes, &pattern(SIZE, seed))?;
    }
    driver.quit()
}
