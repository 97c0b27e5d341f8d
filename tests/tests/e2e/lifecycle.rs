//! How the agent ends: cleanly by a signal, and without a trace by SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use plaintap_proto::Direction;
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::conversation::{self, Half};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::process::{self, Process};
use plaintap_tests::stream::Client;
use plaintap_tests::waits::restarted;
use plaintap_tests::{BORINGSSL, PATIENCE, need, net, until};
use tempfile::TempDir;
use tungstenite::protocol::frame::coding::CloseCode;

/// The ids of the kernel's eBPF programs and links.
#[derive(Debug, Default, PartialEq, Eq)]
struct InKernel {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl InKernel {
    /// Those that a process holds open.
    fn held_by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the agent's open files")? {
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for line in text.lines() {
                match line.split_once(':').map(|(name, id)| (name, id.trim().parse())) {
                    Some(("prog_id", Ok(id))) => drop(held.programs.insert(id)),
                    Some(("link_id", Ok(id))) => drop(held.links.insert(id)),
                    _ => {}
                }
            }
        }
        Ok(held)
    }

    /// Those of `self` that the kernel still has. Others' may come and go while we look, which is no error.
    fn left(&self) -> Self {
        let programs = aya::programs::loaded_programs().flatten().map(|program| program.id());
        let links = aya::programs::loaded_links().flatten().map(|link| link.id());
        Self {
            programs: programs.filter(|id| self.programs.contains(id)).collect(),
            links: links.filter(|id| self.links.contains(id)).collect(),
        }
    }

    fn wait_until_gone(&self) -> Result<()> {
        let what = format!("the kernel to let go of {self:?}");
        until(&what, || Ok((self.left() == Self::default()).then_some(())))
    }
}

/// The URL of a port that no other test's program is given once an agent there has ended.
fn own_url() -> Result<String> {
    Ok(format!("ws://127.0.0.1:{}/", net::free_port()?))
}

/// A traced process, an agent and its client; the probes have been hit.
struct Scene {
    driver: Driver,
    agent: Agent,
    client: Client,
    held: InKernel,
}

impl Scene {
    fn set() -> Result<Self> {
        let mut driver = Driver::start(BORINGSSL)?;
        let agent =
            Agent::start_at(&own_url()?, &["--library", BORINGSSL, "--pid", &driver.pid().to_string()])?;
        let mut client = Client::connect(&agent.url)?;
        driver.write(Side::Client, 1000, 1)?;
        let half = Half::of_driver(&driver, Side::Server, Direction::Read);
        conversation::wait_for(&mut client, &half, 1000)?;
        let mut held = InKernel::default();
        for pid in agent.pids()? {
            let more = InKernel::held_by(pid)?;
            held.programs.extend(more.programs);
            held.links.extend(more.links);
        }
        ensure!(
            held.programs.len() + held.links.len() > 0,
            "no eBPF program is seen in the agent's open files"
        );
        ensure!(held.left() == held, "{:?} are not all of {held:?}", held.left());
        Ok(Self { driver, agent, client, held })
    }

    /// Nothing of the agent is left, and what it traced works as before.
    fn nothing_is_left(mut self, child: u32) -> Result<()> {
        ensure!(!process::runs(child), "the second process {child} still runs");
        self.held.wait_until_gone()?;
        TcpListener::bind(("127.0.0.1", self.agent.port)).context("binding the agent's port")?;
        for side in [Side::Client, Side::Server] {
            self.driver.write(side, 50_000, 2)?;
        }
        self.driver.open()?;
        self.driver.write(Side::Client, 10, 3)?;
        self.driver.quit()
    }
}

fn ends_cleanly_by(signal: Signal) -> Result<()> {
    let mut scene = Scene::set()?;
    let mut second = Client::connect(&scene.agent.url)?;
    let child = scene.agent.child()?;
    scene.agent.signal(signal)?;
    for client in [&mut scene.client, &mut second] {
        let reason = client.wait_for_close()?.context("no reason")?;
        assert_eq!(reason.code, CloseCode::Away, "{reason:?}");
    }
    let status = scene.agent.wait()?;
    assert_eq!(status.code(), Some(0), "{status}: {:?}", scene.agent.log().all());
    scene.nothing_is_left(child)
}

#[test]
fn sigterm_tells_the_clients_detaches_and_ends_with_0() -> Result<()> {
    ends_cleanly_by(Signal::SIGTERM)
}

#[test]
fn sigint_tells_the_clients_detaches_and_ends_with_0() -> Result<()> {
    ends_cleanly_by(Signal::SIGINT)
}

#[test]
fn a_client_that_does_not_read_does_not_delay_the_end() -> Result<()> {
    let mut scene = Scene::set()?;
    let _stuck = Client::connect_with(&scene.agent.url, &[])?;
    for seed in 0..8 {
        scene.driver.write(Side::Client, 1_000_000, seed)?;
    }
    let child = scene.agent.child()?;
    scene.agent.signal(Signal::SIGTERM)?;
    let status = scene.agent.wait()?;
    assert_eq!(status.code(), Some(0), "{status}: {:?}", scene.agent.log().all());
    scene.nothing_is_left(child)
}

#[test]
fn killing_the_attaching_half_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::set()?;
    let child = scene.agent.child()?;
    process::send(scene.agent.parent(), Signal::SIGKILL)?;
    scene.agent.wait()?;
    let reason = scene.client.wait_for_close()?.context("no reason")?;
    assert_eq!(reason.code, CloseCode::Error, "{reason:?}");
    ensure!(reason.reason.contains("the half of plaintapd that captures ended"), "{reason:?}");
    scene.agent.log().wait_for(0, "a line about the end", |line| {
        line.contains(" ERR ") && line.contains("the half of plaintapd that captures ended")
    })?;
    until("the serving half to end too", || Ok((!process::runs(child)).then_some(())))?;
    scene.nothing_is_left(child)
}

#[test]
fn that_the_attaching_half_was_killed_is_no_good_end_for_watch() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut command = Command::new(need::binary("plaintap")?);
    let mut watch = Process::start(command.args(["watch", "--no-reconnect", &scene.agent.url]))?;
    scene.agent.log().wait_for(0, "the second client", |line| line.contains("clients=2"))?;
    process::send(scene.agent.parent(), Signal::SIGKILL)?;
    scene.agent.wait()?;
    let status = watch.wait()?;
    assert_eq!(status.code(), Some(1), "{status}: {:?}", watch.stderr.all());
    Ok(())
}

#[test]
fn killing_the_serving_half_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::set()?;
    let child = scene.agent.child()?;
    process::send(child, Signal::SIGKILL)?;
    let status = scene.agent.wait()?;
    assert_eq!(status.code(), Some(1), "{status}: {:?}", scene.agent.log().all());
    scene.nothing_is_left(child)
}

#[test]
fn a_signal_while_it_starts_ends_it_before_clients_can_connect() -> Result<()> {
    need::root()?;
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let mut command = agent::plaintapd()?;
    command.args(["--ecaptureq", "ws://127.0.0.1:0/"]);
    for number in 0..12 {
        let path = folder.path().join(format!("own-{number}.so"));
        fs::copy(need::library(BORINGSSL)?, &path)?;
        command.arg("--library").arg(path);
    }
    let mut agent = Process::start(&mut command)?;
    agent.stderr.wait_for(0, "its first line", |line| line.contains("plaintapd version="))?;
    agent.signal(Signal::SIGINT)?;
    let status = agent.wait()?;
    let lines = agent.stderr.to_the_end()?;
    assert_eq!(status.code(), Some(0), "{status}: {lines:#?}");
    let ending = lines.iter().position(|line| line.contains("ending: SIGINT")).context("no line says so")?;
    ensure!(lines[ending..].iter().any(|line| line.contains("taking probes off left=")), "{lines:#?}");
    ensure!(!lines[ending..].iter().any(|line| line.contains("listening")), "{lines:#?}");
    ensure!(lines.last().is_some_and(|line| line.ends_with(" INF ended")), "{lines:#?}");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_port_says_so_and_ends_with_5() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    let refusal =
        agent::refusal(agent::plaintapd()?.args(["--ecaptureq", &agent.url, "--library", BORINGSSL]))?;
    assert_eq!(refusal.code, Some(5), "{refusal:?}");
    let address = format!("127.0.0.1:{}", agent.port);
    assert!(refusal.error()?.contains(&address), "{refusal:?}");
    // The first is none the worse for it.
    Client::connect(&agent.url)?;
    assert_eq!(agent.stop()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_port_can_be_used_again_at_once() -> Result<()> {
    let agent = Agent::start_at(&own_url()?, &["--library", BORINGSSL])?;
    let url = agent.url.clone();
    let client = Client::connect(&url)?;
    assert_eq!(agent.stop()?.code(), Some(0));
    drop(client);
    let agent = Agent::start_at(&url, &["--library", BORINGSSL])?;
    assert_eq!(agent.url, url);
    Ok(())
}

#[test]
fn a_service_manager_is_told_that_it_is_ready_alive_and_ending() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let place = folder.path().join("notify");
    let manager = UnixDatagram::bind(&place)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let next = || -> Result<String> {
        let mut message = [0; 64];
        let length = restarted(PATIENCE, || manager.recv(&mut message)).context("waiting for a word")?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let place = place.to_string_lossy();
    // A second between two signs of life: the socket holds ten words, and the last is lost where none is read meanwhile.
    let variables = [("NOTIFY_SOCKET", &*place), ("WATCHDOG_USEC", "2000000")];
    let agent = Agent::start_with(&variables, &["--library", BORINGSSL])?;
    ensure!(next()? == "READY=1");
    for _ in 0..3 {
        ensure!(next()? == "WATCHDOG=1");
    }
    agent.signal(Signal::SIGTERM)?;
    let mut last = next()?;
    while last == "WATCHDOG=1" {
        last = next()?;
    }
    ensure!(last == "STOPPING=1", "{last}");
    Ok(())
}

#[test]
fn after_sigkill_the_port_is_free_at_once() -> Result<()> {
    let mut agent = Agent::start_at(&own_url()?, &["--library", BORINGSSL])?;
    let (url, child) = (agent.url.clone(), agent.child()?);
    // A connection that is open then stays behind in the kernel.
    let _client = Client::connect(&url)?;
    agent.signal(Signal::SIGKILL)?;
    agent.wait()?;
    until("the serving half to end", || Ok((!process::runs(child)).then_some(())))?;
    let agent = Agent::start_at(&url, &["--library", BORINGSSL])?;
    ensure!(agent.url == url);
    Ok(())
}

#[test]
fn nothing_is_written_to_a_disk_while_it_runs() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    let written = || -> Result<u64> {
        let mut sum = 0;
        for pid in agent.pids()? {
            let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
            let line =
                text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
            sum += line.parse::<u64>()?;
        }
        Ok(sum)
    };
    let before = written()?;
    for seed in 0..50 {
        driver.write(Side::Client, 10_000, seed)?;
    }
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    conversation::wait_for(&mut client, &half, 500_000)?;
    ensure!(written()? == before, "{} bytes were written", written()? - before);
    Ok(())
}
