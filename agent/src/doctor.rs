//! `plaintapd doctor`: whether this device is fit for plaintapd, found out by trying.
//!
//! What the kernel can do is not read from its version: the programs are loaded, a probe is put on a real function and taken
//! off again, the port is taken and given back.

use std::{fmt::Write, fs, path::Path};

use nix::sys::resource::{Resource, getrlimit};

use crate::{
    args::DoctorArgs,
    capture::{self, Capture, SocketHook, btf, filters::Filters},
    discover::{
        Options, Target, events,
        survey::{Survey, survey},
    },
    listen::{self, Place},
    memory::Sizes,
    privileges::{self, Selinux},
    run::{self, chain},
};

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It will run, and miss something.
    Warning,
    /// It will not run, and end with this code.
    Failure(u8),
}

/// One line of the report.
#[derive(Debug)]
pub struct Finding {
    level: Level,
    text: String,
}

fn ok(text: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, text: text.into() }
}

fn warning(text: impl Into<String>) -> Finding {
    Finding { level: Level::Warning, text: text.into() }
}

fn failure(error: run::Error) -> Finding {
    Finding { level: Level::Failure(error.exit_code()), text: chain(&error) }
}

/// What was found out.
#[derive(Debug)]
pub struct Examined {
    /// Line by line.
    pub findings: Vec<Finding>,
    /// The TLS code that there is.
    pub survey: Survey,
    /// The programs that were loaded to try, or all that the kernel said to the one that it did not take.
    pub programs: String,
}

/// Checks everything; what one check finds does not keep the next from being made.
pub fn examine(args: &DoctorArgs) -> Examined {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![kernel(&release), user(&read("/proc/self/status").unwrap_or_default())];
    findings.extend(security());
    let survey = survey(Path::new("/"), Path::new("/proc"), &Options::default());
    let (tried, programs) = capture(&survey);
    findings.extend(tried);
    findings.push(match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => ok("BTF: the kernel describes its types"),
        false if btf::known_kernel() => warning("BTF: none, and a table of this kernel's offsets serves for TLS over sockets; TLS over memory, as Conscrypt's engine, will have no addresses, and a process counts as ended with its first thread; it needs CONFIG_DEBUG_INFO_BTF"),
        false => warning("BTF: none, and this kernel's offsets are in no table: only programs with one TCP connection will have addresses; it needs CONFIG_DEBUG_INFO_BTF"),
    });
    findings.push(jit(read("/proc/sys/net/core/bpf_jit_enable").as_deref()));
    findings.push(memlock(&release));
    findings.push(
        match ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"]
            .iter()
            .any(|path| Path::new(path).exists())
        {
            true => ok("tracefs: mounted"),
            false => ok("tracefs: not mounted or not to be read, and not needed"),
        },
    );
    findings.push(match events::Events::open() {
        Ok(_) => ok("perf events: libraries are seen as soon as a process maps them"),
        Err(error) => warning(format!("perf events: {error}: libraries that are mapped later are found within 10 s, not at once; run as root, with CONFIG_PERF_EVENTS")),
    });
    let default = [Place::default()];
    for place in if args.ecaptureq.is_empty() { &default[..] } else { &args.ecaptureq } {
        findings.push(match listen::listen_at(place) {
            Ok(_) => {
                listen::remove(place);
                ok(format!("port: {place} is free"))
            }
            Err(error) => failure(error.into()),
        });
    }
    findings.extend(libraries(&survey));
    Examined { findings, survey, programs }
}

/// The report, a line for each finding.
pub fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { level, text: finding } in findings {
        let word = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failure(_) => "failure",
        };
        let _ = writeln!(text, "{word:7}  {finding}");
    }
    let count = |wanted: fn(&Level) -> bool| findings.iter().filter(|finding| wanted(&finding.level)).count();
    let failures = count(|level| matches!(level, Level::Failure(_)));
    let warnings = count(|level| *level == Level::Warning);
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let _ = writeln!(text, "{}, {}", counted(failures, "failure"), counted(warnings, "warning"));
    text
}

/// The code of the first failure, else 0.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let failed = findings.iter().find_map(|finding| match finding.level {
        Level::Failure(code) => Some(code),
        _ => None,
    });
    failed.unwrap_or(0)
}

fn kernel(release: &str) -> Finding {
    match btf::version(release) {
        Some(version) if version >= (5, 10) => ok(format!("kernel: {release}")),
        // What it really lacks is another line's.
        _ => warning(format!("kernel: {release:?} is not known to work; 5.10 and newer are")),
    }
}

/// Who we are, from /proc/self/status.
fn user(status: &str) -> Finding {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default()
    };
    let capabilities = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
    // Source: linux, include/uapi/linux/capability.h.
    const NEEDED: [(&str, u32); 4] =
        [("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(_, bit)| capabilities >> bit & 1 == 0).map(|(name, _)| *name).collect();
    let uid = field("Uid").split_whitespace().nth(1).unwrap_or_default().to_owned();
    match missing[..] {
        [] => ok(format!("user: uid {uid}, with all capabilities that are used")),
        _ => warning(format!("user: uid {uid} lacks {}; run as root (on Android by su)", missing.join(", "))),
    }
}

/// SELinux, and the kernel's lockdown.
fn security() -> Vec<Finding> {
    let selinux = match privileges::selinux() {
        None if Path::new("/sys/fs/selinux/enforce").exists() => {
            warning("SELinux: in use, and its mode is not to be read by this user; root reads it")
        }
        None => ok("SELinux: not in use"),
        Some(Selinux { enforcing: false, domain }) => ok(format!("SELinux: permissive, domain {domain}")),
        Some(Selinux { enforcing: true, domain }) => ok(format!(
            "SELinux: enforcing, domain {domain}; a domain that may not use eBPF shows as a failure below"
        )),
    };
    let lockdown = match read("/sys/kernel/security/lockdown") {
        Some(modes) if modes.contains("[confidentiality]") => warning(
            "lockdown: confidentiality keeps eBPF from reading memory: boot with lockdown=integrity or without it",
        ),
        Some(_) => ok("lockdown: lets eBPF read memory"),
        None => ok("lockdown: not in use, or securityfs is not mounted"),
    };
    vec![selinux, lockdown]
}

/// Loads the programs, and tries what they are put on.
fn capture(survey: &Survey) -> (Vec<Finding>, String) {
    let mut capture = match Capture::load(Sizes::SMALLEST, &Filters::default()) {
        Ok(capture) => capture,
        Err(error) => {
            let said = run::causes(&error);
            return (vec![failure(error.into())], said);
        }
    };
    let mut findings = vec![ok("eBPF: maps, ring buffer and programs load")];
    findings.push(match capture.hook_sockets() {
        Ok(SocketHook::Kprobe) => ok("kprobes: they tell the connections' addresses"),
        Ok(SocketHook::Tracepoint) => {
            ok("kprobes: none, and raw tracepoints tell the connections' addresses")
        }
        Err(error) => warning(format!(
            "kprobes: only programs with one TCP connection will have addresses: {}",
            chain(&error)
        )),
    });
    findings.push(match capture.hook_ends() {
        Ok(()) => ok("raw tracepoints: they tell the ends of processes"),
        Err(error) => warning(format!("raw tracepoints: {}", chain(&error))),
    });
    findings.extend(uprobe(&mut capture, survey));
    (findings, capture.programs().join("\n"))
}

/// Puts a probe on the first function there is, and takes it off.
fn uprobe(capture: &mut Capture, survey: &Survey) -> Option<Finding> {
    // Nobody's bytes are copied meanwhile.
    let paused = capture.pause();
    let row = survey.rows.iter().find(|row| row.found.is_ok() && !row.deleted && row.pids.is_empty());
    let row = row.or_else(|| survey.rows.iter().find(|row| row.found.is_ok() && !row.deleted))?;
    let (path, found) = (row.path.clone(), row.found.as_ref().ok()?.clone());
    let (function, offset) = *found.functions.first()?;
    let file = fs::File::open(&path).ok()?;
    let mut probes = Vec::new();
    let tried = || -> Result<(), capture::Error> {
        paused?;
        let target = Target { id: 0, path, file, found };
        let attached = capture.attach(&target, function, offset, &mut probes);
        probes.drain(..).try_for_each(|probe| capture.detach(probe))?;
        attached
    };
    Some(match tried() {
        Ok(()) => ok(format!("uprobes: one was put on {} and taken off again", function.name())),
        Err(error) => failure(error.into()),
    })
}

fn jit(enabled: Option<&str>) -> Finding {
    match enabled {
        Some("0") => warning(
            "JIT: eBPF programs are interpreted, and slow; echo 1 > /proc/sys/net/core/bpf_jit_enable",
        ),
        Some(_) => ok("JIT: eBPF programs are compiled"),
        None => ok("JIT: not to be read"),
    }
}

/// What may be locked, which loading the programs has tried to raise.
fn memlock(release: &str) -> Finding {
    if btf::version(release).is_some_and(|version| version >= (5, 11)) {
        return ok("memlock: does not matter from 5.11 on");
    }
    let allowed = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard);
    if allowed >= Sizes::USUAL.in_kernel() as u64 {
        return ok("memlock: enough may be locked");
    }
    warning(format!(
        "memlock: {} KiB may be locked, so ring and tables will be smaller; run as root, or ulimit -l unlimited",
        allowed >> 10
    ))
}

/// What can be captured, and what can't.
fn libraries(survey: &Survey) -> Vec<Finding> {
    let targets: Vec<_> = survey.rows.iter().filter(|row| row.found.is_ok()).collect();
    let attached = targets.iter().filter(|row| row.attached).count();
    let mut pids: Vec<u32> = targets.iter().flat_map(|row| &row.pids).copied().collect();
    pids.sort_unstable();
    pids.dedup();
    let mut findings = vec![ok(format!(
        "libraries: {} can be captured, which {} processes map; probes are on {attached}; `plaintapd list` shows them",
        targets.len(),
        pids.len()
    ))];
    if targets.is_empty() {
        findings = vec![warning(
            "libraries: no TLS library found so far; what processes map later will be seen, and --library PATH names one",
        )];
    }
    for row in &survey.rows {
        if let Err(error) = &row.found {
            findings.push(warning(format!("not captured: {}", chain(error))));
        }
    }
    findings.extend(survey.hidden().map(warning));
    findings
}

/// The text of a small file, without what is blank at its ends.
pub fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_first_failures() {
        let failure = |code| Finding { level: Level::Failure(code), text: "it fails".into() };
        assert_eq!(exit_code(&[ok("a"), warning("b")]), 0);
        let findings = [ok("a"), failure(4), warning("b"), failure(5)];
        assert_eq!(exit_code(&findings), 4);
        let report = report(&findings);
        assert_eq!(report.lines().next(), Some("ok       a"));
        assert_eq!(report.lines().nth(1), Some("failure  it fails"));
        assert_eq!(report.lines().last(), Some("2 failures, 1 warning"));
    }

    #[test]
    fn an_old_or_strange_kernel_is_warned_of() {
        for (release, level) in [
            ("6.1.0-13-arm64", Level::Ok),
            ("5.10.43-android12-9-00001-g1234", Level::Ok),
            ("5.4.0", Level::Warning),
            ("4.19.191+", Level::Warning),
            ("", Level::Warning),
            ("six", Level::Warning),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let root = user("Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        assert_eq!(root.level, Level::Ok, "{root:?}");
        let shell = user("Uid:\t2000\t2000\t2000\t2000\nCapEff:\t0000000000000000\n");
        assert_eq!(shell.level, Level::Warning);
        assert!(shell.text.contains("uid 2000") && shell.text.contains("CAP_BPF"), "{shell:?}");
    }

    #[test]
    fn an_interpreted_kernel_is_told() {
        assert_eq!(jit(Some("0")).level, Level::Warning);
        assert_eq!(jit(Some("1")).level, Level::Ok);
        assert_eq!(jit(None).level, Level::Ok);
    }
}
