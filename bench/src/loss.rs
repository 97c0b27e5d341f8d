//! From which rate of writes on the default ring overflows: what was captured and lost, by the agent's own heartbeats.

use std::{thread, time::Duration};

use anyhow::Result;

use crate::{Paths, agent::Agent, cost::bytes, load::Load};

const SIZES: [u32; 3] = [64, 4 << 10, 16 << 10];
/// Writes a second; 0: as fast as the load can.
const RATES: [u64; 10] = [2_000, 5_000, 10_000, 20_000, 30_000, 40_000, 60_000, 80_000, 100_000, 0];

/// Measures and prints a table.
pub fn run(paths: &Paths, library: &str, milliseconds: u64) -> Result<()> {
    println!("| write | wanted a second | done a second | MB/s | captured | lost | lost % |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for size in SIZES {
        let mut load = Load::start(paths, library, "memory")?;
        let agent = Agent::start(&paths.agent, load.pid(), library)?;
        let mut before = agent.totals()?;
        let mut at_its_end = false;
        for wanted in RATES {
            // More than the load could do the last time says nothing new.
            if at_its_end && wanted != 0 {
                continue;
            }
            let [calls, ns] = load.rate(size, wanted, milliseconds)?;
            let done = calls / ns * 1e9;
            // The ring holds 4 MiB at most.
            thread::sleep(Duration::from_millis(700));
            let after = agent.totals()?;
            let captured = after.captured_events - before.captured_events;
            let lost = after.lost_events - before.lost_events;
            let wanted_text = if wanted == 0 { "all".to_owned() } else { wanted.to_string() };
            println!(
                "| {} | {wanted_text} | {done:.0} | {:.1} | {captured} | {lost} | {:.2} |",
                bytes(size),
                done * f64::from(size) / 1e6,
                100.0 * lost as f64 / (captured + lost).max(1) as f64,
            );
            at_its_end |= done < 0.9 * wanted as f64;
            before = after;
        }
    }
    Ok(())
}
