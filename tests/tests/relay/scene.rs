//! What the tests of a relay have in common: a traced program with its agent and a server, loads, a connection that can be cut, and
//! relays that are started or refused.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::process::Process;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, PATIENCE, need, until};

use crate::nats::{Nats, Stored};

/// A traced program, its agent, and a client that gets the stream without a relay.
pub struct Scene {
    pub driver: Driver,
    pub agent: Agent,
    pub client: Client,
    pub nats: Nats,
}

impl Scene {
    pub fn set() -> Result<Self> {
        let driver = Driver::start(BORINGSSL)?;
        let agent = Agent::watching(driver.pid(), BORINGSSL)?;
        let client = Client::connect(&agent.url)?;
        Ok(Self { driver, agent, client, nats: Nats::start(&[])? })
    }

    /// The agent's journal holds some 120 of the program's pieces.
    pub fn with_a_small_journal() -> Result<Self> {
        Self::with_a_journal_of("512K")
    }

    /// The agent's journal holds all that a program writes within a test.
    pub fn with_a_large_journal() -> Result<Self> {
        Self::with_a_journal_of("256M")
    }

    pub fn with_a_journal_of(size: &str) -> Result<Self> {
        let driver = Driver::start(BORINGSSL)?;
        let pid = driver.pid().to_string();
        let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--journal-size", size])?;
        let client = Client::connect(&agent.url)?;
        Ok(Self { driver, agent, client, nats: Nats::start(&[])? })
    }

    pub fn relay(&self) -> Result<Process> {
        relay(&[("dev-1", &self.agent.url)], &self.nats.url)
    }

    /// The program writes, in so many pieces of 4 KiB, 5 ms apart.
    pub fn load(&mut self, pieces: u32) -> Result<()> {
        for seed in 0..pieces {
            self.driver.write(Side::Client, 4096, seed)?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Does something while the program writes, in a thread of its own and until that is done: pieces of 4 KiB, 10 ms apart.
    pub fn under_load(&mut self, what: impl FnOnce(&mut Nats, &Load) -> Result<()>) -> Result<()> {
        let (load, ends) = (Load::default(), AtomicBool::new(false));
        let (driver, nats) = (&mut self.driver, &mut self.nats);
        thread::scope(|scope| {
            let writes = scope.spawn(|| -> Result<()> {
                let deadline = Instant::now() + 2 * PATIENCE;
                while !ends.load(Ordering::Relaxed) && Instant::now() < deadline {
                    driver.write(Side::Client, 4096, load.pieces.fetch_add(1, Ordering::Relaxed))?;
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            });
            let done = what(nats, &load);
            ends.store(true, Ordering::Relaxed);
            // Why the program writes no more tells more than what was waited for then.
            writes.join().map_err(|_| anyhow!("a thread panicked"))?.and(done)
        })
    }

    /// What the client got so far, by number: all that was captured until now.
    pub fn captured(&mut self) -> Result<BTreeMap<u64, Vec<u8>>> {
        self.client.ping(b"all")?;
        let numbered = self.client.messages.iter().filter(|message| message.entry.seq > 0);
        Ok(numbered.map(|message| (message.entry.seq, message.raw.to_vec())).collect())
    }

    /// Waits until the stream has what was captured, and checks that it has it once, in order and byte for byte.
    pub fn is_stored(&mut self) -> Result<Vec<Stored>> {
        let captured = self.captured()?;
        let last = *captured.keys().last().context("nothing was captured")?;
        let stored = until("all of it to be stored", || {
            let stored = self.nats.stored()?;
            Ok(stored.iter().any(|message| message.seq >= last).then_some(stored))
        })?;
        let numbers: Vec<u64> = stored.iter().map(|message| message.seq).filter(|seq| *seq > 0).collect();
        // Lines that the client has from before it came have numbers too.
        ensure!(numbers.is_sorted_by(|one, next| one < next), "twice, or in disorder: {numbers:?}");
        let by_number: BTreeMap<u64, &Stored> = stored.iter().map(|message| (message.seq, message)).collect();
        for (seq, raw) in &captured {
            let message = by_number.get(seq).with_context(|| format!("message {seq} is not stored"))?;
            ensure!(message.body == *raw, "message {seq} is another one");
        }
        ensure!(stored.iter().all(|message| message.header("Plaintap-Gap").is_none()), "a gap was told");
        Ok(stored)
    }
}

/// How much a program has written that goes on writing.
#[derive(Default)]
pub struct Load {
    pub pieces: AtomicU32,
}

impl Load {
    /// Waits until it has gone on for a while.
    pub fn goes_on(&self) -> Result<()> {
        let before = self.pieces.load(Ordering::Relaxed);
        let more = || self.pieces.load(Ordering::Relaxed) - before;
        until("the program to go on writing", || Ok((more() > 40).then_some(())))
    }
}

/// A stream of a size that discards nothing, as JetStream's API takes it.
pub fn stream(bytes: u32) -> String {
    format!(
        "{{\"name\":\"PLAINTAP\",\"subjects\":[\"plaintap.>\"],\"retention\":\"limits\",\"storage\":\"file\",\
         \"discard\":\"new\",\"max_bytes\":{bytes},\"max_consumers\":-1,\"max_msgs\":-1,\"max_age\":0,\"num_replicas\":1}}"
    )
}

/// The least that a server takes for a duplicate window.
pub const WINDOW: Duration = Duration::from_millis(100);

/// A stream that knows for no longer than that what it was sent.
pub fn stream_that_soon_forgets() -> String {
    let window = WINDOW.as_nanos();
    stream(50_000_000).replace("\"max_age\"", &format!("\"duplicate_window\":{window},\"max_age\""))
}

pub fn command(sources: &[(&str, &str)], to: &str) -> Result<Command> {
    let mut command = Command::new(need::binary("plaintap")?);
    command.args(["relay", "--to", to, "--max-bytes", "1G"]);
    for (name, url) in sources {
        command.args(["--from", &format!("{name}={url}")]);
    }
    Ok(command)
}

/// A relay that goes on with its first source.
pub fn relay(sources: &[(&str, &str)], to: &str) -> Result<Process> {
    let relay = Process::start(&mut command(sources, to)?)?;
    relay.stderr.wait_for(0, "it to begin", |line| line.contains("goes on device="))?;
    Ok(relay)
}

/// What a relay says that can't begin; it ends with 1.
pub fn refused(sources: &[(&str, &str)], to: &str) -> Result<String> {
    refused_with(1, sources, to)
}

/// What a relay says that can't begin, and ends with `code`.
pub fn refused_with(code: i32, sources: &[(&str, &str)], to: &str) -> Result<String> {
    let mut relay = Process::start(&mut command(sources, to)?)?;
    let status = relay.wait()?;
    let said = relay.stderr.to_the_end()?;
    ensure!(status.code() == Some(code) && !said.is_empty(), "{status}: {said:?}");
    Ok(said.join("\n"))
}

/// Carries connections to `port` on, and cuts them when told to.
pub struct Cable {
    pub port: u16,
    pub ends: Arc<Mutex<Vec<TcpStream>>>,
    pub swallows: Arc<AtomicBool>,
}

impl Cable {
    pub fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let ends = Arc::<Mutex<Vec<TcpStream>>>::default();
        let swallows = Arc::<AtomicBool>::default();
        let (own, kept, eats) = (listener.local_addr()?.port(), Arc::clone(&ends), Arc::clone(&swallows));
        // It ends with the tests' process.
        thread::spawn(move || -> Result<()> {
            for end in listener.incoming() {
                let (near, far) = (end?, TcpStream::connect(("127.0.0.1", port))?);
                let mut up = (near.try_clone()?, far.try_clone()?);
                let (mut down, eats) = ((far.try_clone()?, near.try_clone()?), Arc::clone(&eats));
                kept.lock().map_err(|_| anyhow!("a thread panicked"))?.extend([near, far]);
                thread::spawn(move || io::copy(&mut up.0, &mut up.1));
                thread::spawn(move || -> io::Result<()> {
                    let mut bytes = [0; 4096];
                    loop {
                        let length = down.0.read(&mut bytes)?;
                        if length == 0 {
                            return Ok(());
                        }
                        if !eats.load(Ordering::Relaxed) {
                            down.1.write_all(&bytes[..length])?;
                        }
                    }
                });
            }
            Ok(())
        });
        Ok(Self { port: own, ends, swallows })
    }

    /// Loses what comes back from the other end, until it is cut.
    pub fn swallow_answers(&self) {
        self.swallows.store(true, Ordering::Relaxed);
    }

    pub fn cut(&self) -> Result<()> {
        let mut ends = self.ends.lock().map_err(|_| anyhow!("a thread panicked"))?;
        for end in ends.drain(..) {
            // Its peer may have been first.
            let _ = end.shutdown(Shutdown::Both);
        }
        // While none can begin.
        self.swallows.store(false, Ordering::Relaxed);
        Ok(())
    }
}
