//! Which targets have probes, and what is still to be done to them, one function at a time.
//!
//! The kernel takes its time over each probe: between two steps the attaching half answers what it is asked.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use plaintap_abi::Calls;

use crate::{
    capture::{self, Capture, Guess, Probe},
    discover::{Function, Target, find::How, finder::Change},
    run::chain,
};

/// How long after its target was attached a function's calls are looked at that only its code tells to be the one; from then
/// on twice as long each time, up to a most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(64);
/// So many of a function's calls must be odd, and half of all, for it to be a wrong guess: one may be a program's error.
const ODD: u32 = 4;
/// After so many calls that were not, it is a right one.
const ENOUGH: u32 = 64;

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
    /// Functions of attached targets that may not be what they are taken for.
    guesses: HashMap<u64, Vec<Guess>>,
    next_judgement: Option<Instant>,
    pause: Duration,
}

/// What the first calls of a guessed function say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    Unknown,
}

fn verdict(calls: Calls) -> Verdict {
    match calls {
        Calls { all, odd } if odd >= ODD && odd >= all / 2 => Verdict::Wrong,
        Calls { all, .. } if all >= ENOUGH => Verdict::Right,
        _ => Verdict::Unknown,
    }
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
        let (name, mut probes) = self.attached.remove(&id)?;
        probes.extend(self.guesses.remove(&id).into_iter().flatten().map(|guess| guess.probe));
        Some((name, probes))
    }

    /// When guessed functions are to be looked at again, if there are any.
    pub fn next_judgement(&self) -> Option<Instant> {
        self.next_judgement.filter(|_| !self.guesses.is_empty())
    }

    /// Detaches targets whose guessed functions are called as SSL_read and SSL_write never are; believes a function that was
    /// called rightly for long enough.
    pub fn judge(&mut self, capture: &mut Capture) {
        if self.next_judgement().is_none_or(|next| Instant::now() < next) {
            return;
        }
        let (mut wrong, mut right) = (Vec::new(), Vec::new());
        for (id, guesses) in &mut self.guesses {
            for guess in std::mem::take(guesses) {
                match capture.calls(&guess).map_or(Verdict::Unknown, verdict) {
                    Verdict::Right => right.push((*id, guess.probe)),
                    Verdict::Wrong => {
                        wrong.push(*id);
                        guesses.push(guess);
                    }
                    Verdict::Unknown => guesses.push(guess),
                }
            }
        }
        wrong.dedup();
        let why = "its functions were guessed wrongly: they are not called as SSL_read and SSL_write are";
        wrong.into_iter().for_each(|id| self.push(Change::Detach(id, why)));
        for (id, probe) in right {
            let name = self.attached.get(&id).map_or("", |(name, _)| name);
            log::debug!("guessed rightly library={name}");
            self.queue.push_back((id, Work::TakeBack { probes: vec![probe] }));
        }
        self.guesses.retain(|_, guesses| !guesses.is_empty());
        // What is called seldom is looked at ever less often: an idle device is not to be woken for it.
        self.pause = (2 * self.pause).min(MAX_PAUSE);
        self.next_judgement = Some(Instant::now() + self.pause);
    }

    /// Takes off what was attached of a target whose guesses can't be looked at: what is not looked at is not believed.
    fn take_back(&mut self, id: u64, mut probes: Vec<Probe>) {
        probes.extend(self.guesses.remove(&id).into_iter().flatten().map(|guess| guess.probe));
        self.queue.push_back((id, Work::TakeBack { probes }));
    }

    /// Looks at the first calls of what was guessed.
    fn watch_guesses(
        &mut self,
        id: u64,
        target: &Target,
        capture: &mut Capture,
    ) -> Result<(), capture::Error> {
        let carries = target.found.functions.iter().filter(|(function, _)| function.carries());
        let is_guessed = target.found.how == How::Inferred && !self.guesses.contains_key(&id);
        for (_, offset) in carries.filter(|_| is_guessed) {
            let guess = capture.watch_guess(target, *offset)?;
            self.guesses.entry(id).or_default().push(guess);
            self.pause = FIRST_PAUSE;
            self.next_judgement = Some(Instant::now() + FIRST_PAUSE);
        }
        Ok(())
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
        let guesses = self.guesses.drain().map(|(id, guesses)| {
            (id, Work::TakeBack { probes: guesses.into_iter().map(|guess| guess.probe).collect() })
        });
        self.queue.extend(guesses);
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
                    Some((Function::BioWrite, _))
                        if !doomed && !self.engines && !target.may_have_engines() =>
                    {
                        // It is the last of the functions.
                        if target.found.carries() {
                            if let Err(error) = self.watch_guesses(id, &target, capture) {
                                self.take_back(id, probes);
                                return Err(error);
                            }
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
                    None => {
                        if let Err(error) = self.watch_guesses(id, &target, capture) {
                            self.take_back(id, probes);
                            return Err(error);
                        }
                        self.is_attached(id, &target, probes);
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_judged_by_its_first_calls() {
        for (all, odd, expected) in [
            (0, 0, Verdict::Unknown),
            (3, 3, Verdict::Unknown),
            (4, 4, Verdict::Wrong),
            (9, 4, Verdict::Wrong),
            (10, 4, Verdict::Unknown),
            (63, 1, Verdict::Unknown),
            (64, 4, Verdict::Right),
            (1000, 600, Verdict::Wrong),
        ] {
            assert_eq!(verdict(Calls { all, odd }), expected, "{odd} of {all}");
        }
    }
}
