//! A memory limit is one for all that the agent keeps: in the kernel, in both halves, for clients.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::conversation::Half;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, until};

/// The number behind `name` in lines as /proc has them.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// What the agent's maps and programs take in the kernel, and its halves for themselves, in bytes. The ring's pages, which
/// the serving half has mapped twice, are the kernel's and count once; the program's file can be read again.
fn kept(agent: &Agent) -> Result<(u64, u64)> {
    let (mut in_kernel, mut own) = (BTreeMap::new(), 0);
    for pid in agent.pids()? {
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the agent's open files")? {
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for kind in ["map_id", "prog_id"] {
                if let (Some(id), Some(bytes)) = (number(&text, kind), number(&text, "memlock")) {
                    in_kernel.insert((kind, id), bytes);
                }
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let anon = number(&status, "RssAnon").context("no RssAnon")? << 10;
        println!("process {pid} has {anon} bytes of its own");
        own += anon;
    }
    Ok((in_kernel.values().sum(), own))
}

#[test]
fn with_a_full_journal_and_a_client_all_that_is_kept_stays_below_the_limit() -> Result<()> {
    const LIMIT: u64 = 8 << 20;
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--pid", &pid, "--memory-limit", "8M"])?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    let mut client = Client::connect(&agent.url)?;
    // More than the journal holds: large messages first, then many small ones, whose bookkeeping weighs most. No more at a time
    // than the ring has room for twice, however late the agent comes to it.
    let mut written: u64 = 0;
    for (times, size, count) in [(40, 300_000, 1), (15, 200, 100)] {
        for _ in 0..times {
            for seed in 0..count {
                driver.write(Side::Client, size, seed)?;
                written += u64::from(size);
            }
            client.wait_for("what was written last", |messages| {
                let event = messages.last()?.event().filter(|event| half.has(event))?;
                (event.stream_offset + event.payload.len() as u64 == written).then_some(())
            })?;
        }
    }
    // Another test's library may be looked at just now, which takes more for a moment.
    until("all that is kept to be below the limit", || {
        let (in_kernel, own) = kept(&agent)?;
        println!("{in_kernel} bytes in the kernel, {own} of its own");
        ensure!(in_kernel > 1 << 20, "the ring is not among the agent's {in_kernel} bytes in the kernel");
        ensure!(own > 2 << 20, "{own} bytes of its own can't hold a full journal");
        Ok((in_kernel + own <= LIMIT).then_some(()))
    })?;
    driver.quit()
}

#[test]
fn on_demand_little_is_kept_while_nobody_watches() -> Result<()> {
    // What `--memory-limit` reckons with, for both halves.
    const OWN: u64 = 5 << 19;
    let agent = Agent::start(&["--on-demand", "--linger", "1", "--memory-limit", "8M", "--no-scan"])?;
    let at_rest = |when: &str| {
        until(&format!("little of its own to be kept {when}"), || Ok((kept(&agent)?.1 <= OWN).then_some(())))
    };
    at_rest("before the first client")?;
    let client = Client::connect(&agent.url)?;
    agent.log().wait_for(0, "a library", |line| line.contains(" attached library="))?;
    drop(client);
    agent.log().wait_for(0, "its word", |line| line.contains("what was kept is forgotten"))?;
    at_rest("after the last client")
}

#[test]
fn a_limit_that_can_not_be_kept_is_refused_with_the_remedy() -> Result<()> {
    for (flags, remedy) in [
        (&["--memory-limit", "1M"][..], "the least that works is"),
        (&["--memory-limit", "8M", "--ring-size", "1M"], "leave out --ring-size"),
        (&["--memory-limit", "8M", "--journal-size", "1M"], "leave out --journal-size"),
    ] {
        let refusal = agent::refusal(agent::plaintapd()?.args(flags))?;
        assert_eq!(refusal.code, Some(2), "{refusal:?}");
        assert!(refusal.error()?.contains(remedy), "{refusal:?}");
    }
    Ok(())
}
