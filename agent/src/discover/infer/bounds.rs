//! Where functions begin and end.
//!
//! What unwinds the stack knows it exactly: the entries of `.eh_frame`, which most files have. Of code without such an entry
//! only this is certain: what is called directly begins there. A function that is called, and begins as compilers have them begin,
//! goes until a place that it never goes on from and has no jump past, and at most until the next one that is called. What lies
//! behind, that nobody calls, is left out.

use std::ops::Range;

use super::{
    code::Op,
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
pub fn functions<C: Cpu>(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Range<u64>>> {
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
fn place(functions: &[Range<u64>], address: u64) -> Result<usize, ()> {
    let after = functions.partition_point(|function| function.start <= address);
    let before = after.checked_sub(1).and_then(|before| functions.get(before));
    if before.is_some_and(|it| address < it.end) { Err(()) } else { Ok(after) }
}

/// Those that `.eh_frame_hdr` and `.eh_frame` name. Source: Linux Standard Base, Core, 10.6: Exception Frames.
fn framed(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Range<u64>>> {
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
    let ranges: Vec<Range<u64>> = entries
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
            (begins == start && size > 0).then(|| start..start.saturating_add(size))
        })
        .collect();
    // The table is there to be searched by halves.
    ranges.is_sorted_by(|one, next| one.end <= next.start).then_some(ranges)
}

/// Those that are called directly near `references`, where they begin as compilers have functions begin.
fn called<C: Cpu>(bytes: &dyn Bytes, layout: &Layout, references: &[u64]) -> Option<Vec<Range<u64>>> {
    let windows = windows(layout, references);
    if windows.iter().map(|window| window.end - window.start).sum::<u64>() > MAX_CODE {
        return None;
    }
    let mut called = Vec::new();
    for segment in layout.code() {
        C::calls(bytes, segment, &mut |target| {
            let window = windows.partition_point(|window| window.end <= target);
            let is_near = windows.get(window).is_some_and(|window| window.contains(&target));
            if is_near && called.len() < MAX_CALLS {
                called.push(target);
            }
        })?;
    }
    called.sort_unstable();
    called.dedup();
    let mut functions = Vec::new();
    for window in windows {
        let mut code = vec![0; usize::try_from(window.end - window.start).ok()?];
        if !bytes.read(layout.file_offset(window.start)?, &mut code) {
            return None;
        }
        let place = |address: u64| usize::try_from(address.checked_sub(window.start)?).ok();
        let may_begin = |start: &u64| {
            place(*start).and_then(|place| code.split_at_checked(place)).is_some_and(|(before, code)| {
                !code.is_empty() && C::begins(code) && C::may_end(before, *start)
            })
        };
        let from = called.partition_point(|address| *address < window.start);
        let near = &called[from..from + called[from..].partition_point(|address| *address < window.end)];
        let starts: Vec<u64> = near.iter().copied().filter(may_begin).collect();
        let ends = starts.iter().skip(1).copied().chain([window.end]);
        for (start, end) in starts.iter().copied().zip(ends) {
            let code = code.get(place(start)?..place(end)?)?;
            functions.extend(extent::<C>(code, start).map(|end| start..end));
        }
    }
    (functions.len() <= MAX_FUNCTIONS).then_some(functions)
}

/// Where the function ends that begins at `start`, and at the end of `code` at the latest: at the first place that it never goes on
/// from, or that a call need not return to, and has no jump past. None: it never ends.
pub fn extent<C: Cpu>(code: &[u8], start: u64) -> Option<u64> {
    let (mut furthest, mut end) = (start, None);
    C::decode(code, start, &mut |next, op| {
        if end.is_some() {
            return;
        }
        let rest = usize::try_from(next.wrapping_sub(start))
            .ok()
            .and_then(|place| code.get(place..))
            .unwrap_or_default();
        let leaves = match op {
            Op::Branch(target) | Op::Leave(Some(target))
                if (next..start + code.len() as u64).contains(&target) =>
            {
                furthest = furthest.max(target);
                matches!(op, Op::Leave(_))
            }
            Op::Leave(_) => true,
            // Of what never returns, if another function's beginning follows, or room before one.
            Op::Call(_) => C::begins(rest) || C::is_padding(rest),
            _ => false,
        };
        if leaves && furthest < next {
            end = Some(next);
        }
    });
    end
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
