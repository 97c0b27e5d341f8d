//! What processes map is found: later, replaced, deleted, in another mount namespace; and let go with its last process.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::process::Process;
use plaintap_tests::stream::Client;
use plaintap_tests::{OPENSSL, need};
use tempfile::TempDir;

/// From a library's first mapping to its probes.
const SOON: Duration = Duration::from_secs(2);
/// From one look at all processes to the next, where the kernel does not tell what they map. Source: docs/agent.md.
const SLOW_SCAN: Duration = Duration::from_secs(10);

/// A folder for libraries that no other test knows of.
fn folder() -> Result<TempDir> {
    Ok(TempDir::with_prefix("plaintap-tests-")?)
}

/// A copy of OpenSSL under a name that says nothing of TLS, and so of its own inode, in place of what had the name.
fn copy(folder: &Path, name: &str) -> Result<PathBuf> {
    let (path, new) = (folder.join(name), folder.join("new"));
    fs::copy(need::library(OPENSSL)?, &new)?;
    fs::rename(new, &path)?;
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("not UTF-8")
}

/// Waits for the agent's word, from line `from` on, that `path` is attached; the number of the next line.
fn attached(agent: &Agent, from: usize, path: &Path) -> Result<usize> {
    let line = format!(" attached library={} ", path.display());
    Ok(agent.log().wait_for(from, &line, |said| said.contains(&line))?.0 + 1)
}

/// Lets the driver write on a connection of its own, and checks that all of it is seen.
fn is_seen(driver: &mut Driver, agent: &Agent, seed: u32) -> Result<()> {
    let mut client = Client::connect(&agent.url)?;
    let connection = driver.open()?;
    driver.write(Side::Client, 1000, seed)?;
    for half in [
        Half::of_driver(driver, Side::Client, Direction::Written),
        Half::of_driver(driver, Side::Server, Direction::Read),
    ] {
        let seen = conversation::wait_for(&mut client, &half.on(&connection), 1000)?;
        same_bytes("what the driver wrote", &seen.bytes, &pattern(1000, seed))?;
    }
    Ok(())
}

#[test]
fn a_library_that_a_later_process_maps_is_attached_within_two_seconds() -> Result<()> {
    is_attached_within(SOON)
}

/// For machines that are too slow for the other one.
#[test]
fn what_a_later_process_maps_is_not_left_to_the_slow_scan() -> Result<()> {
    is_attached_within(SLOW_SCAN)
}

fn is_attached_within(most: Duration) -> Result<()> {
    let folder = folder()?;
    let agent = Agent::start(&[])?;
    let mut times = Vec::new();
    // The other tests keep the machine busy.
    for seed in 1..=10 {
        let path = copy(folder.path(), &format!("{seed}.so"))?;
        let before = Instant::now();
        let mut driver = Driver::start(text(&path)?)?;
        attached(&agent, 0, &path)?;
        times.push(before.elapsed());
        is_seen(&mut driver, &agent, seed)?;
        driver.quit()?;
        if seed >= 3 && times.iter().any(|time| *time < most) {
            return Ok(());
        }
    }
    bail!("{times:?}")
}

/// A file of 2 GiB, nearly all of them a hole, that seems to hold BoringSSL.
fn huge(folder: &Path) -> Result<PathBuf> {
    const SIZE: u64 = 2 << 30;
    const NAMES: &[u8] = b"\0.rodata\0";
    const CONSTANTS: &[u8] = b"CLIENT_RANDOM\0x/ssl/ssl_lib.cc\0";
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let machine = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let names = 64 + 56 + 3 * 64;
    let start = [
        // The header; one segment that is read and run; three sections: none, the constants, the names.
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        halves(&[3, machine, 1, 0]),
        words(&[0, 64, 64 + 56]),
        halves(&[0, 0, 64, 56, 1, 64, 3, 2]),
        words(&[1 | 5 << 32, 0, 0, 0, SIZE, SIZE, 4096]),
        vec![0; 64],
        words(&[1 | 1 << 32, 2, 4096, 4096, SIZE - 4096, 0, 1, 0]),
        words(&[3 << 32, 0, 0, names, NAMES.len() as u64, 0, 1, 0]),
        NAMES.to_vec(),
    ];
    let path = folder.join("huge.so");
    let file = fs::File::create(&path)?;
    file.set_len(SIZE)?;
    file.write_all_at(&start.concat(), 0)?;
    file.write_all_at(CONSTANTS, 4096)?;
    Ok(path)
}

#[test]
fn a_file_of_two_gib_does_not_keep_the_stream_waiting() -> Result<()> {
    const MAP: &str = "import mmap, sys; file = open(sys.argv[1]); \
        kept = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC); \
        print('mapped', flush=True); sys.stdin.read()";
    let folder = folder()?;
    let path = huge(folder.path())?;
    let agent = Agent::start(&[])?;
    let mut driver = Driver::start(OPENSSL)?;
    is_seen(&mut driver, &agent, 1)?;
    let program =
        Process::start(Command::new(need::program("python3", "python3")?).args(["-c", MAP]).arg(&path))?;
    program.stdout.wait_for(0, "python3", |line| line == "mapped")?;
    let refused = format!("not attached: {} has BoringSSL or OpenSSL in it", path.display());
    for seed in 2..5 {
        is_seen(&mut driver, &agent, seed)?;
    }
    agent.log().wait_for(0, &refused, |line| line.contains(&refused))?;
    is_seen(&mut driver, &agent, 5)?;
    driver.quit()
}

#[test]
fn a_library_that_was_deleted_while_in_use_is_attached() -> Result<()> {
    let folder = folder()?;
    let path = copy(folder.path(), "gone.so")?;
    let mut driver = Driver::start(text(&path)?)?;
    fs::remove_file(&path)?;
    let agent = Agent::start(&[])?;
    attached(&agent, 0, &path)?;
    is_seen(&mut driver, &agent, 1)?;
    driver.quit()
}

#[test]
fn a_library_in_another_mount_namespace_is_attached() -> Result<()> {
    let (before, after) = (folder()?, folder()?);
    let mut first = Driver::start_apart(OPENSSL, before.path(), "hidden.so")?;
    let agent = Agent::start(&[])?;
    let mut second = Driver::start_apart(OPENSSL, after.path(), "hidden.so")?;
    for (folder, driver) in [(&before, &mut first), (&after, &mut second)] {
        let path = folder.path().join("hidden.so");
        ensure!(!path.exists(), "{path:?} can be seen from here");
        attached(&agent, 0, &path)?;
        is_seen(driver, &agent, 1)?;
    }
    first.quit()?;
    second.quit()
}

#[test]
fn containers_that_share_a_file_beneath_their_overlays_have_it_probed_once() -> Result<()> {
    let (lower, one, two) = (folder()?, folder()?, folder()?);
    let path = copy(lower.path(), "shared.so")?;
    let mut drivers = vec![Driver::start(text(&path)?)?];
    for folder in [&one, &two] {
        drivers.push(Driver::start_overlaid(lower.path(), "shared.so", folder.path())?);
    }
    let agent = Agent::start(&[])?;
    // Found later than what was mapped before the agent started.
    let last = copy(lower.path(), "last.so")?;
    let last_driver = Driver::start(text(&last)?)?;
    attached(&agent, 0, &last)?;
    for (seed, driver) in (1..).zip(&mut drivers) {
        is_seen(driver, &agent, seed)?;
    }
    let said = agent.log().all();
    // Under any of its names, and those of no other test's.
    let ours = [&lower, &one, &two].map(|folder| format!(" attached library={}/", folder.path().display()));
    let is_ours = |said: &&String| said.contains("shared.so") && ours.iter().any(|ours| said.contains(ours));
    let times = said.iter().filter(is_ours).count();
    ensure!(times == 1, "{said:#?}");
    last_driver.quit()?;
    drivers.into_iter().try_for_each(Driver::quit)
}

#[test]
fn a_replaced_library_is_attached_anew_and_the_old_one_let_go_with_its_last_process() -> Result<()> {
    let folder = folder()?;
    let path = copy(folder.path(), "replaced.so")?;
    let mut old = Driver::start(text(&path)?)?;
    let agent = Agent::start(&[])?;
    let next = attached(&agent, 0, &path)?;
    copy(folder.path(), "replaced.so")?;
    let mut new = Driver::start(text(&path)?)?;
    let next = attached(&agent, next, &path)?;
    is_seen(&mut old, &agent, 1)?;
    is_seen(&mut new, &agent, 2)?;
    old.quit()?;
    let line = format!(" detached library={}", path.display());
    agent.log().wait_for(next, &line, |said| said.contains(&line))?;
    is_seen(&mut new, &agent, 3)?;
    new.quit()?;
    let said = agent.log().all();
    ensure!(said.iter().filter(|said| said.contains(&line)).count() == 1, "{said:#?}");
    Ok(())
}

#[test]
fn what_is_excluded_is_left_alone() -> Result<()> {
    let folder = folder()?;
    fs::create_dir(folder.path().join("quiet"))?;
    let quiet = copy(folder.path(), "quiet/library.so")?;
    let loud = copy(folder.path(), "library.so")?;
    let agent = Agent::start(&["--exclude", "*/quiet/*"])?;
    let quiet_driver = Driver::start(text(&quiet)?)?;
    let mut driver = Driver::start(text(&loud)?)?;
    // It came later, so the other one was passed by.
    attached(&agent, 0, &loud)?;
    is_seen(&mut driver, &agent, 1)?;
    let said = agent.log().all();
    ensure!(!said.iter().any(|said| said.contains(text(&quiet).unwrap_or_default())), "{said:#?}");
    quiet_driver.quit()?;
    driver.quit()
}

#[test]
fn who_named_a_library_is_told_of_no_other_and_of_what_replaces_it() -> Result<()> {
    let folder = folder()?;
    let (named, other) = (copy(folder.path(), "named.so")?, copy(folder.path(), "other.so")?);
    let agent = Agent::start(&["--library", text(&named)?])?;
    let next = attached(&agent, 0, &named)?;
    let other_driver = Driver::start(text(&other)?)?;
    let mut old = Driver::start(text(&named)?)?;
    copy(folder.path(), "named.so")?;
    attached(&agent, next, &named)?;
    let mut new = Driver::start(text(&named)?)?;
    is_seen(&mut old, &agent, 1)?;
    is_seen(&mut new, &agent, 2)?;
    let said = agent.log().all();
    ensure!(!said.iter().any(|said| said.contains(text(&other).unwrap_or_default())), "{said:#?}");
    [other_driver, old, new].into_iter().try_for_each(Driver::quit)
}

#[test]
fn a_named_library_that_is_missing_when_a_client_comes_is_attached_once_it_is_there() -> Result<()> {
    let folder = folder()?;
    let path = copy(folder.path(), "named.so")?;
    let agent = Agent::start(&["--on-demand", "--library", text(&path)?])?;
    fs::remove_file(&path)?;
    let _client = Client::connect(&agent.url)?;
    let missing = format!("not attached: can't read the library {}", path.display());
    let (next, _) = agent.log().wait_for(0, &missing, |line| line.contains(&missing))?;
    copy(folder.path(), "named.so")?;
    attached(&agent, next, &path)?;
    let mut driver = Driver::start(text(&path)?)?;
    is_seen(&mut driver, &agent, 1)?;
    driver.quit()
}

#[test]
fn a_library_that_no_descriptor_was_left_for_is_attached_once_there_is_one() -> Result<()> {
    /// Less than a library's probes take.
    const SPARE: usize = 12;
    let folder = folder()?;
    let (one, two) = (copy(folder.path(), "one.so")?, copy(folder.path(), "two.so")?);
    let enough = {
        let agent = Agent::start(&["--library", text(&one)?])?;
        attached(&agent, 0, &one)?;
        fs::read_dir(format!("/proc/{}/fd", agent.parent()))?.count() + SPARE
    };
    let named = ["--on-demand", "--library", text(&one)?, "--library", text(&two)?];
    let agent = Agent::start_after(&format!("ulimit -n {enough}"), &named)?;
    let _client = Client::connect(&agent.url)?;
    let next = attached(&agent, 0, &one)?;
    let short = format!("in {} for now: ", two.display());
    agent.log().wait_for(next, &short, |line| line.contains(" not attached: ") && line.contains(&short))?;
    // Nobody maps it.
    fs::remove_file(&one)?;
    attached(&agent, next, &two)?;
    let mut driver = Driver::start(text(&two)?)?;
    is_seen(&mut driver, &agent, 1)?;
    driver.quit()
}
