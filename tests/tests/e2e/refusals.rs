//! Bad input: one line that names the thing, an exit code of its own, and never a panic.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use plaintap_tests::agent::{self, Refusal};
use plaintap_tests::{BORINGSSL, need, process};
use tempfile::TempDir;

/// `nobody`, on Debian and on most others.
const NOBODY: u32 = 65534;

/// Runs the agent with `arguments`, which it should refuse with `code`, in one line that has all of `names`.
fn is_refused(arguments: &[&str], code: i32, names: &[&str]) -> Result<Refusal> {
    let refusal =
        agent::refusal(agent::plaintapd()?.args(arguments)).with_context(|| format!("{arguments:?}"))?;
    check(&refusal, code, names).with_context(|| format!("{arguments:?}"))?;
    Ok(refusal)
}

fn check(refusal: &Refusal, code: i32, names: &[&str]) -> Result<()> {
    let line = refusal.error()?;
    assert_eq!(refusal.code, Some(code), "{refusal:?}");
    for name in names {
        assert!(line.contains(name), "no {name:?} in {line:?}");
    }
    // It names the thing and says more than that.
    assert!(line.split_whitespace().count() >= 5, "{line:?}");
    Ok(())
}

/// Runs with a library that the agent should refuse.
fn library_is_refused(library: &Path) -> Result<()> {
    need::root()?;
    let library = library.to_str().context("not UTF-8")?;
    is_refused(&["--ecaptureq", "ws://127.0.0.1:0/", "--library", library], 6, &[library])?;
    // A usable one beside it doesn't hide it.
    is_refused(
        &["--ecaptureq", "ws://127.0.0.1:0/", "--library", BORINGSSL, "--library", library],
        6,
        &[library],
    )?;
    Ok(())
}

#[test]
fn a_wrong_url_is_refused_with_2() -> Result<()> {
    for url in [
        "http://127.0.0.1:28257/",
        "ws://127.0.0.1:port/",
        "ws://127.0.0.1:70000/",
        "ws://127.0.0.1:-1/",
        "ws://8.8.8.8:1/",
        "ws://0.0.0.0:28257/",
        "ws://[::]:28257/",
        "ws://example.org:28257/",
        "ws://",
        "rubbish",
        "",
    ] {
        is_refused(&["--ecaptureq", url], 2, &[url])?;
        is_refused(&[&format!("--ecaptureq={url}")], 2, &[url])?;
    }
    // Of no use without that.
    for flag in ["--tls-cert", "--tls-key", "--tls-client-ca"] {
        let arguments = ["--ecaptureq", "ws://127.0.0.1:0/", flag, "/no/such.pem"];
        is_refused(&arguments, 2, &[flag, "--features tls"])?;
    }
    // Right, but not in this build.
    is_refused(&["--ecaptureq", "wss://127.0.0.1:0/"], 2, &["--features tls"])?;
    Ok(())
}

#[test]
fn a_wrong_flag_is_refused_with_2() -> Result<()> {
    is_refused(&["--no-such-flag"], 2, &["--no-such-flag"])?;
    is_refused(&["--ecaptureq"], 2, &["ecaptureq"])?;
    is_refused(&["--pid", "many"], 2, &["many"])?;
    is_refused(&["--pid", "0"], 2, &["\"0\" is no process id"])?;
    is_refused(&["--log-level", "info", "--log-level", "warn"], 2, &["--log-level is given twice"])?;
    is_refused(&["--log-level", "loud"], 2, &["loud"])?;
    is_refused(&["surplus"], 2, &["surplus"])?;
    Ok(())
}

#[test]
fn a_wrong_line_of_a_config_file_is_refused_with_2_and_numbered() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let path = folder.path().join("plaintapd.conf");
    let name = path.to_str().context("not UTF-8")?;
    for (text, why) in [
        ("--pid 7\n--snaplen", "line 2: No value provided for option '--snaplen'"),
        ("comm=curl\n", "line 1: \"comm\" is no flag"),
    ] {
        fs::write(&path, text)?;
        let wanted = format!("{name} {why}");
        is_refused(&["--config", name, "--ecaptureq", "ws://127.0.0.1:0/"], 2, &[&wanted])?;
    }
    Ok(())
}

#[test]
fn a_missing_library_is_refused_with_6() -> Result<()> {
    library_is_refused(Path::new("/no/such/libssl.so"))
}

#[test]
fn a_folder_for_a_library_is_refused_with_6() -> Result<()> {
    library_is_refused(TempDir::with_prefix("plaintap-tests-")?.path())
}

#[test]
fn a_library_that_is_no_elf_file_is_refused_with_6() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    for (name, content) in [("text.so", &b"not a library\n"[..]), ("empty.so", b""), ("magic.so", b"\x7fELF")]
    {
        let path = folder.path().join(name);
        fs::write(&path, content)?;
        library_is_refused(&path)?;
    }
    Ok(())
}

#[test]
fn a_library_that_is_cut_short_is_refused_with_6() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let whole = fs::read(need::library(BORINGSSL)?)?;
    for size in [64, 1000, 100_000] {
        let path = folder.path().join(format!("libssl-{size}.so"));
        fs::write(&path, &whole[..size])?;
        library_is_refused(&path)?;
    }
    Ok(())
}

#[test]
fn a_library_for_another_machine_is_refused_with_6() -> Result<()> {
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let mut bytes = fs::read(need::library(BORINGSSL)?)?;
    // e_machine stands at 18. Source: elf(5). 183 is aarch64, 62 x86_64.
    let other = if bytes[18] == 62 { 183 } else { 62 };
    bytes[18] = other;
    let path = folder.path().join("libssl.so");
    fs::write(&path, bytes)?;
    library_is_refused(&path)
}

#[test]
fn a_library_without_the_functions_is_refused_with_6() -> Result<()> {
    let libc = Path::new(BORINGSSL).ancestors().nth(2).context("no library folder")?.join("libc.so.6");
    library_is_refused(&libc)?;
    let libc = libc.to_str().context("not UTF-8")?;
    is_refused(&["--ecaptureq", "ws://127.0.0.1:0/", "--library", libc], 6, &["SSL_read"])?;
    Ok(())
}

#[test]
fn who_is_not_root_is_refused_with_3() -> Result<()> {
    need::root()?;
    // nobody may not look into root's folders, where the build may be.
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let copy = folder.path().join("plaintapd");
    process::copy_program(&need::binary("plaintapd")?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    for libraries in [&["--library", BORINGSSL][..], &[]] {
        let mut command = Command::new(&copy);
        command
            .args(["--ecaptureq", "ws://127.0.0.1:0/"])
            .args(libraries)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/");
        check(&agent::refusal(&mut command)?, 3, &["root"])?;
    }
    Ok(())
}

#[test]
fn help_and_version_need_no_privilege_and_end_with_0() -> Result<()> {
    for (flag, wanted) in [("--version", env!("CARGO_PKG_VERSION")), ("--help", "--ecaptureq")] {
        let output = agent::plaintapd()?.arg(flag).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(wanted), "{flag}: {output:?}");
    }
    Ok(())
}
