//! Empties the tables that tell of connections: whose they are, where they lead, and what was last written on them.
//!
//! The kernel removes entry by entry, some microseconds each; nothing may be attached that could make new ones.

use aya::{
    Pod,
    maps::{HashMap, MapError},
};
use plaintap_abi::{Endpoints, names};

use super::{Capture, Error};

/// An SSL object's address and its process.
type ConnectionKey = [u64; 2];
/// Seven words before the addresses, and one behind them.
type Connection = [u64; 7 + size_of::<Endpoints>() / size_of::<u64>() + 1];
/// A process, and how what an SSL object wrote begins.
type Ciphertext = [u64; 5];

impl Capture {
    /// Forgets all connections and their processes.
    pub fn forget(&mut self) -> Result<(), Error> {
        self.empty::<ConnectionKey, Connection>("CONNECTIONS")?;
        self.empty::<Ciphertext, u64>("CIPHERTEXTS")?;
        self.empty::<u32, u8>("PROCESSES")?;
        self.empty::<u32, u64>(names::ENDED)?;
        self.empty::<u64, u8>(names::OPENERS)
    }

    /// Takes everything out of a map.
    pub(super) fn empty<K: Pod, V: Pod>(&mut self, name: &'static str) -> Result<(), Error> {
        let failed = |error: MapError| Error::from_aya("empty an eBPF map", error.into());
        let mut map: HashMap<_, K, V> = self.map_as(name)?;
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
        keys.iter().try_for_each(|key| map.remove(key)).map_err(failed)
    }
}
