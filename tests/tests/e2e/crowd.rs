//! As many clients as may come, a quarter of which never reads: the others get every event, and the agent does not grow.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::LogEntry;
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::raw::{ask, handshake};
use plaintap_tests::stream::Client;
use plaintap_tests::waits::Restarting;
use plaintap_tests::{BORINGSSL, PATIENCE, process, until};
use prost::Message as _;
use tungstenite::{Message, WebSocket};

const CLIENTS: usize = 64;
const NEVER_READ: usize = 16;
/// Bytes of a write.
const WRITE: u32 = 16_000;
/// Writes at a time: fewer than the journal holds, so that none of those who read is too slow.
const BATCH: u32 = 60;
const BATCHES: u32 = 15;
/// Batches before memory is looked at for the first time: more than the journal holds.
const WARM: u32 = 6;
/// What the agent may have grown by, in KiB: much less than the journal took in between.
const GROWTH: u64 = 2 << 10;

/// KiB of memory that the process `pid` has to itself.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().split(' ').next().unwrap_or_default().parse()?)
}

/// A client that keeps nothing but what it has counted.
struct Reader {
    socket: WebSocket<Restarting>,
    last_seq: u64,
    bytes: u64,
}

impl Reader {
    fn connect(url: &str) -> Result<Self> {
        let stream = TcpStream::connect(url.trim_start_matches("ws://").trim_end_matches('/'))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (socket, _) =
            tungstenite::client(url, Restarting(stream)).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { socket, last_seq: 0, bytes: 0 })
    }

    /// Reads until `bytes` of payload came; an error if a message was left out.
    fn read(&mut self, bytes: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.bytes < bytes {
            ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for {bytes} bytes, {} came", self.bytes);
            let Message::Binary(message) = self.socket.read()? else { bail!("no binary message") };
            let entry = LogEntry::decode(message)?;
            if let Some(plaintap_proto::log_entry::Payload::HeartbeatPayload(heartbeat)) = &entry.payload {
                ensure!(heartbeat.missed_messages == 0, "{heartbeat:?}");
                self.last_seq = self.last_seq.max(heartbeat.last_seq);
            } else if let Some(plaintap_proto::log_entry::Payload::EventPayload(event)) = &entry.payload {
                ensure!(event.lost_before == 0, "lost {}", event.lost_before);
                self.bytes += event.payload.len() as u64;
                ensure!(entry.seq == self.last_seq + 1, "{} after {}", entry.seq, self.last_seq);
                self.last_seq = entry.seq;
            } else {
                self.last_seq = self.last_seq.max(entry.seq);
            }
        }
        Ok(())
    }
}

#[test]
fn in_a_full_house_those_who_read_get_everything_and_those_who_do_not_cost_nothing() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let arguments = ["--library", BORINGSSL, "--pid", &pid, "--journal-size", "4M"];
    let agent = Agent::start(&[&arguments[..], &["--comm", Side::Client.comm()]].concat())?;
    let idle: Vec<Client> =
        (0..NEVER_READ).map(|_| Client::connect_with(&agent.url, &[])).collect::<Result<_>>()?;
    let mut readers: Vec<Reader> =
        (NEVER_READ..CLIENTS).map(|_| Reader::connect(&agent.url)).collect::<Result<_>>()?;
    let answer = ask(agent.port, &handshake("/", agent.port, &[]))?;
    assert_eq!(answer.status, 503, "{}", answer.text);

    let serving = agent.child()?;
    let mut before = 0;
    for batch in 1..=BATCHES {
        for seed in 0..BATCH {
            driver.write(Side::Client, WRITE, seed)?;
        }
        let bytes = u64::from(WRITE) * u64::from(BATCH * batch);
        thread::scope(|scope| {
            let reading = readers.chunks_mut(12).map(|readers| {
                scope.spawn(move || readers.iter_mut().try_for_each(|reader| reader.read(bytes)))
            });
            let reading: Vec<_> = reading.collect();
            reading
                .into_iter()
                .try_for_each(|chunk| chunk.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
        })?;
        if batch == WARM {
            before = memory(serving)?;
        }
    }
    let after = memory(serving)?;
    println!("KiB of the serving half's own memory: {before} before, {after} after");
    ensure!(after <= before + GROWTH, "{before} KiB before, {after} KiB after");
    drop((idle, readers));
    Ok(())
}

#[test]
fn who_accepts_nothing_for_half_a_minute_is_reset_and_the_log_says_why() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let _idle = Client::connect_with(&agent.url, &[])?;
    // Without that client's.
    let files = process::open_files(agent.child()?)?.len() - 1;
    let start = Instant::now();
    // More than both ends' sockets hold.
    for seed in 0..24 {
        driver.write(Side::Client, 1_000_000, seed)?;
    }
    let why = "it accepted nothing for 30 s and was reset";
    agent.log().wait_for(0, why, |line| line.contains(why))?;
    ensure!(start.elapsed() > Duration::from_secs(29), "after {:?}", start.elapsed());
    until("the agent to close the connection", || {
        Ok((process::open_files(agent.child()?)?.len() <= files).then_some(()))
    })
}
