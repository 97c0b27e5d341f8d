//! Whose calls are counted where: the programs tell functions apart by where in their page they begin.

use std::collections::HashMap;

use crate::discover::Function;

/// The functions of a file, by its offsets.
type Functions = [(Function, u64)];

/// The places that are taken, each by the functions of one file and of its copies: the same code deserves the same verdict.
#[derive(Debug, Default)]
pub struct Guesses(HashMap<u32, Guessed>);

#[derive(Debug)]
struct Guessed {
    functions: Box<Functions>,
    probes: usize,
}

impl Guesses {
    /// Takes a place for one more probe of a file with these functions; says whether it was free. None: another file has it.
    pub fn take(&mut self, place: u32, functions: &Functions) -> Option<bool> {
        let guessed =
            self.0.entry(place).or_insert_with(|| Guessed { functions: functions.into(), probes: 0 });
        if *guessed.functions != *functions {
            return None;
        }
        guessed.probes += 1;
        Some(guessed.probes == 1)
    }

    /// Gives it back; says whether it is free again.
    pub fn give_back(&mut self, place: u32) -> bool {
        let Some(guessed) = self.0.get_mut(&place) else { return false };
        guessed.probes -= 1;
        let is_free = guessed.probes == 0;
        if is_free {
            self.0.remove(&place);
        }
        is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_file_share_a_place_and_others_wait_for_it() {
        let (one, other) = ([(Function::Read, 0x1010)], [(Function::Read, 0x5010)]);
        let mut guesses = Guesses::default();
        assert_eq!(guesses.take(0x10, &one), Some(true));
        assert_eq!(guesses.take(0x10, &one), Some(false));
        assert_eq!(guesses.take(0x10, &other), None);
        assert_eq!(guesses.take(0x20, &other), Some(true));
        assert!(!guesses.give_back(0x10) && guesses.take(0x10, &other).is_none());
        assert!(guesses.give_back(0x10) && guesses.take(0x10, &other) == Some(true));
        assert!(!guesses.give_back(0x30));
    }
}
