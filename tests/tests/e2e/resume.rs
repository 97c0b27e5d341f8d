//! A client that was cut off goes on where it was: nothing within the journal is lost or comes twice.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side, fact};
use plaintap_tests::process::Process;
use plaintap_tests::storm::{Random, Round, Storm};
use plaintap_tests::stream::{Client, Received};
use plaintap_tests::waits::restarted;
use plaintap_tests::{BORINGSSL, PATIENCE, need, until};
use tungstenite::Bytes;

const CUTS: u32 = 100;

/// The messages of the journal that a client has, by number.
type Journal = Vec<(u64, Bytes)>;

fn journal(client: &Client) -> Journal {
    let all = client.messages.iter().filter(|message| message.entry.seq > 0);
    all.map(|message| (message.entry.seq, message.raw.clone())).collect()
}

/// The first heartbeat's `last_seq` and `missed_messages`: where the client starts.
fn start(client: &Client) -> Result<(u64, u64)> {
    let heartbeat = client.messages.iter().find_map(Received::heartbeat).context("no heartbeat")?;
    Ok((heartbeat.last_seq, heartbeat.missed_messages))
}

fn after(agent: &Agent, seq: u64, run: &str) -> String {
    format!("{}?after={seq}&run={run}", agent.url)
}

/// Reads a connection that goes on behind the last message of `had`, for as many messages as it says, and cuts it. `go_on` sees
/// to it that there are more.
fn one_more_connection(
    agent: &Agent,
    run: &str,
    had: &mut Journal,
    messages: usize,
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<()> {
    let last = had.last().context("nothing yet")?.0;
    let mut client = Client::connect(&after(agent, last, run))?;
    ensure!(start(&client)? == (last, 0), "it starts at {:?}, not behind {last}", start(&client)?);
    while client.messages.len() < messages {
        go_on()?;
        client.read_some(messages - client.messages.len())?;
    }
    let more = journal(&client);
    ensure!(more.iter().all(|(seq, _)| *seq > last), "a message that was there before {last}");
    had.extend(more);
    Ok(())
}

#[test]
fn what_a_hundred_cuts_leave_is_what_an_uninterrupted_client_has() -> Result<()> {
    let mut storm = Storm::start(5, &[BORINGSSL])?;
    let pid = storm.pid().to_string();
    let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--journal-size", "512M"])?;
    let mut steady = Client::connect(&agent.url)?;
    let mut had = journal(&steady);
    had.push((start(&steady)?.0, Bytes::new()));
    let run = steady.run_id().context("no run id")?.to_owned();
    let round = Round { connections: 6, threads: 2, rate: 8000, duration: Duration::from_millis(300) };
    let mut random = Random::new(11);
    storm.begin(&round)?;
    for _ in 0..CUTS {
        one_more_connection(&agent, &run, &mut had, random.between(3, 100) as usize, || {
            if storm.ended()?.is_some() {
                steady.ping(b"keep reading")?;
                storm.begin(&round)?;
            }
            Ok(())
        })?;
        // Who reads nothing for long is hung up on.
        steady.read_some(1000)?;
    }
    until("the round's end", || storm.ended())?;
    storm.quit()?;
    steady.ping(b"all of it")?;
    let last = journal(&steady).last().context("nothing came")?.0;
    let mut final_one = Client::connect(&after(&agent, had.last().context("nothing")?.0, &run))?;
    final_one.wait_for("the last message", |all| {
        all.iter().any(|message| message.entry.seq >= last).then_some(())
    })?;
    had.extend(journal(&final_one));
    had.retain(|(seq, raw)| *seq <= last && !raw.is_empty());
    let expected = journal(&steady);
    ensure!(expected.len() > 2000, "only {} messages", expected.len());
    let (got, want): (Vec<_>, Vec<_>) =
        (had.iter().map(|(seq, _)| *seq).collect(), expected.iter().map(|(seq, _)| *seq).collect());
    assert_eq!(got, want);
    assert!(had == expected, "the same numbers, but not the same messages");
    Ok(())
}

#[test]
fn what_is_gone_is_told_exactly() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::start(&["--library", BORINGSSL, "--pid", &pid, "--journal-size", "256K"])?;
    let mut client = Client::connect(&agent.url)?;
    driver.write(Side::Client, 100, 1)?;
    client.ping(b"the first")?;
    let run = client.run_id().context("no run id")?.to_owned();
    let known = journal(&client).last().context("nothing")?.0;
    drop(client);
    let mut other = Client::connect(&agent.url)?;
    driver.write(Side::Client, 1_000_000, 2)?;
    other.ping(b"captured")?;

    let mut back = Client::connect(&after(&agent, known, &run))?;
    back.ping(b"what is left")?;
    let (last, missed) = start(&back)?;
    ensure!(missed > 0 && last >= known + missed, "it starts behind {last}, {missed} missed");
    let notice = back.messages[0].log().context("no notice first")?;
    ensure!(back.messages[0].entry.seq == 0 && notice.contains("WRN resumed"), "{notice}");
    assert_eq!(fact::<u64>(notice, "after")?, known);
    assert_eq!(fact::<u64>(notice, "missed_messages")?, missed);
    assert_eq!((fact::<u64>(notice, "first")?, fact::<u64>(notice, "last")?), (known + 1, last));
    // Each number behind the known one either came or was missed; log lines that the logbuff still has came.
    let numbers: Vec<u64> = journal(&back).iter().map(|(seq, _)| *seq).collect();
    ensure!(numbers.iter().all(|seq| *seq > known), "{numbers:?} after {known}");
    let newest = *numbers.last().context("nothing left")?;
    assert_eq!(numbers.len() as u64 + missed, newest - known);
    ensure!(numbers.iter().any(|seq| *seq <= last), "no kept line of the time away in {numbers:?}");

    // Nothing happened since.
    let again = Client::connect(&after(&agent, newest, &run))?;
    assert_eq!(start(&again)?, (newest, 0));
    ensure!(again.messages[0].log().is_some_and(|line| line.ends_with("missed_messages=0")), "no notice");
    Ok(())
}

#[test]
fn another_run_starts_anew_and_says_so() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    driver.write(Side::Client, 100, 1)?;
    let mut reference = Client::connect(&format!("{}?backlog=all", agent.url))?;
    reference.ping(b"all")?;
    let run = reference.run_id().context("no run id")?.to_owned();
    let future = reference.messages.iter().map(|message| message.entry.seq).max().context("nothing")? + 1000;
    for (url, why) in [
        (after(&agent, 5, "0123456789abcdef"), "this is another run"),
        (after(&agent, future, &run), "it has not come so far"),
    ] {
        let mut client = Client::connect(&url)?;
        client.ping(b"all")?;
        let notice = client.messages[0].log().context("no notice first")?;
        ensure!(notice.contains(why) && notice.contains(&format!("run_id={run}")), "{notice}");
        assert_eq!(start(&client)?, (0, 0));
        // What came of this run's own starting is in the journal, so all of it.
        let (all, got) = (journal(&reference), journal(&client));
        assert!(got.len() >= all.len() && got[..all.len()] == all[..], "{got:?}");
        assert_eq!(client.events().count(), 2);
    }
    Ok(())
}

/// How long a cable stays pulled.
const AWAY: Duration = Duration::from_secs(20);

/// What stands between `plaintap` and the agent: a way that can be cut.
struct Way {
    port: u16,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    /// Whoever comes now is sent away.
    is_down: Arc<AtomicBool>,
}

impl Way {
    fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let way =
            Self { port: listener.local_addr()?.port(), streams: Arc::default(), is_down: Arc::default() };
        let (streams, is_down) = (Arc::clone(&way.streams), Arc::clone(&way.is_down));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if is_down.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                // Whatever went over it can be cut.
                let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        thread::spawn(move || carry(from, to));
                    }
                }
                streams.extend([near, far]);
            }
        });
        Ok(way)
    }

    /// Cuts all connections.
    fn cut(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = restarted(PATIENCE, || from.read(&mut buffer)) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn watch_shows_each_event_once_whatever_becomes_of_its_connection() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut steady = Client::connect(&agent.url)?;
    let way = Way::to(agent.port)?;
    let url = format!("ws://127.0.0.1:{}/", way.port);
    let watch = Process::start(Command::new(need::binary("plaintap")?).args(["watch", "--json", &url]))?;
    watch.stderr.wait_for(0, "its connection", |line| line.contains("connected to"))?;
    let mut line = 0;
    for seed in 1..=3 {
        // Some of this may be on its way when the connection is cut, and some happens afterwards.
        driver.write(Side::Client, 200_000, seed)?;
        way.cut();
        driver.write(Side::Server, 200_000, seed)?;
        let what = "missed nothing while away";
        line = watch.stderr.wait_for(line, what, |line| line.contains(what))?.0 + 1;
    }
    // As a cable that somebody has pulled, under load.
    way.is_down.store(true, Ordering::Relaxed);
    way.cut();
    let cut = Instant::now();
    let mut seed = 3;
    while cut.elapsed() < AWAY {
        // All in all half of what the journal holds.
        if u128::from(seed) < cut.elapsed().as_millis() / 40 {
            seed += 1;
            driver.write(Side::Client, 3000, seed)?;
        }
        steady.ping(b"so far")?;
    }
    way.is_down.store(false, Ordering::Relaxed);
    watch.stderr.wait_for(line, "what it missed", |line| line.contains("missed nothing while away"))?;
    steady.ping(b"all")?;
    let expected: Vec<u64> = steady
        .messages
        .iter()
        .filter(|message| message.event().is_some())
        .map(|message| message.entry.seq)
        .collect();
    let shown = || -> Result<Vec<u64>> {
        let seq = |line: &String| line.rsplit_once("\"seq\":\"")?.1.split('"').next()?.parse().ok();
        watch.stdout.all().iter().map(|line| seq(line).with_context(|| line.clone())).collect()
    };
    let all = until("the last event", || Ok(Some(shown()?).filter(|shown| shown.len() >= expected.len())))?;
    assert_eq!(all, expected);
    Ok(())
}
