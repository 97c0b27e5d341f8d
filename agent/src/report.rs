//! `plaintapd doctor --report FILE`: what somebody who helps from afar needs to know of a device, and no payload.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use nix::sys::utsname::uname;

use crate::{
    doctor::{self, Examined, read},
    list,
};

/// Small files that tell what the kernel allows.
const FILES: [&str; 11] = [
    "/proc/version",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/kernel/perf_event_paranoid",
    "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/net/core/bpf_jit_harden",
    "/sys/kernel/security/lsm",
    "/sys/kernel/security/lockdown",
    "/sys/fs/selinux/enforce",
    "/proc/self/status",
];
/// A kernel's configuration, in the kernel itself: Android's have it there and nowhere else. Source: linux, kernel/configs.c.
const CONFIG_GZ: &str = "/proc/config.gz";
/// Its size, unpacked: 100 to 300 KiB.
const MOST_CONFIG: usize = 4 << 20;
/// Kernel options that count.
const OPTIONS: [&str; 10] = [
    "BPF",
    "UPROBE",
    "KPROBE",
    "PERF_EVENTS",
    "FTRACE",
    "DEBUG_INFO_BTF",
    "INET_DIAG",
    "SECURITY_LOCKDOWN",
    "SECURITY_SELINUX",
    "TRACEPOINTS",
];
/// Android's own description of a build: lines that begin so.
const PROPERTIES: [&str; 4] =
    ["ro.build.fingerprint", "ro.build.version.", "ro.product.cpu.", "ro.build.type"];

/// Makes a new file for the report, which only its owner may read.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes the report.
pub fn write(mut file: File, examined: &Examined) -> io::Result<()> {
    file.write_all(text(examined).as_bytes())
}

fn text(examined: &Examined) -> String {
    let mut text = String::new();
    let mut part = |title: &str, body: &str| {
        let _ = writeln!(text, "== {title}\n{}\n", body.trim_end());
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    part("plaintapd", &format!("version {}\nmade {now}", env!("CARGO_PKG_VERSION")));
    part("doctor", &doctor::report(&examined.findings));
    part("list", &list::table(&examined.survey));
    part("list --json", &list::json(&examined.survey));
    part("programs", &examined.programs);
    for file in FILES {
        part(file, &read(file).unwrap_or_else(|| "(not to be read)".to_owned()));
    }
    part("kernel options", &options());
    part(
        "Android",
        &match read("/system/build.prop") {
            Some(text) => chosen(&text, |line| PROPERTIES.iter().any(|start| line.starts_with(start))),
            None => "(no Android)".to_owned(),
        },
    );
    text
}

/// The options that count, of the configuration that the kernel has in itself, or that distributions install beside it.
fn options() -> String {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let beside = format!("/boot/config-{release}");
    let config = fs::read(CONFIG_GZ).ok().and_then(|packed| unpacked(&packed)).or_else(|| read(&beside));
    match config {
        Some(text) => chosen(&text, |line| {
            line.contains("CONFIG_") && OPTIONS.iter().any(|option| line.contains(option))
        }),
        None => format!("(neither {CONFIG_GZ} nor {beside} is to be read)"),
    }
}

/// The text in a file that gzip made, without looking at its sum. Source: RFC 1952.
fn unpacked(file: &[u8]) -> Option<String> {
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const HEADER_SUM: u8 = 2;
    let (head, mut rest) = file.split_at_checked(10)?;
    let [0x1f, 0x8b, 8, flags, ..] = *head else { return None };
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            rest = rest.get(rest.iter().position(|byte| *byte == 0)? + 1..)?;
        }
    }
    if flags & HEADER_SUM != 0 {
        rest = rest.get(2..)?;
    }
    let text = decompress_to_vec_with_limit(rest, MOST_CONFIG).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The lines of a text that are wanted.
fn chosen(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    text.lines().filter(|line| wanted(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gzip_packed_is_unpacked_and_rubbish_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        let text = "CONFIG_BPF=y\n".repeat(1000);
        for (flag, name) in [("-9n", "config"), ("-1", "a name")] {
            let plain = folder.path().join(name);
            fs::write(&plain, &text).unwrap();
            let gzip = std::process::Command::new("gzip").args([flag, "-c"]).arg(&plain).output().unwrap();
            assert_eq!(unpacked(&gzip.stdout).as_deref(), Some(&*text), "{flag}");
            for length in 0..gzip.stdout.len() - 8 {
                assert_eq!(unpacked(&gzip.stdout[..length]), None, "{flag}, {length} bytes");
            }
        }
        assert_eq!(unpacked(&fs::read(file).unwrap()), None);
    }
}
