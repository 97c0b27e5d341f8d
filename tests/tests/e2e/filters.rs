//! What is captured is what was asked for: by user, thread name and process, from the command line and a config file, changed
//! while running; and of each call as much as was asked for.

use std::fs;

use anyhow::Result;
use nix::{libc, sys::signal::Signal};
use plaintap_proto::Event;
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, OPENSSL, need, until};
use tempfile::TempDir;

const UIDS: [u32; 2] = [12_345, 12_346];

/// The names of the threads of `driver` whose events are there.
fn comms(client: &Client, driver: &Driver) -> Vec<String> {
    let ours = client.events().filter(|event| event.pid == i64::from(driver.pid()));
    let mut comms: Vec<String> = ours.map(|event| event.pname.clone()).collect();
    comms.sort();
    comms.dedup();
    comms
}

const BOTH: [&str; 2] = ["drv-client", "drv-server"];
const NONE: [&str; 0] = [];

/// A copy of a library that no other program uses: what others send through their own, and lose, is not seen.
fn own_copy(library: &str) -> Result<(TempDir, String)> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let path = folder.path().join("own.so");
    fs::copy(need::library(library)?, &path)?;
    let path = path.to_string_lossy().into_owned();
    Ok((folder, path))
}

/// Whose events come through `arguments`, of two processes with the users [`UIDS`]: the names of their threads.
fn come_through(arguments: &[&str]) -> Result<[Vec<String>; 2]> {
    let (_folder, library) = own_copy(BORINGSSL)?;
    let mut drivers = [Driver::start_as(&library, UIDS[0])?, Driver::start_as(&library, UIDS[1])?];
    let agent = Agent::start(&[&["--library", &library], arguments].concat())?;
    let mut client = Client::connect(&agent.url)?;
    for driver in &mut drivers {
        driver.write(Side::Client, 100, 1)?;
    }
    seen(&mut client)?;
    Ok(drivers.each_ref().map(|driver| comms(&client, driver)))
}

/// Reads until no event has come for a while of pings.
fn seen(client: &mut Client) -> Result<()> {
    let mut quiet = 0;
    while quiet < 10 {
        let before = client.messages.len();
        std::thread::sleep(std::time::Duration::from_millis(10));
        client.pongs.clear();
        client.ping(b"more?")?;
        quiet = if client.messages.len() == before { quiet + 1 } else { 0 };
    }
    Ok(())
}

#[test]
fn a_user_is_chosen_and_left_out() -> Result<()> {
    assert_eq!(come_through(&["--uid", "12345"])?, [&BOTH[..], &NONE]);
    assert_eq!(come_through(&["--uid", "12345-12346"])?, [&BOTH[..], &BOTH]);
    assert_eq!(come_through(&["--uid", "12346-12400"])?, [&NONE[..], &BOTH]);
    assert_eq!(come_through(&["--uid", "!12345"])?, [&NONE[..], &BOTH]);
    assert_eq!(come_through(&["--uid", "12000-13000", "--uid", "!12346"])?, [&BOTH[..], &NONE]);
    Ok(())
}

#[test]
fn a_thread_name_is_chosen_and_left_out() -> Result<()> {
    let users = ["--uid", "12345-12346"];
    let with = |more: &[&'static str]| come_through(&[&users, more].concat());
    assert_eq!(with(&["--comm", "drv-client"])?, [["drv-client"], ["drv-client"]]);
    assert_eq!(with(&["--comm", "!drv-client"])?, [["drv-server"], ["drv-server"]]);
    assert_eq!(with(&["--comm", "drv-client", "--comm", "drv-server"])?, [BOTH, BOTH]);
    assert_eq!(with(&["--comm", "drv-clien"])?, [NONE, NONE]);
    Ok(())
}

/// Two processes, and an agent with a config file.
struct Configured {
    drivers: [Driver; 2],
    agent: Agent,
    client: Client,
    config: tempfile::NamedTempFile,
    /// Messages and log lines before these are old.
    from: (usize, usize),
    _library: TempDir,
}

impl Configured {
    fn start(config: impl Fn([u32; 2]) -> String) -> Result<Self> {
        let (library_folder, library) = own_copy(OPENSSL)?;
        let drivers = [Driver::start(&library)?, Driver::start(&library)?];
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), config(drivers.each_ref().map(Driver::pid)))?;
        let path = file.path().to_string_lossy().into_owned();
        let agent = Agent::start(&["--library", &library, "--config", &path])?;
        let client = Client::connect(&agent.url)?;
        Ok(Self { drivers, agent, client, config: file, from: (0, 0), _library: library_folder })
    }

    /// Changes the config file, sends SIGHUP and waits until the agent says `expected`.
    fn change(&mut self, config: impl Fn([u32; 2]) -> String, expected: &str) -> Result<String> {
        fs::write(self.config.path(), config(self.drivers.each_ref().map(Driver::pid)))?;
        self.from = (self.client.messages.len(), self.agent.log().all().len());
        self.agent.signal(Signal::SIGHUP)?;
        let (_, line) = self.agent.log().wait_for(self.from.1, expected, |line| line.contains(expected))?;
        Ok(line)
    }

    /// The sizes of the new events of each process, after each has written `size` bytes.
    fn write(&mut self, size: u32) -> Result<[Vec<usize>; 2]> {
        for driver in &mut self.drivers {
            driver.write(Side::Client, size, 1)?;
        }
        seen(&mut self.client)?;
        let from = self.client.messages.len().min(self.from.0);
        self.from.0 = self.client.messages.len();
        let events = || self.client.messages[from..].iter().filter_map(|message| message.event());
        Ok(self.drivers.each_ref().map(|driver| {
            let ours = events().filter(|event| event.pid == i64::from(driver.pid()));
            ours.map(|event| event.payload.len()).collect()
        }))
    }
}

#[test]
fn a_config_file_filters_and_sighup_changes_the_filters() -> Result<()> {
    let mut scene = Configured::start(|pids| format!("# ours\n\n--pid {}\n", pids[0]))?;
    assert_eq!(scene.write(100)?, [vec![100, 100], vec![]]);
    scene.change(|pids| format!("--pid={}\n--comm  drv-server", pids[1]), "were read again")?;
    assert_eq!(scene.write(101)?, [vec![], vec![101]]);
    scene.change(|pids| format!("--pid {}\n--pid {}\n--snaplen 10", pids[0], pids[1]), "were read again")?;
    assert_eq!(scene.write(102)?, [vec![10, 10], vec![10, 10]]);
    scene.change(|pids| format!("--pid {}", pids[1]), "were read again")?;
    assert_eq!(scene.write(103)?, [vec![], vec![103, 103]]);
    Ok(())
}

/// Waits until the thread at `side` waits in a system call that reads.
fn waits_for_bytes(driver: &Driver, side: Side) -> Result<()> {
    let path = format!("/proc/{}/task/{}/syscall", driver.pid(), driver.tid(side));
    let reads = [libc::SYS_read, libc::SYS_recvfrom].map(|number| number.to_string());
    until("the thread to wait for bytes", || {
        let now = fs::read_to_string(&path)?;
        let number = now.split_whitespace().next().unwrap_or_default();
        Ok(reads.iter().any(|read| read == number).then_some(()))
    })
}

#[test]
fn what_is_newly_left_out_is_so_in_a_call_under_way_too() -> Result<()> {
    for nothing_of_it in ["--pid !{}", "--comm !drv-server", "--pid 1"] {
        let mut scene = Configured::start(|_| "# everybody\n".into())?;
        assert_eq!(scene.write(100)?, [vec![100, 100], vec![100, 100]]);
        let driver = &mut scene.drivers[0];
        driver.command("await server 50 7")?;
        waits_for_bytes(driver, Side::Server)?;
        scene.change(|pids| nothing_of_it.replace("{}", &pids[0].to_string()), "were read again")?;
        scene.drivers[0].command("send client 50 7")?;
        scene.drivers[0].command("done server")?;
        seen(&mut scene.client)?;
        let late = scene.client.events().filter(|event| event.payload.len() == 50);
        assert!(late.filter(|event| event.pname == "drv-server").count() == 0, "{nothing_of_it}");
        // It is no loss, and what comes later goes on where the stream was left.
        scene.change(|_| "# everybody\n".into(), "were read again")?;
        assert_eq!(scene.write(101)?, [vec![101, 101], vec![101, 101]], "{nothing_of_it}");
        let server = |event: &&Event| event.pname == "drv-server" && event.payload.len() == 101;
        for event in scene.client.events().filter(server) {
            assert_eq!((event.stream_offset, event.lost_before), (100, 0), "{nothing_of_it}");
        }
        assert!(!scene.client.logs().any(|line| line.contains("lost")), "{nothing_of_it}");
    }
    Ok(())
}

#[test]
fn who_is_wanted_before_and_after_is_so_while_filters_change() -> Result<()> {
    // Of many, so that the change takes its time.
    let others: String = (1..=1000).map(|number| format!("--pid {}\n", 4_000_000 + number)).collect();
    let config = |round, pid| if round % 2 == 0 { String::new() } else { format!("{others}--pid {pid}\n") };
    let mut scene = Configured::start(|pids| config(0, pids[0]))?;
    let pid = scene.drivers[0].pid();
    let mut writes = 0;
    for round in 1..=20 {
        fs::write(scene.config.path(), config(round, pid))?;
        let from = scene.agent.log().all().len();
        scene.agent.signal(Signal::SIGHUP)?;
        until("the filters to be changed", || {
            for seed in 0..50 {
                scene.drivers[0].write(Side::Client, 10, seed)?;
            }
            writes += 50;
            // Where the change takes long, the journal would not hold them all.
            scene.client.read_some(usize::MAX / 2)?;
            let lines = scene.agent.log().all();
            Ok(lines[from..].iter().any(|line| line.contains("were read again")).then_some(()))
        })?;
    }
    seen(&mut scene.client)?;
    let ours = scene.client.events().filter(|event| event.pid == i64::from(pid));
    assert_eq!(ours.filter(|event| event.pname == "drv-client").count(), writes);
    Ok(())
}

#[test]
fn as_many_values_as_there_may_be_make_room_for_as_many_others() -> Result<()> {
    let names = |kind: &str| (1..64).map(|number| format!("--comm {kind}{number}\n")).collect::<String>();
    let mut scene = Configured::start(|_| names("old") + "--comm drv-client")?;
    assert_eq!(scene.write(100)?, [[100], [100]]);
    scene.change(|_| names("new") + "--comm drv-server", "were read again")?;
    assert_eq!(scene.write(101)?, [[101], [101]]);
    scene.change(|_| names("old") + "--comm none", "were read again")?;
    assert_eq!(scene.write(102)?, [const { Vec::<usize>::new() }; 2]);
    Ok(())
}

#[test]
fn a_config_file_that_makes_no_sense_changes_nothing_and_is_said() -> Result<()> {
    let mut scene = Configured::start(|pids| format!("--pid {}", pids[0]))?;
    assert_eq!(scene.write(100)?, [vec![100, 100], vec![]]);
    for nonsense in ["--pid x", "--pid", "--frobnicate 1", "--uid 5-4", "--snaplen -1", "--config x"] {
        let line = scene.change(|pids| format!("--pid {}\n{nonsense}", pids[1]), "nothing was changed")?;
        assert!(line.contains(" ERR ") && line.len() < 1000, "{line}");
        assert_eq!(scene.write(100)?, [vec![100, 100], vec![]], "after {nonsense}");
    }
    fs::remove_file(scene.config.path())?;
    scene.agent.signal(Signal::SIGHUP)?;
    let path = scene.config.path().to_string_lossy().into_owned();
    scene.agent.log().wait_for(scene.from.1, "the file's name", |line| {
        line.contains("nothing was changed") && line.contains(&path) && line.contains("No such file")
    })?;
    assert_eq!(scene.write(100)?, [vec![100, 100], vec![]], "without the file");
    scene.change(|pids| format!("--pid {}", pids[1]), "were read again")?;
    assert_eq!(scene.write(100)?, [vec![], vec![100, 100]]);
    Ok(())
}

#[test]
fn snaplen_keeps_the_first_bytes_of_each_call_and_is_no_loss() -> Result<()> {
    for (snaplen, expected) in [
        // Of calls with 1000, 50, 40000 and 100 bytes: offset, length, truncated.
        (100, vec![(0, 100, true), (1000, 50, false), (1050, 100, true), (41_050, 100, false)]),
        (
            20_000,
            vec![
                (0, 1000, false),
                (1000, 50, false),
                (1050, 16_384, false),
                (17_434, 3616, true),
                (41_050, 100, false),
            ],
        ),
        (16_384, vec![(0, 1000, false), (1000, 50, false), (1050, 16_384, true), (41_050, 100, false)]),
    ] {
        let mut driver = Driver::start(BORINGSSL)?;
        let (pid, snaplen) = (driver.pid().to_string(), snaplen.to_string());
        let arguments =
            ["--library", BORINGSSL, "--pid", &pid, "--comm", "drv-client", "--snaplen", &snaplen];
        let agent = Agent::start(&arguments)?;
        let mut client = Client::connect(&agent.url)?;
        let mut bytes = Vec::new();
        for (seed, size) in [(1, 1000), (2, 50), (3, 40_000), (4, 100)] {
            driver.write(Side::Client, size, seed)?;
            bytes.extend(pattern(size, seed));
        }
        seen(&mut client)?;
        let mut got = Vec::new();
        for event in client.events() {
            let (start, length) = (usize::try_from(event.stream_offset)?, event.payload.len());
            assert_eq!(event.payload, bytes[start..start + length], "at {start}");
            assert_eq!((event.length as usize, event.lost_before), (length, 0), "at {start}");
            got.push((start, length, event.truncated));
        }
        assert_eq!(got, expected, "--snaplen {snaplen}");
        // A client that connects gets a heartbeat at once.
        let second = Client::connect(&agent.url)?;
        let heartbeat = second.messages.iter().find_map(|message| message.heartbeat());
        assert_eq!(heartbeat.map(|heartbeat| (heartbeat.lost_events, heartbeat.lost_bytes)), Some((0, 0)));
        assert!(!client.logs().any(|line| line.contains("lost")));
    }
    Ok(())
}

#[test]
fn what_waits_for_a_restart_is_named() -> Result<()> {
    let mut scene = Configured::start(|pids| format!("--pid {}", pids[0]))?;
    let expected = "changed, and waits for a restart: --library --ring-size";
    scene.change(|_| "--ring-size 8M\n--library /no/such.so\n--snaplen 10\n".into(), expected)?;
    assert_eq!(scene.write(100)?, [vec![10, 10], vec![10, 10]]);
    let said = scene.agent.log().all();
    assert!(said.iter().any(|line| line.contains("filters, --snaplen and --log-level were read again")));
    Ok(())
}
