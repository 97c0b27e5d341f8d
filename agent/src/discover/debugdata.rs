//! `.gnu_debugdata`: a small ELF file with the symbols that `strip` took away, packed by xz. Source: the GDB manual,
//! "MiniDebugInfo".

use xz4rust::{XzDecoder, XzNextBlockResult};

use super::elf::{Bytes, Span};

/// Bytes of the section, and of what it unpacks to; some system libraries come to a tenth of that.
const MAX_PACKED: usize = 4 << 20;
const MAX_UNPACKED: usize = 16 << 20;
/// How far back xz may look, in bytes: what it takes at its default level.
const MAX_DICTIONARY: usize = 8 << 20;

/// What the section at `span` holds; none if it is broken, or too large to be what it should.
pub fn unpack(bytes: &impl Bytes, (start, length): Span) -> Option<Vec<u8>> {
    const STEP: usize = 64 << 10;
    let mut packed = vec![0; usize::try_from(length).ok().filter(|length| *length <= MAX_PACKED)?];
    if !bytes.read(start, &mut packed) {
        return None;
    }
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(STEP, MAX_DICTIONARY);
    let (mut unpacked, mut step, mut rest) = (Vec::new(), vec![0; STEP], &packed[..]);
    while unpacked.len() <= MAX_UNPACKED {
        let result = decoder.decode(rest, &mut step).ok()?;
        rest = rest.get(result.input_consumed()..)?;
        unpacked.extend_from_slice(step.get(..result.output_produced())?);
        match result {
            XzNextBlockResult::EndOfStream(..) => return Some(unpacked),
            // It ends too early.
            _ if !result.made_progress() => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_refused(bytes: Vec<u8>, start in prop::sample::select(vec![0usize, 6, 12])) {
            // The beginning of a stream with CRC32, and of a block.
            let begun = [&b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36"[..start], &bytes].concat();
            let _ = unpack(&begun.as_slice(), (0, begun.len() as u64));
        }
    }
}
