//! Many devices through one `plaintap relay` into one nats-server, all on this machine: what that costs, how late a reader of
//! the stream has it, and whether all of it is there.
//!
//! One thread reads the stream and looks at the clock; what others have used is read before and after a window of time in which
//! all devices speak.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::Message;

use crate::{
    fleet::{Fleet, Said},
    metrics::Histogram,
    nats::{Connection, Nats},
    process::{Running, cpu_ns, idle_ticks, pss, status},
    recording::FIRST_EVENT,
};

/// A device's events a second, unless said otherwise.
const RATE: u64 = 20;
/// How many seconds the devices speak beyond the window: until all have begun, and until the window begins.
const MORE: u64 = 15;
/// Of the device that speaks as fast as it can.
const MOST_EVENTS: u64 = 200_000;
/// Seconds that each device has spoken before the window begins.
const WARM_UP: u64 = 1;
/// Reading what all have used takes time, in which nobody reads the stream: what comes so soon after is not counted as late.
const SETTLED: Duration = Duration::from_secs(1);
/// Until something comes that must.
const PATIENCE: Duration = Duration::from_secs(60);
/// All that is said must be stored by then.
const LONGEST: Duration = Duration::from_secs(300);
const STREAM: &str = "PLAINTAP";

/// Measures and prints two tables: a row for each of `cases`, which are a number of devices, or `DEVICES@RATE`, and one for a
/// single device without pauses.
pub fn run(plaintap: &Path, folder: &Path, seconds: u64, cases: &[String]) -> Result<()> {
    let mut wanted = Vec::new();
    for case in cases {
        let (devices, rate) = case.split_once('@').unwrap_or((case, ""));
        let rate = if rate.is_empty() { RATE } else { rate.parse()? };
        let said = Said { events: rate * (seconds + MORE), rate: Some(rate) };
        wanted.push((devices.parse().with_context(|| format!("{case} is no number of devices"))?, said));
    }
    wanted.push((1, Said { events: MOST_EVENTS, rate: None }));
    let mut rows = Vec::new();
    for (devices, said) in wanted {
        eprintln!("{devices} devices, {} events each", said.events);
        let row = measure(plaintap, folder, seconds, devices, said);
        rows.push(row.with_context(|| format!("with {devices} devices: {}", last_line(folder)))?);
    }
    print(&rows);
    Ok(())
}

/// What the relay said last.
fn last_line(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("relay.log")).unwrap_or_default();
    log.lines().last().unwrap_or_default().to_owned()
}

/// The reader, and what it has read.
struct Reader {
    connection: Connection,
    /// By device, the number of the event that came last.
    last: HashMap<String, u64>,
    /// How late each event was, in ms.
    late: Vec<f64>,
    gaps: u64,
}

impl Reader {
    /// Reads one message, or waits a moment for one.
    fn step(&mut self) -> Result<()> {
        let Some(message) = self.connection.message(Duration::from_millis(50))? else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        if message.headers.contains("Plaintap-Gap:") {
            self.gaps += 1;
        }
        let entry = LogEntry::decode(&message.body[..]).context("what is stored")?;
        let Some(Payload::EventPayload(event)) = entry.payload else { return Ok(()) };
        let last = self.last.entry(message.subject).or_insert(FIRST_EVENT - 1);
        ensure!(entry.seq == *last + 1, "event {} comes after event {last}", entry.seq);
        *last = entry.seq;
        // By clocks of one machine; where the reader was faster than the clock's step, not at all.
        self.late.push(now.saturating_sub(u128::try_from(event.timestamp)?) as f64 / 1e6);
        Ok(())
    }

    /// How many devices have said at least so many events.
    fn have_said(&self, events: u64) -> usize {
        self.last.values().filter(|last| **last >= events + FIRST_EVENT - 1).count()
    }

    fn events(&self) -> u64 {
        self.last.values().map(|last| last + 1 - FIRST_EVENT).sum()
    }
}

/// All that runs.
struct Setup {
    fleet: Fleet,
    relay: Running,
    metrics: Option<u16>,
    nats: Nats,
}

/// What has been used and done up to a moment.
struct Used {
    at: Instant,
    relay: u64,
    nats: u64,
    fleet: u64,
    own: u64,
    idle: (u64, u64),
    stored: u64,
}

impl Setup {
    fn start(plaintap: &Path, folder: &Path, devices: usize, said: Said) -> Result<Self> {
        let nats = Nats::start(&folder.join("nats"))?;
        let fleet = Fleet::start(plaintap, &folder.join("devices"), devices, said)?;
        let mut command = Command::new(plaintap);
        // A quarter of the disk may be less than what a stream is made with.
        command.args(["relay", "--to", &nats.url(), "--stream", STREAM, "--max-bytes", "4G"]);
        for (index, url) in fleet.urls().enumerate() {
            command.args(["--from", &format!("{}={url}", name(index))]);
        }
        let metrics = metrics_port(plaintap)?;
        if let Some(port) = metrics {
            command.args(["--metrics", &format!("127.0.0.1:{port}")]);
        }
        let relay =
            Running::start(command.stdin(Stdio::null()).stderr(File::create(folder.join("relay.log"))?))?;
        Ok(Self { fleet, relay, metrics, nats })
    }

    /// A reader, once the relay has made the stream.
    fn reader(&mut self) -> Result<Reader> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.nats.reader(STREAM) {
                Ok(connection) => {
                    return Ok(Reader { connection, last: HashMap::new(), late: Vec::new(), gaps: 0 });
                }
                Err(error) if Instant::now() > end || self.relay.ended()? => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn used(&self) -> Result<Used> {
        let info = self.nats.connect()?.request(&format!("$JS.API.STREAM.INFO.{STREAM}"), "")?;
        Ok(Used {
            at: Instant::now(),
            relay: cpu_ns(self.relay.id())?,
            nats: cpu_ns(self.nats.id())?,
            fleet: self.fleet.cpu_ns()?,
            own: cpu_ns(std::process::id())?,
            idle: idle_ticks()?,
            stored: info["state"]["last_seq"].as_u64().with_context(|| format!("no last_seq in {info}"))?,
        })
    }

    /// How long publishes have taken so far, if the relay tells that. Telling it for many devices takes some time of its own.
    fn publishes(&self) -> Result<Option<Histogram>> {
        self.metrics.map(Histogram::of_publishes).transpose()
    }

    /// Whether each device's subject holds all of its events and nothing else; returns bytes a message.
    fn check(&self, devices: usize, events: u64) -> Result<f64> {
        let filter = "{\"subjects_filter\":\"plaintap.*.event\"}";
        let info = self.nats.connect()?.request(&format!("$JS.API.STREAM.INFO.{STREAM}"), filter)?;
        let state = &info["state"];
        for index in 0..devices {
            let subject = format!("plaintap.{}.event", name(index));
            let stored = state["subjects"][&subject].as_u64();
            ensure!(stored == Some(events), "{subject} holds {stored:?} messages of {events}");
        }
        let number = |name: &str| state[name].as_f64().with_context(|| format!("no {name} in {info}"));
        Ok(number("bytes")? / number("messages")?)
    }
}

fn name(index: usize) -> String {
    format!("device-{index}")
}

/// Where the relay tells of itself, if it is one that can.
fn metrics_port(plaintap: &Path) -> Result<Option<u16>> {
    let help = Command::new(plaintap).args(["relay", "--help"]).output()?;
    if !String::from_utf8_lossy(&help.stdout).contains("--metrics") {
        return Ok(None);
    }
    Ok(Some(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port()))
}

/// A row of the tables.
struct Row {
    devices: usize,
    /// Events a second; none: as many as are taken.
    wanted: Option<u64>,
    stored: f64,
    /// Parts of one processor.
    relay: f64,
    nats: f64,
    fleet: f64,
    own: f64,
    others: f64,
    idle: f64,
    relay_rss: u64,
    relay_pss: u64,
    threads: u64,
    nats_rss: u64,
    /// Milliseconds: half of the publishes, and 99 of 100.
    publish: Option<[String; 2]>,
    /// Milliseconds: half of the events, 99 of 100, all.
    late: [f64; 3],
    message_bytes: f64,
    total: u64,
}

fn measure(plaintap: &Path, folder: &Path, seconds: u64, devices: usize, said: Said) -> Result<Row> {
    let store = folder.join("nats");
    let _ = fs::remove_dir_all(&store);
    fs::create_dir_all(&store)?;
    let mut setup = Setup::start(plaintap, folder, devices, said)?;
    let mut reader = setup.reader()?;
    let (warm, end) = (WARM_UP * said.rate.unwrap_or(RATE), Instant::now() + PATIENCE);
    while reader.have_said(warm) < devices {
        reader.step()?;
        if Instant::now() > end {
            bail!("only {} devices have said {warm} events", reader.have_said(warm));
        }
    }
    eprintln!("all speak, {} events so far", reader.events());

    let publishes_before = setup.publishes()?;
    let before = setup.used()?;
    while before.at.elapsed() < SETTLED {
        reader.step()?;
    }
    reader.late.clear();
    while before.at.elapsed() < Duration::from_secs(seconds) && reader.have_said(said.events) == 0 {
        reader.step()?;
    }
    let mut late = std::mem::take(&mut reader.late);
    let (threads, relay_rss) = (status(setup.relay.id(), "Threads")?, status(setup.relay.id(), "VmRSS")?);
    let (relay_pss, nats_rss) = (pss(setup.relay.id())?, status(setup.nats.id(), "VmRSS")?);
    let after = setup.used()?;
    let publishes = setup.publishes()?;
    eprintln!("measured, {} events so far", reader.events());

    let end = Instant::now() + LONGEST;
    while reader.have_said(said.events) < devices {
        reader.step()?;
        if Instant::now() > end {
            bail!("only {} of {} events", reader.events(), said.events * devices as u64);
        }
    }
    ensure!(reader.gaps == 0, "{} gaps", reader.gaps);
    let message_bytes = setup.check(devices, said.events)?;
    eprintln!("all is there");

    let time = after.at - before.at;
    let part = |before: u64, after: u64| after.saturating_sub(before) as f64 / time.as_nanos() as f64;
    late.sort_by(f64::total_cmp);
    let late = [0.5, 0.99, 1.0].map(|part| late.get((late.len().saturating_sub(1) as f64 * part) as usize));
    let [Some(p50), Some(p99), Some(most)] = late else { bail!("no event came in the window") };
    let publish = publishes
        .zip(publishes_before)
        .and_then(|(after, before)| Some([after.within_ms(&before, 0.5)?, after.within_ms(&before, 0.99)?]));
    let processors = thread::available_parallelism()?.get() as f64;
    let ticks = (after.idle.1 - before.idle.1).max(1) as f64;
    let idle = (after.idle.0 - before.idle.0) as f64 / ticks * processors;
    let [relay, nats, fleet, own] = [
        part(before.relay, after.relay),
        part(before.nats, after.nats),
        part(before.fleet, after.fleet),
        part(before.own, after.own),
    ];
    Ok(Row {
        devices,
        wanted: said.rate.map(|rate| rate * devices as u64),
        stored: (after.stored - before.stored) as f64 / time.as_secs_f64(),
        relay,
        nats,
        fleet,
        own,
        others: (processors - idle - relay - nats - fleet - own).max(0.0),
        idle,
        relay_rss,
        relay_pss,
        threads,
        nats_rss,
        publish,
        late: [*p50, *p99, *most],
        message_bytes,
        total: said.events * devices as u64,
    })
}

fn print(rows: &[Row]) {
    println!(
        "| devices | events/s wanted | stored | relay: CPU % | per 1,000/s | RSS MiB | PSS MiB | threads | nats-server: CPU % | \
         per 1,000/s | RSS MiB |"
    );
    println!("|---|{}", "---:|".repeat(10));
    for row in rows {
        let each = |part: f64| part * 100.0 / row.stored * 1000.0;
        println!(
            "| {} | {} | {:.0} | {:.1} | {:.2} | {:.1} | {:.1} | {} | {:.1} | {:.2} | {:.1} |",
            row.devices,
            row.wanted.map_or("all it can".to_owned(), |wanted| wanted.to_string()),
            row.stored,
            row.relay * 100.0,
            each(row.relay),
            row.relay_rss as f64 / 1024.0,
            row.relay_pss as f64 / 1024.0,
            row.threads,
            row.nats * 100.0,
            each(row.nats),
            row.nats_rss as f64 / 1024.0,
        );
    }
    println!();
    println!(
        "| devices | events in all | missing | publish ms: p50 | p99 | late ms: p50 | p99 | most | replayers: CPU % | reader | \
         all others | idle |"
    );
    println!("|---|{}", "---:|".repeat(11));
    for row in rows {
        let publish = row.publish.as_ref().map_or("- | -".to_owned(), |parts| parts.join(" | "));
        let late = match row.wanted {
            Some(_) => format!("{:.2} | {:.2} | {:.1}", row.late[0], row.late[1], row.late[2]),
            // It waits in the sockets' buffers.
            None => "- | - | -".to_owned(),
        };
        println!(
            "| {} | {} | 0 | {publish} | {late} | {:.1} | {:.1} | {:.1} | {:.1} |",
            row.devices,
            row.total,
            row.fleet * 100.0,
            row.own * 100.0,
            row.others * 100.0,
            row.idle * 100.0,
        );
    }
    println!();
    let bytes = rows.iter().map(|row| row.message_bytes).fold(0.0, f64::max);
    println!("CPU % is of one processor. A message has {bytes:.0} bytes in the stream.");
}
