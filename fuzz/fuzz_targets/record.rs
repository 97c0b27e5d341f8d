//! Records of the ring, and the events that they become.
#![no_main]

use plaintapd::{
    capture::ring::Record,
    flow::{Clock, Flow},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut flow = Flow::new(true, 8192);
    // Several, so that one meets what another has left.
    for part in data.chunks(144 + 256) {
        if let Ok(record) = Record::parse(part) {
            let _ = flow.take(&record, Clock::now());
        }
    }
});
