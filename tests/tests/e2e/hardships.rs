//! A kernel that shows little of itself, no room anywhere, nobody who reads the log: capture goes on.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::utsname::uname;
use plaintap_proto::Direction;
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::conversation::{self, Half, same_bytes};
use plaintap_tests::driver::{Driver, Side};
use plaintap_tests::pattern::pattern;
use plaintap_tests::process::{self, Process};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, net, until};
use tempfile::TempDir;

/// Both sides write, and a client at `url` sees all of it.
fn captures(driver: &mut Driver, url: &str) -> Result<()> {
    let mut client = Client::connect(url)?;
    for (side, seed) in [(Side::Client, 1), (Side::Server, 2)] {
        driver.write(side, 40_000, seed)?;
        for (side, direction) in [(side, Direction::Written), (side.other(), Direction::Read)] {
            let half = Half::of_driver(driver, side, direction);
            let joined = conversation::wait_for(&mut client, &half, 40_000)?;
            same_bytes("the payload", &joined.bytes, &pattern(40_000, seed))?;
        }
    }
    Ok(())
}

fn warnings(agent: &Agent) -> Vec<String> {
    agent.log().all().into_iter().filter(|line| line.contains(" WRN ")).collect()
}

#[test]
fn a_kernel_that_shows_nothing_of_itself_is_captured_on() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let pid = driver.pid().to_string();
    let hidden = "set -e
        for file in /sys/kernel/btf/vmlinux /proc/kallsyms /proc/config.gz /proc/modules; do
            [ ! -e $file ] || mount --bind /dev/null $file
        done
        for folder in /sys/fs/bpf /sys/kernel/tracing /sys/kernel/debug /sys/kernel/security; do
            [ ! -d $folder ] || mount -t tmpfs none $folder
        done";
    let agent = Agent::start_after(hidden, &["--library", BORINGSSL, "--pid", &pid])?;
    captures(&mut driver, &agent.url)?;
    let hooked = agent.log().all().iter().any(|line| line.contains("addresses hook=kprobe"));
    let warned = |of: &str| warnings(&agent).iter().any(|line| line.contains(of));
    ensure!(warned("only programs with one TCP connection") != hooked, "{:#?}", agent.log().all());
    ensure!(warned("without the kernel's BTF, TLS over memory"), "{:#?}", agent.log().all());
    Ok(())
}

/// An agent that may lock no more than `kib` KiB of memory, and may not raise that.
fn with_memlock(kib: u64, url: &str, arguments: &[&str]) -> Result<Command> {
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let mut command = agent::plaintapd()?;
    command.args(["--ecaptureq", url]).args(arguments);
    // SAFETY: two system calls, and no memory is touched.
    #[expect(unsafe_code, reason = "what happens between fork and exec")]
    unsafe {
        command.pre_exec(move || {
            // Where root may not raise it either, the kernel is one that does not count maps.
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, kib << 10, kib << 10);
            match libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    Ok(command)
}

/// Whether this kernel counts maps as locked memory. Source: linux 5.11's log,
/// "bpf: Eliminate rlimit-based memory accounting".
fn counts_maps() -> Result<bool> {
    let release = uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map(str::parse::<u32>);
    let (major, minor) = (numbers.next().context("no release")??, numbers.next().context("no release")??);
    Ok((major, minor) < (5, 11))
}

#[test]
fn where_little_memory_may_be_locked_what_is_kept_is_less_and_that_is_said() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let (pid, port) = (driver.pid().to_string(), net::free_port()?);
    let url = format!("ws://127.0.0.1:{port}/");
    let arguments = ["--library", BORINGSSL, "--pid", &pid];
    let agent = Process::start(&mut with_memlock(9 << 10, &url, &arguments)?)?;
    agent.stderr.wait_for(0, "it to listen", |line| line.contains(" listening url="))?;
    captures(&mut driver, &url)?;
    let said = agent.stderr.all().iter().any(|line| line.contains("RLIMIT_MEMLOCK allows"));
    ensure!(said == counts_maps()?, "{:#?}", agent.stderr.all());
    drop(agent);
    if counts_maps()? {
        // A port of its own: of an agent that was killed the other half may still be there for a moment.
        let refusal = agent::refusal(&mut with_memlock(64, "ws://127.0.0.1:0/", &arguments)?)?;
        ensure!(refusal.code == Some(3) && refusal.error()?.contains("RLIMIT_MEMLOCK"), "{refusal:?}");
    }
    Ok(())
}

/// A shell that starts the agent with its log at `to`, as the shell writes it.
fn with_log_at(to: &str, url: &str, pid: u32) -> Result<Command> {
    let mut command = process::in_mount_namespace(&format!(
        "mkdir -p \"$1\" && mount -t tmpfs -o size=64k none \"$1\" && cd \"$1\" || exit
        head -c 100000 /dev/zero >full 2>/dev/null
        shift; exec \"$0\" \"$@\" 2{to}"
    ))?;
    let folder = TempDir::new()?.keep();
    command.arg(agent::plaintapd()?.get_program()).arg(&folder);
    command.args(["--ecaptureq", url, "--library", BORINGSSL, "--pid", &pid.to_string()]);
    Ok(command)
}

#[test]
fn a_log_that_cannot_be_written_is_no_reason_to_stop() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    for to in [">/dev/full", ">&-", ">>log"] {
        let port = net::free_port()?;
        let url = format!("ws://127.0.0.1:{port}/");
        let mut agent = Process::start(&mut with_log_at(to, &url, driver.pid())?)?;
        until("it to listen", || Ok(TcpStream::connect(("127.0.0.1", port)).ok()))?;
        captures(&mut driver, &url).with_context(|| format!("with its log at {to}"))?;
        ensure!(agent.ended()?.is_none());
    }
    Ok(())
}

#[test]
fn a_report_that_finds_no_room_says_so() -> Result<()> {
    let mut command = process::in_mount_namespace(
        "mount -t tmpfs -o size=64k none \"$1\" && head -c 100000 /dev/zero >\"$1/full\" 2>/dev/null
        exec \"$0\" doctor --report \"$1/report\"",
    )?;
    let folder = TempDir::new()?;
    let mut doctor = Process::start(command.arg(agent::plaintapd()?.get_program()).arg(folder.path()))?;
    let status = doctor.wait()?;
    let said = doctor.stderr.to_the_end()?.join("\n");
    ensure!(status.code() == Some(1) && said.contains("No space left"), "{status}: {said}");
    Ok(())
}

#[test]
fn a_storm_of_refused_clients_neither_fills_the_log_nor_costs_a_client_anything() -> Result<()> {
    let mut driver = Driver::start(BORINGSSL)?;
    let agent = Agent::watching(driver.pid(), BORINGSSL)?;
    let mut client = Client::connect(&agent.url)?;
    let (before, start) = (agent.log().all().len(), Instant::now());
    for round in 0..40 {
        for _ in 0..50 {
            // Not a word of HTTP.
            let mut stranger = TcpStream::connect(("127.0.0.1", agent.port))?;
            std::io::Write::write_all(&mut stranger, b"\0\0\0\0\r\n\r\n")?;
        }
        driver.write(Side::Client, 1000, round)?;
    }
    let half = Half::of_driver(&driver, Side::Client, Direction::Written);
    let joined = conversation::wait_for(&mut client, &half, 40_000)?;
    let expected: Vec<u8> = (0..40).flat_map(|round| pattern(1000, round)).collect();
    same_bytes("the payload", &joined.bytes, &expected)?;
    let is_of_them = |line: &str| line.contains("refused") || line.contains("handshake");
    agent.log().wait_for(before, "a word of them", is_of_them)?;
    let lines = agent.log().all().split_off(before);
    // A burst, and a few a second.
    let most = 64 + 8 * (start.elapsed().as_secs() as usize + 1);
    ensure!(lines.len() <= most, "{} lines of 2,000 strangers, {most} at most", lines.len());
    until("the strangers' connections to be closed", || {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.child()?))?.count();
        Ok((open < 64).then_some(()))
    })
}
