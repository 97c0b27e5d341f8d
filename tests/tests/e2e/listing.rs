//! `list` and `doctor` say what is so.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::driver::Driver;
use plaintap_tests::{BORINGSSL, OPENSSL, need, net, process};
use tempfile::TempDir;

/// `nobody`, on Debian and on most others.
const NOBODY: u32 = 65534;

fn run(arguments: &[&str]) -> Result<Output> {
    Ok(agent::plaintapd()?.args(arguments).output()?)
}

fn printed(output: &Output) -> Result<&str> {
    Ok(str::from_utf8(&output.stdout)?)
}

/// The object of the file at `path` in the JSON that list prints, one a line.
fn object<'a>(json: &'a str, path: &str) -> Result<&'a str> {
    let path = format!("{{\"path\": \"{path}\",");
    json.lines().find(|line| line.starts_with(&path)).with_context(|| format!("no {path} in {json}"))
}

/// The value of a number in an object.
fn number(object: &str, name: &str) -> Option<u64> {
    let (_, rest) = object.split_once(&format!("\"{name}\": "))?;
    rest.split([',', '}']).next()?.parse().ok()
}

/// Where the functions of `library` stand in the file, by readelf.
fn offsets(library: &str) -> Result<BTreeMap<String, u64>> {
    let readelf = need::program("readelf", "binutils")?;
    let told = |flags: &str| -> Result<String> {
        Ok(String::from_utf8(Command::new(&readelf).args([flags, library]).output()?.stdout)?)
    };
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let mut segments = Vec::new();
    for line in told("-lW")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["LOAD", offset, address, _, size, ..] = words[..] {
            segments.push((hex(offset)?, hex(address)?, hex(size)?));
        }
    }
    let mut found = BTreeMap::new();
    for line in told("--dyn-syms")?.lines().chain(told("-sW")?.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, value, _, "FUNC", _, _, section, name, ..] = words[..] else { continue };
        let (value, name) = (hex(value)?, name.split('@').next().unwrap_or_default());
        let segment = segments.iter().find(|(_, address, size)| (*address..address + size).contains(&value));
        if let (Some((offset, address, _)), true) = (segment, section != "UND") {
            found.insert(name.to_owned(), value - address + offset);
        }
    }
    Ok(found)
}

/// The build ID of `library` as JSON, by readelf.
fn build_id(library: &str) -> Result<String> {
    let output = Command::new(need::program("readelf", "binutils")?).args(["-nW", library]).output()?;
    let id = printed(&output)?.lines().find_map(|line| line.split("Build ID: ").nth(1));
    Ok(format!("\"{}\"", id.with_context(|| format!("readelf knows no build ID of {library}"))?.trim()))
}

#[test]
fn the_list_has_the_systems_libraries_at_the_offsets_that_readelf_has() -> Result<()> {
    let output = run(&["list", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let json = printed(&output)?;
    for (library, name) in [(BORINGSSL, "BoringSSL"), (OPENSSL, "OpenSSL")] {
        let object = object(json, need::library(library)?)?;
        assert!(object.contains(&format!("\"library\": \"{name}\"")), "{object}");
        assert!(object.contains(&format!("\"abi\": \"{}\"", std::env::consts::ARCH)), "{object}");
        let build_id = format!("\"build_id\": {}", build_id(library)?);
        assert!(object.contains(&build_id), "no {build_id} in {object}");
        let offsets = offsets(library)?;
        for function in ["SSL_read", "SSL_write", "SSL_free", "SSL_do_handshake"] {
            ensure!(offsets.contains_key(function), "readelf has no {function} in {library}");
            assert_eq!(number(object, function), offsets.get(function).copied(), "{function}: {object}");
        }
    }
    Ok(())
}

#[test]
fn the_list_is_json_whatever_files_are_called() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let path = folder.path().join("a \"quoted\\name\".so");
    fs::copy(need::library(OPENSSL)?, &path)?;
    let driver = Driver::start(path.to_str().context("not UTF-8")?)?;
    let output = run(&["list", "--json"])?;
    let read = "import json, sys; print(*(t['path'] for t in json.load(sys.stdin)['targets']), sep='\\n')";
    let saved = folder.path().join("list.json");
    fs::write(&saved, &output.stdout)?;
    let python = need::program("python3", "python3")?;
    let paths = Command::new(python).args(["-c", read]).stdin(fs::File::open(saved)?).output()?;
    let paths = printed(&paths)?;
    ensure!(paths.lines().any(|line| Path::new(line) == path), "{paths}");
    driver.quit()
}

#[test]
fn the_list_says_who_maps_a_library_and_whether_probes_are_on_it() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let path = folder.path().join("library.so");
    fs::copy(need::library(OPENSSL)?, &path)?;
    let path = path.to_str().context("not UTF-8")?;
    // An agent of another test may have found it too: only one that is left out by all of them is surely not attached.
    let driver = Driver::start(path)?;
    let agent = Agent::start(&["--library", path])?;
    let output = run(&["list", "--json"])?;
    let row = object(printed(&output)?, path)?;
    let pids = format!("\"pids\": [{}]", driver.pid());
    assert!(row.contains(&pids) && row.contains("\"state\": \"attached\""), "{row}");
    let table = run(&["list"])?;
    let line = printed(&table)?.lines().find(|line| line.ends_with(path)).context("no line")?;
    assert!(line.starts_with("attached  1 "), "{line}");
    let excluded = run(&["list", "--json", "--exclude", &format!("{}/*", folder.path().display())])?;
    assert!(!printed(&excluded)?.contains(path));
    // What is deleted is still there for who maps it.
    fs::remove_file(path)?;
    let output = run(&["list", "--json"])?;
    assert!(object(printed(&output)?, path)?.contains("\"deleted\": true"));
    agent.stop()?;
    driver.quit()
}

#[test]
fn a_fit_device_has_no_failure() -> Result<()> {
    need::root()?;
    // Somebody may take the port between our look and the doctor's.
    for _ in 0..5 {
        let port = net::free_port()?;
        let output = run(&["doctor", "--ecaptureq", &format!("ws://127.0.0.1:{port}/")])?;
        let report = printed(&output)?;
        let known = |line: &str| ["ok ", "warning ", "failure "].iter().any(|level| line.starts_with(level));
        let (last, lines) = report
            .lines()
            .collect::<Vec<_>>()
            .split_last()
            .map(|(last, lines)| (*last, lines.to_vec()))
            .context("no report")?;
        assert!(lines.len() > 10 && lines.iter().all(|line| known(line)), "{report}");
        if report.contains("is in use") {
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert!(last.starts_with("0 failures, "), "{report}");
        assert!(report.contains("\nok       uprobes: one was put on SSL_read"), "{report}");
        return Ok(());
    }
    anyhow::bail!("the doctor found no free port in five attempts")
}

#[test]
fn a_report_is_a_new_file_for_its_owner_that_holds_what_was_found() -> Result<()> {
    need::root()?;
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let file = folder.path().join("report.txt");
    let path = file.to_string_lossy();
    let output = run(&["doctor", "--ecaptureq", "ws://127.0.0.1:0/", "--report", &path])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file)?;
    for part in [
        "== doctor\nok       kernel: ",
        "== list\nSTATE ",
        "== list --json\n{\n\"targets\": [",
        "program=ssl_return verified_instructions=",
        "== /proc/version\nLinux version ",
        "== kernel options\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
    let has_config = Path::new("/proc/config.gz").exists();
    assert!(
        !has_config || text.contains("\nCONFIG_BPF_SYSCALL=y\n"),
        "the kernel's options are missing: {text}"
    );
    // It is never written over.
    let again = run(&["doctor", "--ecaptureq", "ws://127.0.0.1:0/", "--report", &path])?;
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains(&*path) && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_to_string(&file)?, text);
    Ok(())
}

#[test]
fn a_failure_has_the_exit_code_that_running_would_have() -> Result<()> {
    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("ws://{}/", taken.local_addr()?);
    let output = run(&["doctor", "--ecaptureq", &url])?;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let in_use = format!("failure  {url} is in use; ");
    assert!(printed(&output)?.contains(&in_use), "{output:?}");
    Ok(())
}

#[test]
fn the_doctor_asks_of_a_place_what_running_asks() -> Result<()> {
    let port = net::free_port()?;
    for (scheme, why) in [("ws", "give --token-file"), ("wss", "wss://")] {
        let url = format!("{scheme}://0.0.0.0:{port}/");
        let output = run(&["doctor", "--ecaptureq", &url])?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let failed = |line: &str| line.starts_with("failure ") && line.contains(why);
        assert!(printed(&output)?.lines().any(failed), "{output:?}");
        let refusal = agent::refusal(agent::plaintapd()?.args(["--ecaptureq", &url]))?;
        assert_eq!(refusal.code, Some(2), "{refusal:?}");
    }
    let token = tempfile::NamedTempFile::new()?;
    fs::write(&token, "an-example-of-a-token-0123456789")?;
    let path = token.path().to_string_lossy();
    let output = run(&["doctor", "--ecaptureq", "ws://0.0.0.0:0/", "--token-file", &path])?;
    assert!(printed(&output)?.contains("ok       port: ws://0.0.0.0:0/ is free"), "{output:?}");
    Ok(())
}

#[test]
fn who_may_do_nothing_is_told_what_is_missing() -> Result<()> {
    need::root()?;
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let open = PermissionsExt::from_mode;
    fs::set_permissions(folder.path(), open(0o755))?;
    let program = folder.path().join("plaintapd");
    process::copy_program(&need::binary("plaintapd")?, &program)?;
    let nobody = |argument: &str| {
        Command::new(&program).arg(argument).uid(NOBODY).gid(NOBODY).current_dir("/").output()
    };
    let doctor = nobody("doctor")?;
    assert_eq!(doctor.status.code(), Some(3), "{doctor:?}");
    let report = printed(&doctor)?;
    assert!(report.contains("uid 65534 lacks ") && report.contains("CAP_BPF"), "{report}");
    let report = folder.path().join("report");
    let argument = report.to_str().context("its path")?;
    fs::set_permissions(folder.path(), open(0o777))?;
    Command::new(&program).args(["doctor", "--report", argument]).uid(NOBODY).gid(NOBODY).output()?;
    let report = fs::read_to_string(&report)?;
    let said = report.split_once("\n== programs\n").map_or("", |(_, rest)| rest);
    assert!(said.starts_with("not permitted to ") && said.lines().count() > 2, "{report}");
    let list = nobody("list")?;
    assert!(list.status.success(), "{list:?}");
    assert!(printed(&list)?.contains("processes can't be looked into"), "{list:?}");
    Ok(())
}

#[test]
fn wrong_flags_are_refused_with_2() -> Result<()> {
    for arguments in [
        &["list", "--nonsense"][..],
        &["doctor", "--ecaptureq", "x"],
        &["list", "surplus"],
        &["doctor", "list"],
    ] {
        let refusal = agent::refusal(agent::plaintapd()?.args(arguments))?;
        assert_eq!(refusal.code, Some(2), "{refusal:?}");
        refusal.error()?;
    }
    for command in ["list", "doctor"] {
        let output = run(&[command, "--help"])?;
        assert!(output.status.success() && printed(&output)?.contains("Examples:"), "{output:?}");
    }
    Ok(())
}
