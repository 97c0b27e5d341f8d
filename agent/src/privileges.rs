//! What a process gives up for good: the serving half everything, since it reads from the network.

use std::fs;

use nix::{
    errno::Errno,
    libc,
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid},
};

use crate::server::is_android;

/// Android's shell, whose only use there is to be nobody of importance. Source: AOSP, android_filesystem_config.h.
const SHELL: u32 = 2000;
/// Linux's "nobody". Source: Debian's /etc/passwd; the kernel's own overflow id.
const NOBODY: u32 = 65_534;

/// What SELinux makes of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selinux {
    /// Whether it denies anything, or only says what it would.
    pub enforcing: bool,
    /// This process's context, as `u:r:magisk:s0`.
    pub domain: String,
}

/// SELinux, where it is in use and may be read.
pub fn selinux() -> Option<Selinux> {
    let enforcing = fs::read_to_string("/sys/fs/selinux/enforce").ok()?.trim() != "0";
    let domain = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    Some(Selinux { enforcing, domain: domain.trim_end_matches(['\0', '\n']).to_owned() })
}

/// A user to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whether it is root, so that to become it gives up capabilities and nothing else.
    pub fn is_root(self) -> bool {
        self.uid == 0
    }

    /// The user that `name` says, a name or a number; without one, who matters least.
    pub fn find(name: Option<&str>) -> Result<Self, String> {
        let Some(name) = name else {
            let id = if is_android() { SHELL } else { NOBODY };
            return Ok(Self { uid: id, gid: id });
        };
        if let Ok(id) = name.parse() {
            let gid = User::from_uid(Uid::from_raw(id)).ok().flatten().map_or(id, |user| user.gid.as_raw());
            return Ok(Self { uid: id, gid });
        }
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
            _ => Err(format!("--user {name:?} is no user of this system; name one, or a user id")),
        }
    }
}

/// Leaves no core, and lets nobody look into this process's memory but who may look into any.
pub fn hide() -> Result<(), Errno> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Has this process's memory come in pages of the usual size: where huge ones are given to all, a heap of some 100 KiB takes 2
/// MiB. Source: PR_SET_THP_DISABLE(2const); linux, Documentation/admin-guide/mm/transhuge.rst.
pub fn use_small_pages() {
    // A kernel without huge pages has none to give.
    let _ = prctl(libc::PR_SET_THP_DISABLE, 1);
}

/// Becomes `account`, if this is root, with no capability and no way to get one.
pub fn drop_all(account: Account) -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    if geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    // Who is not root may have been given some.
    drop_capabilities()?;
    // To become another user has undone it.
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// nix has none for Android. Source: prctl(2).
fn prctl(option: libc::c_int, value: libc::c_ulong) -> Result<(), Errno> {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: neither option takes a pointer.
    #[expect(unsafe_code, reason = "prctl has no safe wrapper everywhere")]
    let result = unsafe { libc::prctl(option, value, UNUSED, UNUSED, UNUSED) };
    Errno::result(result).map(drop)
}

/// Source: capset(2).
fn drop_capabilities() -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: both are as large as the call's version says, and it only reads them.
    #[expect(unsafe_code, reason = "capset has no safe wrapper")]
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_number() {
        assert_eq!(Account::find(Some("root")), Ok(Account { uid: 0, gid: 0 }));
        assert!(Account::find(Some("0")).is_ok_and(Account::is_root));
        assert!(!Account::find(None).is_ok_and(Account::is_root));
        assert_eq!(Account::find(Some("4000000")), Ok(Account { uid: 4_000_000, gid: 4_000_000 }));
        assert_eq!(Account::find(None), Ok(Account { uid: NOBODY, gid: NOBODY }));
        let error = Account::find(Some("no such user")).unwrap_err();
        assert!(error.contains("no such user"), "{error}");
    }
}
