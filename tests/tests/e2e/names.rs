//! Who speaks, and with whom: the host name that a client asks for, the program, when it started, and its user.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};
use plaintap_proto::{Direction, Event};
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::program::{self, CASES, Program};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL, process, until};

/// The start of process `pid`, in nanoseconds since boot. Source: proc_pid_stat(5), field 22.
fn start_of(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_comm) = stat.rsplit_once(')').context("no comm")?;
    let ticks: u64 = after_comm.split_whitespace().nth(19).context("too few fields")?.parse()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(ticks * (1_000_000_000 / u64::try_from(per_second)?))
}

/// Has the program use its open connection until an event of process `pid` names a program, and gives that event.
fn first_with_app(program: &mut Program, client: &mut Client, from: usize) -> Result<Event> {
    until("an event that names its program", || {
        program.command("again")?;
        client.pongs.clear();
        client.ping(b"more?")?;
        let messages = client.messages[from..].iter();
        Ok(messages.filter_map(|message| message.event()).find(|event| !event.app.is_empty()).cloned())
    })
}

#[test]
fn the_host_name_that_a_client_asks_for_is_on_its_events_and_on_no_others() -> Result<()> {
    for library in [BORINGSSL, OPENSSL] {
        let mut program = Program::start(CASES, library, &program::unique_name())?;
        let agent = Agent::watching(program.pid(), library)?;
        let mut client = Client::connect(&agent.url)?;
        for case in ["name one.example.org", "plain 100 1", "name two.example.org"] {
            program.command(case)?;
        }
        client.wait_for("1200 bytes", |messages| {
            let events = messages.iter().filter_map(|message| message.event());
            (events.map(|event| event.payload.len()).sum::<usize>() >= 1200).then_some(())
        })?;
        let streams = conversation::streams(client.events())?;
        let mut found = Vec::new();
        for (direction, stream) in streams {
            let names = stream.distinct(|event| event.server_name.clone());
            ensure!(names.len() == 1, "{library}: {direction:?} has {names:?}");
            found.extend(names.into_iter().map(|name| (direction, name)));
        }
        // The client's end writes and reads, and so does the server's, which asks for nothing.
        let expected: Vec<_> = ["one.example.org", "", "two.example.org"]
            .into_iter()
            .flat_map(|name| {
                let (written, read) = (Direction::Written, Direction::Read);
                [(written, name), (read, ""), (written, ""), (read, name)]
            })
            .map(|(direction, name)| (direction, name.to_owned()))
            .collect();
        assert_eq!(found, expected, "{library}");
        program.quit()?;
    }
    Ok(())
}

#[test]
fn events_name_their_program_and_its_start_once_known() -> Result<()> {
    let mut program = Program::start(CASES, BORINGSSL, &program::unique_name())?;
    let agent = Agent::watching(program.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    program.command("open")?;
    first_with_app(&mut program, &mut client, 0)?;
    program.command("again")?;
    client.ping(b"end")?;
    let (app, start) = (fs::canonicalize(CASES)?, start_of(program.pid())?);
    let app = app.to_str().context("no UTF-8")?;
    let events: Vec<&Event> = client.events().collect();
    let unknown = events.iter().take_while(|event| event.app.is_empty() && event.process_start == 0).count();
    for event in &events[unknown..] {
        assert_eq!((event.app.as_str(), event.process_start), (app, start));
    }
    ensure!(unknown < events.len() - 3, "{unknown} events of {} don't know", events.len());
    program.quit()
}

#[test]
fn after_exec_events_never_name_the_program_before() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let successor = folder.path().join("successor");
    process::copy_program(Path::new(CASES), &successor)?;
    let successor = successor.to_str().context("no UTF-8")?;
    let mut program = Program::start(CASES, BORINGSSL, &program::unique_name())?;
    let agent = Agent::watching(program.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    program.command("open")?;
    first_with_app(&mut program, &mut client, 0)?;
    program.command(&format!("exec {successor}"))?;
    program.wait_for("ready")?;
    client.ping(b"exec")?;
    let before = client.messages.len();
    program.command("open")?;
    first_with_app(&mut program, &mut client, before)?;
    let after = client.messages[before..].iter().filter_map(|message| message.event());
    let mut named: Vec<&str> = after.map(|event| event.app.as_str()).filter(|app| !app.is_empty()).collect();
    named.dedup();
    assert_eq!(named, [successor]);
    program.quit()
}

#[test]
fn events_have_their_processs_user() -> Result<()> {
    for uid in [0, 12_345] {
        let mut driver = Driver::start_as(OPENSSL, uid)?;
        let agent = Agent::watching(driver.pid(), OPENSSL)?;
        let mut client = Client::connect(&agent.url)?;
        driver.write(Side::Client, 10, 1)?;
        client.ping(b"end")?;
        let half = conversation::Half::of_driver(&driver, Side::Server, Direction::Read);
        conversation::wait_for(&mut client, &half, 10)?;
        assert!(client.events().all(|event| event.uid == uid));
    }
    Ok(())
}
