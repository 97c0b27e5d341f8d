//! Which targets have probes, and what is still to be done to them, one function at a time.
//!
//! The kernel takes its time over each probe: between two steps the attaching half answers what it is asked.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use plaintap_abi::Calls;

use crate::{
    capture::{Capture, Error, Probe},
    discover::{Function, Target, find::How, finder::Change},
    run::chain,
};

/// How long after its target was attached a function's calls are looked at that only its code tells to be the one; from then
/// on twice as long each time, up to a most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(64);
/// The same for a target that could not be attached for want of memory or file descriptors: how long until it is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(300);
/// So many of a function's calls must be odd, and half of all, for it to be a wrong guess: one may be a program's error.
const ODD: u32 = 4;
/// After so many calls that were not, it is a right one.
const ENOUGH: u32 = 64;

/// Puts probes in place: the kernel side, or what stands for it in a test.
pub trait Attach {
    /// A probe in its place.
    type Probe: fmt::Debug;

    /// Puts the probes on one function of a target, and adds them to `probes`.
    fn attach(
        &mut self,
        target: &Target,
        function: Function,
        offset: u64,
        probes: &mut Vec<Self::Probe>,
    ) -> Result<(), Error>;

    /// Counts the first calls of a guessed function; none where they can't be told from another's.
    fn watch_guess(&mut self, target: &Target, offset: u64) -> Result<Option<Self::Probe>, Error>;

    /// What such a probe has counted.
    fn calls(&mut self, probe: &Self::Probe) -> Result<Calls, Error>;

    /// Takes a probe away.
    fn detach(&mut self, probe: Self::Probe) -> Result<(), Error>;
}

impl Attach for Capture {
    type Probe = Probe;

    fn attach(
        &mut self,
        target: &Target,
        function: Function,
        offset: u64,
        probes: &mut Vec<Probe>,
    ) -> Result<(), Error> {
        self.attach(target, function, offset, probes)
    }

    fn watch_guess(&mut self, target: &Target, offset: u64) -> Result<Option<Probe>, Error> {
        self.watch_guess(target, offset)
    }

    fn calls(&mut self, probe: &Probe) -> Result<Calls, Error> {
        self.calls(probe)
    }

    fn detach(&mut self, probe: Probe) -> Result<(), Error> {
        self.detach(probe)
    }
}

/// A target on its way.
#[derive(Debug)]
struct Attaching<P> {
    target: Target,
    /// The function to probe next.
    next: usize,
    probes: Vec<P>,
    /// How long it waited since it failed last; zero: it has not.
    pause: Duration,
    /// Whether it has all its probes but `BIO_write`'s, and the log says so.
    is_told: bool,
}

#[derive(Debug)]
enum Work<P> {
    Attach(Attaching<P>),
    Detach {
        name: String,
        why: &'static str,
        probes: Vec<P>,
    },
    /// Takes back what was attached of a target that failed.
    TakeBack {
        probes: Vec<P>,
    },
}

/// A target that is tried again.
#[derive(Debug)]
struct Retry {
    target: Target,
    due: Instant,
    /// How long it waits this time.
    pause: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Targets<A: Attach = Capture> {
    attached: HashMap<u64, (String, Vec<A::Probe>)>,
    queue: VecDeque<(u64, Work<A::Probe>)>,
    /// Whether there are SSL objects over memory, which need `BIO_write`: others would pay for its probe for nothing.
    engines: bool,
    /// Targets whose `BIO_write` has no probe yet.
    spare: HashMap<u64, Target>,
    /// Targets that lack probes, or `BIO_write`'s alone, as something was short when they were attached.
    retries: Vec<Retry>,
    /// Targets to detach as soon as what is queued for them is done.
    doomed: HashMap<u64, &'static str>,
    /// What counts the calls of functions of attached targets that may not be what they are taken for.
    guesses: HashMap<u64, Vec<A::Probe>>,
    next_judgement: Option<Instant>,
    pause: Duration,
}

impl<A: Attach> Default for Targets<A> {
    fn default() -> Self {
        Self {
            attached: HashMap::new(),
            queue: VecDeque::new(),
            engines: false,
            spare: HashMap::new(),
            retries: Vec::new(),
            doomed: HashMap::new(),
            guesses: HashMap::new(),
            next_judgement: None,
            pause: Duration::ZERO,
        }
    }
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

impl<A: Attach> Targets<A> {
    /// Takes note of what is to be done.
    pub fn push(&mut self, change: Change) {
        match change {
            Change::Attach(target) => {
                if target.has_engines() {
                    self.want_engines();
                }
                self.resume(target, Duration::ZERO);
            }
            Change::Detach(id, why) => {
                self.retries.retain(|retry| retry.target.id != id);
                let is_queued =
                    |(queued, work): &(u64, Work<_>)| *queued == id && matches!(work, Work::Attach(_));
                match self.forget(id) {
                    Some((name, probes)) => self.queue.push_back((id, Work::Detach { name, why, probes })),
                    None if self.queue.iter().any(is_queued) => {
                        self.doomed.insert(id, why);
                    }
                    // It could not be attached.
                    None => {}
                }
            }
            Change::Refuse(error) => log::warn!("not attached: {}", chain(&error)),
        }
    }

    /// Takes note that there are SSL objects over memory.
    pub fn want_engines(&mut self) {
        self.engines = true;
        for (_, target) in std::mem::take(&mut self.spare) {
            self.resume(target, Duration::ZERO);
        }
    }

    /// Queues a target, or what it lacks: of one that is attached that is `BIO_write`.
    fn resume(&mut self, target: Target, pause: Duration) {
        let attached = self.attached.remove(&target.id);
        let is_told = attached.is_some();
        let missing = |(function, _): &(Function, u64)| !is_told || *function == Function::BioWrite;
        let next = target.found.functions.iter().position(missing).unwrap_or(0);
        let probes = attached.map(|(_, probes)| probes).unwrap_or_default();
        let id = target.id;
        self.queue.push_back((id, Work::Attach(Attaching { target, next, probes, pause, is_told })));
    }

    fn forget(&mut self, id: u64) -> Option<(String, Vec<A::Probe>)> {
        self.spare.remove(&id);
        let (name, mut probes) = self.attached.remove(&id)?;
        probes.extend(self.guesses.remove(&id).into_iter().flatten());
        Some((name, probes))
    }

    /// When something is to be looked at or tried again, if anything is.
    pub fn due(&self) -> Option<Instant> {
        self.next_judgement().into_iter().chain(self.retries.iter().map(|retry| retry.due)).min()
    }

    fn next_judgement(&self) -> Option<Instant> {
        self.next_judgement.filter(|_| !self.guesses.is_empty())
    }

    /// Detaches targets whose guessed functions are called as SSL_read and SSL_write never are; believes a function that was
    /// called rightly for long enough.
    pub fn judge(&mut self, capture: &mut A) {
        if self.next_judgement().is_none_or(|next| Instant::now() < next) {
            return;
        }
        let (mut wrong, mut right) = (Vec::new(), Vec::new());
        for (id, guesses) in &mut self.guesses {
            for guess in std::mem::take(guesses) {
                match capture.calls(&guess).map_or(Verdict::Unknown, verdict) {
                    Verdict::Right => right.push((*id, guess)),
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

    /// Looks at the first calls of what was guessed; tells whether it could look at any.
    fn watch_guesses(&mut self, target: &Target, capture: &mut A) -> Result<bool, Error> {
        let mut watched = Vec::new();
        for (_, offset) in target.found.functions.iter().filter(|(function, _)| function.carries()) {
            match capture.watch_guess(target, *offset) {
                Ok(guess) => watched.extend(guess),
                Err(error) => {
                    self.queue.push_back((target.id, Work::TakeBack { probes: watched }));
                    return Err(error);
                }
            }
        }
        if watched.is_empty() {
            return Ok(false);
        }
        self.guesses.insert(target.id, watched);
        self.pause = FIRST_PAUSE;
        self.next_judgement = Some(Instant::now() + FIRST_PAUSE);
        Ok(true)
    }

    /// Takes everything off, one probe a step, and forgets what was to be attached.
    pub fn clear(&mut self) {
        self.engines = false;
        self.spare.clear();
        self.retries.clear();
        self.doomed.clear();
        for (_, work) in &mut self.queue {
            if let Work::Attach(Attaching { probes, .. }) = work {
                *work = Work::TakeBack { probes: std::mem::take(probes) };
            }
        }
        let attached = self.attached.drain().map(|(id, (_, probes))| (id, probes));
        let taken_back = attached.chain(self.guesses.drain());
        self.queue.extend(taken_back.map(|(id, probes)| (id, Work::TakeBack { probes })));
    }

    /// Whether nothing is to be done.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many probes are queued to be taken off.
    pub fn probes_left(&self) -> usize {
        let left = |work: &Work<A::Probe>| match work {
            Work::Attach(_) => 0,
            Work::Detach { probes, .. } | Work::TakeBack { probes } => probes.len(),
        };
        self.queue.iter().map(|(_, work)| left(work)).sum()
    }

    /// How many targets have all their probes.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Does one step; an error is one target's, which then has no probes.
    pub fn step(&mut self, capture: &mut A) -> Result<(), Error> {
        self.retry_at(Instant::now());
        let Some((id, work)) = self.queue.pop_front() else { return Ok(()) };
        match work {
            Work::Attach(work) => return self.attach(work, capture),
            Work::Detach { name, why, mut probes } => {
                take_off(capture, &mut probes);
                if probes.is_empty() {
                    log::info!("detached library={name}: {why}");
                    // What others lacked may be there now.
                    self.retries.iter_mut().for_each(|retry| retry.due = Instant::now());
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

    /// Queues what is due to be tried again.
    fn retry_at(&mut self, now: Instant) {
        let due: Vec<Retry> = self.retries.extract_if(.., |retry| retry.due <= now).collect();
        due.into_iter().for_each(|Retry { target, pause, .. }| self.resume(target, pause));
    }

    /// Puts the probes on the next function of a target.
    fn attach(&mut self, mut work: Attaching<A::Probe>, capture: &mut A) -> Result<(), Error> {
        let id = work.target.id;
        if let Some(why) = self.doomed.remove(&id) {
            work.probes.extend(self.guesses.remove(&id).into_iter().flatten());
            let name = work.target.path.display().to_string();
            self.queue.push_back((id, Work::Detach { name, why, probes: work.probes }));
            return Ok(());
        }
        if work.target.found.how == How::Inferred && work.next == 0 && !work.is_told {
            match self.watch_guesses(&work.target, capture) {
                Ok(true) => {}
                Ok(false) => {
                    self.wait_for_places(work);
                    return Ok(());
                }
                Err(error) => return self.fail(work, error),
            }
        }
        let carries = work.target.found.carries();
        match work.target.found.functions.get(work.next).copied() {
            Some((Function::BioWrite, _)) if !self.engines && !work.target.may_have_engines() => {
                // It is the last of the functions.
                let target = if carries { self.finish(work) } else { work.target };
                self.spare.insert(id, target);
            }
            Some((function, offset)) => {
                match capture.attach(&work.target, function, offset, &mut work.probes) {
                    Ok(()) => {
                        // First of all again, so that targets are finished one by one.
                        work.next += 1;
                        self.queue.push_front((id, Work::Attach(work)));
                    }
                    // What the others see is worth having without addresses.
                    Err(error) if carries && function == Function::BioWrite => {
                        let pause = work.pause;
                        if pause.is_zero() {
                            log::warn!("without some addresses: {}", chain(&error));
                        }
                        let target = self.finish(work);
                        if matches!(error, Error::Short { .. }) {
                            self.try_again(target, pause);
                        }
                    }
                    Err(error) => return self.fail(work, error),
                }
            }
            None => drop(self.finish(work)),
        }
        Ok(())
    }

    /// Says that a target is attached, and gives it back.
    fn finish(&mut self, work: Attaching<A::Probe>) -> Target {
        let Attaching { target, probes, is_told, .. } = work;
        if !is_told {
            log::info!("attached {target}");
        }
        self.attached.insert(target.id, (target.path.display().to_string(), probes));
        target
    }

    /// Tries a target again when its guesses can be looked at: what is not looked at is not believed.
    fn wait_for_places(&mut self, work: Attaching<A::Probe>) {
        if work.pause.is_zero() {
            log::warn!(
                "not attached: {} waits until functions at the same place of a page are known to be the right ones",
                work.target.path.display()
            );
        }
        self.try_again(work.target, work.pause);
    }

    /// Takes off what was attached of a target. It is tried again if that may help; only the first time it is an error.
    fn fail(&mut self, work: Attaching<A::Probe>, error: Error) -> Result<(), Error> {
        let Attaching { target, mut probes, pause, .. } = work;
        probes.extend(self.guesses.remove(&target.id).into_iter().flatten());
        self.queue.push_back((target.id, Work::TakeBack { probes }));
        if !matches!(error, Error::Short { .. }) {
            return Err(error);
        }
        self.try_again(target, pause);
        if pause.is_zero() { Err(error) } else { Ok(()) }
    }

    /// Tries a target again after a pause, longer than the last one.
    fn try_again(&mut self, target: Target, last: Duration) {
        let pause = (2 * last).clamp(FIRST_RETRY, MAX_RETRY);
        log::debug!("to be tried again library={} seconds={}", target.path.display(), pause.as_secs());
        self.retries.push(Retry { target, due: Instant::now() + pause, pause });
    }
}

/// Takes one probe off. The entries go before the returns, which are needed as long as a call may be under way.
fn take_off<A: Attach>(capture: &mut A, probes: &mut Vec<A::Probe>) {
    if let Some(probe) = probes.pop()
        && let Err(error) = capture.detach(probe)
    {
        log::debug!("{}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::discover::find::{Flavour, Found};

    /// A kernel of our own making.
    #[derive(Debug, Default)]
    struct Kernel {
        /// What stands: each probe's number, and the place in its page of a function whose calls are counted.
        probes: HashMap<u32, Option<u64>>,
        next: u32,
        /// Functions that no probe can be put on: for want of something, or at all.
        short: Vec<Function>,
        refused: Vec<Function>,
    }

    impl Kernel {
        fn put(&mut self, place: Option<u64>) -> u32 {
            self.next += 1;
            self.probes.insert(self.next, place);
            self.next
        }
    }

    impl Attach for Kernel {
        type Probe = u32;

        fn attach(
            &mut self,
            _: &Target,
            function: Function,
            _: u64,
            probes: &mut Vec<u32>,
        ) -> Result<(), Error> {
            let what = function.name().to_owned();
            if self.short.contains(&function) {
                return Err(Error::Short { what, source: io::ErrorKind::OutOfMemory.into() });
            }
            if self.refused.contains(&function) {
                let source = io::ErrorKind::PermissionDenied.into();
                return Err(Error::NotPermitted { what, remedy: String::new(), source });
            }
            probes.push(self.put(None));
            Ok(())
        }

        fn watch_guess(&mut self, _: &Target, offset: u64) -> Result<Option<u32>, Error> {
            let place = Some(offset % 4096);
            Ok((!self.probes.values().any(|it| *it == place)).then(|| self.put(place)))
        }

        fn calls(&mut self, _: &u32) -> Result<Calls, Error> {
            Ok(Calls::default())
        }

        fn detach(&mut self, probe: u32) -> Result<(), Error> {
            self.probes.remove(&probe).expect("it was taken off twice");
            Ok(())
        }
    }

    fn target(id: u64, how: How, functions: &[(Function, u64)]) -> Change {
        let found = Found {
            functions: functions.into(),
            how,
            flavour: Flavour::Unknown,
            version: None,
            build_id: None,
        };
        Change::Attach(Target { id, path: "a.so".into(), file: tempfile::tempfile().unwrap(), found })
    }

    /// One with symbols for these functions.
    fn named(id: u64, functions: &[Function]) -> Change {
        let functions: Vec<_> = functions.iter().map(|function| (*function, 0)).collect();
        target(id, How::Symbols, &functions)
    }

    /// Does all that is to be done, and says how many errors there were.
    fn errors(targets: &mut Targets<Kernel>, kernel: &mut Kernel) -> usize {
        let mut errors = 0;
        while !targets.is_idle() {
            errors += usize::from(targets.step(kernel).is_err());
        }
        errors
    }

    /// The same once the pause is over.
    fn later(targets: &mut Targets<Kernel>, kernel: &mut Kernel) -> usize {
        targets.retry_at(Instant::now() + MAX_RETRY);
        errors(targets, kernel)
    }

    #[test]
    fn what_failed_for_want_of_something_is_tried_again_ever_less_often() {
        let (mut targets, mut kernel) = (Targets::default(), Kernel::default());
        kernel.short = vec![Function::Write];
        targets.push(named(1, &[Function::Read, Function::Write]));
        assert_eq!(errors(&mut targets, &mut kernel), 1);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let [Retry { pause, due, .. }] = &targets.retries[..] else { panic!("{:?}", targets.retries) };
            assert_eq!(pause.as_secs(), seconds);
            assert_eq!(targets.due(), Some(*due));
            assert!(kernel.probes.is_empty() && targets.attached() == 0);
            assert_eq!(later(&mut targets, &mut kernel), 0, "it was told once");
        }
        kernel.short.clear();
        later(&mut targets, &mut kernel);
        assert_eq!((targets.attached(), kernel.probes.len(), targets.due()), (1, 2, None));
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let (mut targets, mut kernel) = (Targets::default(), Kernel::default());
        kernel.refused = vec![Function::Write];
        targets.push(named(1, &[Function::Read, Function::Write]));
        assert_eq!(errors(&mut targets, &mut kernel), 1);
        assert!(targets.due().is_none() && kernel.probes.is_empty());
    }

    #[test]
    fn what_waits_is_forgotten_with_its_target_and_with_all() {
        for forget in [|targets: &mut Targets<Kernel>| targets.push(Change::Detach(1, "")), Targets::clear] {
            let (mut targets, mut kernel) = (Targets::default(), Kernel::default());
            kernel.short = vec![Function::Read];
            targets.push(named(1, &[Function::Read]));
            errors(&mut targets, &mut kernel);
            forget(&mut targets);
            kernel.short.clear();
            later(&mut targets, &mut kernel);
            assert!(targets.due().is_none() && targets.doomed.is_empty() && kernel.probes.is_empty());
        }
    }

    #[test]
    fn bio_write_fails_alone_and_is_tried_again() {
        const ALL: [Function; 3] = [Function::Read, Function::Write, Function::BioWrite];
        for is_late in [false, true] {
            let (mut targets, mut kernel) = (Targets::default(), Kernel::default());
            kernel.short = vec![Function::BioWrite];
            targets.push(named(1, &ALL));
            if is_late {
                errors(&mut targets, &mut kernel);
            }
            targets.want_engines();
            assert_eq!(errors(&mut targets, &mut kernel), 0);
            for _ in 0..3 {
                assert_eq!((targets.attached(), kernel.probes.len(), targets.retries.len()), (1, 2, 1));
                later(&mut targets, &mut kernel);
            }
            kernel.short.clear();
            later(&mut targets, &mut kernel);
            assert_eq!((targets.attached(), kernel.probes.len(), targets.due()), (1, 3, None));
            targets.push(Change::Detach(1, ""));
            errors(&mut targets, &mut kernel);
            assert!(kernel.probes.is_empty());
        }
    }

    #[test]
    fn a_target_whose_calls_cant_be_told_from_anothers_waits_for_it() {
        let guessed =
            |id, read, write| target(id, How::Inferred, &[(Function::Read, read), (Function::Write, write)]);
        let (mut targets, mut kernel) = (Targets::default(), Kernel::default());
        for change in [guessed(1, 0x1010, 0x1020), guessed(2, 0x5020, 0x6010), guessed(3, 0x7010, 0x7030)] {
            targets.push(change);
        }
        assert_eq!(errors(&mut targets, &mut kernel), 0);
        // One function of the third is alone at its place.
        assert_eq!((targets.attached(), targets.retries.len()), (2, 1));
        assert_eq!(targets.guesses.values().map(Vec::len).sum::<usize>(), 3);
        targets.push(Change::Detach(1, ""));
        errors(&mut targets, &mut kernel);
        later(&mut targets, &mut kernel);
        assert_eq!((targets.attached(), targets.retries.len()), (2, 0));
        targets.clear();
        // However many steps it takes, it is known how many are left.
        assert!(!kernel.probes.is_empty());
        while !targets.is_idle() {
            assert_eq!(targets.probes_left(), kernel.probes.len());
            targets.step(&mut kernel).unwrap();
        }
        assert!(kernel.probes.is_empty());
    }

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
