//! The ends of SSL objects, threads and processes, so that what is remembered of one is never taken for another's.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};

use crate::{
    memory::{kernel_value, task_offsets},
    state::{end_connection, end_process, end_thread, has_carried},
};

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

/// On sched_process_exit, which every thread passes.
#[raw_tracepoint]
pub fn thread_exit(ctx: RawTracePointContext) -> i32 {
    end_thread(bpf_get_current_pid_tgid() as u32);
    if is_last(ctx.arg(0)) {
        end_process();
    }
    0
}

/// On sched_process_exec: the process goes on with one thread, in another program. That thread has had another id, argument 1,
/// if it was not the first.
#[raw_tracepoint]
pub fn program_exec(ctx: RawTracePointContext) -> i32 {
    end_thread(bpf_get_current_pid_tgid() as u32);
    end_thread(ctx.arg(1));
    end_process();
    0
}

/// Whether the exiting thread `task`, the current one, is the last of its process. The kernel has counted it out already.
/// Source: linux, kernel/exit.c, do_exit.
#[inline(always)]
fn is_last(task: u64) -> bool {
    let offsets = task_offsets();
    if offsets.signal == 0 {
        let id = bpf_get_current_pid_tgid();
        return (id >> 32) as u32 == id as u32;
    }
    let live = kernel_value::<u64>(task, offsets.signal)
        .and_then(|signal| kernel_value::<i32>(signal, offsets.live));
    live == Some(0)
}
