//! Streams that `plaintap relay` stored in NATS JetStream, as another kind of source: what the crate `plaintap-relay`
//! has for it. A `plaintap` without the cargo feature has `no_nats` in its place.

pub use plaintap_relay::{
    read::{Ended, Error, Place, Reader},
    wanted::Wanted,
};
