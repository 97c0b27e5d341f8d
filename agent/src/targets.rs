//! Which targets have probes, and what is still to be done to them, one function at a time.
//!
//! The kernel takes its time over each probe: between two steps the attaching half answers what it is asked.

use std::collections::{HashMap, VecDeque};

use crate::{
    capture::{self, Capture, Probe},
    discover::{Function, Target, finder::Change},
    run::chain,
};

#[derive(Debug)]
enum Work {
    Attach {
        target: Target,
        /// The function to probe next.
        next: usize,
        probes: Vec<Probe>,
    },
    Detach {
        name: String,
        why: &'static str,
        probes: Vec<Probe>,
    },
    /// Takes back what was attached of a target that failed.
    TakeBack {
        probes: Vec<Probe>,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Targets {
    attached: HashMap<u64, (String, Vec<Probe>)>,
    queue: VecDeque<(u64, Work)>,
    /// Whether there are SSL objects over memory, which need `BIO_write`: others would pay for its probe for nothing.
    engines: bool,
    /// Targets whose `BIO_write` has no probe yet.
    spare: HashMap<u64, Target>,
    /// Targets to detach as soon as what is queued for them is done.
    doomed: HashMap<u64, &'static str>,
}

impl Targets {
    /// Takes note of what is to be done.
    pub fn push(&mut self, change: Change) {
        match change {
            Change::Attach(target) => {
                if target.has_engines() {
                    self.want_engines();
                }
                self.queue.push_back((target.id, Work::Attach { target, next: 0, probes: Vec::new() }));
            }
            Change::Detach(id, why) => match self.forget(id) {
                Some((name, probes)) => self.queue.push_back((id, Work::Detach { name, why, probes })),
                None if self.queue.iter().any(|(queued, _)| *queued == id) => {
                    self.doomed.insert(id, why);
                }
                // It could not be attached.
                None => {}
            },
            Change::Refuse(error) => log::warn!("not attached: {}", chain(&error)),
        }
    }

    /// Takes note that there are SSL objects over memory.
    pub fn want_engines(&mut self) {
        self.engines = true;
        for (id, target) in std::mem::take(&mut self.spare) {
            let next =
                target.found.functions.iter().position(|(function, _)| *function == Function::BioWrite);
            let (_, probes) = self.attached.remove(&id).unwrap_or_default();
            self.queue.push_back((id, Work::Attach { target, next: next.unwrap_or(0), probes }));
        }
    }

    fn forget(&mut self, id: u64) -> Option<(String, Vec<Probe>)> {
        self.spare.remove(&id);
        self.attached.remove(&id)
    }

    /// Takes everything off, one probe a step, and forgets what was to be attached.
    pub fn clear(&mut self) {
        self.engines = false;
        self.spare.clear();
        self.doomed.clear();
        for (_, work) in &mut self.queue {
            if let Work::Attach { probes, .. } = work {
                *work = Work::TakeBack { probes: std::mem::take(probes) };
            }
        }
        let attached = self.attached.drain().map(|(id, (_, probes))| (id, Work::TakeBack { probes }));
        self.queue.extend(attached);
    }

    /// Whether nothing is to be done.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many targets have all their probes.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Does one step; an error is one target's, which then has no probes.
    pub fn step(&mut self, capture: &mut Capture) -> Result<(), capture::Error> {
        let Some((id, work)) = self.queue.pop_front() else { return Ok(()) };
        match work {
            Work::Attach { target, next, mut probes } => {
                let doomed = self.doomed.contains_key(&id);
                match target.found.functions.get(next) {
                    Some((Function::BioWrite, _)) if !doomed && !self.engines => {
                        // It is the last of the functions.
                        if target.found.carries() {
                            self.is_attached(id, &target, probes);
                        }
                        self.spare.insert(id, target);
                    }
                    Some((function, offset)) if !doomed => {
                        if let Err(error) = capture.attach(&target, *function, *offset, &mut probes) {
                            self.queue.push_back((id, Work::TakeBack { probes }));
                            return Err(error);
                        }
                        // First of all again, so that targets are finished one by one.
                        self.queue.push_front((id, Work::Attach { target, next: next + 1, probes }));
                    }
                    Some(_) => {
                        self.doomed.remove(&id);
                        self.queue.push_back((id, Work::TakeBack { probes }));
                    }
                    None => self.is_attached(id, &target, probes),
                }
            }
            Work::Detach { name, why, mut probes } => {
                take_off(capture, &mut probes);
                if probes.is_empty() {
                    log::info!("detached library={name}: {why}");
                } else {
                    self.queue.push_back((id, Work::Detach { name, why, probes }));
                }
            }
            Work::TakeBack { mut probes } => {
                take_off(capture, &mut probes);
                if !probes.is_empty() {
                    self.queue.push_back((id, Work::TakeBack { probes }));
                }
            }
        }
        Ok(())
    }
}

impl Targets {
    fn is_attached(&mut self, id: u64, target: &Target, probes: Vec<Probe>) {
        log::info!("attached {target}");
        self.attached.insert(id, (target.path.display().to_string(), probes));
        if let Some(why) = self.doomed.remove(&id) {
            self.push(Change::Detach(id, why));
        }
    }
}

/// Takes one probe off. The entries go before the returns, which are needed as long as a call may be under way.
fn take_off(capture: &mut Capture, probes: &mut Vec<Probe>) {
    if let Some(probe) = probes.pop()
        && let Err(error) = capture.detach(probe)
    {
        log::debug!("{}", chain(&error));
    }
}
