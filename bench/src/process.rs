//! What a process has and uses, as /proc tells.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// What the two halves of an agent have, together; sizes in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Memory of their own.
    pub anon: u64,
    /// That of each.
    pub halves: [u64; 2],
    /// Their share of all memory that they have mapped: their file, the ring.
    pub pss: u64,
    /// Maps and programs, in the kernel.
    pub kernel: u64,
    /// How many maps that are.
    pub maps: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Held {
    /// What the processes `pids` have.
    pub fn by(pids: [u32; 2]) -> Result<Self> {
        let (mut held, mut objects) = (Self::default(), BTreeMap::new());
        for (half, pid) in pids.into_iter().enumerate() {
            held.halves[half] = status(pid, "RssAnon")?;
            held.threads += status(pid, "Threads")?;
            held.pss += field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss")?;
            for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
                // It may be closed while we look.
                let Ok(text) = fs::read_to_string(file?.path()) else { continue };
                held.descriptors += 1;
                for kind in ["map_id", "prog_id"] {
                    if let (Ok(id), Ok(bytes)) = (field(&text, kind), field(&text, "memlock")) {
                        objects.insert((kind, id), bytes);
                    }
                }
            }
        }
        held.anon = held.halves.iter().sum();
        held.maps = objects.keys().filter(|(kind, _)| *kind == "map_id").count() as u64;
        held.kernel = objects.values().sum::<u64>() >> 10;
        Ok(held)
    }
}

/// What a process has used of processors so far. Source: linux, Documentation/scheduler/sched-stats.rst.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        all += text.split(' ').next().unwrap_or_default().parse::<u64>().context("schedstat")?;
    }
    Ok(all)
}

/// How often a process gave up its processor to wait.
pub fn switches(pid: u32) -> Result<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        all += field(&text, "voluntary_ctxt_switches")?;
    }
    Ok(all)
}

/// A number of /proc/PID/status, in KiB where it is a size.
pub fn status(pid: u32, name: &str) -> Result<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/status"))?, name)
}

fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.and_then(|value| value.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name}"))
}
