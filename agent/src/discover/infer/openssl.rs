//! OpenSSL's functions by the name that each gives for itself when it raises an error in ssl_lib.c.
//!
//! Source: OpenSSL 3 and 4, include/openssl/err.h, ERR_raise, and ssl/ssl_lib.c.

use super::{Function, Seen, code::is_on_stack, only};

/// SSL_read and SSL_write, if there is one of each, and what else is certain.
pub fn functions(seen: &[Seen], text: &dyn Fn(u64) -> Option<String>) -> Option<Vec<(Function, u64)>> {
    let named = |wanted: &str| {
        let has =
            |it: &&Seen| it.body.names.iter().any(|name| text(*name).is_some_and(|name| name == wanted));
        only(seen.iter().filter(has)).map(|it| it.start)
    };
    let (read, write) = (named("SSL_read")?, named("SSL_write")?);
    // A function into which another one was put would go by both names.
    if read == write {
        return None;
    }
    let mut functions = vec![(Function::Read, read), (Function::Write, write)];
    // These raise no errors: each hands its arguments to the one that its sister uses too.
    for (function, inner, sister) in
        [(Function::ReadEx, "ssl_read_internal", read), (Function::WriteEx, "ssl_write_internal", write)]
    {
        let start = named(inner).and_then(|inner| sister_of(seen, inner, sister));
        functions.extend(start.map(|start| (function, start)));
    }
    for function in [Function::DoHandshake, Function::Clear] {
        functions.extend(named(function.name()).map(|start| (function, start)));
    }
    Some(functions)
}

/// The function with `_ex` behind the name of `sister`, both of which call `inner`.
fn sister_of(seen: &[Seen], inner: u64, sister: u64) -> Option<u64> {
    // Who goes to an address, and with which fourth argument.
    let callers = |wanted: u64| {
        seen.iter().filter_map(move |it| {
            let (_, fourth) = it.body.calls.iter().find(|(target, _)| *target == wanted)?;
            Some((it.start, *fourth))
        })
    };
    let (_, fourth) = callers(inner).find(|(start, _)| *start == sister)?;
    let other = only(callers(inner).map(|(start, _)| start).filter(|start| *start != sister))?;
    match fourth? {
        // Where the length goes.
        fourth if is_on_stack(fourth) => Some(other),
        // No flags: since 3.2 there are some to SSL_write_ex2, which SSL_write_ex then goes to without any.
        0 => only(callers(other).filter(|(_, fourth)| *fourth == Some(0)).map(|(start, _)| start)),
        _ => None,
    }
}
