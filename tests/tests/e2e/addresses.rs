//! Who talks to whom: addresses, ports, threads, and which side opened the connection.

use std::{fs, net::TcpListener, process::Command};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use plaintap_proto::{Direction, Event};
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, ends, uuid};
use plaintap_tests::driver::{Connection, Driver, Side, certificate};
use plaintap_tests::process::Process;
use plaintap_tests::stream::{Client, Received};
use plaintap_tests::{BORINGSSL, OPENSSL, need, net, until};

/// Sends both ways over `connection` and checks the addresses of all four halves.
fn are_right(
    driver: &mut Driver,
    client: &mut Client,
    connection: &Connection,
    ip: &str,
) -> Result<Vec<u64>> {
    let expected = format!("{ip}:{}-{ip}:{}", connection.client_port, connection.server_port);
    let mut ids = Vec::new();
    driver.use_connection(connection)?;
    for side in [Side::Client, Side::Server] {
        driver.write(side, 100, 1)?;
        for (side, direction) in [(side, Direction::Written), (side.other(), Direction::Read)] {
            let half = Half::of_driver(driver, side, direction).on(connection);
            let seen = conversation::wait_for(client, &half, 100)?;
            for event in &seen.events {
                assert_eq!(ends(event), expected, "{event:?}");
                assert_eq!(event.uuid, uuid(event)?);
                assert_eq!(event.pname, side.comm());
            }
            ids.push(seen.connection_id());
        }
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2, "one connection id for each SSL object: {ids:?}");
    Ok(ids)
}

/// On two connections that the agent sees being opened.
fn are_right_on_new_connections(library: &str, address: &str, shown: &str) -> Result<()> {
    let mut driver = Driver::start_at(library, address)?;
    let agent = Agent::watching(driver.pid(), library)?;
    let mut client = Client::connect(&agent.url)?;
    let (first, second) = (driver.open()?, driver.open()?);
    let mut ids = are_right(&mut driver, &mut client, &first, shown)?;
    ids.extend(are_right(&mut driver, &mut client, &second, shown)?);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "two connections share an id: {ids:?}");
    Ok(())
}

/// On a connection that is older than the agent. Its listener is still there and says who accepted it.
fn are_right_on_an_old_connection(library: &str, address: &str, shown: &str) -> Result<()> {
    let mut driver = Driver::start_at(library, address)?;
    let connection = driver.connection.clone();
    let agent = Agent::watching(driver.pid(), library)?;
    let mut client = Client::connect(&agent.url)?;
    are_right(&mut driver, &mut client, &connection, shown).map(drop)
}

#[test]
fn ipv4_addresses_are_right() -> Result<()> {
    are_right_on_new_connections(BORINGSSL, "127.0.0.1", "127.0.0.1")
}

#[test]
fn ipv6_addresses_are_right() -> Result<()> {
    are_right_on_new_connections(BORINGSSL, "::1", "[::1]")
}

#[test]
fn openssls_addresses_are_right_too() -> Result<()> {
    are_right_on_new_connections(OPENSSL, "127.0.0.1", "127.0.0.1")?;
    are_right_on_new_connections(OPENSSL, "::1", "[::1]")
}

#[test]
fn ipv4_addresses_are_right_on_a_connection_older_than_the_agent() -> Result<()> {
    are_right_on_an_old_connection(BORINGSSL, "127.0.0.1", "127.0.0.1")?;
    are_right_on_an_old_connection(OPENSSL, "127.0.0.1", "127.0.0.1")
}

#[test]
fn ipv6_addresses_are_right_on_a_connection_older_than_the_agent() -> Result<()> {
    are_right_on_an_old_connection(BORINGSSL, "::1", "[::1]")
}

/// What the agent's programs know of who listens on `port`: how many sockets they saw begin it, or 0, which is for good.
fn listening(agent: &Agent, port: u16) -> Result<Option<u8>> {
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.parent()))? {
        // A descriptor may be closed while we look.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let id = id.trim().parse()?;
        if MapInfo::from_id(id)?.name_as_str() == Some("LISTENERS") {
            let map = Map::HashMap(MapData::from_id(id)?);
            return Ok(HashMap::<_, u16, u8>::try_from(&map)?.get(&port, 0).ok());
        }
    }
    bail!("the agent has no such map")
}

/// Waits until the agent's programs know this of `port`. A closed socket goes on listening in a program that another test is just
/// starting, which has a copy of it until it runs.
fn comes_to(agent: &Agent, port: u16, expected: Option<u8>) -> Result<()> {
    until("the last copy of a listener to close", || Ok((listening(agent, port)? == expected).then_some(())))
        .with_context(|| format!("{:?}, should be {expected:?}", listening(agent, port)))
}

#[test]
fn a_port_is_a_listeners_until_the_last_one_closes() -> Result<()> {
    let old = TcpListener::bind("127.0.0.1:0")?;
    // Of ourselves, so that it is not busy with what others start.
    let agent = Agent::watching(std::process::id(), BORINGSSL)?;
    let old_port = old.local_addr()?.port();
    assert_eq!(listening(&agent, old_port)?, Some(0));
    // One port of the kernel's choice, and the same chosen by us.
    let first = TcpListener::bind("127.0.0.1:0")?;
    let port = first.local_addr()?.port();
    assert_eq!(listening(&agent, port)?, Some(1));
    let second = TcpListener::bind(("::1", port))?;
    assert_eq!(listening(&agent, port)?, Some(2));
    drop(first);
    comes_to(&agent, port, Some(1))?;
    drop(second);
    comes_to(&agent, port, None)?;
    let chosen = TcpListener::bind("127.0.0.1:0")?;
    let port = chosen.local_addr()?.port();
    drop(chosen);
    comes_to(&agent, port, None)?;
    // How many listened on this one before the agent came, nobody knows.
    drop(old);
    until("the last copy of the old listener to close", || Ok((!net::listens(old_port)?).then_some(())))?;
    assert_eq!(listening(&agent, old_port)?, Some(0));
    Ok(())
}

/// What `event` says of its ends, if it says anything.
fn known(event: &Event) -> Option<String> {
    (event.src_port != 0 || event.src_ip != "0.0.0.0").then(|| ends(event))
}

#[test]
fn without_btf_kprobes_tell_addresses_and_nothing_else_tells_wrong_ones() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let agent = Agent::without_btf(&["--library", BORINGSSL, "--pid", &pid])?;
    let has_kprobes = agent.log().all().iter().any(|line| line.contains("addresses hook=kprobe"));
    let mut client = Client::connect(&agent.url)?;
    let connections = [driver.open()?, driver.open()?];
    for seed in 0..10 {
        for connection in &connections {
            driver.use_connection(connection)?;
            driver.write(Side::Client, 100, seed)?;
            driver.write(Side::Server, 100, seed)?;
        }
    }
    let total = 4 * 10 * connections.len();
    client.wait_for("all events", |seen| {
        (seen.iter().filter_map(Received::event).count() == total).then_some(())
    })?;
    let expected = connections.map(|connection| {
        format!("127.0.0.1:{}-127.0.0.1:{}", connection.client_port, connection.server_port)
    });
    for event in client.events() {
        // The process has more than one connection: without a hook it says nothing.
        ensure!(known(event).is_some() == has_kprobes, "{event:?}");
        ensure!(known(event).is_none_or(|ends| expected.contains(&ends)), "{event:?}");
    }
    driver.quit()
}

#[test]
fn without_btf_a_program_with_one_connection_has_its_addresses() -> Result<()> {
    let openssl = need::program("openssl", "openssl")?;
    let certificate = certificate()?;
    let port = net::free_port()?;
    let mut command = Command::new(&openssl);
    let mut server = Process::start(
        command
            .args(["s_server", "-quiet", "-naccept", "1", "-accept", &port.to_string()])
            .args(["-cert", "cert.pem", "-key", "key.pem"])
            .current_dir(certificate.path()),
    )?;
    until("openssl to listen", || Ok(net::listens(port)?.then_some(())))?;
    let mut command = Command::new(&openssl);
    let mut peer =
        Process::start(command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")]))?;
    let client_port = until("openssl to connect", || Ok(net::clients_of(port)?.pop()))?;
    let pids = [peer.pid(), server.pid()];
    let [one, other] = pids.map(|pid| pid.to_string());
    let agent = Agent::without_btf(&["--library", OPENSSL, "--pid", &one, "--pid", &other])?;
    let mut client = Client::connect(&agent.url)?;
    let expected = format!("127.0.0.1:{client_port}-127.0.0.1:{port}");
    // The agent asks again from time to time: it may take many lines, which is no fault.
    let mut rounds = 0..;
    until("both programs' addresses", || {
        let round = rounds.next().unwrap_or_default();
        let line = format!("line {round}\n");
        peer.write(line.as_bytes())?;
        server.stdout.wait_for(round, "the client's line", |_| true)?;
        server.write(line.as_bytes())?;
        peer.stdout.wait_for(round, "the server's line", |_| true)?;
        let seen = 4 * (round + 1);
        client.wait_for("the lines", |all| {
            (all.iter().filter_map(Received::event).count() == seen).then_some(())
        })?;
        ensure!(client.events().filter_map(known).all(|ends| ends == expected), "a wrong address");
        let told = |pid: &u32| {
            let ends: Vec<_> =
                client.events().filter(|event| event.pid == i64::from(*pid)).map(known).collect();
            // Once known, always.
            ensure!(ends.is_sorted(), "{ends:?}");
            Ok(ends.last().is_some_and(Option::is_some))
        };
        let told = pids.iter().map(told).collect::<Result<Vec<_>>>()?;
        Ok(told.iter().all(|told| *told).then_some(()))
    })
}

#[test]
fn a_pid_filter_shows_that_process_and_no_other() -> Result<()> {
    let mut ours = Driver::start(BORINGSSL)?;
    let mut other = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(ours.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    for seed in 0..5 {
        other.write(Side::Client, 100, seed)?;
        ours.write(Side::Client, 100, seed)?;
    }
    for (side, direction) in [(Side::Server, Direction::Read), (Side::Client, Direction::Written)] {
        conversation::wait_for(&mut client, &Half::of_driver(&ours, side, direction), 500)?;
    }
    client.ping(b"end")?;
    assert_eq!(client.events().count(), 10);
    assert!(client.events().all(|event| event.pid == i64::from(ours.pid())));
    Ok(())
}
