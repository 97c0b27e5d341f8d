//! Devices that are none: recordings of their own, each served by a `plaintap replay`, as if it happened now.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    process::{Running, cpu_ns},
    recording,
};

/// What each device says: so many events, so far apart.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// How many.
    pub events: u64,
    /// Events a second; none: as many as are taken.
    pub rate: Option<u64>,
}

/// Running devices; ended when dropped.
pub struct Fleet(Vec<Device>);

struct Device {
    process: Running,
    url: String,
    /// Kept open: it says some lines more.
    _log: BufReader<ChildStderr>,
}

impl Fleet {
    /// Starts `devices` of them and waits until all listen; their recordings are in `folder` meanwhile.
    pub fn start(plaintap: &Path, folder: &Path, devices: usize, said: Said) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        // All at once, then the lines of all: one after the other takes longer.
        let mut starting = Vec::new();
        for index in 0..devices {
            let path = recorded(folder, index, said)?;
            let mut command = Command::new(plaintap);
            command.arg("replay").arg(path).args(["--now", "--listen", "ws://127.0.0.1:0/"]);
            if said.rate.is_none() {
                command.args(["--speed", "max"]);
            }
            let mut process = Running::start(command.stdin(Stdio::null()).stderr(Stdio::piped()))?;
            let log = process.stderr()?;
            starting.push((process, BufReader::new(log)));
        }
        let mut all = Vec::new();
        for (process, mut log) in starting {
            let mut line = String::new();
            ensure!(log.read_line(&mut line)? > 0, "plaintap replay ended");
            let url = line.split_whitespace().find(|word| word.starts_with("ws://"));
            let url = url.with_context(|| format!("plaintap replay says {line}"))?.to_owned();
            all.push(Device { process, url, _log: log });
        }
        Ok(Self(all))
    }

    /// Where each listens, in their order.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|device| device.url.as_str())
    }

    /// What all have used of processors so far, in ns.
    pub fn cpu_ns(&self) -> Result<u64> {
        self.0.iter().map(|device| cpu_ns(device.process.id())).sum()
    }
}

fn recorded(folder: &Path, index: usize, said: Said) -> Result<PathBuf> {
    let path = folder.join(format!("{index}.pb"));
    let between = Duration::from_nanos(1_000_000_000 / said.rate.unwrap_or(1_000).max(1));
    // All connect at the same moment. So they speak some seconds later, and each at another moment of an interval; the golden
    // section divides it evenly, however many there are.
    let phase = between.mul_f64((index as f64 * 0.618_033_988_749_895).fract());
    recording::write_device(&path, index, said.events, between, Duration::from_secs(4) + phase)?;
    Ok(path)
}
