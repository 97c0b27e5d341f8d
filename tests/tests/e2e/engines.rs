//! TLS over memory, as Conscrypt's engine does it: whose socket an SSL object's bytes go over is found by the bytes that it
//! wrote. It is known once one of its writes was sent, whoever sent it and whatever else was sent meanwhile, and never wrong.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::ends;
use plaintap_tests::driver::fact;
use plaintap_tests::program::{self, ENGINE, Program};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL};

/// Exchanges a connection has.
const EXCHANGES: usize = 8;

const UNKNOWN: &str = "0.0.0.0:0-0.0.0.0:0";

/// When the agent comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// Before the handshakes.
    Start,
    /// After the handshakes.
    Exchanges,
}

/// Of each end of each connection, as `A client`: how many of its events were without an address before the first that
/// had one, and how many it had in all. Those with an address have the right one.
type Observed = BTreeMap<String, (usize, usize)>;

/// What the agent says of `case`, over either library, as it is used. Wrong addresses are an error.
fn observe(case: &str, since: Since) -> Result<Vec<Observed>> {
    observe_over(case, since, &[(BORINGSSL, "pair"), (OPENSSL, "mem")])
}

/// What the agent says of `case`, over each library and kind of BIO.
fn observe_all(case: &str, since: Since) -> Result<Vec<Observed>> {
    let all = [(BORINGSSL, "mem"), (BORINGSSL, "pair"), (OPENSSL, "mem"), (OPENSSL, "pair")];
    observe_over(case, since, &all)
}

fn observe_over(case: &str, since: Since, over: &[(&str, &str)]) -> Result<Vec<Observed>> {
    let mut all = Vec::new();
    let mut wrong = Vec::new();
    for (library, bios) in over {
        match observe_one(case, since, library, bios).with_context(|| format!("{case}, {bios}, {library}")) {
            Ok(observed) => all.push(observed),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(all)
}

/// An agent that has seen an SSL object over memory, after which it looks for the bytes of others: before, no program has to
/// pay for that.
fn aware_agent(name: &str, library: &str) -> Result<Agent> {
    let agent = Agent::start(&["--library", library, "--comm", name])?;
    let mut client = Client::connect(&agent.url)?;
    let mut first = Program::start(ENGINE, library, name)?;
    first.begin("single mem 1", "open")?;
    first.command("go")?;
    client.wait_for("the probe on BIO_write", |messages| {
        let mut lines = messages.iter().filter_map(|message| message.log());
        lines.any(|line| line.contains("attached") && line.contains("functions=BIO_write")).then_some(())
    })?;
    first.quit()?;
    Ok(agent)
}

fn observe_one(case: &str, since: Since, library: &str, bios: &str) -> Result<Observed> {
    let name = program::unique_name();
    let mut program = Program::start(ENGINE, library, &name)?;
    let command = format!("{case} {bios} {EXCHANGES}");
    let (agent, said) = match since {
        Since::Start => {
            let agent = aware_agent(&name, library)?;
            (agent, program.begin(&command, "open")?)
        }
        Since::Exchanges => {
            let said = program.begin(&command, "open")?;
            (aware_agent(&name, library)?, said)
        }
    };
    let mut client = Client::connect(&agent.url)?;
    program.command("go")?;
    let connections = said.iter().filter(|line| line.starts_with("connection "));
    let connections = connections
        .map(|line| {
            let (client, server): (u16, u16) = (fact(line, "client_port")?, fact(line, "server_port")?);
            Ok((fact(line, "name")?, format!("127.0.0.1:{client}-127.0.0.1:{server}")))
        })
        .collect::<Result<BTreeMap<String, String>>>()?;
    // The last message that each client's end writes; the swapped ones leave two messages unread.
    let last = if case == "swapped" { EXCHANGES - 2 } else { EXCHANGES - 1 };
    client.wait_for("the last message", |messages| {
        let there = |name: &String| {
            let start = format!("{name} client {last} ");
            messages.iter().filter_map(|message| message.event()).any(|event| {
                event.direction() == Direction::Written && event.payload.starts_with(start.as_bytes())
            })
        };
        connections.keys().all(there).then_some(())
    })?;
    client.ping(b"end")?;
    let mut observed = Observed::new();
    let mut wrong = Vec::new();
    for event in client.events() {
        let text = String::from_utf8_lossy(&event.payload);
        let words: Vec<&str> = text.split(' ').take(3).collect();
        let [name, writer, number] = words[..] else { bail!("not a message: {text:?}") };
        let reads = event.direction() == Direction::Read;
        let end = if (writer == "client") != reads { "client" } else { "server" };
        let (without, all) = observed.entry(format!("{name} {end}")).or_default();
        *all += 1;
        let (shown, right) = (ends(event), connections.get(name).context("no such connection")?);
        match shown.as_str() {
            UNKNOWN if *without == *all - 1 => *without += 1,
            UNKNOWN => bail!("{name}'s {end} had an address, and lost it at {text:?}"),
            shown if shown == right => {}
            _ => wrong.push(format!("{name}'s {end}, message {number}: {shown}, should be {right}")),
        }
    }
    ensure!(wrong.is_empty(), "wrong addresses: {wrong:?}; {said:?}");
    program.quit()?;
    eprintln!("{case}, {since:?}, {bios}, {library}: without an address at first: {observed:?}");
    Ok(observed)
}

/// No end has more than `client` or `server` events without an address.
fn are_soon_known(client: usize, server: usize, observed: &[Observed]) {
    for (end, (without, _)) in observed.iter().flatten() {
        let most = if end.ends_with("client") { client } else { server };
        assert!(
            *without <= most,
            "{end} had no address in {without} events, {most} are bearable: {observed:?}"
        );
    }
}

/// All events have an address: the handshake told it.
fn are_known(observed: &[Observed]) {
    are_soon_known(0, 0, observed);
}

#[test]
fn an_engine_has_its_address_from_the_handshake() -> Result<()> {
    are_known(&observe_all("single", Since::Start)?);
    Ok(())
}

/// The client's first write is seen before it is sent, and so are the server's first read and first write.
#[test]
fn an_engine_older_than_the_agent_has_its_address_once_it_has_written() -> Result<()> {
    are_soon_known(1, 2, &observe_all("single", Since::Exchanges)?);
    Ok(())
}

#[test]
fn engines_in_one_loop_one_after_the_other_have_their_addresses() -> Result<()> {
    are_known(&observe("turns", Since::Start)?);
    are_soon_known(1, 2, &observe("turns", Since::Exchanges)?);
    Ok(())
}

#[test]
fn engines_that_are_written_to_and_then_sent_for_are_never_mixed_up() -> Result<()> {
    for case in ["batch", "crossed"] {
        are_known(&observe(case, Since::Start)?);
        are_soon_known(2, 2, &observe(case, Since::Exchanges)?);
    }
    Ok(())
}

#[test]
fn engines_whose_bytes_are_sent_a_turn_late_are_never_mixed_up() -> Result<()> {
    are_known(&observe("swapped", Since::Start)?);
    are_soon_known(4, 4, &observe("swapped", Since::Exchanges)?);
    Ok(())
}

#[test]
fn an_engine_whose_bytes_other_threads_move_has_its_address() -> Result<()> {
    are_known(&observe("relay", Since::Start)?);
    are_soon_known(2, 2, &observe("relay", Since::Exchanges)?);
    Ok(())
}

#[test]
fn a_plain_connection_that_an_engine_serves_is_not_taken_for_its_own() -> Result<()> {
    are_known(&observe("proxy", Since::Start)?);
    are_soon_known(1, 2, &observe("proxy", Since::Exchanges)?);
    Ok(())
}

#[test]
fn a_plain_connection_served_during_a_slow_handshake_is_not_taken_for_the_engines() -> Result<()> {
    are_known(&observe("polling", Since::Start)?);
    are_known(&observe("relayed_polling", Since::Start)?);
    Ok(())
}

#[test]
fn a_plain_connection_that_carries_as_much_as_a_record_is_not_taken_for_an_engines() -> Result<()> {
    are_known(&observe("chatter", Since::Start)?);
    are_soon_known(2, 2, &observe("chatter", Since::Exchanges)?);
    Ok(())
}
