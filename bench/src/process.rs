//! What a process has and uses, as /proc tells; and processes of our own.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, ChildStderr, Command},
};

use anyhow::{Context, Result};

/// A process of ours; ended when dropped.
pub struct Running(Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// What it says, if that is piped; once.
    pub fn stderr(&mut self) -> Result<ChildStderr> {
        self.0.stderr.take().context("no stderr")
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
            held.pss += pss(pid)?;
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

/// How long the machine's processors had nothing to do, and how long they have run, in ticks of all together.
pub fn idle_ticks() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let ticks = ticks.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // The fourth and fifth: idle, and waiting for a disk.
    Ok((ticks.iter().skip(3).take(2).sum(), ticks.iter().sum()))
}

/// What a process has of all memory that it has mapped, in KiB, where what is shared is divided.
pub fn pss(pid: u32) -> Result<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss")
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
