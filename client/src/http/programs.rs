//! Which programs processes run, as their events say it.
//!
//! The agent looks a program up when it sees it first, and sends on what comes meanwhile without its name. So the first
//! connection of a process may end unnamed, and what its next one begins with has no name either.

use std::collections::HashMap;

use plaintap_proto::Event;

/// More are not remembered; then all are forgotten, and learned again.
const MOST: usize = 4096;

/// By process and thread's name: a process that runs another program keeps its number, but not the name, and whoever
/// gets the number next has a name of its own.
#[derive(Debug, Default)]
pub(super) struct Programs(HashMap<(i64, String), Program>);

#[derive(Debug)]
struct Program {
    app: String,
    /// In ns since boot; 0 if unknown.
    started: u64,
}

impl Programs {
    /// Takes in what an event says of its process.
    pub(super) fn learn(&mut self, event: &Event) {
        if event.app.is_empty() || event.pname.is_empty() {
            return;
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let program = Program { app: event.app.clone(), started: event.process_start };
        self.0.insert((event.pid, event.pname.clone()), program);
    }

    /// The Android application or executable of a process, by the name of one of its threads, and its start (0 if
    /// unknown).
    pub(super) fn of(&self, pid: i64, thread: &str, started: u64) -> Option<&str> {
        let program = self.0.get(&(pid, thread.to_owned()))?;
        let same = started == 0 || program.started == 0 || started == program.started;
        same.then_some(program.app.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pid: i64, pname: &str, app: &str, process_start: u64) -> Event {
        Event { pid, pname: pname.to_owned(), app: app.to_owned(), process_start, ..Event::default() }
    }

    #[test]
    fn a_program_is_its_own_processs_only() {
        let mut programs = Programs::default();
        programs.learn(&event(7, "curl", "/usr/bin/curl", 5));
        programs.learn(&event(7, "curl", "", 0));
        for (pid, thread, started, app) in [
            (7, "curl", 0, Some("/usr/bin/curl")),
            (7, "curl", 5, Some("/usr/bin/curl")),
            (7, "curl", 6, None),
            (7, "wget", 0, None),
            (8, "curl", 0, None),
        ] {
            assert_eq!(programs.of(pid, thread, started), app, "{pid} {thread} {started}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut programs = Programs::default();
        (0..10_000).for_each(|pid| programs.learn(&event(pid, "curl", "/usr/bin/curl", 0)));
        assert!(programs.0.len() <= MOST);
        assert_eq!(programs.of(9_999, "curl", 0), Some("/usr/bin/curl"));
    }
}
