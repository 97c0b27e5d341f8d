//! What a probe costs per call: rounds in which every case has its turn on a fresh load, so that whatever else the machine does
//! hits all of them alike.

use anyhow::{Context, Result};

use crate::{
    Paths,
    agent::Agent,
    load::{Batch, Load},
    probes::{Extent, Probes},
};

const BATCHES: [Batch; 4] = [
    Batch { size: 64, calls: 200, batches: 40 },
    Batch { size: 1 << 10, calls: 200, batches: 40 },
    Batch { size: 16 << 10, calls: 40, batches: 40 },
    Batch { size: 256 << 10, calls: 3, batches: 40 },
];
/// Before each batch, of every case: a call costs up to twice as much after a pause as in a row without one.
const PAUSE_US: u32 = 5_000;

/// The end of an object's name that has it drained as an agent does; others are polled, and wake nobody.
const WAKES: &str = "+wakeup";

/// All that the programs do, but for waking.
const EVERYTHING: Extent = Extent { filtered_out: false, snaplen: u64::MAX, wakes: false };

const OPERATIONS: [&str; 2] = ["write", "read"];

enum Case<'a> {
    None,
    Empty,
    Agent,
    Object(&'a str, &'a [u8], Extent),
}

impl Case<'_> {
    fn name(&self) -> &str {
        match self {
            Self::None => "no probe",
            Self::Empty => "empty pair",
            Self::Agent => "plaintapd",
            Self::Object(name, ..) => name,
        }
    }
}

/// Nanoseconds, by size and operation.
type Row = Vec<[f64; 2]>;

/// Measures and prints a table: no probe, the empty pair, and plaintapd or, where there are some, these objects.
pub fn run(
    paths: &Paths,
    rounds: usize,
    library: &str,
    transport: &str,
    objects: &[(&str, &str)],
) -> Result<()> {
    let read = |(name, path): &(&str, &str)| {
        let object = std::fs::read(path).with_context(|| format!("reading {path}"))?;
        Ok(((*name).to_owned(), object))
    };
    let objects: Vec<(String, Vec<u8>)> = objects.iter().map(read).collect::<Result<_>>()?;
    let mut cases = vec![Case::None, Case::Empty];
    if objects.is_empty() {
        cases.push(Case::Agent);
    }
    for (name, object) in &objects {
        cases.push(Case::Object(name, object, Extent { wakes: name.ends_with(WAKES), ..EVERYTHING }));
    }
    compare(paths, rounds, library, transport, &cases)
}

/// Measures and prints what each step of the probes adds: the programs of the object at `path` made to do ever more.
pub fn steps(paths: &Paths, rounds: usize, library: &str, path: &str) -> Result<()> {
    let object = std::fs::read(path).with_context(|| format!("reading {path}"))?;
    let cases = [
        Case::None,
        Case::Empty,
        Case::Object("filtered out", &object, Extent { filtered_out: true, ..EVERYTHING }),
        Case::Object("counted", &object, Extent { snaplen: 0, ..EVERYTHING }),
        Case::Object("sent, 1 byte", &object, Extent { snaplen: 1, ..EVERYTHING }),
        Case::Object("sent whole", &object, EVERYTHING),
        Case::Object("and woken", &object, Extent { wakes: true, ..EVERYTHING }),
        Case::Agent,
    ];
    compare(paths, rounds, library, "memory", &cases)
}

fn compare(paths: &Paths, rounds: usize, library: &str, transport: &str, cases: &[Case<'_>]) -> Result<()> {
    // Parts of a probe show best where there is little else.
    let profile = cases.iter().any(|case| matches!(case, Case::Object(..)));
    let mut rows: Vec<Vec<Row>> = cases.iter().map(|_| Vec::new()).collect();
    let mut lost = 0;
    for round in 0..rounds {
        for turn in 0..cases.len() {
            // Another case goes first in each round.
            let index = (round + turn) % cases.len();
            let (row, row_lost) = measure(paths, library, transport, &cases[index], profile)?;
            rows[index].push(row);
            lost += row_lost;
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    print(cases, &rows, lost);
    Ok(())
}

fn measure(
    paths: &Paths,
    library: &str,
    transport: &str,
    case: &Case<'_>,
    profile: bool,
) -> Result<(Row, u64)> {
    let mut load = Load::start(paths, library, transport)?;
    let mut agent = None;
    let _probes = match case {
        Case::None => None,
        Case::Empty => Some(Probes::empty(library)?),
        Case::Object(name, object, extent) => {
            Some(Probes::of(object, *extent, library).context((*name).to_owned())?)
        }
        Case::Agent => {
            agent = Some(Agent::start(&paths.agent, load.pid(), library)?);
            None
        }
    };
    let sizes = if !profile { BATCHES.len() } else { 1 };
    let row = BATCHES[..sizes].iter().map(|batch| load.cost(*batch, PAUSE_US)).collect::<Result<Row>>()?;
    let lost = match &agent {
        Some(agent) => {
            let totals = agent.totals()?;
            anyhow::ensure!(totals.captured_events > 0, "plaintapd captured nothing");
            totals.lost_events
        }
        None => 0,
    };
    Ok((row, lost))
}

fn print(cases: &[Case<'_>], rows: &[Vec<Row>], lost: u64) {
    let names: Vec<&str> = cases.iter().map(Case::name).collect();
    println!("| call | {} | {} |", names.join(" | "), added(&names));
    println!("|---|{}", "---:|".repeat(2 * names.len()));
    for (operation, name) in OPERATIONS.iter().enumerate() {
        for (size, batch) in BATCHES[..rows[0][0].len()].iter().enumerate() {
            let at = |row: &Row| row[size][operation];
            let medians: Vec<f64> = rows.iter().map(|rows| median(rows.iter().map(at).collect())).collect();
            // Within a round first, then over rounds: what changes from round to round drops out.
            let added = |case: usize| {
                let pairs = rows[case].iter().zip(&rows[0]);
                median(pairs.map(|(with, without)| at(with) - at(without)).collect())
            };
            let floor = added(1);
            let mut line = format!("| {name} {} |", bytes(batch.size));
            for median in medians {
                line += &format!(" {:.2} |", median / 1000.0);
            }
            line += &format!(" {:.2} |", floor / 1000.0);
            for case in 2..cases.len() {
                line += &format!(" {:.2} |", added(case) / 1000.0);
            }
            for case in 2..cases.len() {
                // A floor that drowned in what else the machine did is no measure.
                line +=
                    &if floor > 0.0 { format!(" {:.2} |", added(case) / floor) } else { " - |".to_owned() };
            }
            println!("{line}");
        }
    }
    println!();
    println!("Microseconds; medians of {} rounds. Records lost while measuring: {lost}.", rows[0].len());
}

/// The heads of the columns behind the medians.
fn added(names: &[&str]) -> String {
    let added = names[1..].iter().map(|name| format!("{name} adds"));
    let ratios = names[2..].iter().map(|name| format!("{name} / empty"));
    added.chain(ratios).collect::<Vec<_>>().join(" | ")
}

/// A size in words.
pub fn bytes(size: u32) -> String {
    if size < 1024 { format!("{size} B") } else { format!("{} KiB", size >> 10) }
}

/// The middle one; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
