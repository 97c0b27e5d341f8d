//! Where functions begin and end.
//!
//! What unwinds the stack knows it exactly: the entries of `.eh_frame`, which most files have. Of code without such an entry
//! only this is certain: what is called directly begins there. So a function that is called, and begins as compilers have them begin,
//! goes until it leaves and has no jump past that place, and at most until the next place where one may begin; what lies behind a
//! place that may be a beginning, but that nobody calls, is left out, as it may be of another function.

use std::ops::Range;

use super::{
    code::Bounds,
    cpu::{Cpu, is_near},
};
use crate::discover::elf::{self, Bytes, Layout};

/// How far from a reference a function may be that is looked at: one that refers to nothing may stand beside one that does.
const NEAR: u64 = 16 << 10;
/// How many functions are looked at, and how many calls of them.
const MAX_FUNCTIONS: usize = 32 << 10;
const MAX_CALLS: usize = 1 << 20;
/// How much code without entries is looked at, in bytes.
const MAX_CODE: u64 = 4 << 20;

/// The functions near the sorted `references`, by address. None: there are too many, or the file is broken.
pub fn functions<C: Cpu>(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Bounds>> {
    let mut functions = framed(bytes, layout, references).unwrap_or_default();
    let bare: Vec<u64> =
        references.iter().copied().filter(|address| place(&functions, *address).is_ok()).collect();
    if !bare.is_empty() {
        for function in called::<C>(bytes, layout, &bare)? {
            if let Ok(place) = place(&functions, function.start) {
                functions.insert(place, function);
            }
        }
    }
    (functions.len() <= MAX_FUNCTIONS).then_some(functions)
}

/// Where among sorted functions one belongs that begins at `address`; an error: that is inside of one of them.
fn place(functions: &[Bounds], address: u64) -> Result<usize, ()> {
    let after = functions.partition_point(|function| function.start <= address);
    let before = after.checked_sub(1).and_then(|before| functions.get(before));
    if before.is_some_and(|it| address < it.end) { Err(()) } else { Ok(after) }
}

/// Those that `.eh_frame_hdr` and `.eh_frame` name. Source: Linux Standard Base, Core, 10.6: Exception Frames.
fn framed(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Bounds>> {
    // Version; the table's address relative to here, a count, and pairs relative to the header, all of 4 bytes.
    const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
    const ENTRY: usize = 8;
    let (offset, length) = layout.frames?;
    let address = layout.address_of(offset)?;
    let mut header = [0; 12];
    if !bytes.read(offset, &mut header) || header[..4] != HEADER {
        return None;
    }
    let count = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let table = (offset.checked_add(12)?, (u64::from(count) * ENTRY as u64).min(length.checked_sub(12)?));
    let mut entries = Vec::new();
    elf::pieces(bytes, table, 0, &mut |piece, _| {
        let (pairs, _) = piece.as_chunks::<ENTRY>();
        for [a, b, c, d, e, f, g, h] in pairs {
            let at = |word: [u8; 4]| address.wrapping_add_signed(i32::from_le_bytes(word).into());
            let (start, entry) = (at([*a, *b, *c, *d]), at([*e, *f, *g, *h]));
            if is_near(references, start, NEAR) {
                entries.push((start, entry));
            }
        }
        entries.len() <= MAX_FUNCTIONS
    })
    .ok()?;
    let ranges: Vec<Bounds> = entries
        .into_iter()
        .filter_map(|(start, entry)| {
            // Length, place of what it has in common with others, start relative to here, size.
            let mut fields = [0; 16];
            if !bytes.read(layout.offset_of(entry)?, &mut fields) {
                return None;
            }
            let [.., a, b, c, d, e, f, g, h] = fields;
            let begins = entry.wrapping_add(8).wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into());
            let size = u64::from(u32::from_le_bytes([e, f, g, h]));
            // Otherwise these fields are of another form.
            (begins == start && size > 0).then(|| Bounds {
                start,
                end: start.saturating_add(size),
                is_certain: true,
            })
        })
        .collect();
    // The table is there to be searched by halves.
    ranges.is_sorted_by(|one, next| one.end <= next.start).then_some(ranges)
}

/// Those that are called directly near `references`, where they begin as compilers have functions begin.
fn called<C: Cpu>(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Bounds>> {
    let windows = windows(layout, references);
    if windows.iter().map(|window| window.end - window.start).sum::<u64>() > MAX_CODE {
        return None;
    }
    let mut places = Vec::new();
    let mut codes = Vec::new();
    for window in &windows {
        let mut code = vec![0; usize::try_from(window.end - window.start).ok()?];
        if !bytes.read(layout.file_offset(window.start)?, &mut code) {
            return None;
        }
        places.extend(C::beginnings(&code, window.start));
        // What begins in it ends there at the latest.
        places.push(window.end);
        codes.push(code);
    }
    let window_of = |address: u64| {
        let after = windows.partition_point(|window| window.start <= address);
        after.checked_sub(1).filter(|index| windows.get(*index).is_some_and(|it| it.contains(&address)))
    };
    let mut called = Vec::new();
    for segment in layout.code() {
        C::calls(bytes, segment, &mut |target| {
            if called.len() < MAX_CALLS && window_of(target).is_some() {
                called.push(target);
            }
        })?;
    }
    called.sort_unstable();
    called.dedup();
    for target in &called {
        if let Err(place) = places.binary_search(target) {
            places.insert(place, *target);
        }
    }
    let bounds = |start: u64| {
        let window = window_of(start)?;
        let code = codes.get(window)?.get(usize::try_from(start - windows[window].start).ok()?..)?;
        let end = places.get(places.partition_point(|place| *place <= start))?;
        C::begins(code).then_some(Bounds { start, end: *end, is_certain: false })
    };
    Some(called.into_iter().filter_map(bounds).collect())
}

/// The code near the sorted `references`, in parts that don't touch.
fn windows(layout: &Layout, references: &[u64]) -> Vec<Range<u64>> {
    let mut windows: Vec<Range<u64>> = Vec::new();
    for reference in references {
        let inside = |start: u64, end: u64| (start..end).contains(reference);
        let Some((start, end)) = layout.code().find_map(|segment| {
            let end = segment.address.checked_add(segment.length)?;
            inside(segment.address, end).then_some((segment.address, end))
        }) else {
            continue;
        };
        let wanted = reference.saturating_sub(NEAR).max(start)..reference.saturating_add(NEAR).min(end);
        // Whole instructions of those that are all of 4 bytes.
        let wanted = start + (wanted.start - start) / 4 * 4..wanted.end;
        match windows.last_mut() {
            Some(last) if wanted.start <= last.end => last.end = last.end.max(wanted.end),
            _ => windows.push(wanted),
        }
    }
    windows
}
