//! All TLS code that there is now, who uses it, and whether probes are on it: one look at everything, for a person.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::unistd::getuid;

use super::{
    Error, Options, abi,
    file::{self, Opened, Stamp},
    find::{Found, Part},
    finder::{self, Examined},
    maps::{self, Mapping},
    places,
};

/// How many bytes of a function are compared: an instruction of aarch64, the start of one of x86_64.
const INSTRUCTION: usize = 4;

/// A file with TLS code.
#[derive(Debug)]
pub struct Row {
    /// Where it was found, in the mount namespace of who maps it.
    pub path: PathBuf,
    /// Whether it had that path once, and no more.
    pub deleted: bool,
    /// Which CPU's code it holds.
    pub abi: &'static str,
    /// What was found in it, or why it can't be probed.
    pub found: Result<Found, Error>,
    /// The processes that map it to run.
    pub pids: Vec<u32>,
    /// Whether a probe stands in one of them; not this program's only.
    pub attached: bool,
    /// Where it is in the file: a library may be one of several in an APK.
    pub part: Option<Part>,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Survey {
    /// The files, those in the usual places first.
    pub rows: Vec<Row>,
    /// Processes that there are.
    pub processes: usize,
    /// Processes whose mappings could not be read.
    pub unreadable: usize,
}

impl Survey {
    /// Says that there are processes that could not be looked into, if there are.
    pub fn hidden(&self) -> Option<String> {
        let Self { processes, unreadable, .. } = self;
        let remedy = match getuid().is_root() {
            true => ", not even by root: a security module or the container forbids it",
            false => " by this user; root sees them",
        };
        (*unreadable > 0)
            .then(|| format!("{unreadable} of {processes} processes can't be looked into{remedy}"))
    }
}

/// Looks at everything.
pub fn survey(root: &Path, proc: &Path, options: &Options) -> Survey {
    let mut surveyor = Surveyor { options, survey: Survey::default(), known: Vec::new() };
    for path in places::candidates(root) {
        match file::open(&path) {
            Ok(opened) => drop(surveyor.rows(&path, false, &opened, true)),
            Err(source) => surveyor.survey.rows.push(Row {
                found: Err(Error::Read { path: path.clone(), source }),
                path,
                deleted: false,
                abi: abi::UNKNOWN,
                pids: Vec::new(),
                attached: false,
                part: None,
            }),
        }
    }
    // By the kernel's name for a file: each is opened once.
    let mut mapped: HashMap<((u32, u32), u64), Vec<usize>> = HashMap::new();
    for pid in maps::processes(proc).into_iter().flatten() {
        surveyor.survey.processes += 1;
        let looked = maps::each(proc, pid, |mapping| {
            let key = (mapping.device, mapping.inode);
            let rows = match mapped.get(&key) {
                Some(rows) => rows.clone(),
                None => {
                    let link = file::mapped(proc, pid, mapping.start, mapping.end);
                    let Ok(opened) = file::open(&link) else { return };
                    let rows = surveyor.rows(&mapping.path, mapping.deleted, &opened, false);
                    mapped.insert(key, rows.clone());
                    rows
                }
            };
            for row in rows {
                surveyor.used(row, proc, pid, &mapping);
            }
        });
        // One that has ended meanwhile is none of those that are hidden.
        let hidden = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
        surveyor.survey.unreadable += usize::from(looked.is_err_and(hidden));
    }
    surveyor.survey
}

struct Surveyor<'a> {
    options: &'a Options,
    survey: Survey,
    known: Vec<(Stamp, Vec<usize>)>,
}

impl Surveyor<'_> {
    /// The rows of a file, or of the libraries in an APK, as far as they are worth any.
    fn rows(&mut self, path: &Path, deleted: bool, opened: &Opened, place: bool) -> Vec<usize> {
        if let Some((_, rows)) = self.known.iter().find(|(stamp, _)| stamp.is_beneath(&opened.beneath)) {
            return rows.clone();
        }
        let mut rows = Vec::new();
        for Examined { path, part, found } in finder::examine(self.options, path, opened) {
            let is_worth_it = place && found.is_err()
                || found.as_ref().map_or_else(|why| finder::worth_telling(&path, why), Found::carries);
            if is_worth_it {
                let abi = abi::of(&opened.file, part.unwrap_or(super::whole(opened)));
                rows.push(self.survey.rows.len());
                self.survey.rows.push(Row {
                    path,
                    deleted,
                    abi,
                    found,
                    pids: Vec::new(),
                    attached: false,
                    part,
                });
            }
        }
        self.known.push((opened.beneath, rows.clone()));
        rows
    }

    /// Takes note that process `pid` maps the file of `row`.
    fn used(&mut self, row: usize, proc: &Path, pid: u32, mapping: &Mapping) {
        let Some(row) = self.survey.rows.get_mut(row) else { return };
        let end = mapping.offset.saturating_add(mapping.end - mapping.start);
        let is_mapped = |part: Part| part.offset < end && mapping.offset < part.offset + part.length;
        if !row.part.is_none_or(is_mapped) {
            return;
        }
        if row.pids.last() != Some(&pid) {
            row.pids.push(pid);
        }
        if let Ok(found) = &row.found
            && !row.attached
            && let Some((_, offset)) = found.functions.iter().find(|(function, _)| function.carries())
        {
            row.attached = has_probe(proc, pid, mapping, *offset).unwrap_or(false);
        }
    }
}

/// Whether the function at `offset` in the file begins otherwise in the process's memory: with a breakpoint, that is.
fn has_probe(proc: &Path, pid: u32, mapping: &Mapping, offset: u64) -> Option<bool> {
    let address = mapping.start.checked_add(offset.checked_sub(mapping.offset)?)?;
    if !(mapping.start..mapping.end).contains(&address) {
        return None;
    }
    let (mut here, mut there) = ([0; INSTRUCTION], [0; INSTRUCTION]);
    let file = File::open(file::mapped(proc, pid, mapping.start, mapping.end)).ok()?;
    file.read_exact_at(&mut there, offset).ok()?;
    File::open(proc.join(format!("{pid}/mem"))).ok()?.read_exact_at(&mut here, address).ok()?;
    Some(here != there)
}

/// What a file came with: `APEX com.android.conscrypt`, or `APK base.apk`; none: nothing but its file system.
pub fn container(path: &Path) -> Option<String> {
    let mut names = path.iter().map(|name| name.to_string_lossy());
    if let Some(apk) = names.clone().find(|name| name.trim_end_matches('!').ends_with(".apk")) {
        return Some(format!("APK {}", apk.trim_end_matches('!')));
    }
    // Below /apex stands each active module, under its name and under its name and version.
    names.find(|name| name == "apex")?;
    let module = names.next()?;
    Some(format!("APEX {}", module.split('@').next().unwrap_or(&module)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_told_from_the_path() {
        for (path, container) in [
            ("/apex/com.android.conscrypt/lib64/libssl.so", Some("APEX com.android.conscrypt")),
            ("/apex/com.android.conscrypt@340/lib64/libssl.so", Some("APEX com.android.conscrypt")),
            ("/data/app/~~x/org.example-1/base.apk", Some("APK base.apk")),
            ("/data/app/x/base.apk!/lib/arm64-v8a/libssl.so", Some("APK base.apk")),
            ("/usr/lib/libssl.so.3", None),
        ] {
            assert_eq!(super::container(Path::new(path)).as_deref(), container, "{path}");
        }
    }

    #[test]
    fn a_process_without_our_probes_is_told_so() {
        let executable = std::env::current_exe().unwrap();
        let mut own = None;
        maps::each(Path::new("/proc"), std::process::id(), |mapping| {
            if mapping.path == executable {
                own = Some(mapping);
            }
        })
        .unwrap();
        let own = own.unwrap();
        let has = |offset| has_probe(Path::new("/proc"), std::process::id(), &own, offset);
        assert_eq!(has(own.offset), Some(false));
        assert_eq!(has(own.offset + (own.end - own.start)), None);
    }

    #[test]
    fn usual_places_are_listed_though_nobody_maps_them() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("usr/lib/libssl.so.3");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, super::super::tests::library(&["SSL_read"])).unwrap();
        std::fs::write(root.path().join("usr/lib/libssl.so.1.1"), "text").unwrap();
        let survey = survey(root.path(), root.path(), &Options::default());
        let [good, bad] = &survey.rows[..] else { panic!("{survey:?}") };
        assert_eq!((&good.path, good.abi, good.pids.len()), (&path, std::env::consts::ARCH, 0));
        assert!(good.found.is_ok() && bad.found.is_err());
        let excluding = Options { exclude: vec!["*libssl*".into()], ..Options::default() };
        assert!(super::survey(root.path(), root.path(), &excluding).rows.is_empty());
    }
}
