//! Overwrites all of the kernel's ring, some records a step: taken out of it, they stay there until others take their place.
//!
//! Owns how far it has come. While the ring is full of what the serving half has not taken, there is no room to write.

use std::time::{Duration, Instant};

use plaintap_abi::Blank;

use crate::capture;

/// What one record takes in the ring, the kernel's header included; both are multiples of 8.
/// Source: linux, include/uapi/linux/bpf.h, BPF_RINGBUF_HDR_SZ.
const RECORD: u32 = size_of::<Blank>() as u32 + 8;
/// Records a step, which takes about a millisecond.
const STEP: u32 = 256;
/// After finding no room.
const PAUSE: Duration = Duration::from_millis(1);
/// How long there may be no room.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The serving half takes nothing out.
    #[error("it has been full for {} s", PATIENCE.as_secs())]
    Full,
    /// The kernel does not run the program.
    #[error(transparent)]
    Refused(#[from] capture::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Wipe {
    /// Records still to be written.
    left: u32,
    /// When to go on.
    due: Instant,
    /// Since when there was no room.
    full: Option<Instant>,
}

impl Wipe {
    /// Is to overwrite a ring of so many bytes, or one that is smaller.
    pub fn new(ring: u32) -> Self {
        Self { left: ring.div_ceil(RECORD), due: Instant::now(), full: None }
    }

    /// When the next step is to be done.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Does one step if it is due, with what writes a record and tells whether it had room; tells whether it was the last.
    pub fn step(&mut self, mut record: impl FnMut() -> Result<bool, capture::Error>) -> Result<bool, Error> {
        let now = Instant::now();
        if now < self.due {
            return Ok(false);
        }
        for _ in 0..self.left.min(STEP) {
            if !record()? {
                self.due = now + PAUSE;
                let since = *self.full.get_or_insert(now);
                return if now - since < PATIENCE { Ok(false) } else { Err(Error::Full) };
            }
            self.left -= 1;
            self.full = None;
        }
        Ok(self.left == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_overwritten_in_steps() {
        for ring in [1 << 18, 1 << 22, 1 << 30] {
            let mut wipe = Wipe::new(ring);
            let (mut steps, mut bytes) = (1, 0);
            while !wipe
                .step(|| {
                    bytes += RECORD;
                    Ok(true)
                })
                .unwrap()
            {
                steps += 1;
            }
            assert!(bytes >= ring && bytes - ring < RECORD, "{bytes}");
            assert_eq!(steps, (bytes / RECORD).div_ceil(STEP));
        }
    }

    #[test]
    fn a_full_ring_is_waited_for_and_given_up_in_the_end() {
        let mut wipe = Wipe::new(RECORD);
        let before = Instant::now();
        assert!(matches!(wipe.step(|| Ok(false)), Ok(false)));
        assert!(wipe.due() >= before + PAUSE && wipe.full.is_some());
        wipe.due = before + PATIENCE;
        assert!(matches!(wipe.step(|| panic!("it is not due")), Ok(false)));
        (wipe.due, wipe.full) = (before, before.checked_sub(PATIENCE));
        assert!(matches!(wipe.step(|| Ok(false)), Err(Error::Full)));
        wipe.due = before;
        assert!(matches!(wipe.step(|| Ok(true)), Ok(true)));
    }
}
