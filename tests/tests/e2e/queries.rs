//! What a client asks for in its request is what it gets: which messages, and from where on.

use anyhow::{Context, Result, ensure};
use plaintap_proto::Event;
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::program::{self, CASES, Program};
use plaintap_tests::raw::{ask, handshake};
use plaintap_tests::stream::{Client, Received};
use plaintap_tests::{BORINGSSL, until};

/// An agent that has captured three processes: two drivers, one of which has a user of its own, and a program that asked for
/// host names.
struct Scene {
    agent: Agent,
    drivers: [Driver; 2],
    /// A client that wants all there is, and has it.
    all: Client,
}

const NOBODY: u32 = 65534;

impl Scene {
    fn set() -> Result<Self> {
        let mut drivers = [Driver::start(BORINGSSL)?, Driver::start_as(BORINGSSL, NOBODY)?];
        let mut program = Program::start(CASES, BORINGSSL, &program::unique_name())?;
        let pids = [drivers[0].pid(), drivers[1].pid(), program.pid()].map(|pid| format!("--pid={pid}"));
        let agent = Agent::start(&["--library", BORINGSSL, &pids[0], &pids[1], &pids[2]])?;
        for case in ["name one.example.org", "plain 100 1", "name two.example.org"] {
            program.command(case)?;
        }
        program.quit()?;
        for (seed, size) in [(1, 10), (2, 40_000), (3, 300)] {
            for driver in &mut drivers {
                driver.write(Side::Client, size, seed)?;
                driver.write(Side::Server, size, seed)?;
            }
        }
        let mut all = Client::connect(&format!("{}?backlog=all", agent.url))?;
        all.ping(b"all")?;
        ensure!(all.events().count() > 30, "only {} events", all.events().count());
        Ok(Self { agent, drivers, all })
    }

    /// A client of `query`, with all that it gets of what has happened.
    fn client(&self, query: &str) -> Result<Client> {
        let mut client = Client::connect(&format!("{}?{query}", self.agent.url))?;
        client.ping(b"what there is")?;
        Ok(client)
    }

    /// The numbers of all events that `wanted` takes.
    fn expected(&self, wanted: impl Fn(&Event) -> bool) -> Vec<u64> {
        seqs(&self.all, |message| message.event().is_some_and(&wanted))
    }
}

fn seqs(client: &Client, wanted: impl Fn(&Received) -> bool) -> Vec<u64> {
    client.messages.iter().filter(|message| wanted(message)).map(|message| message.entry.seq).collect()
}

fn events(client: &Client) -> Vec<u64> {
    seqs(client, |message| message.event().is_some())
}

#[test]
fn each_key_chooses_events_and_keys_agree() -> Result<()> {
    let scene = Scene::set()?;
    let [one, other] = [scene.drivers[0].pid(), scene.drivers[1].pid()];
    let is = |event: &Event, pid: u32| event.pid == i64::from(pid);
    let from_client = |event: &Event| event.pname == Side::Client.comm();
    let from_server = |event: &Event| event.pname == Side::Server.comm();
    type Wanted<'a> = Box<dyn Fn(&Event) -> bool + 'a>;
    let cases: Vec<(String, Wanted<'_>)> = vec![
        (format!("pid={one}"), Box::new(move |event| is(event, one))),
        (format!("pid={one}&pid={other}"), Box::new(move |event| is(event, one) || is(event, other))),
        (format!("pid=!{one}"), Box::new(move |event| !is(event, one))),
        (format!("uid={NOBODY}"), Box::new(|event| event.uid == NOBODY)),
        ("uid=!60000-70000".to_owned(), Box::new(|event| event.uid == 0)),
        (format!("comm={}", Side::Client.comm()), Box::new(from_client)),
        (
            format!("comm=%64rv-client&pid=!{one}"),
            Box::new(move |event| from_client(event) && !is(event, one)),
        ),
        (
            format!("comm=drv-server&uid={NOBODY}"),
            Box::new(|event| from_server(event) && event.uid == NOBODY),
        ),
        (
            "comm=!drv-server&comm=!drv-client".to_owned(),
            Box::new(|event| !from_client(event) && !from_server(event)),
        ),
        ("host=one.example.org".to_owned(), Box::new(|event| event.server_name == "one.example.org")),
        (
            "host=!ONE.example.org&host=!two.example.org".to_owned(),
            Box::new(|event| event.server_name.is_empty()),
        ),
        ("pid=1".to_owned(), Box::new(|_| false)),
        ("events=1&logs=1&token=whatever".to_owned(), Box::new(|_| true)),
        ("events=0".to_owned(), Box::new(|_| false)),
    ];
    for (query, wanted) in cases {
        let expected = scene.expected(wanted);
        let client = scene.client(&format!("backlog=all&{query}"))?;
        assert_eq!(events(&client), expected, "{query}");
        let is_nothing = query == "pid=1" || query == "events=0";
        ensure!(expected.is_empty() == is_nothing, "{query} takes {} events", expected.len());
        ensure!(client.logs().any(|line| line.contains("listening url=")), "{query}: no log lines");
    }
    Ok(())
}

#[test]
fn what_is_left_out_live_is_done_with_and_counted_as_such() -> Result<()> {
    let mut scene = Scene::set()?;
    let pid = scene.drivers[1].pid();
    let mut client = scene.client(&format!("pid={pid}"))?;
    assert!(events(&client).is_empty());
    for driver in &mut scene.drivers {
        driver.write(Side::Client, 50_000, 9)?;
    }
    client.ping(b"live")?;
    scene.all.ping(b"live")?;
    let before = client.messages.iter().find_map(Received::heartbeat).context("no heartbeat")?.last_seq;
    let expected = scene.expected(|event| event.pid == i64::from(pid));
    let expected: Vec<u64> = expected.into_iter().filter(|seq| *seq > before).collect();
    assert!(expected.len() > 4);
    assert_eq!(events(&client), expected);
    // The lines of both clients' arrivals are in the journal; each has what the other has.
    let lines =
        |client: &Client| seqs(client, |message| message.log().is_some() && message.entry.seq > before);
    assert_eq!(lines(&client), lines(&scene.all));
    Ok(())
}

#[test]
fn without_log_lines_there_are_none() -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.client("backlog=all&logs=0")?;
    assert_eq!(client.logs().count(), 0);
    assert_eq!(events(&client), scene.expected(|_| true));
    let client = scene.client("logs=0&events=0&backlog=all")?;
    assert!(client.messages.iter().all(|message| message.heartbeat().is_some()));
    let client = scene.client("logs=0&after=1&run=of-yesterday")?;
    assert_eq!(client.logs().count(), 0);
    Ok(())
}

#[test]
fn a_backlog_is_counted_after_the_choice_and_nothing_comes_twice() -> Result<()> {
    let scene = Scene::set()?;
    let from_client = scene.expected(|event| event.pname == Side::Client.comm());
    for (backlog, count) in
        [("all", usize::MAX), ("none", 0), ("0", 0), ("1", 1), ("7", 7), ("100000", usize::MAX)]
    {
        let client = scene.client(&format!("comm=drv-client&backlog={backlog}"))?;
        let expected = &from_client[from_client.len() - count.min(from_client.len())..];
        assert_eq!(events(&client), expected, "{backlog}");
        // `Client` itself sees to it that no number comes twice. The first lines come whatever the start.
        let version = env!("CARGO_PKG_VERSION");
        ensure!(client.logs().any(|line| line.contains(version)), "{backlog}: no {version}");
        let place = client.messages.iter().position(|message| message.heartbeat().is_some());
        let (greeting, rest) = client.messages.split_at(place.context("no heartbeat")?);
        ensure!(greeting.iter().all(|message| message.log().is_some()), "{backlog}: more than log lines");
        let start = rest[0].heartbeat().context("no heartbeat")?.last_seq;
        ensure!(
            greeting.iter().all(|message| message.entry.seq <= start),
            "{backlog}: a line from the future"
        );
        ensure!(rest.iter().all(|message| message.entry.seq == 0 || message.entry.seq > start), "{backlog}");
    }
    // Without a choice, the last ones.
    let all = scene.expected(|_| true);
    assert_eq!(events(&scene.client("backlog=5")?), all[all.len() - 5..]);
    Ok(())
}

#[test]
fn a_query_that_makes_no_sense_is_refused_by_name() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL])?;
    for (query, named) in [
        ("pids=4", "\"pids\""),
        ("q", "\"q\""),
        ("a%22%0d%0aX:y=1", "a"),
        ("pid=curl", "pid"),
        ("uid=5-1", "uid"),
        ("backlog=some", "backlog"),
        ("events=yes", "events"),
        ("logs=", "logs"),
        ("after=5", "run"),
        ("after=-1&run=a", "after"),
        ("after=1&run=a&backlog=1", "backlog"),
        ("comm=%f", "percent"),
        ("backlog=1&backlog=2", "backlog"),
    ] {
        let answer = ask(agent.port, &handshake(&format!("/x?{query}"), agent.port, &[]))?;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        let (head, body) = answer.text.split_once("\r\n\r\n").context("no body")?;
        ensure!(body.contains(named) && body.trim().lines().count() == 1, "{query}: {body}");
        ensure!(!head.contains("X:y"), "{query}: {head}");
    }
    // In its log too, on one line.
    until("the log to name the last one", || {
        let lines = agent.log().all();
        Ok(lines.iter().any(|line| line.contains("The query has backlog more than once.")).then_some(()))
    })
}
