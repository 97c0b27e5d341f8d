//! Which processes the person wants to see: decided when a call begins and again when it returns, before a byte is copied. A
//! thread that takes another name or user meanwhile must be wanted by both.
//!
//! Entries of one kind are alternatives; all kinds must agree; what is excluded stays out whatever includes it.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_get_current_comm},
    macros::map,
    maps::{Array, HashMap},
};
use plaintap_abi::{COMM_LEN, MAX_UID_RANGES, Settings, choice, filter};

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

#[map]
static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);

#[map]
static COMMS: HashMap<[u64; COMM_LEN / 8], u8> = HashMap::with_max_entries(64, 0);

/// What the person asked for.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Whether the current process is to be captured.
#[inline(always)]
pub fn wanted(settings: &Settings) -> bool {
    // Nothing is filtered at most times.
    settings.filters == 0 || passes(settings)
}

#[inline(never)]
fn passes(settings: &Settings) -> bool {
    let filters = settings.filters;
    if filters & filter::PIDS != 0 {
        let found = PIDS.get_ptr((bpf_get_current_pid_tgid() >> 32) as u32);
        if !agrees(found, filters & filter::PIDS_INCLUDE != 0) {
            return false;
        }
    }
    if filters & filter::COMMS != 0 && !agrees(COMMS.get_ptr(comm()), filters & filter::COMMS_INCLUDE != 0) {
        return false;
    }
    if filters & filter::UIDS != 0 {
        let uid = bpf_get_current_uid_gid() as u32;
        let mut included = filters & filter::UIDS_INCLUDE == 0;
        for index in 0..MAX_UID_RANGES {
            if index as u32 >= settings.uid_ranges {
                break;
            }
            let range = settings.uids[index];
            if uid >= range.first && uid <= range.last {
                if range.choice == u32::from(choice::EXCLUDE) {
                    return false;
                }
                included = true;
            }
        }
        if !included {
            return false;
        }
    }
    true
}

/// Whether an entry that was or was not found lets a process through; `must` be included, where some entry includes.
#[inline(always)]
fn agrees(found: Option<*const u8>, must: bool) -> bool {
    match found {
        // SAFETY: a map value is aligned and outlives the program's run.
        Some(place) => unsafe { *place == choice::INCLUDE },
        None => !must,
    }
}

/// The current thread's name; empty where the kernel won't tell.
#[inline(always)]
pub fn comm() -> [u64; COMM_LEN / 8] {
    let mut comm = [0; COMM_LEN / 8];
    // SAFETY: the helper writes COMM_LEN bytes at most.
    unsafe { bpf_get_current_comm((&raw mut comm).cast(), COMM_LEN as u32) };
    comm
}
