//! The ends of SSL objects, threads and processes, so that what is remembered of one is never taken for another's.

use aya_ebpf::{
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};

use crate::state::{end_connection, end_thread, has_carried};

/// `void SSL_free(SSL *ssl)`
#[uprobe]
pub fn ssl_free(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        end_connection(ssl);
    }
    0
}

/// `int SSL_clear(SSL *ssl)`: makes the object ready for another connection. OpenSSL calls it itself before a handshake,
/// when all that is known is the host name, which it keeps.
#[uprobe]
pub fn ssl_clear(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        if has_carried(ssl) {
            end_connection(ssl);
        }
    }
    0
}

/// On sched_process_exit, which every thread passes, and sched_process_exec, which the first one does.
#[raw_tracepoint]
pub fn thread_end(_ctx: RawTracePointContext) -> i32 {
    end_thread();
    0
}
