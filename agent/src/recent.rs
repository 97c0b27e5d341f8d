//! A map of bounded size that keeps what was used lately.
//!
//! Two generations: what is used moves into the young one, and when that is full, the old one is dropped and the young one
//! grows old. So the newest `generation` entries are always kept, and never more than twice as many.

use std::{collections::HashMap, hash::Hash, mem};

/// See the module.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// An empty map that keeps the `generation` entries that were used last.
    pub fn new(generation: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation }
    }

    /// The entry of `key`, used now; what `new` makes if it is not there.
    pub fn get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if !self.young.contains_key(&key) && self.young.len() >= self.generation {
            self.old = mem::take(&mut self.young);
        }
        let old = &mut self.old;
        let kept = if old.is_empty() { None } else { old.remove(&key) };
        self.young.entry(key).or_insert_with(|| kept.unwrap_or_else(new))
    }

    /// The entry of `key`, without using it.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_bounded_and_what_is_used_stays() {
        let mut recent = Recent::new(10);
        *recent.get_or_insert_with(1000, || 1) = 77;
        for key in 0..500 {
            assert_eq!(*recent.get_or_insert_with(1000, || 0), 77);
            recent.get_or_insert_with(key, || 0);
            assert!(recent.young.len() + recent.old.len() <= 20);
        }
        assert_eq!((recent.peek(&499), recent.peek(&1000), recent.peek(&1)), (Some(&0), Some(&77), None));
    }
}
