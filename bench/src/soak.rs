//! Whether an agent that runs for long stays as it was: mixed load, clients and copies of a library that come and go.
//!
//! A cycle is most of a minute of load, then some seconds without any, after which the agent must have what it had before.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{Paths, agent::Agent, load::Load, process::Held, stream::Counter};

/// How long a cycle's load lasts, and how long it rests then. Deleted files are let go after 5 to 10 s.
const LOADED: Duration = Duration::from_secs(44);
const REST: Duration = Duration::from_secs(16);
/// Sizes of writes, how many a second, and for how many milliseconds.
const LOADS: [(u32, u64, u64); 5] =
    [(64, 5000, 900), (1 << 10, 1000, 1500), (4 << 10, 0, 60), (16 << 10, 200, 1200), (256 << 10, 20, 700)];
/// Connections before the first cycle, each of a process of its own: as many as an agent remembers and more. A cycle makes some
/// 50 of them, so that in half an hour its memory would not be seen at its end.
const REMEMBERED: usize = 2200;
/// Of the first cycles, which may grow what is kept for good.
const WARM_UP: usize = 5;
/// From this cycle on nothing is known any more of the files of the processes before the first: they are forgotten after 10 minutes.
const SETTLED: usize = 11;
/// Cycles over which descriptors are looked at, as they go up and down with the copies.
const WINDOW: usize = 3;
/// How much more of its own memory the attaching half may have later, in KiB: it remembers up to 8,192 files that others map.
const SLACK_ATTACHING: u64 = 1024;
/// And the serving half: what is remembered of connections and processes, and what an allocator leaves lying about.
const SLACK_SERVING: u64 = 512;

/// The agents, side by side: as one that is watched all the time is started, and as a service is.
const KINDS: [(&str, &[&str]); 2] = [("always", &[]), ("on demand", &["--on-demand", "--linger", "1"])];

/// Runs for `minutes`, and prints a row for each agent and minute; an error if anything grows.
pub fn run(paths: &Paths, libraries: &[String], minutes: usize) -> Result<()> {
    ensure!(minutes > SETTLED + 2 * WINDOW, "a soak takes more than {} minutes", SETTLED + 2 * WINDOW);
    let mut agents = Vec::new();
    for (_, flags) in KINDS {
        let flags = [&["--comm", "tls-load", "--memory-limit", "8M"], flags].concat();
        agents.push(Agent::with(&paths.agent, &flags)?);
    }
    eprintln!("plaintap-bench: {REMEMBERED} connections first, each of a process of its own");
    remembered(paths, &agents, libraries)?;
    println!(
        "| agent | minute | own KiB: attaching | serving | both, with file and ring | in the kernel | maps | descriptors | threads | events | lost |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut rows = KINDS.map(|_| Vec::new());
    for minute in 1..=minutes {
        cycle(paths, &agents, libraries)?;
        thread::sleep(REST);
        for ((agent, (kind, _)), rows) in agents.iter().zip(KINDS).zip(&mut rows) {
            let held = Held::by(agent.pids()?)?;
            let totals = agent.totals()?;
            println!(
                "| {kind} | {minute} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                held.halves[0],
                held.halves[1],
                held.pss,
                held.kernel,
                held.maps,
                held.descriptors,
                held.threads,
                totals.captured_events,
                totals.lost_events,
            );
            rows.push(held);
        }
    }
    for ((kind, _), rows) in KINDS.iter().zip(&rows) {
        stayed(rows).with_context(|| format!("the agent that captures {kind}"))?;
    }
    println!(
        "\nAfter minute {WARM_UP} nothing grew, but memory of their own, by no more than {SLACK_ATTACHING} and {SLACK_SERVING} KiB."
    );
    Ok(())
}

/// An error if an agent has more later than it had first.
fn stayed(rows: &[Held]) -> Result<()> {
    let most = |rows: &[Held], what: fn(&Held) -> u64| rows.iter().map(what).max().unwrap_or(0);
    let (before, after) = rows.split_at(WARM_UP);
    for (name, what, slack) in [
        ("the attaching half's memory", (|held| held.halves[0]) as fn(&Held) -> u64, SLACK_ATTACHING),
        ("the serving half's memory", |held| held.halves[1], SLACK_SERVING),
        ("memory in the kernel", |held| held.kernel, 0),
        ("maps", |held| held.maps, 0),
        ("threads", |held| held.threads, 0),
    ] {
        let (first, later) = (most(before, what), most(after, what));
        ensure!(later <= first + slack, "{name} grew: {first} in the first {WARM_UP} minutes, {later} later");
    }
    // Each file that others map takes some, for as long as they do and ten minutes more: what counts is what it has in the end.
    let first = most(&rows[SETTLED..SETTLED + WINDOW], |held| held.descriptors);
    let last = rows.iter().rev().take(WINDOW).map(|held| held.descriptors).min().unwrap_or(0);
    ensure!(
        last <= first,
        "descriptors grew: {first} from minute {} on, {last} at the end; programs with TLS that run beside this count until 10 minutes after their end",
        SETTLED + 1
    );
    Ok(())
}

/// Connections, one after the other.
fn remembered(paths: &Paths, agents: &[Agent], libraries: &[String]) -> Result<()> {
    let _reads = agents.iter().map(Counter::connect).collect::<Result<Vec<_>>>()?;
    for library in libraries.iter().cycle().take(REMEMBERED) {
        Load::start(paths, library, "memory")?.rate(1 << 10, 1000, 2)?;
    }
    Ok(())
}

/// One cycle's load.
fn cycle(paths: &Paths, agents: &[Agent], libraries: &[String]) -> Result<()> {
    let end = Instant::now() + LOADED;
    // For all of the cycle: one client that reads, and one that never does.
    let _reads = agents.iter().map(Counter::connect).collect::<Result<Vec<_>>>()?;
    let _stuck = agents.iter().map(|agent| agent.connect("/")).collect::<Result<Vec<_>>>()?;
    let mut turn = 0;
    while Instant::now() < end {
        let library = &libraries[turn % libraries.len()];
        let (size, rate, milliseconds) = LOADS[turn % LOADS.len()];
        let transport = if (turn / 3).is_multiple_of(2) { "memory" } else { "tcp" };
        let guests = agents.iter().cycle().take(agents.len() * (1 + turn % 7));
        let crowd = guests.map(Counter::connect).collect::<Result<Vec<_>>>()?;
        // Now and then a copy of the library, which is gone when its process is.
        let folder = paths.certificate.join(format!("copy-{turn}"));
        let copied = turn.is_multiple_of(4);
        let library = if copied { copy(library, &folder)? } else { library.clone() };
        let mut load = Load::start(paths, &library, transport)?;
        if copied {
            fs::remove_dir_all(&folder)?;
            // Until it is found.
            thread::sleep(Duration::from_secs(2));
        }
        load.rate(size, rate, milliseconds)?;
        drop(crowd);
        turn += 1;
    }
    Ok(())
}

/// Copies a library, and the others beside it that it needs, into a new folder.
fn copy(library: &str, folder: &Path) -> Result<String> {
    fs::create_dir_all(folder)?;
    let source = Path::new(library);
    for file in fs::read_dir(source.parent().context("a library without a folder")?)? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    let copy = folder.join(source.file_name().context("a library without a name")?);
    Ok(copy.to_string_lossy().into_owned())
}
