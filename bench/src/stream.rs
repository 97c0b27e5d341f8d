//! What 1, 8 and 64 clients get: how much at most, how late, and what that costs the agent.
//!
//! The most is measured with a burst that the journal holds in full: its events, by the time until the last client has all of
//! them. One client of each crowd looks at what comes; the others count bytes, as all get the same.

use std::{
    io::{BufReader, ErrorKind, Read},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail, ensure};
use plaintap_proto::{Event, LogEntry, log_entry::Payload};
use prost::Message;

use crate::{
    Paths,
    agent::{self, Agent},
    cost::bytes,
    load::Load,
    process::{cpu_ns, status, switches},
};

const CROWDS: [usize; 3] = [1, 8, 64];
/// Bytes of a write, and how long the load makes as many as it can, for a crowd of one, in milliseconds: less than the ring and
/// the journal hold.
const BURSTS: [(u32, u64); 2] = [(64, 300), (4 << 10, 40)];
/// Events a second whose latency is measured, and their size.
const RATE: u64 = 200;
const LATENCY_SIZE: u32 = 1 << 10;
/// Until the last client has everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// No log lines: all clients get the same.
const TARGET: &str = "/?logs=0";

/// A client that counts what it gets; ended when dropped.
pub struct Counter {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Counter {
    /// Connects it.
    pub fn connect(agent: &Agent) -> Result<Self> {
        let stream = agent.connect(TARGET)?;
        let bytes = Arc::new(AtomicU64::new(0));
        let (mut reading, counted) = (stream.try_clone()?, Arc::clone(&bytes));
        let reader = thread::spawn(move || {
            let mut sink = vec![0; 256 << 10];
            while let Ok(length @ 1..) = reading.read(&mut sink) {
                counted.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { stream, bytes, reader: Some(reader) })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A client that looks at the events that it gets.
pub struct Looker(BufReader<TcpStream>);

impl Looker {
    /// Connects it.
    pub fn connect(agent: &Agent) -> Result<Self> {
        let stream = agent.connect(TARGET)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(Self(BufReader::with_capacity(256 << 10, stream)))
    }

    /// The next event and the length of its message; none if nothing came for long.
    pub fn event(&mut self) -> Result<Option<(Event, usize)>> {
        loop {
            let message = match agent::message(&mut self.0) {
                Ok(message) => message,
                Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                    Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                    _ => return Err(error),
                },
            };
            if let Some(Payload::EventPayload(event)) = LogEntry::decode(&message[..])?.payload {
                return Ok(Some((event, message.len())));
            }
        }
    }
}

/// Measures and prints the tables; latency for `milliseconds` each, and six times as long at rest before.
pub fn run(paths: &Paths, library: &str, milliseconds: u64) -> Result<()> {
    println!("### The most that clients get\n");
    println!(
        "| write | clients | events | events/s to each | events/s to all | MB/s to all | agent CPU µs an event | \
         µs an event and client | lost |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (size, milliseconds) in BURSTS {
        for clients in CROWDS {
            most(paths, library, size, milliseconds / (1 + clients as u64 / 16), clients)?;
        }
    }
    println!("\n### How late, at {RATE} events of {} a second\n", bytes(LATENCY_SIZE));
    println!(
        "| clients | events | p50 ms | p99 ms | most ms | agent CPU µs an event | RssAnon KiB | wakeups a second at rest |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for clients in CROWDS {
        latency(paths, library, clients, milliseconds)?;
    }
    Ok(())
}

fn most(paths: &Paths, library: &str, size: u32, milliseconds: u64, clients: usize) -> Result<()> {
    let mut load = Load::start(paths, library, "memory")?;
    let flags = ["--journal-size", "1024M", "--ring-size", "64M"];
    let agent = Agent::without_client(&paths.agent, load.pid(), library, &flags)?;
    let serving = agent.serving()?;
    let mut looker = Looker::connect(&agent)?;
    let counters = (1..clients).map(|_| Counter::connect(&agent)).collect::<Result<Vec<_>>>()?;
    let (cpu, start) = (cpu_ns(serving)?, Instant::now());
    // Its own thread: what is captured is to be read meanwhile.
    let loading = thread::spawn(move || load.rate(size, 0, milliseconds).map(|[calls, _]| (load, calls)));
    let (mut events, mut came, mut lost, mut end, mut all) = (0u64, 0u64, 0u64, 0u64, None);
    let mut loading = Some(loading);
    while all.is_none_or(|all| end < all) {
        if loading.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(loading) = loading.take()
        {
            let (_, calls) = loading.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
            all = Some(calls as u64 * u64::from(size));
            continue;
        }
        let Some((event, length)) = looker.event()? else { break };
        events += 1;
        // The frame's head has 4 bytes for messages from 126 bytes to 64 KiB, and 2 below.
        came += length as u64 + if length < 126 { 2 } else { 4 };
        lost += event.lost_before;
        end = event.stream_offset + u64::from(event.length);
    }
    let deadline = Instant::now() + PATIENCE;
    while counters.iter().any(|counter| counter.bytes.load(Ordering::Relaxed) < came) {
        ensure!(Instant::now() < deadline, "a client did not get all of {events} events in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = (cpu_ns(serving)? - cpu) as f64 / 1e3 / events as f64;
    let (rate, crowd) = (events as f64 / seconds, clients as f64);
    println!(
        "| {} | {clients} | {events} | {rate:.0} | {:.0} | {:.1} | {each:.2} | {:.2} | {} |",
        bytes(size),
        rate * crowd,
        came as f64 / seconds * crowd / 1e6,
        each / crowd,
        lost / u64::from(size),
    );
    Ok(())
}

fn latency(paths: &Paths, library: &str, clients: usize, milliseconds: u64) -> Result<()> {
    let mut load = Load::start(paths, library, "memory")?;
    let agent = Agent::without_client(&paths.agent, load.pid(), library, &[])?;
    let serving = agent.serving()?;
    let counters = (1..clients).map(|_| Counter::connect(&agent)).collect::<Result<Vec<_>>>()?;
    // The last in the row.
    let mut looker = Looker::connect(&agent)?;
    // What it does once after clients have come is not what it does when idle.
    thread::sleep(Duration::from_secs(1));
    let before = switches(serving)?;
    // Its timers for clients run 10 and 15 seconds.
    let rest = Duration::from_millis(6 * milliseconds);
    thread::sleep(rest);
    let wakeups = (switches(serving)? - before) as f64 / rest.as_secs_f64();
    let cpu = cpu_ns(serving)?;
    let loading = thread::spawn(move || load.rate(LATENCY_SIZE, RATE, milliseconds).map(|_| load));
    let mut late = Vec::new();
    while late.len() as u64 + 1 < RATE * milliseconds / 1000 {
        let Some((event, _)) = looker.event()? else { break };
        // The event's time is that of the call's return.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        late.push(now.saturating_sub(u128::try_from(event.timestamp)?) as f64 / 1e6);
    }
    let each = (cpu_ns(serving)? - cpu) as f64 / 1e3 / late.len().max(1) as f64;
    let _load = loading.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
    late.sort_by(f64::total_cmp);
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| late.get(((late.len() - 1) as f64 * part) as usize));
    let (Some(p50), Some(p99), Some(most)) = (p50, p99, most) else { bail!("no event came") };
    println!(
        "| {clients} | {} | {p50:.3} | {p99:.3} | {most:.3} | {each:.1} | {} | {wakeups:.2} |",
        late.len(),
        status(serving, "RssAnon")?,
    );
    drop(counters);
    Ok(())
}
