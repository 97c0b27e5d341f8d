//! `plaintapd doctor --report FILE`: what somebody who helps from afar needs to know of a device, and no payload.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

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
/// Kernel options that count. Of a kernel that keeps its configuration compressed in itself, all that is told is what was
/// found out by trying.
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

/// Writes the report to a new file that only its owner may read.
pub fn write(path: &Path, examined: &Examined) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
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
    part("programs", &examined.programs.join("\n"));
    for file in FILES {
        part(file, &read(file).unwrap_or_else(|| "(not to be read)".to_owned()));
    }
    part("kernel options", &options());
    part(
        "Android",
        &chosen("/system/build.prop", |line| PROPERTIES.iter().any(|start| line.starts_with(start))),
    );
    text
}

/// The options that count, of the configuration that distributions install beside the kernel.
fn options() -> String {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let counts = |line: &str| line.contains("CONFIG_") && OPTIONS.iter().any(|option| line.contains(option));
    chosen(&format!("/boot/config-{release}"), counts)
}

/// The lines of a file that are wanted.
fn chosen(path: &str, wanted: impl Fn(&str) -> bool) -> String {
    match read(path) {
        Some(text) => text.lines().filter(|line| wanted(line)).collect::<Vec<_>>().join("\n"),
        None => format!("({path} is not to be read)"),
    }
}
