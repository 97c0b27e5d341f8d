//! What a server sends, which may be any.
#![no_main]

use plaintap_proto::LogEntry;
use prost::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = LogEntry::decode(data) {
        let again = LogEntry::decode(&*entry.encode_to_vec());
        assert!(again.is_ok_and(|again| again == entry));
    }
});
