//! What the person wants to see, in the form that the eBPF programs decide by.

use std::{collections::HashMap, fs, io, path::Path};

use plaintap_abi::{COMM_LEN, MAX_UID_RANGES, Settings, UidRange, choice, filter};

use crate::args::Args;

/// Which calls are captured, and how much of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// By process id.
    pub pids: HashMap<u32, u8>,
    /// By user id: first, last.
    pub uids: Vec<UidRange>,
    /// By thread name, NUL-padded.
    pub comms: HashMap<[u64; COMM_LEN / 8], u8>,
    /// Bytes to keep of each call.
    pub snaplen: u64,
}

/// Why a filter can't be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such app is installed.
    #[error("no Android app {0} is listed in {PACKAGES}; see pm list packages")]
    Package(String),
    /// The list of apps can't be read.
    #[error("can't read {PACKAGES}, which --package needs")]
    Packages(#[from] io::Error),
    /// There is not so much room.
    #[error("more than {0} values of one filter")]
    TooMany(usize),
}

/// Android's list of apps and their user ids. Source: AOSP, services/core/java/com/android/server/pm/Settings.java.
const PACKAGES: &str = "/data/system/packages.list";
/// User ids of one Android user; an app's is the same in each but for a multiple of this.
/// Source: AOSP, core/java/android/os/UserHandle.java, PER_USER_RANGE.
const PER_USER: u32 = 100_000;
/// Entries of each hash map. Source: bpf/probes/src/filter.rs.
const MAX_PIDS: usize = 1024;
const MAX_COMMS: usize = 64;

impl Filters {
    /// The filters that the command line asks for.
    pub fn new(args: &Args) -> Result<Self, Error> {
        for name in args.comm.iter().filter_map(|name| cut(&name.value)) {
            log::warn!("{name}");
        }
        let pids: HashMap<u32, u8> = args.pid.iter().map(|pid| (pid.value.0, pid.choice)).collect();
        let mut comms: HashMap<_, u8> =
            args.comm.iter().map(|name| (comm(&name.value), name.choice)).collect();
        let mut uids: Vec<UidRange> = args
            .uid
            .iter()
            .map(|uids| UidRange {
                first: uids.value.first,
                last: uids.value.last,
                choice: uids.choice.into(),
            })
            .collect();
        if !args.package.is_empty() {
            let list = fs::read_to_string(PACKAGES)?;
            let users = users(Path::new("/data/user"));
            for package in &args.package {
                let uid = package_uid(&list, &package.value)
                    .ok_or_else(|| Error::Package(package.value.clone()))?;
                uids.extend(users.iter().map(|user| {
                    let uid = user * PER_USER + uid % PER_USER;
                    UidRange { first: uid, last: uid, choice: package.choice.into() }
                }));
            }
        }
        if Path::new("/system/bin/adbd").exists() {
            // Over Wi-Fi it encrypts what we send, which would be captured and sent again.
            comms.entry(comm("adbd")).or_insert(choice::EXCLUDE);
        }
        for (count, most) in [(pids.len(), MAX_PIDS), (comms.len(), MAX_COMMS), (uids.len(), MAX_UID_RANGES)]
        {
            if count > most {
                return Err(Error::TooMany(most));
            }
        }
        Ok(Self { pids, uids, comms, snaplen: args.snaplen.0 })
    }

    /// The settings that go with the entries.
    pub fn settings(&self) -> Settings {
        let mut filters = 0;
        let mut add = |any: u32, include: u32, choices: &mut dyn Iterator<Item = u8>| {
            for choice in choices {
                filters |= any | if choice == choice::INCLUDE { include } else { 0 };
            }
        };
        add(filter::PIDS, filter::PIDS_INCLUDE, &mut self.pids.values().copied());
        add(filter::COMMS, filter::COMMS_INCLUDE, &mut self.comms.values().copied());
        add(filter::UIDS, filter::UIDS_INCLUDE, &mut self.uids.iter().map(|range| range.choice as u8));
        let mut uids = [UidRange::default(); MAX_UID_RANGES];
        for (place, range) in uids.iter_mut().zip(&self.uids) {
            *place = *range;
        }
        Settings {
            snaplen: self.snaplen,
            epoch: 0,
            filters,
            uid_ranges: self.uids.len().min(MAX_UID_RANGES) as u32,
            uids,
        }
    }
}

/// The user id of an app, from the text of packages.list: one app a line, name first, user id second.
fn package_uid(list: &str, package: &str) -> Option<u32> {
    list.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == package).then(|| words.next()?.parse().ok())?
    })
}

/// The Android users, by the folders of their apps' data; the first one at least.
fn users(folder: &Path) -> Vec<u32> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut users: Vec<u32> = names.filter_map(|name| name.to_str()?.parse().ok()).chain([0]).collect();
    users.sort_unstable();
    users.dedup();
    users
}

/// Says that a name is longer than a thread's can be, if it is, and what it comes to.
fn cut(name: &str) -> Option<String> {
    let kept = String::from_utf8_lossy(name.as_bytes().get(..COMM_LEN - 1)?);
    (kept != name).then(|| {
        format!("--comm {name:?}: a thread's name has {} bytes at most, so this means {kept:?}", COMM_LEN - 1)
    })
}

/// A thread's name as the kernel keeps it; longer ones are cut, as the kernel cuts them.
pub fn comm(name: &str) -> [u64; COMM_LEN / 8] {
    let mut comm = [0; COMM_LEN / 8];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut comm);
    for (place, byte) in bytes[..COMM_LEN - 1].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    comm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_which_kinds_of_filters_there_are() {
        let none = Filters { snaplen: 5, ..Filters::default() };
        assert_eq!((none.settings().filters, none.settings().snaplen), (0, 5));
        let range = UidRange { first: 1, last: 2, choice: choice::EXCLUDE.into() };
        let some = Filters { pids: [(7, choice::INCLUDE)].into(), uids: vec![range], ..none };
        assert_eq!(some.settings().filters, filter::PIDS | filter::PIDS_INCLUDE | filter::UIDS);
        assert_eq!((some.settings().uid_ranges, some.settings().uids[0]), (1, range));
    }

    #[test]
    fn an_apps_user_id_is_the_second_word_of_its_line() {
        let list = "org.a 10001 0 /data/user/0/org.a x none 0\norg.ab 10002 0 /data\nbroken\n";
        assert_eq!(package_uid(list, "org.ab"), Some(10002));
        assert_eq!((package_uid(list, "org"), package_uid(list, "broken")), (None, None));
    }

    #[test]
    fn there_is_always_a_first_user() {
        assert_eq!(users(Path::new("/nonexistent")), [0]);
        let folder = tempfile::tempdir().unwrap();
        for name in ["0", "10", "x"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(users(folder.path()), [0, 10]);
    }

    #[test]
    fn a_comm_is_cut_as_the_kernel_cuts_it() {
        assert_eq!(bytemuck::bytes_of(&comm("curl")), b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytemuck::bytes_of(&comm("0123456789abcdefgh")), b"0123456789abcde\0");
        assert_eq!((cut("curl"), cut("0123456789abcde")), (None, None));
        let said = cut("0123456789abcdef").unwrap_or_default();
        assert!(said.contains("\"0123456789abcdef\"") && said.ends_with("\"0123456789abcde\""), "{said}");
        assert!(cut("ééééééééé").is_some_and(|said| said.ends_with("\"ééééééé\u{fffd}\"")));
    }
}
