//! `plaintapd doctor`: whether this device is fit for plaintapd, found out by trying.
//!
//! What the kernel can do is not read from its version: the programs are loaded, a probe is put on a real function and taken
//! off again, the port is taken and given back.

use std::{fmt::Write, fs, path::Path};

use nix::sys::resource::{Resource, getrlimit};

use crate::{
    args::{DoctorArgs, Guards},
    capture::{self, Capture, SocketHook, btf, filters::Filters},
    discover::{
        Function, Options, Target, events, maps,
        survey::{Row, Survey, survey},
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
            false => ok("tracefs: not mounted, or this user can't read it; plaintapd does not need it"),
        },
    );
    findings.push(match events::Events::open() {
        Ok(_) => ok("perf events: libraries are seen as soon as a process maps them"),
        Err(error) => warning(format!("perf events: {error}: libraries that are mapped later are found within 10 s, not at once; run as root, with CONFIG_PERF_EVENTS")),
    });
    let default = [Place::default()];
    for place in if args.ecaptureq.is_empty() { &default[..] } else { &args.ecaptureq } {
        findings.push(match listen(place, args.guards()) {
            Ok(()) => ok(format!("port: {place} is free")),
            Err(error) => failure(error),
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
    let _ = writeln!(
        text,
        "{}, {}",
        counted(failures, "failure", "failures"),
        counted(warnings, "warning", "warnings")
    );
    text
}

/// A number with what it counts: one, or several and none.
fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// The code of the first failure, else 0.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let failed = findings.iter().find_map(|finding| match finding.level {
        Level::Failure(code) => Some(code),
        _ => None,
    });
    failed.unwrap_or(0)
}

/// Takes a place where clients would connect, and gives it back.
fn listen(place: &Place, guards: Guards<'_>) -> Result<(), run::Error> {
    run::guarded(&[place], guards)?;
    listen::listen_at(place)?;
    listen::remove(place);
    Ok(())
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
        [] => ok(format!("user: uid {uid}, with all capabilities that plaintapd uses")),
        _ => warning(format!("user: uid {uid} lacks {}; run as root (on Android by su)", missing.join(", "))),
    }
}

/// SELinux, and the kernel's lockdown.
fn security() -> Vec<Finding> {
    let selinux = match privileges::selinux() {
        None if Path::new("/sys/fs/selinux/enforce").exists() => {
            warning("SELinux: in use, and this user can't read its mode; root can")
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

/// Puts a probe on a function of the first library that can be opened, and takes it off; none: there is no library, which another
/// line says.
fn uprobe(capture: &mut Capture, survey: &Survey) -> Option<Finding> {
    // Nobody's bytes are copied meanwhile.
    let paused = capture.pause();
    let rows = survey.rows.iter().filter(|row| row.found.is_ok());
    // Best where nobody runs into the probe.
    let (unused, used): (Vec<_>, Vec<_>) = rows.partition(|row| row.pids.is_empty());
    let mut candidates = unused.into_iter().chain(used).peekable();
    candidates.peek()?;
    let Some((target, function, offset)) = candidates.find_map(opened) else {
        return Some(warning("uprobes: not tried, as no library that can be captured could be opened"));
    };
    let mut probes = Vec::new();
    let tried = || -> Result<(), capture::Error> {
        paused?;
        let attached = capture.attach(&target, function, offset, &mut probes);
        probes.drain(..).try_for_each(|probe| capture.detach(probe))?;
        attached
    };
    Some(match tried() {
        Ok(()) => ok(format!("uprobes: one was put on {} and taken off again", function.name())),
        Err(error) => failure(error.into()),
    })
}

/// The file of a row, with its first function and where that stands.
fn opened(row: &Row) -> Option<(Target, Function, u64)> {
    let found = row.found.as_ref().ok()?.clone();
    let (function, offset) = *found.functions.first()?;
    // Of a library in an APK, that is the file.
    let path = row.path.to_str()?;
    let path = path.split_once("!/").map_or(path, |(apk, _)| apk);
    let file = match row.pids[..] {
        [] => fs::File::open(path).ok()?,
        _ => row.pids.iter().find_map(|pid| mapped(*pid, Path::new(path)))?,
    };
    Some((Target { id: 0, path: row.path.clone(), file, found }, function, offset))
}

/// The very file that process `pid` has mapped as `path`: by that path, another may be there for us.
/// Source: linux, Documentation/filesystems/proc.rst, map_files.
fn mapped(pid: u32, path: &Path) -> Option<fs::File> {
    let mut file = None;
    let _ = maps::each(Path::new("/proc"), pid, |mapping| {
        if file.is_none() && mapping.path == path {
            let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
            file = fs::File::open(link).ok();
        }
    });
    file
}

fn jit(enabled: Option<&str>) -> Finding {
    match enabled {
        Some("0") => warning(
            "JIT: eBPF programs are interpreted, which is slow; echo 1 > /proc/sys/net/core/bpf_jit_enable",
        ),
        Some(_) => ok("JIT: eBPF programs are compiled"),
        None => ok("JIT: this user can't read whether eBPF programs are compiled"),
    }
}

/// What may be locked, which loading the programs has tried to raise.
fn memlock(release: &str) -> Finding {
    if btf::version(release).is_some_and(|version| version >= (5, 11)) {
        return ok("memlock: no limit on eBPF in this kernel (5.11 or newer)");
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
        "libraries: {} can be captured, which {}; {}; `plaintapd list` shows them",
        targets.len(),
        counted(pids.len(), "process uses", "processes use"),
        counted(attached, "has probes", "have probes"),
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
    use crate::discover::find::{Flavour, Found, How};

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
    fn what_a_process_maps_is_opened_through_it_and_else_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let apk = folder.path().join("base.apk");
        fs::write(&apk, "").unwrap();
        let row = |path: String, pids: &[u32]| Row {
            path: path.into(),
            deleted: false,
            abi: "x86_64",
            found: Ok(Found {
                functions: vec![(Function::Read, 4096)],
                how: How::Symbols,
                flavour: Flavour::BoringSsl,
                version: None,
                build_id: None,
            }),
            pids: pids.to_vec(),
            attached: false,
            part: None,
        };
        let is_opened = |path: &Path, pids: &[u32]| {
            let inside = format!("{}!/lib/arm64-v8a/libssl.so", path.display());
            assert_eq!(
                opened(&row(inside, pids)).is_some(),
                opened(&row(path.display().to_string(), pids)).is_some()
            );
            opened(&row(path.display().to_string(), pids)).is_some_and(|(_, _, offset)| offset == 4096)
        };
        assert!(is_opened(&apk, &[]) && !is_opened(Path::new("/nonexistent"), &[]));
        let ours = std::env::current_exe().unwrap();
        assert!(is_opened(&ours, &[u32::MAX, std::process::id()]));
        assert!(!is_opened(&apk, &[std::process::id()]), "we don't map it");
    }

    #[test]
    fn an_interpreted_kernel_is_told() {
        assert_eq!(jit(Some("0")).level, Level::Warning);
        assert_eq!(jit(Some("1")).level, Level::Ok);
        assert_eq!(jit(None).level, Level::Ok);
    }
}
