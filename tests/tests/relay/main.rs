//! `plaintap relay` between the real agent and a real nats-server: what is stored is what came, whatever ends in between.
//!
//! A binary of its own, as it wants a `plaintap` with the cargo feature `relay`.

mod fleet;
mod nats;
mod reading;
mod scene;
mod trust;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fleet::{metric, relay_with_metrics};
use nats::Nats;
use nix::sys::signal::Signal;
use plaintap_proto::{LogEntry, log_entry::Payload};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::Side;
use plaintap_tests::process::Process;
use plaintap_tests::program::{self, CASES, Program};
use plaintap_tests::stream::{Client, Received};
use plaintap_tests::{BORINGSSL, net, until};
use prost::Message as _;
use scene::{Cable, Scene, WINDOW, refused, refused_with, relay, stream, stream_that_soon_forgets};
use serde_json::{Value, json};

#[test]
fn what_is_captured_is_stored_as_it_came_with_headers_that_tell_what_it_is() -> Result<()> {
    let mut scene = Scene::set()?;
    let relay = scene.relay()?;
    for side in [Side::Client, Side::Server] {
        scene.driver.write(side, 50_000, 7)?;
    }
    let stored = scene.is_stored()?;
    let run = scene.client.run_id().context("no run")?.to_owned();
    let pid = scene.driver.pid().to_string();
    let mut events = 0;
    for message in &stored {
        let kind = message.subject.strip_prefix("plaintap.dev-1.").context("another subject")?;
        ensure!(message.header("Plaintap-Run") == Some(&run), "{message:?}");
        ensure!(message.header("Content-Type").is_some_and(|is| is.contains("LogEntry")), "{message:?}");
        let id = message.header("Nats-Msg-Id").map(str::to_owned);
        ensure!(id == (message.seq > 0).then(|| format!("{run}:{}", message.seq)), "{message:?}");
        match kind {
            "event" => {
                events += 1;
                ensure!(message.header("Plaintap-Pid") == Some(&pid), "{message:?}");
                ensure!(message.header("Plaintap-Comm").is_some_and(|comm| comm.starts_with("drv-")));
            }
            "log" | "heartbeat" => {}
            kind => bail!("{kind}"),
        }
    }
    ensure!(events >= 4 && stored.iter().any(|message| message.subject.ends_with(".heartbeat")));
    ends_by(relay, Signal::SIGTERM)?;
    ends_by(scene.relay()?, Signal::SIGINT)
}

#[test]
fn the_host_name_of_an_event_is_in_a_header() -> Result<()> {
    let mut program = Program::start(CASES, BORINGSSL, &program::unique_name())?;
    let (agent, nats) = (Agent::watching(program.pid(), BORINGSSL)?, Nats::start(&[])?);
    let _relay = relay(&[("dev-1", &agent.url)], &nats.url)?;
    for case in ["plain 100 1", "name one.example.org"] {
        program.command(case)?;
    }
    let stored = until("both ends of both connections to be stored", || {
        let stored = nats.stored()?;
        let of = |host| {
            let events = stored.iter().filter(|message| message.subject.ends_with(".event"));
            events.filter(|message| message.header("Plaintap-Host") == host).count()
        };
        // The end that is asked asks for nothing.
        Ok((of(Some("one.example.org")) >= 2 && of(None) >= 6).then_some(stored))
    })?;
    for message in stored {
        let entry = LogEntry::decode(message.body.as_slice())?;
        let host = match entry.payload {
            Some(Payload::EventPayload(event)) => event.server_name,
            _ => String::new(),
        };
        ensure!(message.header("Plaintap-Host").unwrap_or_default() == host, "{host}: {}", message.headers);
    }
    program.quit()
}

/// The configuration of the stream.
fn config(nats: &Nats) -> Result<Value> {
    Ok(nats.api("STREAM.INFO.PLAINTAP", "")?["config"].take())
}

#[test]
fn a_stream_is_made_with_limits_and_one_that_is_there_is_left_as_it_is() -> Result<()> {
    let source = [("dev-1", "ws://127.0.0.1:1/")];
    let nats = Nats::start(&[])?;
    let first = relay(&source, &nats.url)?;
    let (made, day) = (config(&nats)?, 24 * 3600 * 1_000_000_000_u64);
    for (name, is) in [
        ("subjects", json!(["plaintap.>"])),
        ("storage", json!("file")),
        ("retention", json!("limits")),
        ("discard", json!("old")),
        ("max_bytes", json!(1_000_000_000)),
        ("max_age", json!(7 * day)),
        ("duplicate_window", json!(120_000_000_000_u64)),
    ] {
        ensure!(made[name] == is, "{name}: {made}");
    }
    ensure!(!first.stderr.all().iter().any(|line| line.contains("finds risks")), "{:?}", first.stderr.all());

    let nats = Nats::start(&[])?;
    nats.api("STREAM.CREATE.PLAINTAP", &stream(200_000).replace("\"file\"", "\"memory\""))?;
    let before = config(&nats)?;
    let second = relay(&source, &nats.url)?;
    ensure!(config(&nats)? == before, "{before}");
    second.stderr.wait_for(0, "the risks", |line| {
        line.ends_with("finds risks stream=PLAINTAP storage=memory max_age=none discard=new")
    })?;
    Ok(())
}

/// Whether a relay ends well by a signal, and says so last.
fn ends_by(mut relay: Process, signal: Signal) -> Result<()> {
    relay.signal(signal)?;
    let status = relay.wait()?;
    let said = relay.stderr.to_the_end()?;
    let last = said.last().context("it said nothing")?;
    ensure!(
        status.success() && last.ends_with(&format!("plaintap relay: ends signal={signal}")),
        "{status}: {said:?}"
    );
    Ok(())
}

#[test]
fn a_server_that_is_killed_under_load_and_started_again_has_all_of_it_once() -> Result<()> {
    let mut scene = Scene::with_a_large_journal()?;
    let _relay = scene.relay()?;
    scene.under_load(|nats, load| {
        for _ in 0..3 {
            nats.stores_more(40)?;
            nats.kill()?;
            load.goes_on()?;
            nats.start_again()?;
        }
        nats.stores_more(40)
    })?;
    scene.is_stored().map(drop)
}

#[test]
fn what_has_no_number_is_not_stored_once_for_each_attempt_of_an_outage() -> Result<()> {
    let mut scene = Scene::set()?;
    let relay = scene.relay()?;
    scene.load(1)?;
    scene.is_stored()?;
    scene.nats.kill()?;
    relay.stderr.wait_for(0, "a sign of life to wait", |line| line.contains("waits device=dev-1"))?;
    // Time for attempts.
    let heartbeats =
        |client: &[Received]| client.iter().filter(|message| message.heartbeat().is_some()).count();
    let known = heartbeats(&scene.client.messages);
    scene.client.wait_for("another sign of life", |all| (heartbeats(all) > known).then_some(()))?;
    scene.nats.start_again()?;
    relay.stderr.wait_for(0, "it to go on", |line| line.contains("stores again device=dev-1"))?;
    let mut all = BTreeMap::<Vec<u8>, u32>::new();
    for message in scene.nats.stored()? {
        *all.entry(message.body).or_default() += 1;
    }
    // One may have been stored by a server whose answer was lost.
    ensure!(all.values().all(|times| *times <= 2), "{:?}", all.values());
    Ok(())
}

#[test]
fn a_relay_that_is_killed_under_load_goes_on_where_it_was_with_nothing_twice() -> Result<()> {
    let mut scene = Scene::with_a_large_journal()?;
    let agent = scene.agent.url.clone();
    scene.under_load(|nats, load| {
        for _ in 0..3 {
            let mut relay = relay(&[("dev-1", &agent)], &nats.url)?;
            nats.stores_more(40)?;
            relay.signal(Signal::SIGKILL)?;
            relay.wait()?;
            load.goes_on()?;
        }
        Ok(())
    })?;
    let _relay = scene.relay()?;
    scene.is_stored().map(drop)
}

#[test]
fn the_first_lines_that_an_earlier_relay_has_stored_are_neither_stored_again_nor_taken_for_anothers()
-> Result<()> {
    let mut scene = Scene::with_a_small_journal()?;
    // The journal does not hold them then, and they come ahead of all others.
    scene.load(400)?;
    scene.captured()?;
    let run = scene.client.run_id().context("no run")?.to_owned();
    let first =
        scene.client.messages.iter().find(|message| message.entry.seq == 1).context("no first line")?;
    scene.nats.api("STREAM.CREATE.PLAINTAP", &stream_that_soon_forgets())?;
    let headers =
        format!("Nats-Msg-Id: {run}:1\r\nPlaintap-Run: {run}\r\nPlaintap-Seq: 1\r\nPlaintap-Place: 0\r\n");
    scene.nats.publish("plaintap.dev-1.log", &headers, &first.raw)?;
    // Until the server would take it again.
    thread::sleep(5 * WINDOW);
    let relay = scene.relay()?;
    scene.load(10)?;
    let last = *scene.captured()?.keys().last().context("nothing was captured")?;
    let numbers = until("all that is left to be stored", || {
        let numbers: Vec<u64> =
            scene.nats.stored()?.iter().map(|message| message.seq).filter(|seq| *seq > 0).collect();
        Ok(numbers.iter().any(|seq| *seq >= last).then_some(numbers))
    })?;
    ensure!(numbers.is_sorted_by(|one, next| one < next), "twice, or in disorder: {numbers:?}");
    ensure!(!relay.stderr.all().iter().any(|line| line.contains("stays back")), "{:#?}", relay.stderr.all());
    Ok(())
}

#[test]
fn a_server_that_stands_still_for_10_s_delays_and_loses_nothing() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(50)?;
    scene.nats.signal(Signal::SIGSTOP)?;
    scene.load(100)?;
    thread::sleep(Duration::from_secs(10));
    scene.nats.signal(Signal::SIGCONT)?;
    scene.load(50)?;
    scene.is_stored().map(drop)
}

#[test]
fn an_agent_that_is_started_anew_is_another_run_of_the_same_device() -> Result<()> {
    let mut scene = Scene::set()?;
    let pid = scene.driver.pid().to_string();
    // Nobody else gets it while no agent has it.
    let url = format!("ws://127.0.0.1:{}/", net::free_port()?);
    scene.agent = Agent::start_at(&url, &["--library", BORINGSSL, "--pid", &pid])?;
    scene.client = Client::connect(&url)?;
    let relay = scene.relay()?;
    scene.load(10)?;
    scene.is_stored()?;
    let first = scene.client.run_id().context("no run")?.to_owned();
    scene.agent.signal(Signal::SIGTERM)?;
    scene.agent.wait()?;
    relay.stderr.wait_for(0, "the source to be away", |line| line.contains("source is away"))?;
    scene.agent = Agent::start_at(&url, &["--library", BORINGSSL, "--pid", &pid])?;
    scene.client = Client::connect(&url)?;
    scene.load(10)?;
    let captured = scene.captured()?;
    let second = scene.client.run_id().context("no run")?.to_owned();
    until("the new run to be stored", || {
        let stored = scene.nats.stored()?;
        let of = |run: &str, seq: u64| {
            stored
                .iter()
                .filter(|message| message.header("Plaintap-Run") == Some(run) && message.seq == seq)
                .count()
        };
        ensure!(captured.keys().all(|seq| of(&second, *seq) <= 1), "something is stored twice");
        Ok((of(&first, 1) == 1 && captured.keys().all(|seq| of(&second, *seq) == 1)).then_some(()))
    })
}

#[test]
fn a_source_that_is_cut_off_goes_on_where_it_was() -> Result<()> {
    let mut scene = Scene::set()?;
    let cable = Cable::to(scene.agent.port)?;
    let relay = relay(&[("dev-1", &format!("ws://127.0.0.1:{}/", cable.port))], &scene.nats.url)?;
    let said = |what: &str| relay.stderr.all().iter().filter(|line| line.contains(what)).count();
    for turn in 1..=3 {
        until("the source to be there", || Ok((said("source is there device=dev-1") == turn).then_some(())))?;
        scene.load(40)?;
        cable.cut()?;
        scene.load(40)?;
    }
    scene.is_stored()?;
    ensure!(said("source is away device=dev-1") == 3, "{:#?}", relay.stderr.all());
    Ok(())
}

#[test]
fn what_is_stored_and_whose_acknowledgement_is_lost_is_not_stored_again_however_late() -> Result<()> {
    let mut scene = Scene::set()?;
    scene.nats.api("STREAM.CREATE.PLAINTAP", &stream_that_soon_forgets())?;
    let port = scene.nats.url.rsplit(':').next().context("no port")?.parse()?;
    let cable = Cable::to(port)?;
    let relay = relay(&[("dev-1", &scene.agent.url)], &format!("nats://127.0.0.1:{}", cable.port))?;
    for _ in 0..2 {
        scene.load(5)?;
        scene.is_stored()?;
        let said = relay.stderr.all().len();
        cable.swallow_answers();
        scene.load(5)?;
        // It waits for the answer longer than the server knows what was sent twice.
        relay.stderr.wait_for(said, "it to miss the answer", |line| line.contains("waits device=dev-1"))?;
        cable.cut()?;
        relay.stderr.wait_for(said, "it to go on", |line| line.contains("stores again device=dev-1"))?;
    }
    scene.is_stored()?;
    ensure!(!relay.stderr.all().iter().any(|line| line.contains("stays back")), "{:#?}", relay.stderr.all());
    Ok(())
}

#[test]
fn what_the_journal_no_longer_holds_is_told_as_a_gap() -> Result<()> {
    let mut scene = Scene::with_a_small_journal()?;
    let mut first = scene.relay()?;
    scene.load(10)?;
    scene.is_stored()?;
    first.signal(Signal::SIGKILL)?;
    first.wait()?;
    scene.load(400)?;
    let (_second, port) = relay_with_metrics(&[("dev-1", &scene.agent.url)], &scene.nats)?;
    let last = *scene.captured()?.keys().last().context("nothing was captured")?;
    let missing = until("the stream to be complete", || {
        let stored = scene.nats.stored()?;
        let gaps = stored.iter().filter_map(|message| message.header("Plaintap-Gap"));
        let missing = gaps.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let run =
            stored.last().and_then(|message| message.header("Plaintap-Run")).context("no run")?.to_owned();
        let numbers = stored.iter().filter(|message| message.header("Plaintap-Run") == Some(&run));
        let numbers: Vec<u64> = numbers.map(|message| message.seq).filter(|seq| *seq > 0).collect();
        ensure!(numbers.is_sorted_by(|one, next| one < next), "twice, or in disorder: {numbers:?}");
        // Lines from before the first relay aside, each number is there or counted.
        let first = numbers.first().copied().unwrap_or(0);
        let end = numbers.last().copied().unwrap_or(0);
        let complete = end >= last && numbers.len() as u64 + missing == end - first + 1;
        Ok((complete && missing > 100).then_some(missing))
    })?;
    until("the gap to be among the metrics", || {
        let told = |name: &str| metric(port, name, "dev-1");
        let (gaps, missed) = (told("gaps_total")?, told("missed_messages_total")?);
        Ok((gaps > Some(0.0) && missed == Some(missing as f64)).then_some(()))
    })
}

#[test]
fn what_is_larger_than_the_server_takes_is_told_as_a_gap_and_holds_nothing_up() -> Result<()> {
    let mut scene = Scene::set()?;
    let config = scene.nats.file("nats.conf", "max_payload: 16384")?;
    scene.nats = Nats::start(&["--config", &config])?;
    leaves_out_what_is_large(scene, "because=max_payload")
}

#[test]
fn what_is_larger_than_the_stream_takes_is_told_as_a_gap_and_holds_nothing_up() -> Result<()> {
    let scene = Scene::set()?;
    let stream = stream(50_000_000).replace("\"max_age\"", "\"max_msg_size\":11500,\"max_age\"");
    scene.nats.api("STREAM.CREATE.PLAINTAP", &stream)?;
    leaves_out_what_is_large(scene, "because=max_msg_size")
}

fn leaves_out_what_is_large(mut scene: Scene, because: &str) -> Result<()> {
    let _relay = scene.relay()?;
    for (size, seed) in [(1000, 1), (16 << 10, 2), (2000, 3)] {
        scene.driver.write(Side::Client, size, seed)?;
    }
    let captured = scene.captured()?;
    let (small, large): (Vec<_>, Vec<_>) = captured.iter().partition(|(_, raw)| raw.len() < 11_000);
    ensure!(!large.is_empty(), "nothing is large");
    let last = *small.last().context("nothing is small")?.0;
    let stored = until("the last of them to be stored", || {
        let stored = scene.nats.stored()?;
        Ok(stored.iter().any(|message| message.seq >= last).then_some(stored))
    })?;
    for (seq, raw) in small {
        ensure!(
            stored.iter().any(|message| message.seq == *seq && message.body == *raw),
            "{seq} is not there"
        );
    }
    let gaps: Vec<_> = stored.iter().filter(|message| message.header("Plaintap-Gap") == Some("1")).collect();
    ensure!(gaps.len() == large.len(), "{gaps:?}");
    ensure!(gaps.iter().all(|gap| String::from_utf8_lossy(&gap.body).contains(because)));
    Ok(())
}

#[test]
fn what_a_filtered_source_missed_while_nobody_was_there_is_told_as_a_gap() -> Result<()> {
    let mut scene = Scene::with_a_small_journal()?;
    let url = format!("{}?pid=1", scene.agent.url);
    let filtered = || relay(&[("dev-1", &url)], &scene.nats.url);
    let gaps = |scene: &Scene| -> Result<u64> {
        let stored = scene.nats.stored()?;
        let gaps = stored.iter().filter_map(|message| message.header("Plaintap-Gap"));
        Ok(gaps.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
    };
    let place = |scene: &Scene| -> Result<u64> {
        let stored = scene.nats.stored()?;
        let places = stored.iter().filter_map(|message| message.header("Plaintap-Place"));
        Ok(places.map(str::parse::<u64>).collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0))
    };
    let mut first = filtered()?;
    first.stderr.wait_for(0, "the source", |line| line.contains("source is there"))?;
    until("a sign of life", || Ok((place(&scene)? > 0).then_some(())))?;
    first.signal(Signal::SIGKILL)?;
    first.wait()?;
    let before = place(&scene)?;
    // One that comes back at once has missed nothing, whatever the filter left out.
    let heartbeats = |scene: &Scene| -> Result<usize> {
        Ok(scene.nats.stored()?.iter().filter(|message| message.subject.ends_with(".heartbeat")).count())
    };
    let comes_back = |scene: &Scene| -> Result<()> {
        let known = heartbeats(scene)?;
        let mut relay = filtered()?;
        until("its first sign of life", || Ok((heartbeats(scene)? > known).then_some(())))?;
        relay.signal(Signal::SIGKILL)?;
        relay.wait().map(drop)
    };
    comes_back(&scene)?;
    for seed in 0..400 {
        scene.driver.write(Side::Client, 4096, seed)?;
    }
    ensure!(gaps(&scene)? == 0, "a gap was told");
    comes_back(&scene)?;
    let missing = gaps(&scene)?;
    ensure!(missing > 100 && place(&scene)? >= before + missing, "{missing} behind {before}");
    comes_back(&scene)?;
    ensure!(gaps(&scene)? == missing, "it was told again");
    Ok(())
}

#[test]
fn a_full_stream_that_discards_nothing_is_waited_for() -> Result<()> {
    let mut scene = Scene::set()?;
    scene.nats.api("STREAM.CREATE.PLAINTAP", &stream(200_000))?;
    let relay = scene.relay()?;
    scene.load(100)?;
    let (_, line) = relay.stderr.wait_for(0, "it to wait", |line| line.contains("waits device=dev-1"))?;
    ensure!(line.contains("maximum bytes exceeded"), "{line}");
    scene.nats.api("STREAM.UPDATE.PLAINTAP", &stream(50_000_000))?;
    relay.stderr.wait_for(0, "it to go on", |line| line.contains("stores again device=dev-1"))?;
    scene.is_stored().map(drop)
}

#[test]
fn a_second_relay_for_a_device_stays_back() -> Result<()> {
    let mut scene = Scene::set()?;
    let first = scene.relay()?;
    scene.load(10)?;
    let second = scene.relay()?;
    let back = |relay: &Process| {
        relay
            .stderr
            .all()
            .iter()
            .any(|line| line.contains("Z plaintap relay: stays back") && line.ends_with("device=dev-1"))
    };
    until("one of them to stay back", || {
        scene.load(5)?;
        Ok((back(&first) || back(&second)).then_some(()))
    })?;
    ensure!(back(&first) != back(&second), "both of them stay back");
    scene.is_stored()?;
    // The other has nothing to store now but signs of life, every 15 s, and is no less there for that: not within the 30 s that
    // the one stays back before it looks, nor the 30 s after.
    for _ in 0..5 {
        let known = scene.nats.stored()?.len();
        until("a sign of life", || Ok((scene.nats.stored()?.len() > known).then_some(())))?;
    }
    let begun = |relay: &Process| {
        relay.stderr.all().iter().filter(|line| line.contains("goes on device=dev-1")).count()
    };
    ensure!((begun(&first), begun(&second)) == (1, 1), "{:#?}", second.stderr.all());
    Ok(())
}

#[test]
fn what_keeps_it_from_beginning_is_said_in_a_line() -> Result<()> {
    let agent = "ws://127.0.0.1:1/";
    let nats = Nats::start(&["--user", "lab", "--pass", "secret"])?;
    let said = refused(&[("a", agent)], &nats.url)?;
    ensure!(said.contains("refuses the credentials") && said.contains(&nats.url), "{said}");
    let with_password = |password: &str| nats.url.replace("nats://", &format!("nats://lab:{password}@"));
    let said = refused(&[("a", agent)], &with_password("wrong"))?;
    ensure!(said.contains("refuses the credentials") && !said.contains("wrong"), "{said}");
    let said = refused_with(2, &[("a", agent), ("a", "ws://127.0.0.1:2/")], &with_password("secret"))?;
    ensure!(said.contains("two sources are called a"), "{said}");
    let said = refused_with(2, &[], &nats.url)?;
    ensure!(said.contains("no source"), "{said}");
    let said = refused_with(2, &[("a", agent)], "http://127.0.0.1:4222")?;
    ensure!(said.contains("no NATS server's URL"), "{said}");
    let port = net::free_port()?;
    let said = refused(&[("a", agent)], &format!("nats://127.0.0.1:{port}"))?;
    ensure!(said.contains(&format!("no connection to nats://127.0.0.1:{port}")), "{said}");

    let nats = Nats::start(&[])?;
    nats.api(
        "STREAM.CREATE.PLAINTAP",
        "{\"name\":\"PLAINTAP\",\"subjects\":[\"other.>\"],\"storage\":\"file\"}",
    )?;
    let said = refused(&[("a", agent)], &nats.url)?;
    ensure!(said.contains("the stream PLAINTAP does not take the subjects"), "{said}");
    Ok(())
}
