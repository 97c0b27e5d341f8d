//! The product as its users meet it: real TLS libraries, a real kernel, the built agent, and clients of its stream.
//!
//! One binary, so that the tests run in parallel. Each names what it relies on; nothing is skipped.

mod addresses;
mod admission;
mod calls;
mod clients;
mod connections;
mod filters;
mod http;
mod http_messages;
mod lifecycle;
mod losses;
mod names;
mod old_clients;
mod payloads;
mod protocols;
mod refusals;
mod rubbish;
mod slow_clients;
