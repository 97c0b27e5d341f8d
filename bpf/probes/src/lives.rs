//! The ends of SSL objects, threads and processes, so that what is remembered of one is never taken for another's.

use aya_ebpf::{
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};

use crate::state::{end_connection, end_thread};

/// `void SSL_free(SSL *ssl)` and `int SSL_clear(SSL *ssl)`.
#[uprobe]
pub fn ssl_end(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        end_connection(ssl);
    }
    0
}

/// On sched_process_exit, which every thread passes, and sched_process_exec, which the first one does.
#[raw_tracepoint]
pub fn thread_end(_ctx: RawTracePointContext) -> i32 {
    end_thread();
    0
}
