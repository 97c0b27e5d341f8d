//! Code of a library without symbols, in a file that is sound otherwise: functions are looked for in it.
#![no_main]

use std::{fs::File, io::Write};

use nix::sys::memfd::{MFdFlags, memfd_create};
use plaintapd::discover::{
    Options,
    find::{Budget, Part, find},
};

/// Where the constants stand, and behind them the code, in the file and in memory.
const CONSTANTS: u64 = 0x200;
const CODE: u64 = 0x300;

/// Sections' names.
const NAMES: &[u8] = b"\0.rodata\0";

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A 64-bit ELF file for this CPU, with one segment that is read and run, the constants of both libraries, and `code`.
fn file(code: &[u8]) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(words(&[0, 64, 120]));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 64, 3, 2].iter().flat_map(|half| half.to_le_bytes()));
    let length = CODE + code.len() as u64;
    file.extend(words(&[1 | 5 << 32, 0, 0, 0, length, length, 4096]));
    file.extend([0; 64]);
    // .rodata, then the names.
    file.extend(words(&[1 | 1 << 32, 2, CONSTANTS, CONSTANTS, CODE - CONSTANTS, 0, 1, 0]));
    file.extend(words(&[3 << 32, 0, 0, CONSTANTS - 16, NAMES.len() as u64, 0, 1, 0]));
    file.resize(CONSTANTS as usize - 16, 0);
    file.extend(NAMES);
    file.resize(CONSTANTS as usize, 0);
    file.extend(b"CLIENT_RANDOM\0x/ssl/ssl_lib.cc\0x/ssl/ssl_lib.c\0x/bio/bio.cc\0SSL_read\0SSL_write\0");
    file.resize(CODE as usize, 0);
    file.extend(code);
    file
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(memory) = memfd_create(c"fuzz", MFdFlags::empty()) else { return };
    let mut memory = File::from(memory);
    // A reference first, so that what follows is looked at: push rbp; lea rcx, [path]; call +0 to it; and the rest.
    let mut code = vec![0xe8, 0, 0, 0, 0, 0x55, 0x48, 0x8d, 0x0d];
    let next = CODE + code.len() as u64 + 4;
    code.extend(((CONSTANTS + 14) as i32 - next as i32).to_le_bytes());
    if cfg!(target_arch = "aarch64") {
        // bl +4; stp x29, x30, [sp, #-16]!; adr x3, path
        let distance = (CONSTANTS + 14) as i32 - (CODE + 8) as i32;
        let adr = 0x1000_0003 | (distance as u32 & 3) << 29 | (distance as u32 >> 2 & 0x7_ffff) << 5;
        code = [0x9400_0001u32, 0xa9bf_7bfd, adr].iter().flat_map(|word| word.to_le_bytes()).collect();
    }
    code.extend(data);
    let file = file(&code);
    if memory.write_all(&file).is_ok() {
        let whole = Part { offset: 0, length: file.len() as u64 };
        let found = find(&memory, whole, &Budget::default(), &Options::default());
        // What is found is inside of the code.
        let offsets = found.iter().flat_map(|found| &found.functions).map(|(_, offset)| *offset);
        for offset in offsets {
            assert!((CODE..file.len() as u64).contains(&offset));
        }
    }
});
