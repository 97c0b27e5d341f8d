//! A client that reads too slowly loses the oldest messages, is told exactly how many, and delays nobody; or it is
//! disconnected, if that is asked for.

use anyhow::{Context, Result};
use plaintap_proto::Direction;
use plaintap_tests::BORINGSSL;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half};
use plaintap_tests::driver::{Driver, Side, fact};
use plaintap_tests::stream::{Client, Received};

/// Written at a time, and captured twice, at both ends. The journal holds it, so that the quick client may read it afterwards.
const MEGABYTE: u32 = 1_000_000;

/// Bytes of the journal's own size and of both ends' socket buffers are far less than this many megabytes, twice. Not more: the
/// agent resets a client that has taken nothing for 30 s, which a busy machine may need for all of them.
const MEGABYTES: u32 = 8;

#[test]
fn a_slow_client_is_told_what_it_missed_and_a_quick_one_gets_all() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--journal-size", "4M"])?;
    let mut quick = Client::connect(&agent.url)?;
    let mut slow = Client::connect(&agent.url)?;
    let half = Half::of_driver(&driver, Side::Server, Direction::Read);
    for count in 1..=MEGABYTES {
        driver.write(Side::Client, MEGABYTE, count)?;
        // Also an assertion: each of these is there, joins, and lost nothing.
        conversation::wait_for(&mut quick, &half, (count * MEGABYTE) as usize)?;
    }
    let last = quick.messages.iter().map(|message| message.entry.seq).max().context("nothing came")?;

    slow.wait_for("the last message", |messages| {
        messages.iter().any(|message| message.event().is_some() && message.entry.seq >= last).then_some(())
    })?;
    let told: Vec<_> = slow.messages.iter().filter_map(Received::heartbeat).collect();
    let missed = told.iter().map(|heartbeat| heartbeat.missed_messages).max().unwrap_or_default();
    assert!(missed > 0, "it missed nothing: the buffers are larger than this test supposes");
    // From its first heartbeat on, each message of the journal either came or was counted.
    let after = told.first().map_or(0, |heartbeat| heartbeat.last_seq);
    let came = slow.messages.iter().filter(|message| message.entry.seq > after).count() as u64;
    let newest = slow.messages.iter().map(|message| message.entry.seq).max().unwrap_or_default();
    assert_eq!(came + missed, newest - after, "{came} came, {missed} were counted as missed");
    assert!(told.iter().any(|heartbeat| heartbeat.missed_bytes > u64::from(MEGABYTE)));
    let lines: Vec<_> =
        slow.messages.iter().filter(|message| message.entry.seq == 0).filter_map(Received::log).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.contains("missed_messages=")), "{lines:?}");
    // The quick one missed nothing, and was told so.
    assert!(
        quick.messages.iter().filter_map(Received::heartbeat).all(|heartbeat| heartbeat.missed_messages == 0)
    );
    Ok(())
}

#[test]
fn a_slow_client_is_disconnected_where_that_is_asked_for_and_may_come_back() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let arguments =
        ["--library", BORINGSSL, "--pid", &pid, "--journal-size", "4M", "--slow-client=disconnect"];
    let agent = Agent::start(&arguments)?;
    let mut quick = Client::connect(&agent.url)?;
    let mut slow = Client::connect(&agent.url)?;
    let half = Half::of_driver(&driver, Side::Server, Direction::Read);
    for count in 1..=MEGABYTES {
        driver.write(Side::Client, MEGABYTE, count)?;
        conversation::wait_for(&mut quick, &half, (count * MEGABYTE) as usize)?;
    }
    let closed = slow.wait_for_close()?.context("no reason")?;
    assert_eq!(u16::from(closed.code), 4008, "{closed:?}");
    let missed: u64 = fact(&closed.reason, "missed_messages")?;
    assert!(missed > 0 && fact::<u64>(&closed.reason, "missed_bytes")? > u64::from(MEGABYTE), "{closed:?}");
    let what = "the log to say why it is gone";
    agent
        .log()
        .wait_for(0, what, |line| line.contains(&format!("it was too slow missed_messages={missed} ")))?;

    // It goes on behind the last message that it had, and has as much as the journal has.
    let last = slow.messages.iter().map(|message| message.entry.seq).max().context("nothing came")?;
    let run = slow.run_id().context("no run id")?;
    let mut back = Client::connect(&format!("{}?after={last}&run={run}", agent.url))?;
    back.ping(b"what is left")?;
    let gone = back.messages.iter().find_map(Received::heartbeat).context("no heartbeat")?.missed_messages;
    assert!(gone >= missed, "{gone} are gone, {missed} were missed before");
    let came = back.messages.iter().filter(|message| message.entry.seq > 0).count() as u64;
    let newest = back.messages.iter().map(|message| message.entry.seq).max().context("nothing came")?;
    assert_eq!(gone + came, newest - last);
    Ok(())
}
