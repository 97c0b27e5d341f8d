//! The devices that are relayed now: a thread and a task for each.
//!
//! The thread reads the source, which blocks; the task has what was read stored. Between them is a short queue: where storing
//! is slow, reading waits, and with it the device's journal. A source that is wanted no more is read no more; what was read of
//! it is stored first, and only then may its device come again.

use std::{collections::HashMap, sync::Arc, thread, time::Duration};

use async_nats::jetstream::{self, stream::Stream};
use tokio::sync::{mpsc, watch};

use crate::{
    Incoming, Named, Other, Source,
    device::{Device, End, Fenced},
    metrics::{Gauges, Metrics},
    note,
    permission::Refusals,
    track::{Outgoing, Place, Track},
    value,
};

/// Messages between a source's thread and its task: up to 16 KiB each, of each device where storing is slow.
const QUEUE: usize = 16;
/// How long a relay that was fenced off stays back before it looks whether the other still sends.
const STAY_BACK: Duration = Duration::from_secs(30);

/// All devices that are, or were a moment ago, relayed.
pub struct Fleet {
    to: To,
    running: HashMap<String, Running>,
}

/// Where each device's stream goes, and how that goes.
#[derive(Clone)]
struct To {
    context: jetstream::Context,
    refusals: Refusals,
    stream: Stream,
    metrics: Arc<Metrics>,
}

/// A device that is relayed.
struct Running {
    place: String,
    /// Goes with the wish for it.
    wanted: Option<watch::Sender<()>>,
    /// Closed once it has ended.
    ended: watch::Receiver<()>,
}

impl Running {
    fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }
}

impl Fleet {
    /// None yet.
    pub fn new(
        context: jetstream::Context,
        refusals: Refusals,
        stream: Stream,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { to: To { context, refusals, stream, metrics }, running: HashMap::new() }
    }

    /// Relays these and no others.
    pub fn set(&mut self, wanted: Vec<Named>) {
        let mut wanted: HashMap<String, Named> =
            wanted.into_iter().map(|source| (source.name.clone(), source)).collect();
        self.running.retain(|name, running| {
            if wanted.get(name).is_some_and(|source| source.place == running.place) && !running.has_ended() {
                // One that was wanted no more, and is again, begins anew.
                if running.wanted.is_some() {
                    wanted.remove(name);
                }
            } else if running.wanted.take().is_some() {
                note(&format!("removes device={}", value(name)));
            }
            !running.has_ended()
        });
        for (name, source) in wanted {
            let mut before = Vec::new();
            for name in [Some(name.as_str()), source.before()].into_iter().flatten() {
                let running = self.running.get(name).filter(|running| running.wanted.is_none());
                before.extend(running.map(|running| running.ended.clone()));
            }
            let (sender, receiver) = watch::channel(());
            let (end, ended) = watch::channel(());
            let place = source.place.clone();
            note(&format!("adds device={}", value(&name)));
            let to = self.to.clone();
            tokio::spawn(async move {
                for mut ended in before {
                    // When what it has read is stored.
                    let _ = ended.changed().await;
                }
                to.relay(source, receiver).await;
                drop(end);
            });
            self.running.insert(name, Running { place, wanted: Some(sender), ended });
        }
    }
}

impl To {
    fn device(&self, name: &str, before: Option<&str>) -> (Device, Gauges) {
        let gauges = self.metrics.device(name);
        let (context, refusals, stream) = (self.context.clone(), self.refusals.clone(), self.stream.clone());
        let (name, before) = (name.to_owned(), before.map(str::to_owned));
        (Device::new(context, refusals, stream, name, before, gauges.clone()), gauges)
    }

    /// Relays one source, by the name that the stream knows it by, until it is wanted no more.
    async fn relay(&self, source: Named, mut wanted: watch::Receiver<()>) {
        let mut name = source.name.clone();
        if let Some(Other::Again(again)) = &source.other {
            let (device, _) = self.device(again, None);
            let is_known = tokio::select! {
                is_known = device.is_known() => is_known,
                _ = wanted.changed() => false,
            };
            if is_known {
                name.clone_from(again);
                note(&format!("is called so in the stream device={}", value(&name)));
            } else {
                self.metrics.remove(again);
            }
        }
        let (device, gauges) = self.device(&name, source.before());
        relay(device, source, &gauges, wanted).await;
        // Names come and go. What the source's thread, which may go on for a moment, says of it is told to nobody.
        self.metrics.remove(&name);
    }
}

/// Relays one source until it is wanted no more.
async fn relay(mut device: Device, source: Named, gauges: &Gauges, mut wanted: watch::Receiver<()>) {
    let name = value(device.name()).into_owned();
    loop {
        let End { place, line, .. } = tokio::select! {
            end = device.read_end() => end,
            _ = wanted.changed() => return,
        };
        gauges.begins(place.seq);
        note(&format!("goes on device={name} run={:?} after_seq={}", place.run, place.seq));
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let (open, label, its) = (source.open.clone(), device.name().to_owned(), gauges.clone());
        let track = Track::new(place, source.whole).with_lines(line);
        let thread = thread::Builder::new()
            .name("relay-source".to_owned())
            .stack_size(256 << 10)
            .spawn(move || read(&label, open(), track, &sender, &its));
        if let Err(error) = thread {
            // As when there are as many as there may be.
            note(&format!("can't start yet device={name} error={:?}", error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(STAY_BACK) => continue,
                _ = wanted.changed() => return,
            }
        }
        let fenced = loop {
            let message = tokio::select! {
                message = receiver.recv() => message,
                // Nothing more is read; what was read is still to be had.
                _ = wanted.changed(), if !receiver.is_closed() => {
                    receiver.close();
                    continue;
                }
            };
            let Some(message) = message else { break false };
            let stored = device.store(message).await;
            gauges.unqueued();
            if let Err(Fenced) = stored {
                break true;
            }
        };
        if !fenced {
            return;
        }
        receiver.close();
        while receiver.recv().await.is_some() {
            gauges.unqueued();
        }
        gauges.connected(false);
        note(&format!("stays back, as another relay sends it, or this one by another name device={name}"));
        let _back = gauges.back();
        let mut before = None;
        loop {
            tokio::select! {
                _ = device.read_end() => {}
                _ = wanted.changed() => return,
            }
            // Signs of life are messages too.
            if before.replace(device.last()) == Some(device.last()) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(STAY_BACK) => {}
                _ = wanted.changed() => return,
            }
        }
    }
}

/// Reads a source until nobody wants what it reads.
fn read(
    name: &str,
    mut source: Box<dyn Source>,
    mut track: Track,
    sender: &mpsc::Sender<Outgoing>,
    gauges: &Gauges,
) {
    let name = value(name);
    let resume = |source: &mut Box<dyn Source>, place: &Place| {
        if !place.run.is_empty() {
            source.resume_after(place.seq, &place.run);
        }
    };
    resume(&mut source, track.place());
    let mut skipped = 0_u64;
    loop {
        let incoming = source.receive();
        if sender.is_closed() {
            return;
        }
        match incoming {
            Incoming::Message(bytes) => match track.take(bytes) {
                Ok(messages) => {
                    for message in messages {
                        gauges.queued();
                        if sender.blocking_send(message).is_err() {
                            gauges.unqueued();
                            return;
                        }
                    }
                }
                Err(error) => {
                    // A line for each would be one that a device can have as many of as it likes.
                    skipped += 1;
                    if skipped.is_power_of_two() {
                        let error = error.to_string();
                        note(&format!(
                            "skips what is of no use device={name} skipped={skipped} error={error:?}"
                        ));
                    }
                }
            },
            Incoming::Connected => {
                note(&format!("source is there device={name}"));
                gauges.connected(true);
                track.connected();
            }
            Incoming::Down(why) => {
                note(&format!("source is away device={name} error={why:?}"));
                gauges.connected(false);
                resume(&mut source, track.place());
            }
            Incoming::Nothing => {}
        }
    }
}
