//! Every byte of every payload arrives, whatever its size, and what moves no byte makes no event.

use anyhow::Result;
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, PIECE, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

/// At the edges of the size classes, of a TLS record, and beyond.
const SIZES: [u32; 10] = [0, 1, 255, 256, 257, 4096, 16_384, 16_385, 65_536, 1_000_000];

fn every_size_arrives(library: &str) -> Result<()> {
    let mut driver = Driver::start(library)?;
    let agent = Agent::watching(driver.pid(), library)?;
    let mut client = Client::connect(&agent.url)?;
    for side in [Side::Client, Side::Server] {
        let written = Half::of_driver(&driver, side, Direction::Written);
        let read = Half::of_driver(&driver, side.other(), Direction::Read);
        let mut expected = Vec::new();
        let mut pieces = 0;
        for (seed, size) in (1..).zip(SIZES) {
            driver.write(side, size, seed)?;
            expected.extend(pattern(size, seed));
            pieces += (size as usize).div_ceil(PIECE);
            let seen = conversation::wait_for(&mut client, &written, expected.len())?;
            same_bytes(&format!("{size} bytes that the {side:?} wrote"), &seen.bytes, &expected)?;
            assert_eq!(seen.events.len(), pieces, "after {size} bytes in one call");
            assert_eq!(
                seen.distinct(|event| event.pname.clone()),
                if pieces == 0 { vec![] } else { vec![side.comm()] }
            );
            let seen = conversation::wait_for(&mut client, &read, expected.len())?;
            same_bytes(&format!("{size} bytes that the {:?} read", side.other()), &seen.bytes, &expected)?;
        }
    }
    driver.quit()?;
    // The end of the connection is no event, and nothing came but what was checked.
    client.ping(b"end")?;
    let total: u64 = SIZES.into_iter().map(u64::from).sum();
    assert_eq!(client.events().map(|event| u64::from(event.length)).sum::<u64>(), 4 * total);
    Ok(())
}

#[test]
fn every_size_arrives_whole_from_boringssl() -> Result<()> {
    every_size_arrives(BORINGSSL)
}

#[test]
fn every_size_arrives_whole_from_openssl() -> Result<()> {
    every_size_arrives(OPENSSL)
}

fn only_moved_bytes_count(library: &str) -> Result<()> {
    let mut driver = Driver::start(library)?;
    let agent = Agent::watching(driver.pid(), library)?;
    let mut client = Client::connect(&agent.url)?;
    for side in [Side::Client, Side::Server] {
        let (word, other) = (side.word(), side.other().word());
        driver.command(&format!("zero {word}"))?;
        driver.command(&format!("idle {other}"))?;
        driver.command(&format!("send {word} 300 1"))?;
        driver.command(&format!("peek {other} 300 1"))?;
        driver.command(&format!("peek {other} 300 1"))?;
        driver.command(&format!("read {other} 300 1"))?;
        driver.command(&format!("idle {other}"))?;
        driver.write(side, 20, 2)?;

        let expected = [pattern(300, 1), pattern(20, 2)].concat();
        for (side, direction) in [(side, Direction::Written), (side.other(), Direction::Read)] {
            let half = Half::of_driver(&driver, side, direction);
            let seen = conversation::wait_for(&mut client, &half, expected.len())?;
            same_bytes(&format!("what the {side:?} has {direction:?}"), &seen.bytes, &expected)?;
            assert_eq!(seen.events.len(), 2);
        }
    }
    Ok(())
}

#[test]
fn peeks_failed_reads_and_empty_writes_make_no_event_in_boringssl() -> Result<()> {
    only_moved_bytes_count(BORINGSSL)
}

#[test]
fn peeks_failed_reads_and_empty_writes_make_no_event_in_openssl() -> Result<()> {
    only_moved_bytes_count(OPENSSL)
}

#[test]
fn many_small_writes_all_arrive_in_order() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    let mut expected = Vec::new();
    for (seed, size) in (0..500).zip((1..=40).cycle()) {
        driver.write(Side::Client, size, seed)?;
        expected.extend(pattern(size, seed));
    }
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    let seen = conversation::wait_for(&mut client, &half, expected.len())?;
    same_bytes("500 small writes", &seen.bytes, &expected)?;
    let times: Vec<_> = seen.events.iter().map(|event| event.timestamp).collect();
    assert!(times.is_sorted(), "timestamps of one thread go back");
    Ok(())
}
