//! Which CPU's code a file holds. Source: elf(5), and the kernel's include/uapi/linux/elf-em.h.

use std::{fs::File, os::unix::fs::FileExt};

use super::find::Part;

/// What is no ELF file, or for a CPU that none of ours is.
pub const UNKNOWN: &str = "-";

/// The kind of CPU that a part of the file is for, as people call it.
pub fn of(file: &File, part: Part) -> &'static str {
    match header(file, part) {
        Some((_, 3)) => "x86",
        Some((_, 40)) => "arm",
        Some((_, 62)) => "x86_64",
        Some((_, 183)) => "aarch64",
        Some((_, 243)) => "riscv",
        _ => UNKNOWN,
    }
}

/// Why nothing in a part of the file can be probed, whatever it holds.
pub fn unprobed(file: &File, part: Part) -> Option<&'static str> {
    let (wide, machine) = header(file, part)?;
    match machine {
        // An arm64 kernel refuses uprobes on AArch32 code. Source: linux, arch/arm64/kernel/probes/uprobes.c.
        40 => Some("it is 32-bit ARM code, which arm64 kernels let nobody probe"),
        3 => Some("it is 32-bit x86 code, which passes its arguments in another way"),
        _ if !wide => Some("it is 32-bit code"),
        _ => None,
    }
}

/// Whether the file is of 64 bits, and its machine's number; none if it is no little-endian ELF file.
fn header(file: &File, part: Part) -> Option<(bool, u16)> {
    let mut start = [0; 20];
    file.read_exact_at(&mut start, part.offset).ok()?;
    let known = start.starts_with(b"\x7fELF") && matches!(start[4], 1 | 2) && start[5] == 1;
    known.then(|| (start[4] == 2, u16::from_le_bytes([start[18], start[19]])))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const WHOLE: Part = Part { offset: 0, length: u64::MAX };

    #[test]
    fn a_cpu_is_told_from_the_header_and_32_bits_are_refused() {
        let this = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!((of(&this, WHOLE), unprobed(&this, WHOLE)), (std::env::consts::ARCH, None));
        for (class, machine, abi, probed) in
            [(1, 40, "arm", false), (1, 3, "x86", false), (2, 183, "aarch64", true), (1, 243, "riscv", false)]
        {
            let mut file = tempfile::tempfile().unwrap();
            let mut start = *b"\x7fELF....................";
            (start[4], start[5], start[18], start[19]) = (class, 1, machine, 0);
            file.write_all(&start).unwrap();
            assert_eq!((of(&file, WHOLE), unprobed(&file, WHOLE).is_none()), (abi, probed));
        }
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(b"\x7fELF").unwrap();
        assert_eq!((of(&text, WHOLE), unprobed(&text, WHOLE)), (UNKNOWN, None));
    }
}
