//! Where this kernel keeps the fields that the programs read, from its BTF.
//!
//! A reader of the few kinds that lead to a struct's members, over the file as it is: aya's own keeps every type of the
//! kernel in memory and shows no members. Source: linux, Documentation/bpf/btf.rst.

use std::{fs::File, io::Read, path::Path};

use nix::unistd::{SysconfVar, sysconf};
use plaintap_abi::{NO_OFFSET, SocketOffsets, TaskOffsets};

/// Kernels' are 3 to 10 MiB.
const MAX_SIZE: u64 = 64 << 20;
/// Anonymous structs and unions inside one another; `struct sock_common` has two levels.
const MAX_DEPTH: u32 = 8;
const MAGIC: u16 = 0xeb9f;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is no BTF as we know it.
    #[error("is not in a form that we know")]
    Format,
    /// It lacks a type or member.
    #[error("has no {0}")]
    Missing(&'static str),
}

/// The offsets in kernels that were built without BTF, as vendors' 5.10 are: struct sock_common begins alike in all of
/// `OFFSETS_KNOWN`. Where `sk_protocol` and `inet_sport` stand depends on their configuration.
///
/// Source: linux, include/net/sock.h, struct sock_common, with CONFIG_IPV6 on a 64-bit CPU.
pub const COMMON_OFFSETS: SocketOffsets = SocketOffsets {
    family: 16,
    remote_v4: 0,
    local_v4: 4,
    remote_v6: 56,
    local_v6: 72,
    remote_port: 12,
    local_port: 14,
    protocol: NO_OFFSET,
    source_port: NO_OFFSET,
};

/// The kernel versions that `COMMON_OFFSETS` was seen in, first and last.
const OFFSETS_KNOWN: [(u32, u32); 2] = [(5, 10), (6, 18)];

/// Whether this kernel is one that `COMMON_OFFSETS` holds for.
pub fn known_kernel() -> bool {
    release().is_some_and(|release| (OFFSETS_KNOWN[0]..=OFFSETS_KNOWN[1]).contains(&release))
}

/// The running kernel's major and minor version.
pub fn release() -> Option<(u32, u32)> {
    version(&nix::sys::utsname::uname().ok()?.release().to_string_lossy())
}

/// The first two numbers of a kernel's release, which says `5.10.0-28-cloud-arm64` or the like.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// Reads the offsets from the BTF file at `path`.
pub fn offsets(path: &Path) -> Result<(SocketOffsets, TaskOffsets), Error> {
    let mut data = Vec::new();
    File::open(path)?.take(MAX_SIZE).read_to_end(&mut data)?;
    let btf = Btf::parse(&data)?;
    // Without these, little is missed.
    Ok((btf.socket_offsets()?, btf.task_offsets().unwrap_or_default()))
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type stands in `types`; type 0 is void.
    starts: Vec<u32>,
}

/// A type's fixed part: struct btf_type.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    /// In bytes, for a struct or union.
    size: u32,
    /// What follows: members, for a struct or union.
    rest: &'a [u8],
}

impl Type<'_> {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }
}

impl<'a> Btf<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, Error> {
        let field =
            |index: usize| u32_at(data, 8 + 4 * index).map(|value| value as usize).ok_or(Error::Format);
        let magic = data.get(..2).ok_or(Error::Format)?;
        if magic != MAGIC.to_ne_bytes() {
            return Err(Error::Format);
        }
        let header = u32_at(data, 4).ok_or(Error::Format)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            data.get(start..start.checked_add(length)?)
        };
        let types = section(field(0)?, field(1)?).ok_or(Error::Format)?;
        let strings = section(field(2)?, field(3)?).ok_or(Error::Format)?;
        let mut btf = Self { types, strings, starts: vec![0] };
        let mut at = 0;
        while at < types.len() {
            btf.starts.push(u32::try_from(at).map_err(|_| Error::Format)?);
            at += btf.size(at).ok_or(Error::Format)?;
        }
        Ok(btf)
    }

    /// How many bytes the type at `at` takes.
    fn size(&self, at: usize) -> Option<usize> {
        let info = u32_at(self.types, at + 4)?;
        let count = (info & 0xffff) as usize;
        let more = match info >> 24 & 0x1f {
            // int, variable, declaration tag
            1 | 14 | 17 => 4,
            // array
            3 => 12,
            // struct, union, enum64
            4 | 5 | 19 => 12 * count,
            // enum, function prototype
            6 | 13 => 8 * count,
            // section
            15 => 12 * count,
            // pointer, forward, typedef, qualifiers, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        Some(12 + more)
    }

    fn socket_offsets(&self) -> Result<SocketOffsets, Error> {
        let sock = self.find_struct("sock").ok_or(Error::Missing("struct sock"))?;
        let common = self.find_struct("sock_common").ok_or(Error::Missing("struct sock_common"))?;
        let base = self.member(sock, "__sk_common", MAX_DEPTH).ok_or(Error::Missing("sock.__sk_common"))?;
        let common = |name| {
            let bits = self.member(common, name, MAX_DEPTH).ok_or(Error::Missing(name))?;
            Ok::<u32, Error>((base + bits) / 8)
        };
        Ok(SocketOffsets {
            family: common("skc_family")?,
            remote_v4: common("skc_daddr")?,
            local_v4: common("skc_rcv_saddr")?,
            remote_v6: common("skc_v6_daddr")?,
            local_v6: common("skc_v6_rcv_saddr")?,
            remote_port: common("skc_dport")?,
            local_port: common("skc_num")?,
            protocol: self
                .member(sock, "sk_protocol", MAX_DEPTH)
                .ok_or(Error::Missing("sock.sk_protocol"))?
                / 8,
            // A struct inet_sock begins with its struct sock.
            source_port: self
                .find_struct("inet_sock")
                .and_then(|inet| self.member(inet, "inet_sport", MAX_DEPTH))
                .map_or(NO_OFFSET, |bits| bits / 8),
        })
    }

    fn task_offsets(&self) -> Result<TaskOffsets, Error> {
        let offset = |of, name, member| {
            let found = self.find_struct(of).ok_or(Error::Missing(of))?;
            Ok::<u32, Error>(self.member(found, member, MAX_DEPTH).ok_or(Error::Missing(name))? / 8)
        };
        Ok(TaskOffsets {
            signal: offset("task_struct", "task_struct.signal", "signal")?,
            live: offset("signal_struct", "signal_struct.live", "live")?,
            stack: offset("task_struct", "task_struct.stack", "stack")?,
            argument: self.argument().ok_or(Error::Missing("struct pt_regs"))?,
        })
    }

    /// Where on a thread's kernel stack a system call's second argument stands: a struct pt_regs is at its end.
    /// Source: linux, arch/x86/include/asm/{processor,page_64_types,thread_info}.h, arch/arm64/include/asm/{memory,processor}.h.
    fn argument(&self) -> Option<u32> {
        const STACK: u32 = 16 << 10;
        let registers = self.find_struct("pt_regs")?;
        let (stack, member) = if cfg!(target_arch = "aarch64") {
            let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
            (STACK.max(u32::try_from(page).ok()?), self.member(registers, "regs", MAX_DEPTH)? / 8 + 8)
        } else {
            // Kernels that know FRED leave room for what it may put there.
            let padding = if self.find_struct("fred_frame").is_some() { 16 } else { 0 };
            (STACK - padding, self.member(registers, "si", MAX_DEPTH)? / 8)
        };
        (stack + member).checked_sub(registers.size)
    }

    fn type_at(&self, start: usize) -> Option<Type<'a>> {
        Some(Type {
            name: u32_at(self.types, start)?,
            info: u32_at(self.types, start + 4)?,
            size: u32_at(self.types, start + 8)?,
            rest: self.types.get(start + 12..)?,
        })
    }

    fn find_struct(&self, name: &str) -> Option<Type<'a>> {
        self.starts[1..]
            .iter()
            .filter_map(|start| self.type_at(*start as usize))
            .find(|found| found.kind() == KIND_STRUCT && found.count() > 0 && self.is_named(found.name, name))
    }

    /// The offset in bits of the member `name`, looked for in anonymous members too.
    fn member(&self, of: Type<'a>, name: &str, depth: u32) -> Option<u32> {
        if !matches!(of.kind(), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        // Bit 31 says that offsets carry a bit field's size in their top byte.
        let mask = if of.info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..of.count()).find_map(|index| {
            let member = |field: usize| u32_at(of.rest, 12 * index + 4 * field);
            let offset = member(2)? & mask;
            if self.is_named(member(0)?, name) {
                return Some(offset);
            }
            if !self.is_named(member(0)?, "") {
                return None;
            }
            let inner = self.type_at(*self.starts.get(member(1)? as usize)? as usize)?;
            Some(offset + self.member(inner, name, depth.checked_sub(1)?)?)
        })
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let string = self.strings.get(at as usize..).unwrap_or_default();
        string.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_offsets_are_those_of_the_table() {
        let (offsets, task) = offsets(Path::new(super::super::KERNEL_BTF)).unwrap();
        assert!(task.signal > 0 && task.live > 0 && task.live < task.signal);
        assert!((100..2048).contains(&offsets.protocol));
        assert!((offsets.protocol..2048).contains(&offsets.source_port));
        let common = SocketOffsets { protocol: NO_OFFSET, source_port: NO_OFFSET, ..offsets };
        assert_eq!(common, COMMON_OFFSETS);
    }

    #[test]
    fn broken_files_are_errors() {
        let mut data = Vec::new();
        File::open(super::super::KERNEL_BTF).unwrap().take(4096).read_to_end(&mut data).unwrap();
        for length in [0, 1, 8, 24, 100, 4096] {
            assert!(Btf::parse(&data[..length]).is_err(), "{length}");
        }
        let mut endless = data[..24].to_vec();
        endless[8..24].copy_from_slice(&[0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        endless.extend([0, 0, 0, 0, 255, 255, 255, 31, 0, 0, 0, 0]);
        assert!(Btf::parse(&endless).is_err());
    }
}
