//! Sources that come and go while a relay runs, and how it tells whoever asks how that goes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use plaintap_tests::adb::{self, Adb};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::process::{self, Process};
use plaintap_tests::{BORINGSSL, PATIENCE, need, until};
use tempfile::{NamedTempFile, TempDir};

use crate::nats::Nats;
use crate::scene::{Scene, command, stream_that_soon_forgets};

/// Waits until messages of a device with so many bytes and more are stored.
fn is_stored_of(nats: &Nats, device: &str, bytes: usize) -> Result<()> {
    let subject = format!("plaintap.{device}.event");
    until(&format!("{bytes} bytes of {device} to be stored"), || {
        let stored = nats.stored()?;
        let sizes =
            stored.iter().filter(|message| message.subject == subject).map(|message| message.body.len());
        Ok((sizes.sum::<usize>() >= bytes).then_some(()))
    })
}

#[test]
fn a_file_of_sources_is_read_again_on_sighup() -> Result<()> {
    let mut drivers = [Driver::start(BORINGSSL)?, Driver::start(BORINGSSL)?];
    let agents =
        [Agent::watching(drivers[0].pid(), BORINGSSL)?, Agent::watching(drivers[1].pid(), BORINGSSL)?];
    let nats = Nats::start(&[])?;
    let mut file = NamedTempFile::new()?;
    writeln!(file, "# the lab\none={}", agents[0].url)?;
    let mut command = Command::new(need::binary("plaintap")?);
    command.args(["relay", "--to", &nats.url, "--max-bytes", "1G", "--sources"]).arg(file.path());
    let mut relay = Process::start(&mut command)?;
    let mut said = 0;
    let mut says = |relay: &Process, what: &str| -> Result<()> {
        said = relay.stderr.wait_for(said, what, |line| line.contains(what))?.0 + 1;
        Ok(())
    };
    says(&relay, "source is there device=one")?;
    drivers[0].write(Side::Client, 5000, 1)?;
    is_stored_of(&nats, "one", 5000)?;

    writeln!(file, "two={}", agents[1].url)?;
    relay.signal(Signal::SIGHUP)?;
    says(&relay, "source is there device=two")?;
    drivers[1].write(Side::Client, 5000, 2)?;
    is_stored_of(&nats, "two", 5000)?;

    writeln!(file, "three=ws:/wrong")?;
    relay.signal(Signal::SIGHUP)?;
    says(&relay, "line 4: \\\"ws:/wrong\\\" ")?;
    drivers[0].write(Side::Client, 5000, 3)?;
    is_stored_of(&nats, "one", 10_000)?;

    // The first one goes; and the second, which was elsewhere, comes again behind what it had.
    std::fs::write(file.path(), format!("two={}?logs=1\n", agents[1].url))?;
    relay.signal(Signal::SIGHUP)?;
    says(&relay, "goes on device=two")?;
    says(&relay, "source is there device=two")?;
    let before = relay.stderr.all();
    ensure!(before.iter().any(|line| line.contains("removes device=one")), "{before:#?}");
    let places: Vec<u64> = before
        .iter()
        .filter(|line| line.contains("goes on device=two"))
        .filter_map(|line| line.rsplit_once(" after_seq=")?.1.parse().ok())
        .collect();
    ensure!(places.len() == 2 && places[0] == 0 && places[1] > 0, "{places:?}: {before:#?}");
    drivers[1].write(Side::Client, 5000, 4)?;
    is_stored_of(&nats, "two", 10_000)?;
    let stored = nats.stored()?;
    let numbers: Vec<u64> = stored
        .iter()
        .filter(|message| message.subject.starts_with("plaintap.two.") && message.seq > 0)
        .map(|message| message.seq)
        .collect();
    ensure!(numbers.is_sorted_by(|one, next| one < next), "twice, or in disorder: {numbers:?}");
    relay.signal(Signal::SIGTERM)?;
    ensure!(relay.wait()?.success());
    Ok(())
}

/// A relay of each device that this server of adb has.
fn relay_of_all(adb: &Adb, nats: &Nats, flags: &[&str]) -> Result<Process> {
    let mut command = Command::new(need::binary("plaintap")?);
    command.env("ADB_SERVER_SOCKET", format!("tcp:{}", adb.port));
    command.args(["relay", "--from", "adb:*", "--to", &nats.url, "--max-bytes", "1G"]);
    Process::start(command.args(flags))
}

#[test]
fn a_device_that_is_plugged_in_is_relayed_though_its_list_is_refused_once() -> Result<()> {
    let (adb, nats) = (Adb::start()?, Nats::start(&[])?);
    let relay = relay_of_all(&adb, &nats, &[])?;
    relay.stderr.wait_for(0, "it to begin", |line| line.contains("connected to="))?;
    until("it to follow the devices", || Ok((adb.trackers()? > 0).then_some(())))?;
    adb.plug(1)?;
    relay.stderr.wait_for(0, "the refusal", |line| line.contains("can't follow the devices"))?;
    relay.stderr.wait_for(0, "the device", |line| line.contains(&format!("adds device={}", adb::SERIAL)))?;
    Ok(())
}

#[test]
fn an_agent_that_is_put_on_a_device_is_started_again_when_it_serves_no_more() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let (adb, nats) = (Adb::start()?, Nats::start(&[])?);
    adb.plug(0)?;
    let (program, pid) = (need::binary("plaintapd")?.display().to_string(), driver.pid().to_string());
    let place = format!("ws+unix:@plaintap-tests-{}", adb.port);
    let install = ["--install", "--agent", &program, "--", "--ecaptureq", &place];
    let relay =
        relay_of_all(&adb, &nats, &[&install[..], &["--library", BORINGSSL, "--pid", &pid]].concat())?;
    let mut said = 0;
    let mut says = |what: &str| -> Result<()> {
        said = relay.stderr.wait_for(said, what, |line| line.contains(what))?.0 + 1;
        Ok(())
    };
    says("installed and started plaintapd serial=FAKE")?;
    says("source is there device=FAKE")?;
    driver.write(Side::Client, 5000, 1)?;
    is_stored_of(&nats, adb::SERIAL, 5000)?;

    // As when it takes its probes away: the half that serves is gone, and the other is not at its end yet.
    let agents = adb.agents()?;
    let halves = agents.iter().find_map(|pid| Some((*pid, process::children(*pid).ok()?.pop_first()?)));
    let (attaching, serving) = halves.with_context(|| format!("no two halves: {agents:?}"))?;
    process::send(attaching, Signal::SIGSTOP)?;
    process::send(serving, Signal::SIGKILL)?;
    says("source is away device=FAKE")?;
    says(" started plaintapd serial=FAKE")?;
    says("source is there device=FAKE")?;
    ensure!(!adb.agents()?.contains(&attaching), "it still runs");
    driver.write(Side::Client, 5000, 2)?;
    is_stored_of(&nats, adb::SERIAL, 10_000)
}

/// A copy of the agent that is another program: with a byte more.
fn other_version(at: &Path) -> Result<()> {
    process::copy_program(&need::binary("plaintapd")?, at)?;
    // By another program, as that copies it.
    let status = Command::new("sh").args(["-c", "echo >>\"$0\""]).arg(at).status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn another_version_on_a_device_is_replaced_by_the_one_that_was_there_when_the_relay_began() -> Result<()> {
    let driver = Driver::start(BORINGSSL)?;
    let (adb, nats) = (Adb::start()?, Nats::start(&[])?);
    let (pid, place) = (driver.pid().to_string(), format!("ws+unix:@plaintap-tests-{}", adb.port));
    let flags = ["--ecaptureq", &place, "--library", BORINGSSL, "--pid", &pid, "--memory-limit", "8M"];
    other_version(&adb.program())?;
    let mut other = Process::start(Command::new(adb.program()).args(flags))?;
    other.stderr.wait_for(0, "the other version", |line| line.contains("listening url="))?;

    let folder = TempDir::with_prefix("plaintap-agent-")?;
    let pinned = folder.path().join("plaintapd");
    process::copy_program(&need::binary("plaintapd")?, &pinned)?;
    adb.plug(0)?;
    let agent = pinned.to_str().context("a path that is no text")?;
    let relay = relay_of_all(&adb, &nats, &[&["--install", "--agent", agent, "--"][..], &flags].concat())?;
    other.wait()?;
    let started = |line: &str| line.contains("started plaintapd serial=FAKE");
    let (at, line) = relay.stderr.wait_for(0, "the agent to be started", started)?;
    ensure!(line.contains("installed and started"), "{line}");
    relay.stderr.wait_for(at, "the source", |line| line.contains("source is there device=FAKE"))?;

    std::fs::remove_file(&pinned)?;
    other_version(&pinned)?;
    for pid in adb.agents()? {
        // One half may take the other along.
        let _ = process::send(pid, Signal::SIGKILL);
    }
    let (_, line) = relay.stderr.wait_for(at + 1, "the agent to be started again", started)?;
    ensure!(!line.contains("installed"), "{line}");
    ensure!(std::fs::read(adb.program())? == std::fs::read(need::binary("plaintapd")?)?, "another program");
    Ok(())
}

#[test]
fn a_device_that_has_to_be_told_from_another_goes_on_by_its_other_name_and_keeps_it() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let (adb, nats) = (Adb::start()?, Nats::start(&[])?);
    nats.api("STREAM.CREATE.PLAINTAP", &stream_that_soon_forgets())?;
    adb.plug(0)?;
    let (program, pid) = (need::binary("plaintapd")?.display().to_string(), driver.pid().to_string());
    let place = format!("ws+unix:@plaintap-tests-{}", adb.port);
    let flags = ["--install", "--agent", &program, "--", "--ecaptureq", &place, "--library", BORINGSSL];
    let relay = || relay_of_all(&adb, &nats, &[&flags[..], &["--pid", &pid]].concat());
    let is_there = |relay: &Process, name: &str| -> Result<()> {
        relay.stderr.wait_for(0, "the device", |line| {
            line.contains("source is there") && line.ends_with(&format!("device={name}"))
        })?;
        Ok(())
    };
    let apart = format!("{}@{}", adb::SERIAL, adb::PORT);
    let subject = "FAKE%40usb%3A1-1";

    let mut first = relay()?;
    is_there(&first, adb::SERIAL)?;
    driver.write(Side::Client, 5000, 1)?;
    is_stored_of(&nats, adb::SERIAL, 10_000)?;
    adb.plug_twin(true)?;
    is_there(&first, &apart)?;
    driver.write(Side::Client, 5000, 2)?;
    is_stored_of(&nats, subject, 10_000)?;

    first.signal(Signal::SIGKILL)?;
    first.wait()?;
    adb.plug_twin(false)?;
    let second = relay()?;
    is_there(&second, &apart)?;
    driver.write(Side::Client, 5000, 3)?;
    is_stored_of(&nats, subject, 20_000)?;
    let stored = nats.stored()?;
    let numbers: Vec<u64> = stored.iter().map(|message| message.seq).filter(|seq| *seq > 0).collect();
    ensure!(numbers.is_sorted_by(|one, next| one < next), "twice, or in disorder: {numbers:?}");
    ensure!(stored.iter().all(|message| message.header("Plaintap-Gap").is_none()), "a gap was told");
    Ok(())
}

/// The status and the body of what is answered at a port.
fn asked(port: u16, request: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    Ok((head.split(' ').nth(1).context("no status")?.to_owned(), body.to_owned()))
}

/// A relay that tells how it goes at a port.
pub fn relay_with_metrics(sources: &[(&str, &str)], nats: &Nats) -> Result<(Process, u16)> {
    let relay = Process::start(command(sources, &nats.url)?.args(["--metrics", "127.0.0.1:0"]))?;
    let (_, line) = relay.stderr.wait_for(0, "metrics", |line| line.contains("metrics at="))?;
    let port = line.trim_end_matches("/metrics").rsplit(':').next().context("no port")?.parse()?;
    Ok((relay, port))
}

/// What a relay tells of a device by this name, if it does.
pub fn metric(port: u16, name: &str, device: &str) -> Result<Option<f64>> {
    let (status, text) = asked(port, "GET /metrics")?;
    ensure!(status == "200" && text.ends_with("# EOF\n"), "{status}: {text}");
    let start = format!("plaintap_relay_{name}{{device={device:?}}} ");
    Ok(text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()))
}

#[test]
fn metrics_tell_of_each_device_how_it_goes_and_health_whether_all_is_well() -> Result<()> {
    let mut scene = Scene::set()?;
    let device = "lab \"1\"";
    let (relay, port) = relay_with_metrics(&[(device, &scene.agent.url)], &scene.nats)?;
    let (_, line) = relay.stderr.wait_for(0, "the source", |line| line.contains("source is there"))?;
    ensure!(line.ends_with(r#" device="lab \"1\"""#), "{line}");
    scene.load(20)?;
    let stored = scene.is_stored()?;
    let last = stored.iter().map(|message| message.seq).max().context("nothing")?;
    let bytes: usize = stored.iter().map(|message| message.body.len()).sum();
    until("metrics of all that was stored", || {
        // A heartbeat may have been stored since.
        let messages = metric(port, "stored_messages_total", device)?;
        Ok(messages.filter(|messages| *messages >= stored.len() as f64))
    })?;
    let told = |name: &str| -> Result<f64> { metric(port, name, device)?.context(name.to_owned()) };
    let [connected, last_seq, gaps] = [told("connected")?, told("last_seq")?, told("gaps_total")?];
    let [stored_bytes, publishes, lag] =
        [told("stored_bytes_total")?, told("publish_seconds_count")?, told("lag_seconds")?];
    ensure!((connected, last_seq, gaps) == (1.0, last as f64, 0.0), "{connected} {last_seq} {gaps}");
    ensure!(stored_bytes >= bytes as f64 && publishes >= stored.len() as f64, "{stored_bytes} {publishes}");
    ensure!(lag >= 0.0, "{lag}");
    ensure!(asked(port, "GET /health")? == ("200".to_owned(), "ok\n".to_owned()));
    ensure!(asked(port, "GET /")?.0 == "404" && asked(port, "POST /metrics")?.0 == "405");

    scene.nats.kill()?;
    until("health to be none", || Ok((asked(port, "GET /health")?.0 == "503").then_some(())))?;
    scene.load(40)?;
    until("as much as may to wait", || {
        Ok(metric(port, "queued_messages", device)?.filter(|queued| *queued == 18.0))
    })?;
    scene.nats.start_again()?;
    until(
        "nothing to wait",
        || Ok(metric(port, "queued_messages", device)?.filter(|queued| *queued == 0.0)),
    )?;
    until("health", || Ok((asked(port, "GET /health")?.0 == "200").then_some(())))?;

    // A relay that goes on says where, before it has stored anything.
    drop(relay);
    let (_relay, port) = relay_with_metrics(&[(device, "ws://127.0.0.1:1/")], &scene.nats)?;
    until("the last number", || Ok(metric(port, "last_seq", device)?.filter(|seq| *seq >= last as f64)))
        .map(drop)
}
