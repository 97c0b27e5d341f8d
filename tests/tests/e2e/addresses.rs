//! Who talks to whom: addresses, ports, threads, and which side opened the connection.

use anyhow::Result;
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, ends, uuid};
use plaintap_tests::driver::{Connection, Driver, Side};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

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
    let half = Half::of_driver(&ours, Side::Server, Direction::Read);
    conversation::wait_for(&mut client, &half, 500)?;
    client.ping(b"end")?;
    assert_eq!(client.events().count(), 10);
    assert!(client.events().all(|event| event.pid == i64::from(ours.pid())));
    Ok(())
}
