//! The product as its users meet it: real TLS libraries, a real kernel, the built agent, and clients of its stream.
//!
//! One binary, so that the tests run in parallel. Each names what it relies on; nothing is skipped.

mod addresses;
mod admission;
mod calls;
mod clients;
mod connections;
mod copies;
mod crowd;
mod discovery;
mod engines;
mod filters;
mod frames;
mod guesses;
mod hardships;
mod http;
mod http_messages;
mod lifecycle;
mod listing;
mod losses;
mod memory;
mod names;
mod old_clients;
mod on_demand;
mod payloads;
mod protocols;
mod queries;
mod recordings;
mod refusals;
mod resume;
mod rubbish;
mod service;
mod slow_clients;
mod trust;
