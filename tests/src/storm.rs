//! The storm (`driver/storm.c`): many TLS connections at once, between many threads, over real libraries.
//!
//! Nothing that it sends is kept. A byte follows from the seed, its connection, the side that wrote it and its place:
//! [`Pattern`] computes it here as the program does there.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::driver::{self, Connection, Side};
use crate::need;
use crate::process::Process;

/// A pattern's table, in bytes: a prime, so that no two places look alike.
const TABLE: usize = 65_521;

/// How much further the table is turned in each block.
const TURN: u64 = 7919;

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// A bijection of words whose outputs look unrelated. Source: splitmix64, public domain.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next one, from `low` to `high`, both included.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + (self.word() % u64::from(high - low + 1)) as u32
    }
}

/// The bytes that one side writes on one connection: blocks, each the same table turned by another amount, so that
/// comparing is all that is to be done for each payload.
#[derive(Clone, Debug)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// What `writer` writes on the connection `number` of the storm of `seed`.
    pub fn of(seed: u64, number: u32, writer: Side) -> Self {
        let side = match writer {
            Side::Client => 1,
            Side::Server => 2,
        };
        let mut random = Random::new(mix(seed ^ mix(u64::from(number) * 2 + side)));
        let words = (0..TABLE.div_ceil(8)).flat_map(|_| random.word().to_le_bytes());
        Self(words.take(TABLE).collect())
    }

    /// The first place in `bytes`, which should stand at `offset`, that is different.
    pub fn difference(&self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let offset = offset + done as u64;
            let (block, place) = (offset / TABLE as u64, (offset % TABLE as u64) as usize);
            let turned = ((place as u64 + block * TURN) % TABLE as u64) as usize;
            let run = (TABLE - place.max(turned)).min(bytes.len() - done);
            let (expected, got) = (&self.0[turned..turned + run], &bytes[done..done + run]);
            if expected != got {
                return expected.iter().zip(got).position(|(a, b)| a != b).map(|place| done + place);
            }
            done += run;
        }
        None
    }
}

/// Part of a storm, in which as many connections as it says are opened, used and closed.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// 1 to 16.
    pub connections: u32,
    /// At each end, 1 to 8.
    pub threads: u32,
    /// Messages a second over all connections; 0: as many as will go.
    pub rate: u32,
    /// How long new messages are begun.
    pub duration: Duration,
}

/// What a round uses.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The threads' ids.
    pub threads: Vec<(u32, Side)>,
    /// The connections, all of which are open.
    pub connections: Vec<Connection>,
}

/// What went over one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// The connection's number.
    pub number: u32,
    /// The end.
    pub side: Side,
    /// Bytes that the library took.
    pub written: u64,
    /// Bytes that the library gave.
    pub read: u64,
}

/// A running storm.
pub struct Storm {
    process: Process,
    /// Lines before this one are of earlier rounds.
    first_line: usize,
    _certificate: TempDir,
}

impl Storm {
    /// Starts the program. Its rounds use `libraries` in turn; it is quiet until the first one.
    pub fn start(seed: u64, libraries: &[&str]) -> Result<Self> {
        let certificate = driver::certificate()?;
        // Those who have to keep up with it come before it.
        let mut command = Command::new(need::program("nice", "coreutils")?);
        command.args(["-n", "10", env!("PLAINTAP_STORM")]);
        command.args(["--seed", &seed.to_string()]);
        command.arg("--cert").arg(certificate.path().join("cert.pem"));
        command.arg("--key").arg(certificate.path().join("key.pem"));
        for library in libraries {
            command.args(["--lib", need::library(library)?]);
        }
        let mut storm =
            Self { process: Process::start(&mut command)?, first_line: 0, _certificate: certificate };
        storm.first_line = storm.wait_for("ready ")?;
        Ok(storm)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Begins a round, and waits until all its connections are open. No byte was written before.
    pub fn begin(&mut self, round: &Round) -> Result<Opened> {
        let Round { connections, threads, rate, duration } = round;
        let line = format!("{connections} {threads} {rate} {}\n", duration.as_millis());
        self.process.write(line.as_bytes())?;
        let end = self.wait_for("running")?;
        let lines = self.process.stdout.all();
        let mut opened = Opened { threads: Vec::new(), connections: Vec::new() };
        for line in &lines[self.first_line..end] {
            match line.split(' ').next() {
                Some("thread") => opened.threads.push((driver::fact(line, "tid")?, side(line)?)),
                Some("connection") => opened.connections.push(driver::connection(line)?),
                _ => {}
            }
        }
        self.first_line = end;
        Ok(opened)
    }

    /// What went over the connections of the round, once it is over: they are closed then.
    pub fn ended(&mut self) -> Result<Option<Vec<Total>>> {
        let lines = self.process.stdout.all();
        let lines = &lines[self.first_line..];
        if !lines.last().is_some_and(|line| line.starts_with("done ")) {
            if let Some(status) = self.process.ended()? {
                bail!("the storm ended with {status}: {}", self.process.stderr.all().join("; "));
            }
            return Ok(None);
        }
        let totals = lines.iter().filter(|line| line.starts_with("total "));
        let totals = totals.map(|line| total(line)).collect::<Result<Vec<_>>>()?;
        self.first_line += lines.len();
        Ok(Some(totals))
    }

    /// Ends the program; an error if anything went wrong there.
    pub fn quit(mut self) -> Result<()> {
        self.process.close_input();
        let status = self.process.wait()?;
        ensure!(status.success(), "the storm ended with {status}: {}", self.process.stderr.all().join("; "));
        Ok(())
    }

    /// Waits for a line that starts so; the number of the one behind it.
    fn wait_for(&self, start: &str) -> Result<usize> {
        let found = self.process.stdout.wait_for(self.first_line, start, |line| line.starts_with(start));
        let complaints = || format!("the storm said: {}", self.process.stderr.all().join("; "));
        Ok(found.with_context(complaints)?.0 + 1)
    }
}

fn side(line: &str) -> Result<Side> {
    match driver::fact::<String>(line, "side")?.as_str() {
        "client" => Ok(Side::Client),
        "server" => Ok(Side::Server),
        other => bail!("{other} is no side: {line}"),
    }
}

fn total(line: &str) -> Result<Total> {
    Ok(Total {
        number: driver::fact(line, "number")?,
        side: side(line)?,
        written: driver::fact(line, "written")?,
        read: driver::fact(line, "read")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BORINGSSL, OPENSSL, until};

    #[test]
    fn a_round_moves_bytes_both_ways_over_every_connection() {
        let mut storm = Storm::start(1, &[BORINGSSL, OPENSSL]).unwrap();
        let mut first = 0;
        for (connections, threads) in [(3, 2), (1, 1)] {
            let round = Round { connections, threads, rate: 0, duration: Duration::from_secs(1) };
            let opened = storm.begin(&round).unwrap();
            assert_eq!(opened.threads.len(), 2 * threads as usize);
            let numbers: Vec<u32> = opened.connections.iter().map(|connection| connection.number).collect();
            assert_eq!(numbers, (first..first + connections).collect::<Vec<_>>());
            let totals = until("the round's end", || storm.ended()).unwrap();
            assert_eq!(totals.len(), 2 * connections as usize);
            for pair in totals.chunks(2) {
                assert!(pair[0].written > 0 && pair[0].written == pair[1].read, "{pair:?}");
                assert!(pair[1].written > 0 && pair[1].written == pair[0].read, "{pair:?}");
            }
            first += connections;
        }
        storm.quit().unwrap();
    }

    #[test]
    fn a_difference_is_found_wherever_the_bytes_begin() {
        let pattern = Pattern::of(7, 3, Side::Server);
        let turn = TURN as usize;
        let all = [&pattern.0[..], &pattern.0[turn..], &pattern.0[..turn], &pattern.0[2 * turn..]].concat();
        for offset in [0, 1, TABLE - 15, TABLE, 2 * TABLE - turn - 3, 2 * TABLE - 1] {
            let mut bytes = all[offset..offset + 30].to_vec();
            assert_eq!(pattern.difference(offset as u64, &bytes), None);
            assert!(pattern.difference(offset as u64 + TABLE as u64, &bytes).is_some());
            bytes[29] ^= 1;
            assert_eq!(pattern.difference(offset as u64, &bytes), Some(29));
        }
        assert!(Pattern::of(7, 3, Side::Client).difference(0, &all).is_some());
        assert_eq!(pattern.difference(0, &all), None);
    }
}
