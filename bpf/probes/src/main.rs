//! plaintap's eBPF programs.
//!
//! `calls` watches a TLS library's functions and sends what they carried; `sockets` finds out which TCP connection an SSL
//! object speaks over; `lives` ends what threads, processes and SSL objects leave behind; `guesses` looks whether a function is
//! the one that it is taken for; `wipe` overwrites what the ring still holds. `state` owns the maps
//! that they share. Nothing here knows the layout of a TLS library's structs: function arguments, results and the socket hooks
//! say all that is needed.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod calls;
mod engines;
mod filter;
mod guesses;
mod lives;
mod memory;
mod sockets;
mod state;
mod wipe;

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which a panic could be reached.
    loop {}
}
