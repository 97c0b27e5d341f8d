//! With --on-demand, a device that nobody watches pays and holds nothing.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, until};

/// How many programs the agent has put on anything, and how many of its threads look for more.
fn in_place(agent: &Agent) -> Result<usize> {
    let folder = format!("/proc/{}", agent.parent());
    let files = fs::read_dir(format!("{folder}/fd")).context("the agent's open files")?;
    let names = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let kinds = ["perf_event", "bpf_link", "bpf-link", "raw-tracepoint", "raw_tracepoint"];
    let programs =
        names.filter(|name| kinds.iter().any(|kind| name.to_string_lossy().contains(kind))).count();
    let threads = fs::read_dir(format!("{folder}/task"))?;
    let scanning = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("plaintapd-scan"));
    Ok(programs + scanning.count())
}

fn until_nothing_is_in_place(agent: &Agent) -> Result<()> {
    until("every probe to go", || Ok((in_place(agent)? == 0).then_some(())))
}

/// Waits until the agent has said so often that it attached the library.
fn attached(agent: &Agent, times: usize) -> Result<()> {
    until("the library to be attached", || {
        let lines = agent.log().all();
        Ok((lines.iter().filter(|line| line.contains(" attached library=")).count() >= times).then_some(()))
    })
}

#[test]
fn probes_and_payloads_are_there_only_while_somebody_watches() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--on-demand", "--linger", "1"])?;
    ensure!(in_place(&agent)? == 0, "something is in place before anybody came");
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    driver.write(Side::Client, 300, 1)?;

    let mut client = Client::connect(&agent.url)?;
    attached(&agent, 1)?;
    ensure!(in_place(&agent)? > 0, "nothing is in place for the client");
    driver.write(Side::Client, 1000, 2)?;
    let first = conversation::wait_for(&mut client, &half, 1000)?;
    same_bytes("what the client wrote", &first.bytes, &pattern(1000, 2))?;
    drop(client);
    agent.log().wait_for(0, "its word", |line| line.contains("what was kept is forgotten"))?;
    until_nothing_is_in_place(&agent)?;
    driver.write(Side::Client, 500, 3)?;

    // All that the journal has: nothing of before, and what comes has a beginning of its own.
    let mut client = Client::connect(&format!("{}?backlog=all", agent.url))?;
    attached(&agent, 2)?;
    driver.write(Side::Client, 70, 4)?;
    let second = conversation::wait_for(&mut client, &half, 70)?;
    same_bytes("what the client wrote later", &second.bytes, &pattern(70, 4))?;
    ensure!(second.connection_id() != first.connection_id(), "bytes are missing between them");
    driver.quit()
}

/// The 8-byte words in the maps that the serving half shares with the kernel, the ring above all.
fn shared_words(agent: &Agent) -> Result<HashSet<[u8; 8]>> {
    let folder = format!("/proc/{}", agent.child()?);
    let memory = fs::File::open(format!("{folder}/mem")).context("its memory")?;
    let mut words = HashSet::new();
    for line in fs::read_to_string(format!("{folder}/maps"))?.lines().filter(|line| line.ends_with("bpf-map"))
    {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).context("no range")?;
        let (start, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut bytes, start).with_context(|| line.to_owned())?;
        words.extend(bytes.as_chunks().0);
    }
    Ok(words)
}

#[test]
fn what_the_ring_held_is_gone_with_the_probes() -> Result<()> {
    const SIZE: u32 = 200 << 10;
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    // Both ends are captured, and twice what they say is more than it holds: it begins anew over what came first.
    let ring = ["--ring-size", "512K", "--on-demand", "--linger", "1", "--log-level", "debug"];
    let agent = Agent::start(&[&["--library", BORINGSSL, "--pid", &pid], &ring[..]].concat())?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    let other = Half::of_driver(&driver, Side::Server, Direction::Read);
    let mut client = Client::connect(&agent.url)?;
    attached(&agent, 1)?;
    let payloads = [pattern(SIZE, 11), pattern(SIZE, 12)];
    for (seed, sent) in [(11, SIZE), (12, 2 * SIZE)] {
        driver.write(Side::Client, SIZE, seed)?;
        // At either end, so that the last one is the last in the ring.
        for half in [&half, &other] {
            let seen = conversation::wait_for(&mut client, half, sent as usize)?;
            ensure!(seen.bytes.len() == sent as usize, "something was lost");
        }
    }
    // Payloads begin at words of the ring, and no two words of a pattern are alike.
    let [first, last] = payloads.map(|payload| payload.as_chunks::<8>().0.to_vec());
    let found = |payload: &[[u8; 8]], words: &HashSet<[u8; 8]>| {
        payload.iter().filter(|word| words.contains(*word)).count()
    };
    let words = shared_words(&agent)?;
    ensure!(found(&last, &words) == last.len(), "this is not where the ring is");
    ensure!((1..first.len()).contains(&found(&first, &words)), "the ring did not begin anew");
    drop(words);
    drop(client);
    agent.log().wait_for(0, "its word", |line| line.contains("what was kept is forgotten"))?;
    until_nothing_is_in_place(&agent)?;
    agent.log().wait_for(0, "the end of it", |line| line.contains("the kernel's ring was overwritten"))?;
    let words = shared_words(&agent)?;
    ensure!(found(&first, &words) + found(&last, &words) == 0, "the ring still holds what went through it");

    // It serves as before.
    let mut client = Client::connect(&agent.url)?;
    attached(&agent, 2)?;
    driver.write(Side::Client, SIZE, 13)?;
    let again = conversation::wait_for(&mut client, &half, SIZE as usize)?;
    same_bytes("what the client wrote later", &again.bytes, &pattern(SIZE, 13))?;
    driver.quit()
}

/// How many 8-byte words of `payload` stand anywhere in the memory that the serving half has for itself.
fn words_in_memory(agent: &Agent, payload: &[u8]) -> Result<usize> {
    let words: HashSet<[u8; 8]> = payload.as_chunks().0.iter().copied().collect();
    let mut found = HashSet::new();
    let folder = format!("/proc/{}", agent.child()?);
    let memory = fs::File::open(format!("{folder}/mem")).context("its memory")?;
    for line in fs::read_to_string(format!("{folder}/maps"))?.lines() {
        let mut fields = line.split(' ');
        let range = fields.next().and_then(|range| range.split_once('-')).context("no range")?;
        if fields.next() != Some("rw-p") {
            continue;
        }
        let (start, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // It may be given back meanwhile.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            let places = bytes.windows(8).filter_map(|place| <[u8; 8]>::try_from(place).ok());
            found.extend(places.filter(|place| *place != [0; 8] && words.contains(place)));
        }
    }
    Ok(found.len())
}

/// How many connections the attaching half's table in the kernel has.
fn connections_in_kernel(agent: &Agent) -> Result<usize> {
    let folder = format!("/proc/{}/fdinfo", agent.parent());
    for file in fs::read_dir(&folder)? {
        let Ok(info) = fs::read_to_string(file?.path()) else { continue };
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let id = id.trim().parse()?;
        if MapInfo::from_id(id)?.name_as_str() == Some("CONNECTIONS") {
            let map = Map::LruHashMap(MapData::from_id(id)?);
            let map: HashMap<_, [u64; 2], [u64; 13]> = HashMap::try_from(map)?;
            return Ok(map.keys().count());
        }
    }
    bail!("the agent has no such table")
}

#[test]
fn nothing_of_what_went_by_stays_in_memory_or_in_the_kernels_tables() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    // More goes by than the journal holds.
    let arguments = ["--journal-size", "1M", "--on-demand", "--linger", "1", "--log-level", "debug"];
    let agent = Agent::start(&[&["--library", BORINGSSL, "--pid", &pid], &arguments[..]].concat())?;
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    let mut client = Client::connect(&agent.url)?;
    // One that reads nothing, so that much is on its way to it when it leaves.
    let idle = Client::connect_with(&agent.url, &[])?;
    attached(&agent, 1)?;
    let mut payload = Vec::new();
    for seed in 0..200 {
        let size = if seed % 2 == 0 { 300 } else { 16_000 };
        driver.write(Side::Client, size, seed)?;
        payload.extend(pattern(size, seed));
        conversation::wait_for(&mut client, &half, payload.len())?;
    }
    ensure!(words_in_memory(&agent, &payload)? > 10_000, "this is not where the journal is");
    ensure!(connections_in_kernel(&agent)? > 0, "this is not the table of connections");
    drop((client, idle));
    agent.log().wait_for(0, "the end of it", |line| line.contains("the kernel's ring was overwritten"))?;
    until("all of it to be gone", || {
        let left = (words_in_memory(&agent, &payload)?, connections_in_kernel(&agent)?);
        Ok((left == (0, 0)).then_some(()))
    })
    .with_context(|| format!("{:?} words are left", words_in_memory(&agent, &payload)))?;
    driver.quit()
}

#[test]
fn who_comes_back_soon_finds_the_probes_and_the_journal() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--on-demand"])?;
    let half = Half::of_driver(&driver, Side::Server, Direction::Written);
    let mut client = Client::connect(&agent.url)?;
    attached(&agent, 1)?;
    driver.write(Side::Server, 1000, 2)?;
    conversation::wait_for(&mut client, &half, 1000)?;
    drop(client);
    driver.write(Side::Server, 200, 3)?;
    let mut client = Client::connect(&format!("{}?backlog=all", agent.url))?;
    let seen = conversation::wait_for(&mut client, &half, 1200)?;
    same_bytes("what the server wrote", &seen.bytes, &[pattern(1000, 2), pattern(200, 3)].concat())?;
    driver.quit()
}

#[test]
fn what_started_while_nobody_watched_is_found() -> Result<()> {
    let agent = Agent::start(&["--on-demand", "--linger", "1"])?;
    for round in 0..2 {
        let mut driver = Driver::start(BORINGSSL)?;
        let half = Half::of_driver(&driver, Side::Client, Direction::Read);
        let mut client = Client::connect(&format!("{}?pid={}", agent.url, driver.pid()))?;
        // Probes come one after the other, this library's perhaps last.
        until("the library to be attached", || {
            let lines = agent.log().all();
            let found = lines.iter().filter(|line| line.contains(&format!(" attached library={BORINGSSL} ")));
            Ok((found.count() > round).then_some(()))
        })?;
        driver.write(Side::Server, 3000, 5)?;
        let seen = conversation::wait_for(&mut client, &half, 3000)?;
        same_bytes("what the client read", &seen.bytes, &pattern(3000, 5))?;
        drop(client);
        driver.quit()?;
        until_nothing_is_in_place(&agent)?;
    }
    Ok(())
}
