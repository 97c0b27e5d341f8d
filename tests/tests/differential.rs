//! The stream against the transcript: what a storm of connections carried is there byte for byte, or said to be lost.
//!
//! Every payload is compared as it comes, with what the storm says its bytes must be at that offset of that connection;
//! kept are only counts. In the end the counts must meet the storm's, each missing byte must have been declared once, and
//! the agent's own totals must say the same.
//!
//! `PLAINTAP_STORM_SECONDS` is the length of each run (10), `PLAINTAP_STORM_SEED` repeats one; a run prints its seed.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use plaintap_proto::{Direction, Event, Heartbeat};
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::PIECE;
use plaintap_tests::driver::Side;
use plaintap_tests::storm::{Opened, Pattern, Random, Round, Storm, Total};
use plaintap_tests::stream::{Client, Received};
use plaintap_tests::{BORINGSSL, OPENSSL, PATIENCE, process, until};

/// How long the agent is held in the run that holds it.
const HELD: Duration = Duration::from_secs(3);

/// How far the client may be behind before the storm waits for it, and how far when the storm goes on.
const BEHIND: Duration = Duration::from_millis(30);
const CAUGHT_UP: Duration = Duration::from_millis(10);

/// How many batches without an event say that the client has all.
const QUIET: u32 = 4;

/// How many messages are looked at before the client asks how far behind it is.
const BATCH: usize = 256;

/// One way of one end of a connection: what the agent calls a connection is one end here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Way {
    number: u32,
    side: Side,
    direction: Direction,
}

impl Way {
    /// The side that wrote what goes this way.
    fn writer(self) -> Side {
        if self.direction == Direction::Written { self.side } else { self.side.other() }
    }
}

/// What came so far of a [`Way`].
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    connection_id: u64,
    /// Where the next payload should start, if nothing is lost.
    next: u64,
    lost: u64,
    holes: u64,
}

/// What came so far, of all connections.
#[derive(Debug, Default)]
struct Ledger {
    seed: u64,
    pid: u32,
    threads: HashMap<u32, Side>,
    /// By the client's port; a later connection may have the same.
    numbers: HashMap<u32, (u32, u32)>,
    ends: HashMap<u64, (u32, Side)>,
    accounts: HashMap<Way, Account>,
    /// The last loss told "at the end" of a connection and direction.
    tails: HashMap<(u64, Direction), u64>,
    /// What each side of a connection writes.
    patterns: HashMap<(u32, Side), Pattern>,
    last_seq: u64,
    /// When the newest event was captured, in nanoseconds of Unix time.
    newest: i64,
    events: u64,
    bytes: u64,
}

/// What the ledger comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sums {
    carried: u64,
    holes: u64,
    lost_before: u64,
    tails: u64,
    lost_at_the_end: u64,
}

impl Ledger {
    fn open(&mut self, opened: &Opened) {
        self.threads.extend(opened.threads.iter().copied());
        for connection in &opened.connections {
            let ports = (connection.number, u32::from(connection.server_port));
            self.numbers.insert(u32::from(connection.client_port), ports);
            for side in [Side::Client, Side::Server] {
                let pattern = Pattern::of(self.seed, connection.number, side);
                self.patterns.insert((connection.number, side), pattern);
            }
        }
    }

    /// Takes in one message; an error where it says what is not so.
    fn take(&mut self, received: &Received) -> Result<()> {
        let seq = received.entry.seq;
        if seq > 0 && self.last_seq > 0 {
            ensure!(
                seq == self.last_seq + 1,
                "message {seq} after {}: this client was too slow",
                self.last_seq
            );
        }
        self.last_seq = self.last_seq.max(seq);
        if let Some(event) = received.event() {
            return self.event(event);
        }
        if let Some(line) = received.log() {
            ensure!(!line.contains(" missed_messages="), "this client was too slow: {line}");
            ensure!(!line.contains(" ERR "), "the agent says: {line}");
            if line.contains("lost at the end:") {
                let direction = match fact::<String>(line, "direction")?.as_str() {
                    "written" => Direction::Written,
                    _ => Direction::Read,
                };
                self.tails.insert((fact(line, "connection_id")?, direction), fact(line, "lost_bytes")?);
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        let size = event.payload.len();
        ensure!(event.pid == i64::from(self.pid), "another process");
        ensure!(
            size > 0 && size <= PIECE && size == event.length as usize && !event.truncated,
            "a wrong size"
        );
        let side = *self.threads.get(&event.tid).context("not a thread of the storm")?;
        let (number, server_port) =
            *self.numbers.get(&event.src_port).context("no connection of the storm")?;
        ensure!(event.dst_port == server_port, "connected to another port");
        ensure!(event.src_ip == "127.0.0.1" && event.dst_ip == "127.0.0.1", "a wrong address");
        let comm = if side == Side::Client { "storm-client" } else { "storm-server" };
        ensure!(event.pname == comm, "comm should be {comm}");
        let end = *self.ends.entry(event.connection_id).or_insert((number, side));
        ensure!(
            end == (number, side),
            "it is of {:?}, connection id and addresses say {end:?}",
            (number, side)
        );
        let way = Way { number, side, direction: event.direction() };
        let account = self.accounts.entry(way).or_default();
        if account.next == 0 {
            account.connection_id = event.connection_id;
        }
        ensure!(account.connection_id == event.connection_id, "{way:?} was connection {account:?}");
        let expected = account.next + event.lost_before;
        ensure!(
            event.stream_offset == expected,
            "{way:?} is at {} and loses {}",
            account.next,
            event.lost_before
        );
        let pattern = self.patterns.get(&(number, way.writer())).context("no pattern")?;
        if let Some(place) = pattern.difference(event.stream_offset, &event.payload) {
            let after = event.payload.iter().skip(place).take(16);
            let after: String = after.map(|byte| format!("{byte:02x}")).collect();
            return Err(anyhow!("{way:?}: byte {place} of the payload is not what was sent: {after}…"));
        }
        account.next = expected + size as u64;
        account.lost += event.lost_before;
        account.holes += u64::from(event.lost_before > 0);
        self.newest = event.timestamp;
        self.events += 1;
        self.bytes += size as u64;
        Ok(())
    }

    /// Holds what came against what was sent; an error where something is neither there nor said to be lost.
    fn settle(&self, totals: &[Total]) -> Result<Sums> {
        let mut sums = Sums::default();
        // What came to no event at all: only its length can tell it.
        let known = |(id, _): &(u64, Direction)| self.ends.contains_key(id);
        let mut nameless: Vec<(Direction, u64)> = self
            .tails
            .iter()
            .filter(|(key, _)| !known(key))
            .map(|((_, way), bytes)| (*way, *bytes))
            .collect();
        for total in totals {
            for (direction, sent) in [(Direction::Written, total.written), (Direction::Read, total.read)] {
                let way = Way { number: total.number, side: total.side, direction };
                let account = self.accounts.get(&way).copied().unwrap_or_default();
                sums.carried += sent;
                sums.lost_before += account.lost;
                sums.holes += account.holes;
                ensure!(account.next <= sent, "{way:?} carried {sent} bytes, but came to {}", account.next);
                let missing = sent - account.next;
                if missing == 0 {
                    continue;
                }
                let id = self.id(way);
                let told = id.and_then(|id| self.tails.get(&(id, direction)).copied());
                let nameless_place = nameless.iter().position(|tail| *tail == (direction, missing));
                if told == Some(missing) {
                    sums.tails += 1;
                    sums.lost_at_the_end += missing;
                } else if let (None, Some(place)) = (id, nameless_place) {
                    nameless.swap_remove(place);
                    sums.tails += 1;
                    sums.lost_at_the_end += missing;
                } else {
                    return Err(anyhow!(
                        "{way:?}, connection id {id:?}, carried {sent} bytes, but came to {} only, and the loss of \
                         {missing} at its end was told as {told:?}",
                        account.next
                    ));
                }
            }
        }
        Ok(sums)
    }

    /// The agent's name for the end that `way` is of.
    fn id(&self, way: Way) -> Option<u64> {
        self.ends.iter().find(|(_, end)| **end == (way.number, way.side)).map(|(id, _)| *id)
    }
}

/// The value of `name=value` in `line`.
fn fact<T: FromStr>(line: &str, name: &str) -> Result<T> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {line:?}"))
}

/// Takes in messages until `enough`, which is asked after each batch.
fn follow(
    client: &mut Client,
    ledger: &mut Ledger,
    limit: Duration,
    mut enough: impl FnMut(&Ledger) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !enough(ledger)? {
        ensure!(Instant::now() < deadline, "the run takes longer than {limit:?}");
        client.read_some(BATCH)?;
        if client.messages.is_empty() {
            thread::sleep(Duration::from_millis(2));
        }
        for received in client.messages.drain(..) {
            ledger.take(&received).with_context(|| told(&received))?;
        }
    }
    Ok(())
}

/// A message without its payload.
fn told(received: &Received) -> String {
    match received.event() {
        Some(event) => {
            let shown = Event { payload: prost::bytes::Bytes::new(), ..event.clone() };
            format!("seq {}: {shown:?}", received.entry.seq)
        }
        None => format!("{:?}", received.entry),
    }
}

/// The agent's totals now. Nothing is under way, so all that they count is in the stream at `last_seq`.
fn totals_now(agent: &Agent) -> Result<Heartbeat> {
    let newcomer = Client::connect(&agent.url)?;
    newcomer.messages.iter().find_map(Received::heartbeat).cloned().context("no heartbeat")
}

/// Holds the process `pid` for [`HELD`], a second from now, and lets it go whatever happens.
fn hold(pid: u32) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    process::send(pid, Signal::SIGSTOP)?;
    let stopped = until("the agent to stop", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(()))
    });
    thread::sleep(HELD);
    process::send(pid, Signal::SIGCONT)?;
    stopped
}

/// Makes the storm wait for the client, which has to read all of it on however few CPUs are left for it.
struct Pace {
    storm: u32,
    seen: u64,
    /// How many batches in a row brought nothing.
    quiet: u32,
    is_waiting: bool,
    waits: u32,
}

impl Pace {
    fn keep(&mut self, ledger: &Ledger) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let behind = now.saturating_sub(u128::try_from(ledger.newest)?);
        let limit = if self.is_waiting { CAUGHT_UP } else { BEHIND };
        self.quiet = if ledger.events > self.seen { 0 } else { self.quiet + 1 };
        self.seen = ledger.events;
        // Where nothing comes, there is nothing to catch up with. One batch without an event proves little: a pong
        // overtakes what the agent's socket had no room for.
        let waits = match self.quiet {
            0 => behind > limit.as_nanos(),
            quiet => self.is_waiting && quiet < QUIET,
        };
        self.set(waits)
    }

    fn set(&mut self, waits: bool) -> Result<()> {
        if waits != self.is_waiting {
            process::send(self.storm, if waits { Signal::SIGSTOP } else { Signal::SIGCONT })?;
            self.is_waiting = waits;
            self.waits += u32::from(waits);
        }
        Ok(())
    }
}

/// One round under the client's eyes.
fn run_round(
    storm: &mut Storm,
    client: &mut Client,
    ledger: &mut Ledger,
    round: &Round,
    held: Option<u32>,
) -> Result<Vec<Total>> {
    ledger.open(&storm.begin(round)?);
    let mut pace = Pace { storm: storm.pid(), seen: ledger.events, quiet: 0, is_waiting: false, waits: 0 };
    let mut totals = None;
    let mut next_look = Instant::now();
    thread::scope(|scope| {
        let holding = held.map(|pid| scope.spawn(move || hold(pid)));
        // As it waits now and then, a round takes longer than it says.
        follow(client, ledger, 4 * round.duration + 2 * PATIENCE, |ledger| {
            pace.keep(ledger)?;
            if Instant::now() >= next_look {
                totals = storm.ended()?;
                next_look = Instant::now() + Duration::from_millis(20);
            }
            Ok(totals.is_some())
        })?;
        pace.set(false)?;
        holding.map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("the holding thread panicked"))?)
    })?;
    eprintln!("  {round:?}: the storm waited {} times", pace.waits);
    totals.context("no totals")
}

/// A kind of run.
struct Run {
    name: &'static str,
    /// Messages a second; 0: as many as will go.
    rate: u32,
    arguments: &'static [&'static str],
    is_held: bool,
}

/// Runs a storm under the agent's eyes, and holds the stream against it; the agent's totals in the end.
fn differ(run: &Run) -> Result<Heartbeat> {
    // Two at once would slow each other, and a client that can't keep up proves nothing.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed: u64 = setting("PLAINTAP_STORM_SEED")?.unwrap_or(now % 1_000_000_007);
    let seconds: u32 = setting("PLAINTAP_STORM_SECONDS")?.unwrap_or(10);
    eprintln!("{}: PLAINTAP_STORM_SEED={seed} PLAINTAP_STORM_SECONDS={seconds}", run.name);
    let result = differ_by(run, seed, Duration::from_secs(seconds.into()));
    result.with_context(|| format!("{} with PLAINTAP_STORM_SEED={seed}", run.name))
}

fn setting<T: FromStr>(name: &str) -> Result<Option<T>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    text.parse().ok().map(Some).with_context(|| format!("{name}={text}: not a number"))
}

fn differ_by(run: &Run, seed: u64, duration: Duration) -> Result<Heartbeat> {
    let mut storm = Storm::start(seed, &[BORINGSSL, OPENSSL])?;
    let pid = storm.pid();
    let mut arguments = vec!["--library", BORINGSSL, "--library", OPENSSL, "--journal-size", "128M", "--pid"];
    let text = pid.to_string();
    arguments.push(&text);
    arguments.extend(run.arguments);
    let agent = Agent::start(&arguments)?;
    let mut client = Client::connect(&agent.url)?;
    let mut ledger = Ledger { seed, pid, ..Ledger::default() };
    let mut random = Random::new(seed);
    let mut totals = Vec::new();
    for number in 0..4 {
        // Held in the middle of the third, so that its connections go on behind the hole.
        let held = if run.is_held && number == 2 { Some(agent.child()?) } else { None };
        let least = if held.is_some() { HELD + Duration::from_secs(2) } else { Duration::ZERO };
        let (connections, threads) = (random.between(1, 16), random.between(1, 4));
        let round = Round { connections, threads, rate: run.rate, duration: least.max(duration / 4) };
        let context = || format!("round {number}, {round:?}");
        totals.extend(run_round(&mut storm, &mut client, &mut ledger, &round, held).with_context(context)?);
    }

    // The agent may be behind, and tells of a loss at the end only once it is sure that nothing follows.
    let deadline = Instant::now() + PATIENCE;
    let (sums, heartbeat) = loop {
        let heartbeat = totals_now(&agent)?;
        follow(&mut client, &mut ledger, PATIENCE, |ledger| Ok(ledger.last_seq >= heartbeat.last_seq))?;
        match ledger.settle(&totals) {
            Ok(sums) if ledger.bytes == heartbeat.captured_bytes => break (sums, heartbeat),
            result if Instant::now() >= deadline => {
                result.with_context(|| format!("waited {PATIENCE:?} for all to be told; {heartbeat:?}"))?;
                return Err(anyhow!("{} bytes came of {heartbeat:?}", ledger.bytes));
            }
            _ => thread::sleep(Duration::from_millis(100)),
        }
    };
    eprintln!("{}: events={} bytes={} {sums:?} {heartbeat:?}", run.name, ledger.events, ledger.bytes);
    storm.quit()?;
    ensure!(ledger.events == heartbeat.captured_events, "{} events came of {heartbeat:?}", ledger.events);
    let declared = sums.lost_before + sums.lost_at_the_end;
    ensure!(
        declared == heartbeat.lost_bytes,
        "{declared} bytes were declared lost, {sums:?}, but the agent counts {heartbeat:?}"
    );
    ensure!(sums.carried == ledger.bytes + heartbeat.lost_bytes, "{sums:?} {heartbeat:?}");
    ensure!((heartbeat.lost_events > 0) == (heartbeat.lost_bytes > 0), "{heartbeat:?}");
    Ok(heartbeat)
}

#[test]
fn a_calm_stream_is_whole() -> Result<()> {
    let heartbeat = differ(&Run { name: "calm", rate: 200, arguments: &[], is_held: false })?;
    assert_eq!(heartbeat.lost_bytes, 0, "{heartbeat:?}");
    Ok(())
}

#[test]
fn what_a_small_ring_loses_at_full_speed_is_declared() -> Result<()> {
    let arguments = &["--ring-size", "256K"];
    let heartbeat = differ(&Run { name: "full speed", rate: 0, arguments, is_held: false })?;
    assert!(heartbeat.lost_bytes > 0, "nothing was lost, so nothing was tested: {heartbeat:?}");
    Ok(())
}

#[test]
fn what_is_lost_while_the_agent_is_held_is_declared() -> Result<()> {
    let heartbeat = differ(&Run { name: "held", rate: 400, arguments: &[], is_held: true })?;
    assert!(heartbeat.lost_bytes > 0, "nothing was lost, so nothing was tested: {heartbeat:?}");
    Ok(())
}
