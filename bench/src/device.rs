//! What an agent is to a device: its start, and its memory at rest and at work.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    Paths,
    agent::Agent,
    load::Load,
    process::Held,
    stream::{Counter, Looker},
};

/// The load for the start: an event every five milliseconds.
const START: (u32, u64, u64) = (1 << 10, 200, 10_000);
/// The load at work, and for how many clients: 4 MB/s.
const WORK: (u32, u64, u64) = (4 << 10, 1000, 6_000);
const CLIENTS: usize = 4;

/// Measures and prints two rows of a table, one for the usual sizes and one for those of small devices.
pub fn run(paths: &Paths, library: &str, rounds: u32) -> Result<()> {
    println!(
        "| CPU, kernel, plaintapd | ms to listening | ms to first event | at rest: own KiB | with its file and ring | \
         in the kernel | at work: own KiB | with its file and ring | events lost |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let machine = format!("{}, {}", std::env::consts::ARCH, release.trim());
    for flags in [&[][..], &["--memory-limit", "8M"]] {
        let mut starts = (0..rounds).map(|_| start(paths, library, flags)).collect::<Result<Vec<_>>>()?;
        starts.sort();
        let (rest, work, lost) = memory(paths, library, flags)?;
        let median = starts.get(starts.len() / 2).ok_or_else(|| anyhow!("no rounds"))?;
        // Each is the median of its own.
        let mut firsts: Vec<_> = starts.iter().map(|(_, first)| *first).collect();
        firsts.sort();
        println!(
            "| {machine}{}{} | {} | {} | {} | {} | {} | {} | {} | {lost} |",
            if flags.is_empty() { "" } else { ", " },
            flags.join(" "),
            median.0.as_millis(),
            firsts[firsts.len() / 2].as_millis(),
            rest.anon,
            rest.pss,
            rest.kernel,
            work.anon,
            work.pss,
        );
    }
    Ok(())
}

/// From the start of the process until it listens, and until a client has the first event.
fn start(paths: &Paths, library: &str, flags: &[&str]) -> Result<(Duration, Duration)> {
    let mut load = Load::start(paths, library, "memory")?;
    let pid = load.pid();
    let (size, rate, milliseconds) = START;
    // It is killed with its process when this returns.
    let killer = load.killer();
    let loading = thread::spawn(move || load.rate(size, rate, milliseconds));
    let begin = Instant::now();
    let agent = Agent::without_client(&paths.agent, pid, library, flags)?;
    let listening = begin.elapsed();
    let mut looker = Looker::connect(&agent)?;
    ensure!(looker.event()?.is_some(), "no event came");
    let first = begin.elapsed();
    killer.kill();
    // Its answer is cut off.
    let _ = loading.join();
    Ok((listening, first))
}

/// What it has at rest, with nobody connected, and the most of each that it has at work.
fn memory(paths: &Paths, library: &str, flags: &[&str]) -> Result<(Held, Held, u64)> {
    let mut load = Load::start(paths, library, "memory")?;
    let agent = Agent::without_client(&paths.agent, load.pid(), library, flags)?;
    let pids = agent.pids()?;
    // What it needs while it starts is given back.
    thread::sleep(Duration::from_secs(2));
    let rest = Held::by(pids)?;
    let counters = (0..CLIENTS).map(|_| Counter::connect(&agent)).collect::<Result<Vec<_>>>()?;
    let (size, rate, milliseconds) = WORK;
    let loading = thread::spawn(move || load.rate(size, rate, milliseconds));
    let mut work = Held::default();
    while !loading.is_finished() {
        let held = Held::by(pids)?;
        work.anon = work.anon.max(held.anon);
        work.pss = work.pss.max(held.pss);
        thread::sleep(Duration::from_millis(200));
    }
    loading.join().map_err(|_| anyhow!("the load's thread panicked"))??;
    drop(counters);
    Ok((rest, work, agent.totals()?.lost_events))
}
