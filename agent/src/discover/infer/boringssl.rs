//! BoringSSL's functions by the errors that they raise, each with a reason and a line.
//!
//! The reasons are fixed: logs of applications hold them. The lines move, but not by much against each other. Sources:
//! BoringSSL, ssl/ssl_lib.cc, crypto/bio/bio.cc, include/openssl/ssl.h, bio.h and err.h.

use super::{Function, Seen, code::Raise, only};

/// ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED: the connection is QUIC's.
const QUIC: u64 = 66;
/// SSL_R_UNINITIALIZED
const UNINITIALIZED: u64 = 226;
/// SSL_R_SSL_HANDSHAKE_FAILURE
const HANDSHAKE_FAILURE: u64 = 215;

/// BIO_R_UNSUPPORTED_METHOD
const BIO_UNSUPPORTED: u64 = 115;
/// BIO_R_UNINITIALIZED
const BIO_UNINITIALIZED: u64 = 114;

/// From one of them to the other.
const TO_BIO_UNINITIALIZED: u64 = 8;
/// From SSL_write's error about QUIC to its next.
const TO_UNINITIALIZED: u64 = 8;
/// From there to its last.
const TO_HANDSHAKE: u64 = 40;
/// From SSL_peek's only error to SSL_write's first.
const TO_WRITE: u64 = 40;

/// SSL_read and SSL_write, if there is one of each.
pub fn functions(seen: &[Seen]) -> Option<Vec<(Function, u64)>> {
    let (write, line) = only(seen.iter().filter_map(|it| Some((it.start, write(&it.body.raises)?))))?;
    // SSL_peek, and SSL_read where that is in it: once for all, or each for itself.
    let is_peek = |it: &&Seen| match it.body.raises[..] {
        [Raise { line: only, reason: QUIC }] => (1..=TO_WRITE).contains(&line.wrapping_sub(only)),
        _ => false,
    };
    let peeks: Vec<&Seen> = seen.iter().filter(is_peek).collect();
    let read = match peeks[..] {
        [peek] if !peek.body.writes_back => caller(seen, peek.start)?,
        [one] => one.start,
        [one, other] if one.body.raises == other.body.raises => {
            only([one, other].into_iter().filter(|it| it.body.writes_back))?.start
        }
        _ => return None,
    };
    let bio_write = bio_write(seen).map(|start| (Function::BioWrite, start));
    Some([(Function::Read, read), (Function::Write, write)].into_iter().chain(bio_write).collect())
}

/// BIO_write, or what it hands its arguments to: the three that read a part, read a line and write raise the same two errors,
/// in this order, and whoever has the last of them in itself raises its errors too, but stands behind it.
fn bio_write(seen: &[Seen]) -> Option<u64> {
    let line = |it: &Seen| match it.body.raises[..] {
        [Raise { line, reason: BIO_UNSUPPORTED }, Raise { line: next, reason: BIO_UNINITIALIZED }] => {
            (next - line <= TO_BIO_UNINITIALIZED).then_some(line)
        }
        _ => None,
    };
    let found = || seen.iter().filter_map(|it| Some((it.start, line(it)?)));
    let (first, last) = (found().map(|(_, line)| line).min()?, found().map(|(_, line)| line).max()?);
    let (gets, _) = only(found().filter(|(_, line)| (first + 1..last).contains(line)))?;
    found().find(|(start, line)| *line == last && *start > gets).map(|(start, _)| start)
}

/// The line of SSL_write's first error, if these are its errors, and those of what was put into it perhaps, which stands
/// before it. SSL_key_update has the same two first in another order.
fn write(raises: &[Raise]) -> Option<u64> {
    let begin = |place: usize| {
        let [Raise { line: first, reason: QUIC }, Raise { line: next, reason: UNINITIALIZED }, rest @ ..] =
            &raises[place..]
        else {
            return None;
        };
        let is_last = |raise: &Raise| {
            raise.reason == HANDSHAKE_FAILURE && (1..=TO_HANDSHAKE).contains(&(raise.line - next))
        };
        (next - first <= TO_UNINITIALIZED && rest.iter().any(is_last)).then_some(*first)
    };
    only((0..raises.len()).filter_map(begin))
}

/// The function beside the one at `peek` that calls it, and takes what was read off what is there.
fn caller(seen: &[Seen], peek: u64) -> Option<u64> {
    let place = seen.iter().position(|it| it.start == peek)?;
    let beside = [place.checked_sub(1), place.checked_add(1)].into_iter().flatten();
    let calls = |it: &&Seen| it.body.calls.iter().any(|(target, _)| *target == peek);
    let is_read = |it: &&Seen| calls(it) && it.body.writes_back && it.body.raises.is_empty();
    let read = only(beside.filter_map(|place| seen.get(place)).filter(is_read))?;
    Some(read.start)
}
