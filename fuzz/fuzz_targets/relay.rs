//! What a relayed device sends, over connections that come and go, and what a person types of a stream in NATS.
#![no_main]

use plaintap_proto::LogEntry;
use plaintap_relay::{
    track::{Place, Track},
    wanted::Wanted,
};
use prost::{Message, bytes::Bytes};

/// A URL, and then the device's messages: before each its length, of which 255 stands for a new connection.
fn pieces(data: &[u8]) -> Vec<Option<Bytes>> {
    let (mut rest, mut pieces) = (data, Vec::new());
    while let Some((&length, behind)) = rest.split_first() {
        if length == u8::MAX {
            pieces.push(None);
            rest = behind;
        } else {
            let (piece, behind) = behind.split_at(usize::from(length).min(behind.len()));
            pieces.push(Some(Bytes::copy_from_slice(piece)));
            rest = behind;
        }
    }
    pieces
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let pieces = pieces(data);
    let url = pieces.first().and_then(Option::as_ref).map_or("".into(), |url| String::from_utf8_lossy(url));
    let mut sieve = url.parse::<Wanted>().ok().map(|wanted| wanted.sieve());
    let mut track = Track::new(Place::default(), data.len().is_multiple_of(2));
    let mut last = Place::default();
    for piece in pieces {
        let Some(bytes) = piece else {
            track.connected();
            continue;
        };
        if let (Some(sieve), Ok(entry)) = (&mut sieve, LogEntry::decode(bytes.clone())) {
            sieve.lets_through(&entry);
        }
        for out in track.take(bytes).unwrap_or_default() {
            let same_run = out.place.run == last.run;
            assert!(!same_run || out.place.seq >= last.seq, "{out:?} behind {last:?}");
            assert!(
                !same_run || out.gap > 0 || !out.moves() || out.seq > last.seq,
                "{out:?} again, behind {last:?}"
            );
            last = out.place;
        }
    }
});
