//! `nats://` as a source: what `plaintap` shows and records of a stored stream is what was stored.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plaintap_proto::{LogEntry, log_entry::Payload};
use plaintap_tests::agent::Agent;
use plaintap_tests::process::Process;
use plaintap_tests::{BORINGSSL, need, until};
use prost::Message;
use serde_json::Value;
use tempfile::TempDir;

use super::nats::{Nats, Stored};
use super::scene::{Scene, relay};

impl Scene {
    fn url(&self, query: &str) -> String {
        format!("{}/?{query}", self.nats.url)
    }
}

/// `plaintap` with a command and its flags.
fn plaintap(args: &[&str]) -> Result<Process> {
    Process::start(Command::new(need::binary("plaintap")?).args(args))
}

/// What it says and prints, if it ends well.
fn printed(args: &[&str]) -> Result<Vec<String>> {
    let mut process = plaintap(args)?;
    let status = process.wait()?;
    ensure!(status.success(), "{status}: {:?}", process.stderr.all());
    process.stdout.to_the_end()
}

/// What it says when it can't; it ends with 1.
fn refused(args: &[&str]) -> Result<String> {
    let mut process = plaintap(args)?;
    let status = process.wait()?;
    let said = process.stderr.to_the_end()?.join("\n");
    ensure!(status.code() == Some(1), "{status}: {said}");
    Ok(said)
}

/// The numbers of events that `watch --json` printed.
fn numbers(lines: &[String]) -> Result<Vec<u64>> {
    let number = |line: &String| -> Result<u64> {
        let value: Value = serde_json::from_str(line)?;
        let number =
            value["seq"].as_str().and_then(|text| text.parse().ok()).or_else(|| value["seq"].as_u64());
        number.with_context(|| format!("no seq in {line}"))
    };
    lines.iter().map(number).collect()
}

/// The messages of a recording, as far as they are whole.
fn recorded(path: &Path) -> Result<Vec<Vec<u8>>> {
    let file = fs::read(path)?;
    let mut rest = file.as_slice();
    let mut all = Vec::new();
    while let Ok(length) = prost::decode_length_delimiter(rest) {
        let head = prost::length_delimiter_len(length);
        let Some(body) = rest.get(head..head + length) else { break };
        all.push(body.to_vec());
        rest = &rest[head + length..];
    }
    Ok(all)
}

fn events(stored: &[Stored]) -> Vec<u64> {
    stored.iter().filter(|message| message.subject.ends_with(".event")).map(|message| message.seq).collect()
}

fn is_event(body: &Vec<u8>) -> bool {
    LogEntry::decode(body.as_slice())
        .is_ok_and(|entry| matches!(entry.payload, Some(Payload::EventPayload(_))))
}

#[test]
fn what_was_stored_is_recorded_byte_for_byte_from_its_beginning() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(40)?;
    let stored = scene.is_stored()?;
    let folder = TempDir::with_prefix("plaintap-read-")?;
    let file = folder.path().join("x.pb");
    let count = events(&stored).len().to_string();
    let path = file.to_str().context("a path")?;
    printed(&["record", &scene.url("device=dev-1&backlog=all"), "-o", path, "--count", &count])?;
    let last = stored.iter().rposition(|message| message.subject.ends_with(".event")).context("no event")?;
    let expected: Vec<&[u8]> = stored[..=last].iter().map(|message| message.body.as_slice()).collect();
    ensure!(recorded(&file)? == expected, "another recording than what was stored");
    Ok(())
}

#[test]
fn what_was_stored_is_inspected_as_it_came() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(10)?;
    let stored = scene.is_stored()?;
    let count = stored.len().to_string();
    let lines =
        printed(&["inspect", &scene.url("device=dev-1&backlog=all"), "--compact", "--count", &count])?;
    ensure!(lines.len() == stored.len(), "{lines:#?}");
    for (at, (line, message)) in lines.iter().zip(&stored).enumerate() {
        let (number, length) = (at + 1, message.body.len());
        let kind = message.subject.rsplit('.').next().context("no kind")?;
        ensure!(line.starts_with(&format!("#{number} ")) && line.contains(&format!(", {length} bytes")));
        ensure!(line.contains(kind), "{kind}: {line}");
    }
    Ok(())
}

#[test]
fn a_backlog_is_so_many_events_and_a_choice_is_kept_to() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(30)?;
    let all = events(&scene.is_stored()?);
    let watch = |query: &str, count: usize| -> Result<Vec<u64>> {
        let count = count.to_string();
        numbers(&printed(&["watch", &scene.url(query), "--raw", "--json", "--count", &count])?)
    };
    // The stream has one device, which need not be named.
    for (backlog, first) in [("5", all.len() - 5), ("1", all.len() - 1), ("all", 0), ("100000", 0)] {
        let query = format!("backlog={backlog}");
        ensure!(watch(&query, all.len() - first)? == all[first..], "{query}");
    }
    let (pid, comm) = (scene.driver.pid(), "drv-client");
    let chosen = watch(&format!("backlog=all&pid={pid}&comm=!{comm}&logs=0"), 1)?;
    ensure!(all.contains(&chosen[0]), "{chosen:?}");
    Ok(())
}

#[test]
fn without_a_backlog_only_what_comes_from_then_on_is_shown() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(10)?;
    let before = events(&scene.is_stored()?);
    let watch = plaintap(&["watch", &scene.url("device=dev-1"), "--raw", "--json"])?;
    watch.stderr.wait_for(0, "it to be connected", |line| line.contains("connected to nats://"))?;
    scene.load(10)?;
    let after = events(&scene.is_stored()?)[before.len()..].to_vec();
    until("all of it to be shown", || Ok((watch.stdout.all().len() >= after.len()).then_some(())))?;
    ensure!(numbers(&watch.stdout.all())? == after, "{after:?}");
    Ok(())
}

#[test]
fn a_server_that_is_killed_and_started_again_is_gone_on_with_where_it_was() -> Result<()> {
    let mut scene = Scene::with_a_large_journal()?;
    let _relay = scene.relay()?;
    let folder = TempDir::with_prefix("plaintap-read-")?;
    let file = folder.path().join("x.pb");
    let path = file.to_str().context("a path")?;
    let record = plaintap(&["record", &scene.url("device=dev-1&backlog=all"), "-o", path])?;
    record.stderr.wait_for(0, "it to be connected", |line| line.contains("connected to nats://"))?;
    let size = || file.metadata().map_or(0, |about| about.len());
    let records_more = || {
        let before = size();
        until("messages to be recorded", || Ok((size() > before + 100_000).then_some(())))
    };
    scene.under_load(|nats, load| {
        for turn in 1..=2 {
            records_more()?;
            nats.kill()?;
            load.goes_on()?;
            nats.start_again()?;
            until("it to be connected again", || {
                let said = record.stderr.all();
                let again = said.iter().filter(|line| line.contains("connected again")).count();
                Ok((again == turn).then_some(()))
            })?;
        }
        records_more()
    })?;
    let stored = scene.is_stored()?;
    let expected: Vec<&Vec<u8>> =
        stored.iter().map(|message| &message.body).filter(|body| is_event(body)).collect();
    until("all of it to be recorded", || {
        let recorded = recorded(&file)?;
        let events: Vec<&Vec<u8>> = recorded.iter().filter(|body| is_event(body)).collect();
        ensure!(events == expected[..events.len().min(expected.len())], "twice, or in disorder");
        Ok((events.len() == expected.len()).then_some(()))
    })?;
    let said = record.stderr.all().join("\n");
    for words in ["the connection was cut; trying again in", "missed nothing while away"] {
        ensure!(said.contains(words), "{said}");
    }
    Ok(())
}

#[test]
fn a_device_that_is_not_there_is_waited_for_and_one_of_several_must_be_named() -> Result<()> {
    let mut scene = Scene::set()?;
    let _relay = scene.relay()?;
    scene.load(5)?;
    scene.is_stored()?;
    let watch = plaintap(&["watch", &scene.url("device=dev%2F2"), "--raw", "--json", "--count", "3"])?;
    watch.stderr.wait_for(0, "it to say so", |line| {
        line.ends_with("waiting for the first message of dev/2: the stream PLAINTAP has one device, dev-1")
    })?;
    let only = plaintap(&["watch", &scene.url("backlog=all"), "--raw", "--json"])?;
    only.stdout.wait_for(0, "the only device to be shown", |_| true)?;
    let agent = Agent::watching(scene.driver.pid(), BORINGSSL)?;
    let _second = relay(&[("dev/2", &agent.url)], &scene.nats.url)?;
    scene.load(10)?;
    until("it to be shown", || Ok((watch.stdout.all().len() == 3).then_some(())))?;
    let said = refused(&["watch", &scene.url("")])?;
    ensure!(said.contains("has 2 devices: dev-1, dev/2; name one in the query as device=NAME"), "{said}");
    // Who read the only device goes on with it.
    scene.nats.kill()?;
    scene.nats.start_again()?;
    only.stderr.wait_for(0, "it to go on", |line| line.contains("missed nothing while away"))?;
    let said = refused(&["watch", &scene.url("device=dev-1&stream=NONE"), "--no-reconnect"])?;
    ensure!(said.contains("has no stream NONE"), "{said}");
    Ok(())
}

#[test]
fn a_context_of_the_nats_tool_says_where_to_and_as_whom() -> Result<()> {
    let mut scene = Scene::set()?;
    scene.nats = Nats::start(&["--user", "lab", "--pass", "se:cret@"])?;
    let home = TempDir::with_prefix("plaintap-context-")?;
    let folder = home.path().join("nats/context");
    fs::create_dir_all(&folder)?;
    let context = |password: &str| {
        serde_json::json!({
            "description": "", "url": scene.nats.url, "user": "lab", "password": password, "creds": ""
        })
    };
    fs::write(folder.join("lab.json"), context("se:cret@").to_string())?;
    fs::write(folder.join("wrong.json"), context("other").to_string())?;
    let plaintap = |args: &[&str]| -> Result<Process> {
        let mut command = Command::new(need::binary("plaintap")?);
        Process::start(command.args(args).env("XDG_CONFIG_HOME", home.path()))
    };
    let from = format!("dev-1={}", scene.agent.url);
    let relay = plaintap(&["relay", "--context", "lab", "--from", &from])?;
    relay.stderr.wait_for(0, "it to begin", |line| line.contains("goes on device="))?;
    scene.load(10)?;
    let captured = scene.captured()?;
    let last = captured.keys().last().context("nothing was captured")?.to_string();
    let file = folder.join("lab.json");
    let by_path = format!("nats://?context={}&backlog=all", file.display());
    let in_url = scene.nats.url.replace("nats://", "nats://lab:se%3Acret%40@");
    for source in ["nats://?context=lab&backlog=all", &by_path, &format!("{in_url}/?backlog=all")] {
        let watch = plaintap(&["watch", source, "--raw", "--json"])?;
        let shows = |line: &str| numbers(&[line.to_owned()]).is_ok_and(|seq| seq[0].to_string() == last);
        watch.stdout.wait_for(0, "it to be shown", shows)?;
        ensure!(watch.stderr.all().iter().all(|line| !line.contains("cret")), "{:?}", watch.stderr.all());
    }
    let wrong = plaintap(&["watch", "nats://?context=wrong"])?;
    let (_, said) = wrong.stderr.wait_for(0, "it to be refused", |line| line.contains("refuses"))?;
    ensure!(said.contains(&format!("{} refuses the credentials", scene.nats.url)), "{said}");
    Ok(())
}
