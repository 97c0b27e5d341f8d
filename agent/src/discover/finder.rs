//! Which files hold TLS code that can be probed, kept up to date.
//!
//! Owns what is known of every file seen: each is parsed once, until it is written to, in a cache of bounded size. Says what
//! changes ([`Change`]) and touches no probe itself. Who calls it decides when; see `watch`.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    Error, Options, Target,
    file::{self, Opened, Stamp},
    find::{Found, Part},
    maps::{self, Mapping},
    places,
};
use crate::recent::Recent;

/// Files remembered for certain.
const FILES: usize = 4096;
/// Targets at the same time: each takes two file descriptors for a probe, and some 17 probes.
const MAX_TARGETS: usize = 128;
/// How long a target is kept that nobody maps: the next process that does is captured from its first call on.
const LINGER: Duration = Duration::from_secs(600);
/// The same for a file that is gone or replaced: a probe keeps its room on the disk.
const LINGER_GONE: Duration = Duration::from_secs(5);
/// How often the usual places are looked for where nothing else tells of new files.
const PLACES: Duration = Duration::from_secs(60);
/// How long until everything is looked at again, where something was short to look into a file; then twice as long each time, up
/// to a most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the usual places, and at all that processes map.
    Everything,
    /// In the usual places.
    Places,
    /// At these files, or entries of APKs.
    Named(Vec<PathBuf>),
}

/// What is to be done.
#[derive(Debug)]
pub enum Change {
    /// To put probes on this.
    Attach(Target),
    /// To take the probes off the target with this id, for this reason.
    Detach(u64, &'static str),
    /// Nothing but to tell it: this file may hold TLS code and can't be probed.
    Refuse(Error),
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Target(u64),
    Other,
}

#[derive(Debug)]
struct Known {
    path: PathBuf,
    beneath: Stamp,
    stamp: Stamp,
    /// Whether it stands in a usual place, or a person named it, and so it stays though nobody maps it.
    place: bool,
    /// Somebody who maps it: process id, first address, address behind the last, and the file as that process sees it.
    mapper: Option<(u32, u64, u64, Stamp)>,
    /// Since when nobody is known who maps it.
    unmapped: Option<Instant>,
}

impl Known {
    /// Whether nobody has mapped it for so long, or for so long the file that is gone.
    fn is_due(&self, linger: Duration, linger_gone: Duration) -> bool {
        let Some(since) = self.unmapped.filter(|_| !self.place) else { return false };
        let elapsed = since.elapsed();
        elapsed >= linger
            || elapsed >= linger_gone && !file::stamp(&self.path).is_ok_and(|stamp| stamp == self.stamp)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Finder {
    root: PathBuf,
    proc: PathBuf,
    scope: Scope,
    options: Options,
    seen: Recent<Stamp, Verdict>,
    targets: HashMap<u64, Known>,
    next: u64,
    full: bool,
    /// Whether files were parsed since somebody asked.
    parsed: bool,
    /// When the places were looked for last.
    sought: Instant,
    /// When everything is to be looked at again, as something was short, and how long that was put off.
    again: Option<Instant>,
    pause: Duration,
}

/// Takes the changes.
pub type Sink<'a> = &'a mut dyn FnMut(Change);

impl Finder {
    /// Knows nothing yet.
    pub fn new(scope: Scope, options: Options) -> Self {
        Self::below(Path::new("/"), Path::new("/proc"), scope, options)
    }

    fn below(root: &Path, proc: &Path, scope: Scope, mut options: Options) -> Self {
        if matches!(scope, Scope::Named(_)) {
            // Who names a file wants it.
            options.exclude.clear();
        }
        Self {
            root: root.into(),
            proc: proc.into(),
            scope,
            options,
            seen: Recent::new(FILES),
            targets: HashMap::new(),
            next: 0,
            full: false,
            parsed: false,
            sought: Instant::now(),
            again: None,
            pause: Duration::ZERO,
        }
    }

    /// Takes note of a target that was found already, in a file that is to be watched whoever maps it.
    pub fn adopt(&mut self, target: &Target) {
        // One that can't be told from others any more is watched as it is.
        let Ok(Opened { stamp, beneath, .. }) = target.file.try_clone().and_then(Opened::of) else { return };
        let path = super::entry(&target.path).map_or(target.path.clone(), |(apk, _)| apk);
        let known = Known { path, beneath, stamp, place: true, mapper: None, unmapped: None };
        self.targets.insert(target.id, known);
        self.next = self.next.max(target.id + 1);
        self.remember(stamp, Verdict::Target(target.id));
    }

    /// Whether only some files are looked at: there is no need to know what processes map.
    pub fn is_restricted(&self) -> bool {
        self.scope != Scope::Everything
    }

    /// Looks into the places that are watched whoever maps what is there.
    pub fn places(&mut self, sink: Sink<'_>) {
        for path in self.candidates() {
            match &self.scope {
                Scope::Named(_) if !path.exists() => {
                    let source = io::ErrorKind::NotFound.into();
                    sink(Change::Refuse(Error::Read { path, source }));
                }
                _ => self.place(&path, sink),
            }
        }
    }

    /// The files that are to be watched whoever maps them.
    fn candidates(&self) -> Vec<PathBuf> {
        let Scope::Named(paths) = &self.scope else { return places::candidates(&self.root) };
        paths.iter().map(|path| super::entry(path).map_or(path.clone(), |(apk, _)| apk)).collect()
    }

    /// Looks for files that were not in their places before.
    fn seek(&mut self, sink: Sink<'_>) {
        self.sought = Instant::now();
        for path in self.candidates() {
            let Ok(stamp) = file::stamp(&path) else { continue };
            let is_new = match self.seen.peek(&stamp) {
                Some(Verdict::Target(id)) => !self.targets.get(id).is_some_and(|known| known.place),
                Some(Verdict::Other) => false,
                None => true,
            };
            if is_new {
                self.place(&path, sink);
            }
            // What can't be opened is told once. Who may not read it by its path may still by a process's mapping.
            if self.is_restricted() && self.again.is_none() && self.seen.peek(&stamp).is_none() {
                self.remember(stamp, Verdict::Other);
            }
        }
    }

    /// Whether what is called `name` in the file at `path` is to be looked at: if a person named entries of an APK, those alone.
    fn is_wanted(&self, path: &Path, name: &Path) -> bool {
        let Scope::Named(paths) = &self.scope else { return true };
        let has_entries = paths.iter().any(|named| super::entry(named).is_some_and(|(apk, _)| apk == path));
        !has_entries || paths.iter().any(|named| named == path || named == name)
    }

    /// Whether it is the file that stands in a place, or an entry that a person named, and not one of many in an APK.
    fn is_meant(&self, path: &Path, name: &Path) -> bool {
        name == path || matches!(&self.scope, Scope::Named(paths) if paths.iter().any(|named| named == name))
    }

    /// Takes note of an error: what was short may be there later, and then all is looked at again.
    fn note(&mut self, error: &io::Error) {
        if file::is_shortage(error) && self.again.is_none() {
            self.pause = (2 * self.pause).clamp(FIRST_PAUSE, MAX_PAUSE);
            self.again = Some(Instant::now() + self.pause);
        }
    }

    /// Looks at what all processes have mapped.
    pub fn scan(&mut self, sink: Sink<'_>) {
        let Ok(processes) = maps::processes(&self.proc) else { return };
        let mut done = HashSet::new();
        for pid in processes {
            let proc = self.proc.clone();
            let looked = maps::each(&proc, pid, |Mapping { start, end, device, inode, .. }| {
                if !done.contains(&(device, inode)) && self.mapped_now(pid, start, end, sink).is_ok() {
                    done.insert((device, inode));
                }
            });
            // A process may end, or be one that nobody may look into.
            looked.unwrap_or_else(|error| self.note(&error));
            thread::yield_now();
        }
    }

    /// Looks at what process `pid` has mapped at these addresses, or did at first: the dynamic linker maps a library's first
    /// segment with room for all of them, and the others over that. An error: it is gone, or not to be read.
    pub fn mapped(&mut self, pid: u32, start: u64, end: u64, sink: Sink<'_>) -> io::Result<()> {
        match self.mapped_now(pid, start, end, sink) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let (proc, mut now) = (self.proc.clone(), None);
        maps::each(&proc, pid, |mapping| {
            if mapping.start == start {
                now = Some(mapping.end);
            }
        })?;
        self.mapped_now(pid, start, now.ok_or(io::ErrorKind::NotFound)?, sink)
    }

    fn mapped_now(&mut self, pid: u32, start: u64, end: u64, sink: Sink<'_>) -> io::Result<()> {
        let link = file::mapped(&self.proc, pid, start, end);
        // Memory of a device is none of ours.
        let stamp = match file::stamp(&link) {
            Err(error) if error.kind() == io::ErrorKind::Other => return Ok(()),
            stamp => stamp?,
        };
        match self.seen.peek(&stamp).copied() {
            Some(Verdict::Other) => {}
            Some(Verdict::Target(id)) if self.targets.contains_key(&id) => {
                self.has_mapper(id, (pid, start, end, stamp))
            }
            Some(Verdict::Target(_)) | None => {
                let (path, _) = file::name(&link)?;
                let opened = file::open(&link).inspect_err(|error| self.note(error))?;
                if let Some(id) = self.look(&path, opened, false, sink) {
                    self.has_mapper(id, (pid, start, end, stamp));
                }
            }
        }
        // Used now, so kept.
        if let Some(verdict) = self.seen.peek(&stamp).copied() {
            self.seen.get_or_insert_with(stamp, || verdict);
        }
        Ok(())
    }

    /// Looks at a file that a process had mapped to run, and has no more: the next one that maps it is to be captured.
    pub fn unmapped(&mut self, path: &Path, inode: u64, sink: Sink<'_>) {
        // Another file may have that path here, in our mount namespace.
        let Some(opened) = file::open(path).ok().filter(|opened| opened.stamp.inode() == inode) else {
            return;
        };
        let known = self.seen.peek(&opened.stamp).copied();
        if match known {
            None => true,
            Some(Verdict::Other) => false,
            Some(Verdict::Target(id)) => !self.targets.contains_key(&id),
        } {
            self.look(path, opened, false, sink);
        }
    }

    /// Looks after the targets: what stands in a usual place may have been replaced, and what a process mapped may be
    /// mapped no more.
    pub fn check(&mut self, sink: Sink<'_>) {
        let mut replaced = Vec::new();
        for known in self.targets.values_mut().filter(|known| known.place) {
            if !file::stamp(&known.path).is_ok_and(|stamp| stamp == known.stamp) {
                known.place = false;
                replaced.push(known.path.clone());
            }
        }
        for path in replaced {
            self.place(&path, sink);
        }
        match self.scope {
            // What was short is looked at again below.
            _ if self.again.is_some() => {}
            Scope::Named(_) => self.seek(sink),
            Scope::Places if self.sought.elapsed() >= PLACES => self.seek(sink),
            _ => {}
        }
        let mut lost = false;
        for known in self.targets.values_mut().filter(|known| !known.place) {
            let Some((pid, start, end, seen)) = known.mapper else {
                known.unmapped.get_or_insert_with(Instant::now);
                continue;
            };
            let link = file::mapped(&self.proc, pid, start, end);
            if !file::stamp(&link).is_ok_and(|stamp| stamp.same_inode(&seen)) {
                known.mapper = None;
                known.unmapped = Some(Instant::now());
                lost = true;
            }
        }
        let is_due = self.again.take_if(|due| *due <= Instant::now()).is_some();
        if is_due {
            self.seek(sink);
        }
        // Somebody else may have mapped it before; who does from now on is told.
        if lost || is_due || self.targets.values().any(|known| known.is_due(LINGER, LINGER_GONE)) {
            self.scan(sink);
        }
        if self.again.is_none() {
            self.pause = Duration::ZERO;
        }
        self.let_go(LINGER, LINGER_GONE, sink);
    }

    /// Whether any target must be looked after closely.
    pub fn is_watchful(&self) -> bool {
        let soon = |since: Instant| since.elapsed() < 2 * LINGER_GONE;
        self.again.is_some()
            || self.targets.values().any(|known| !known.place && known.unmapped.is_none_or(soon))
    }

    /// Whether files were parsed since this was last asked: that takes memory.
    pub fn has_parsed(&mut self) -> bool {
        std::mem::take(&mut self.parsed)
    }

    fn let_go(&mut self, linger: Duration, linger_gone: Duration, sink: Sink<'_>) {
        self.targets.retain(|id, known| {
            let due = known.is_due(linger, linger_gone);
            if due {
                sink(Change::Detach(*id, "no process maps it any more"));
            }
            !due
        });
        if self.full && self.targets.len() < MAX_TARGETS {
            // There is room for what had to be passed by.
            self.full = false;
            self.seen = Recent::new(FILES);
        }
    }

    /// Takes note of who maps the file of target `id`, which others may be in too.
    fn has_mapper(&mut self, id: u64, mapper: (u32, u64, u64, Stamp)) {
        let Some(file) = self.targets.get(&id).map(|known| known.stamp) else { return };
        for known in self.targets.values_mut().filter(|known| known.stamp == file) {
            known.mapper = Some(mapper);
            known.unmapped = None;
        }
    }

    fn place(&mut self, path: &Path, sink: Sink<'_>) {
        match file::open(path) {
            Ok(opened) => {
                let libcrypto = super::libcrypto(path, &opened);
                if let (Some(_), Some(libcrypto)) = (self.look(path, opened, true, sink), libcrypto) {
                    self.place(&libcrypto, sink);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                self.note(&source);
                sink(Change::Refuse(Error::Read { path: path.into(), source }));
            }
        }
    }

    /// Looks into a file that is not known with its present content; its id if it is a target.
    fn look(&mut self, path: &Path, opened: Opened, place: bool, sink: Sink<'_>) -> Option<u64> {
        let (stamp, beneath) = (opened.stamp, opened.beneath);
        let known = self.targets.iter_mut().find(|(_, known)| known.beneath.is_beneath(&beneath));
        if let Some((id, known)) = known {
            let id = *id;
            known.place |= place;
            self.remember(stamp, Verdict::Target(id));
            return Some(id);
        }
        if !place && self.is_restricted() {
            return None;
        }
        // A target needs one more descriptor: where there is none, nothing need be read.
        if let Err(error) = opened.file.try_clone() {
            self.note(&error);
            return None;
        }
        // Written to while it was probed: what is at the old offsets now, nobody knows.
        self.targets.retain(|id, known| {
            let rewritten = known.stamp.same_inode(&stamp);
            if rewritten {
                sink(Change::Detach(*id, "the file was changed"));
            }
            !rewritten
        });
        self.parsed = true;
        let (mut found_all, mut refused) = (Vec::new(), Vec::new());
        for Examined { path: name, found, .. } in examine(&self.options, path, &opened) {
            if !self.is_wanted(path, &name) {
                continue;
            }
            match found.and_then(|found| Ok((super::again(&name, &opened)?, found))) {
                Ok((file, found)) => found_all.push((name, file, found)),
                // Nothing is said of the file then, nor remembered.
                Err(Error::Read { source, .. }) if file::is_shortage(&source) => {
                    self.note(&source);
                    return None;
                }
                Err(error) if place && self.is_meant(path, &name) || worth_telling(&name, &error) => {
                    refused.push(error);
                }
                Err(_) => {}
            }
        }
        let mut first = None;
        for (name, file, found) in found_all {
            let Some(id) = self.add(path, &opened, place, sink) else { break };
            first.get_or_insert(id);
            sink(Change::Attach(Target { id, path: name, file, found }));
        }
        // What can't be attached for want of room is not parsed again and again either.
        if !self.remember(stamp, first.map_or(Verdict::Other, Verdict::Target)) {
            refused.into_iter().for_each(|error| sink(Change::Refuse(error)));
        }
        first
    }

    /// A new target's id; none if there is no room.
    fn add(&mut self, path: &Path, opened: &Opened, place: bool, sink: Sink<'_>) -> Option<u64> {
        if self.targets.len() >= MAX_TARGETS {
            self.let_go(Duration::ZERO, Duration::ZERO, sink);
        }
        if self.targets.len() >= MAX_TARGETS {
            if !std::mem::replace(&mut self.full, true) {
                log::warn!(
                    "not attached: library={} and others: {MAX_TARGETS} are watched, and more can't be; choose by --library or --exclude",
                    path.display()
                );
            }
            return None;
        }
        let id = self.next;
        self.next += 1;
        let Opened { stamp, beneath, .. } = *opened;
        self.targets
            .insert(id, Known { path: path.into(), beneath, stamp, place, mapper: None, unmapped: None });
        Some(id)
    }

    /// Says whether it knew the file, with any verdict.
    fn remember(&mut self, stamp: Stamp, verdict: Verdict) -> bool {
        let known = self.seen.peek(&stamp).is_some();
        *self.seen.get_or_insert_with(stamp, || verdict) = verdict;
        known
    }
}

/// What [`examine`] says of a file, or of a library in an APK.
#[derive(Debug)]
pub struct Examined {
    /// What to call it.
    pub path: PathBuf,
    /// Where it is in the file; none if it can't be mapped as it is.
    pub part: Option<Part>,
    /// What there is to probe in it.
    pub found: Result<Found, Error>,
}

/// What there is to probe in a file or in the libraries of an APK; nothing where a path is excluded.
pub fn examine(options: &Options, path: &Path, opened: &Opened) -> Vec<Examined> {
    let is_wanted = |path: &Path| {
        let name = path.as_os_str().as_encoded_bytes();
        !options.exclude.iter().any(|pattern| file::fits(pattern.as_bytes(), name))
    };
    if !is_wanted(path) {
        return Vec::new();
    }
    let parts = match super::parts(path, opened) {
        Ok(parts) => parts,
        Err(error) => return vec![Examined { path: path.into(), part: None, found: Err(error) }],
    };
    let mut examined = Vec::new();
    for (path, part) in parts.into_iter().filter(|(path, _)| is_wanted(path)) {
        examined.push(Examined {
            found: super::examine(&path, opened, part, options),
            part: part.ok(),
            path,
        });
        if opened.budget.is_spent() {
            // The others would be refused in the same words.
            break;
        }
    }
    examined
}

/// Whether a person would expect the file to be captured: most of what is mapped has nothing to do with TLS.
pub fn worth_telling(path: &Path, error: &Error) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_tls = ["libssl", "conscrypt", "boringssl", "libcronet"].iter().any(|part| name.contains(part));
    is_tls && matches!(error, Error::Foreign { .. })
        || matches!(error, Error::Other { .. } | Error::Unnamed { .. } | Error::TooLarge { .. })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{super::apk, *};

    /// A system of our own making: files, and processes that map them.
    struct System {
        folder: tempfile::TempDir,
        finder: Finder,
    }

    impl System {
        fn new(exclude: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let exclude: Vec<String> = exclude.iter().map(|pattern| (*pattern).to_owned()).collect();
            let options = Options { exclude, ..Options::default() };
            let finder =
                Finder::below(folder.path(), &folder.path().join("proc"), Scope::Everything, options);
            fs::create_dir(folder.path().join("proc")).unwrap();
            Self { folder, finder }
        }

        /// The same, with a finder that looks only there.
        fn within(scope: impl FnOnce(&Self) -> Scope) -> Self {
            let mut system = Self::new(&[]);
            let (root, proc) = (system.path(""), system.path("proc"));
            system.finder = Finder::below(&root, &proc, scope(&system), Options::default());
            system
        }

        fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        fn put(&self, path: &str, content: &[u8]) -> PathBuf {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // As a package manager does it: a new file in the old one's place.
            let _ = fs::remove_file(&path);
            fs::write(&path, content).unwrap();
            path
        }

        fn map(&self, pid: u32, path: &Path) {
            let line = format!("1000-2000 r-xp 00000000 fe:00 {} {}\n", pid + 100, path.display());
            self.put(&format!("proc/{pid}/maps"), line.as_bytes());
            let links = self.path(&format!("proc/{pid}/map_files"));
            fs::create_dir_all(&links).unwrap();
            symlink(path, links.join("1000-2000")).unwrap();
        }

        fn end(&self, pid: u32) {
            fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
        }

        fn changes(&mut self, act: impl FnOnce(&mut Finder, Sink<'_>)) -> Vec<String> {
            let mut changes = Vec::new();
            act(&mut self.finder, &mut |change| {
                changes.push(match change {
                    Change::Attach(target) => format!("attach {}", target.id),
                    Change::Detach(id, why) => format!("detach {id}: {why}"),
                    Change::Refuse(error) => format!("refuse: {error}"),
                });
            });
            changes
        }
    }

    /// A library with the functions: an ELF file as small as they come.
    fn library() -> Vec<u8> {
        super::super::tests::library(&["SSL_read", "SSL_write"])
    }

    #[test]
    fn a_mapped_library_is_attached_once_however_many_map_it() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        system.map(1, &path);
        for pid in 2..=10_000 {
            symlink("1", system.path(&format!("proc/{pid}"))).unwrap();
        }
        assert_eq!(system.changes(Finder::scan), ["attach 0"]);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        assert_eq!(system.changes(Finder::check), [""; 0]);
    }

    #[test]
    fn a_mapping_that_became_smaller_is_looked_at_as_it_is_now() {
        let mut system = System::new(&[]);
        let path = system.put("tmp/unpacked.so", &library());
        system.map(1, &path);
        let look = |finder: &mut Finder, sink: Sink<'_>| finder.mapped(1, 0x1000, 0x9000, sink).unwrap();
        assert_eq!(system.changes(look), ["attach 0"]);
        let gone = |finder: &mut Finder, sink: Sink<'_>| finder.mapped(1, 0x3000, 0x9000, sink).unwrap_err();
        assert_eq!(system.changes(|finder, sink| drop(gone(finder, sink))), [""; 0]);
    }

    #[test]
    fn a_replaced_library_is_another_target_and_the_old_one_goes_with_its_last_process() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        let old = system.put("opt/libprivate.so.old", &library());
        system.map(1, &old);
        assert_eq!(system.changes(Finder::scan), ["attach 0"]);
        system.map(2, &path);
        assert_eq!(
            system.changes(|finder, sink| finder.mapped(2, 0x1000, 0x2000, sink).unwrap()),
            ["attach 1"]
        );
        system.end(1);
        assert_eq!(system.changes(Finder::check), [""; 0], "it is kept for a while");
        let gone = "detach 0: no process maps it any more";
        assert_eq!(
            system.changes(|finder, sink| finder.let_go(Duration::ZERO, Duration::ZERO, sink)),
            [gone]
        );
        // It comes back.
        system.map(3, &old);
        assert_eq!(system.changes(Finder::scan), ["attach 2"]);
    }

    #[test]
    fn another_process_that_maps_a_target_keeps_it() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        system.map(1, &path);
        system.map(2, &path);
        assert_eq!(system.changes(Finder::scan), ["attach 0"]);
        for pid in [1, 2] {
            system.end(pid);
            system.map(pid + 2, &path);
            assert_eq!(system.changes(Finder::check), [""; 0]);
            assert_eq!(
                system.changes(|finder, sink| finder.let_go(Duration::ZERO, Duration::ZERO, sink)),
                [""; 0]
            );
        }
    }

    #[test]
    fn the_libraries_of_an_apk_are_targets_of_their_own_that_go_together() {
        let mut system = System::new(&["*/liboff.so"]);
        let library = library();
        let apk = apk::tests::apk(&[
            ("libapp.so", &library, false, 4096),
            ("libother.so", b"no ELF file", false, 4096),
            ("libboringssl.so", &library, true, 1),
            ("liboff.so", &library, false, 4096),
            ("libplay.so", &library, false, 4096),
        ]);
        let path = system.put("data/app/x/base.apk", &apk);
        system.map(1, &path);
        let mut targets = Vec::new();
        let mut refused = Vec::new();
        system.finder.scan(&mut |change| match change {
            Change::Attach(target) => targets.push(target),
            Change::Refuse(error) => refused.push(error.to_string()),
            Change::Detach(..) => panic!("{change:?}"),
        });
        let [app, play] = &targets[..] else { panic!("{targets:?}") };
        assert!(app.path.to_str().unwrap().contains("/base.apk!/lib/") && app.path.ends_with("libapp.so"));
        assert!(play.path.ends_with("libplay.so"));
        for target in [app, play] {
            let (_, offset) = target.found.functions[0];
            assert_eq!(
                apk[offset as usize..][..4],
                *b"\x7fELF",
                "the first function of the hand-made library is its start"
            );
        }
        assert!(
            refused.len() == 1 && refused[0].contains("libboringssl.so") && refused[0].contains("compressed"),
            "{refused:?}"
        );
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        system.end(1);
        fs::remove_file(&path).unwrap();
        assert_eq!(system.changes(Finder::check), [""; 0]);
        let mut gone = system.changes(|finder, sink| finder.let_go(Duration::ZERO, Duration::ZERO, sink));
        gone.sort();
        assert_eq!(gone, ["detach 0: no process maps it any more", "detach 1: no process maps it any more"]);
    }

    #[test]
    fn a_library_that_is_written_to_is_attached_anew() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        system.map(1, &path);
        assert_eq!(system.changes(Finder::scan), ["attach 0"]);
        fs::write(&path, [&library()[..], b"more"].concat()).unwrap();
        assert_eq!(system.changes(Finder::scan), ["detach 0: the file was changed", "attach 1"]);
    }

    #[test]
    fn a_usual_place_is_watched_unmapped_and_followed_when_replaced() {
        let mut system = System::new(&[]);
        system.put("usr/lib/libssl.so.3", &library());
        assert_eq!(system.changes(Finder::places), ["attach 0"]);
        assert_eq!(system.changes(Finder::check), [""; 0]);
        assert!(!system.finder.is_watchful());
        // Kept, so that its inode is not used again at once.
        fs::rename(system.path("usr/lib/libssl.so.3"), system.path("old")).unwrap();
        system.put("usr/lib/libssl.so.3", &library());
        assert_eq!(system.changes(Finder::check), ["attach 1"]);
        let gone = "detach 0: no process maps it any more";
        assert_eq!(
            system.changes(|finder, sink| finder.let_go(Duration::ZERO, Duration::ZERO, sink)),
            [gone]
        );
    }

    #[test]
    fn a_named_file_is_followed_when_replaced_and_nothing_else_is_watched() {
        let mut system = System::within(|system| Scope::Named(vec![system.path("opt/named.so")]));
        let path = system.put("opt/named.so", &library());
        let other = system.put("opt/other.so", &library());
        system.map(2, &other);
        let named = super::super::named(std::slice::from_ref(&path), &Options::default()).unwrap();
        named.iter().for_each(|target| system.finder.adopt(target));
        assert_eq!(system.changes(Finder::check), [""; 0]);
        fs::rename(&path, system.path("opt/old")).unwrap();
        system.map(1, &system.path("opt/old"));
        system.put("opt/named.so", &library());
        assert_eq!(system.changes(Finder::check), ["attach 1"]);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        // The old one as long as somebody maps it.
        let let_go =
            |finder: &mut Finder, sink: Sink<'_>| finder.let_go(Duration::ZERO, Duration::ZERO, sink);
        assert_eq!(system.changes(let_go), [""; 0]);
        system.end(1);
        system.changes(Finder::check);
        assert_eq!(system.changes(let_go), ["detach 0: no process maps it any more"]);
    }

    #[test]
    fn a_named_file_that_is_missing_or_broken_is_attached_once_it_is_usable() {
        let mut system = System::within(|system| Scope::Named(vec![system.path("opt/named.so")]));
        let refused = system.changes(Finder::places);
        assert!(refused.len() == 1 && refused[0].starts_with("refuse: can't read"), "{refused:?}");
        assert_eq!(system.changes(Finder::check), [""; 0]);
        let path = system.put("opt/named.so", &library()[..100]);
        let refused = system.changes(Finder::check);
        assert!(refused.len() == 1 && refused[0].starts_with("refuse: "), "{refused:?}");
        assert_eq!(system.changes(Finder::check), [""; 0]);
        // It may be mapped before it is looked for.
        system.put("opt/named.so", &library());
        system.map(1, &path);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        assert_eq!(system.changes(Finder::check), ["attach 0"]);
        assert_eq!(system.changes(Finder::check), [""; 0]);
        fs::remove_file(&path).unwrap();
        assert_eq!(system.changes(Finder::check), [""; 0]);
        system.put("opt/named.so", &[&library()[..], b"more"].concat());
        // It may have the old one's inode.
        assert_eq!(system.changes(Finder::check).last().unwrap(), "attach 1");
    }

    #[test]
    fn of_an_apk_the_entries_are_followed_that_were_named() {
        let entry = |system: &System, name| {
            system.path(&format!("opt/base.apk{}lib/{}/{name}", apk::SEPARATOR, apk::tests::ABI))
        };
        let mut system =
            System::within(|system| Scope::Named(vec![entry(system, "liba.so"), entry(system, "libb.so")]));
        let library = library();
        let content = apk::tests::apk(&[
            ("liba.so", &library, false, 4096),
            ("libb.so", b"text", false, 4096),
            ("libc.so", &library, false, 4096),
            ("libd.so", b"text", false, 4096),
        ]);
        system.put("opt/base.apk", &content);
        let changes = system.changes(Finder::places);
        let [attached, refused] = &changes[..] else { panic!("{changes:?}") };
        assert!(attached == "attach 0" && refused.contains("libb.so"), "{changes:?}");
        fs::rename(system.path("opt/base.apk"), system.path("old")).unwrap();
        system.put("opt/base.apk", &content);
        assert_eq!(system.changes(Finder::check)[0], "attach 1");
    }

    #[test]
    fn all_libraries_of_an_apk_share_what_may_be_read_of_it() {
        let system = System::new(&[]);
        let library = library();
        let content = apk::tests::apk(&[
            ("liba.so", &library, false, 4096),
            ("libb.so", &library, false, 4096),
            ("libc.so", &library, false, 4096),
        ]);
        let path = system.put("opt/base.apk", &content);
        let opened = file::open(&path).unwrap();
        assert_eq!(examine(&Options::default(), &path, &opened).len(), 3);
        // What is left is enough for the directory, and for no library.
        let opened = file::open(&path).unwrap();
        let before = opened.budget.left();
        super::super::parts(&path, &opened).unwrap();
        let directory = before - opened.budget.left();
        let left = directory + 2 * 4096;
        assert!(opened.budget.take(usize::try_from(opened.budget.left() - left).unwrap()));
        let examined = examine(&Options::default(), &path, &opened);
        assert!(
            matches!(&examined[..], [Examined { found: Err(Error::TooLarge { .. }), .. }]),
            "{examined:?}"
        );
    }

    #[test]
    fn usual_places_are_looked_for_again_where_nothing_else_tells_of_new_files() {
        let mut system = System::within(|_| Scope::Places);
        assert_eq!(system.changes(Finder::places), [""; 0]);
        let path = system.put("usr/lib/libssl.so.3", &library());
        system.map(1, &path);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        assert_eq!(system.changes(Finder::check), [""; 0]);
        system.finder.sought -= PLACES;
        assert_eq!(system.changes(Finder::check), ["attach 0"]);
    }

    #[test]
    fn what_something_was_short_for_is_looked_at_again_ever_less_often() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        system.map(1, &path);
        assert!(!system.finder.is_watchful());
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            let before = Instant::now();
            system.finder.note(&io::Error::from_raw_os_error(nix::libc::EMFILE));
            assert!(system.finder.is_watchful() && system.finder.pause.as_secs() == seconds);
            assert!(system.finder.again.is_some_and(|again| again >= before + system.finder.pause));
            // Long before that, however long this thread is held up.
            system.finder.again = Some(before + Duration::from_secs(3600));
            assert_eq!(system.changes(Finder::check), [""; 0]);
            system.finder.again = None;
        }
        system.finder.note(&io::Error::from_raw_os_error(nix::libc::ENOENT));
        assert_eq!(system.finder.again, None);
        system.finder.again = Some(Instant::now());
        assert_eq!(system.changes(Finder::check), ["attach 0"]);
        assert_eq!((system.finder.again, system.finder.pause), (None, Duration::ZERO));
    }

    #[test]
    fn a_file_that_is_gone_is_let_go_sooner_than_one_that_may_be_mapped_again() {
        let mut system = System::new(&[]);
        let kept = system.put("opt/kept.so", &library());
        let gone = system.put("opt/gone.so", &library());
        system.map(1, &kept);
        system.map(2, &gone);
        assert_eq!(system.changes(Finder::scan).len(), 2);
        assert!(system.finder.is_watchful());
        let gone = if system.finder.targets[&0].path == gone { 0 } else { 1 };
        fs::remove_file(system.path("opt/gone.so")).unwrap();
        system.end(1);
        system.end(2);
        assert_eq!(system.changes(Finder::check), [""; 0]);
        let word = |id| format!("detach {id}: no process maps it any more");
        let hour = Duration::from_secs(3600);
        assert_eq!(system.changes(|finder, sink| finder.let_go(hour, Duration::ZERO, sink)), [word(gone)]);
        assert_eq!(
            system.changes(|finder, sink| finder.let_go(Duration::ZERO, hour, sink)),
            [word(1 - gone)]
        );
    }

    #[test]
    fn what_a_short_process_had_mapped_is_attached_for_the_next_one() {
        let mut system = System::new(&[]);
        let path = system.put("opt/libprivate.so", &library());
        let inode = file::stamp(&path).unwrap().inode();
        assert_eq!(system.changes(|finder, sink| finder.unmapped(&path, inode + 1, sink)), [""; 0]);
        assert_eq!(system.changes(|finder, sink| finder.unmapped(&path, inode, sink)), ["attach 0"]);
        assert_eq!(system.changes(|finder, sink| finder.unmapped(&path, inode, sink)), [""; 0]);
        assert_eq!(system.changes(Finder::check), [""; 0]);
    }

    #[test]
    fn what_is_excluded_is_not_looked_into() {
        let mut system = System::new(&["*/opt/*"]);
        let path = system.put("opt/libprivate.so", &library());
        system.map(1, &path);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
    }

    #[test]
    fn a_tls_library_that_cant_be_probed_is_told_once_and_other_files_never() {
        let mut system = System::new(&[]);
        let broken = system.put("opt/libssl.so", &library()[..100]);
        let other = system.put("opt/other.so", &library()[..100]);
        system.map(1, &broken);
        system.map(2, &other);
        let refusals = system.changes(Finder::scan);
        assert!(refusals.len() == 1 && refusals[0].starts_with("refuse: "), "{refusals:?}");
        assert!(refusals[0].contains("/opt/libssl.so"), "{refusals:?}");
        assert_eq!(system.changes(Finder::scan), [""; 0]);
    }

    #[test]
    fn targets_are_bounded() {
        let mut system = System::new(&[]);
        for pid in 1..=MAX_TARGETS as u32 + 10 {
            let path = system.put(&format!("opt/{pid}.so"), &library());
            system.map(pid, &path);
        }
        assert_eq!(system.changes(Finder::scan).len(), MAX_TARGETS);
        assert_eq!(system.changes(Finder::scan), [""; 0]);
        // Some go, and there is room for the others.
        for pid in 1..=MAX_TARGETS as u32 + 10 {
            let watched = system
                .finder
                .targets
                .values()
                .any(|known| known.mapper.is_some_and(|mapper| mapper.0 == pid));
            if watched && pid < 20 {
                system.end(pid);
            }
        }
        system.changes(Finder::check);
        let gone = system.changes(|finder, sink| finder.let_go(Duration::ZERO, Duration::ZERO, sink)).len();
        assert!(gone > 0);
        assert_eq!(system.changes(Finder::scan).len(), gone.min(10));
    }
}
