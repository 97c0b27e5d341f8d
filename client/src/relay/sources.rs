//! Which sources there are to relay: those of the command line, those of a file, and for `adb:*` each device that is plugged in.
//!
//! A `Sources` owns what is known of all three, and says what that comes to; it is told when one changes.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::PathBuf,
    str::FromStr,
};

use plaintap_relay::Other;

use crate::{
    adb::Entry,
    address::{Address, Way, WrongAddress, without_secrets},
};

/// The serial number that stands for all devices.
const ALL: &str = "*";

/// A source, and what its device is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// The device.
    pub name: String,
    /// Where its stream is.
    pub address: Address,
}

/// A text that is no source, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongSource {
    /// What it leads to is wrong.
    #[error(transparent)]
    Address(#[from] WrongAddress),
    /// It leads to where a relay would send it.
    #[error("{0} is stored in NATS already, where a stream can have another as its source or mirror")]
    Stored(Address),
    /// What is missing would be told of messages that nobody wants.
    #[error(
        "{0} is asked for all that it still has, and goes on behind what is stored: leave out backlog, after and run"
    )]
    Start(Address),
    /// All devices can't have one name.
    #[error("{0:?}: devices of adb:* are called by their serial numbers; leave the name out")]
    NamedAll(String),
    /// Nothing tells what the device is called.
    #[error(
        "{0:?} says which device by its being the only one; call it NAME={0}, or say adb:SERIAL or adb:*"
    )]
    Nameless(String),
}

impl From {
    /// Each device that is plugged in.
    pub fn is_all(&self) -> bool {
        self.address.serial() == Some(ALL)
    }
}

impl FromStr for From {
    type Err = WrongSource;

    fn from_str(text: &str) -> Result<Self, WrongSource> {
        // A name has no colon, which each address has before its query, where a = may stand.
        let named = text.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains(':'));
        let address: Address = named.map_or(text, |(_, address)| address).parse()?;
        let own = match &address.way {
            Way::Nats(_) => return Err(WrongSource::Stored(address)),
            Way::Device(device) => device.serial.clone(),
            Way::Unix(path) => path.display().to_string(),
            Way::Tcp { .. } => address.authority(),
        };
        match named {
            _ if address.says_where() => Err(WrongSource::Start(address)),
            Some(_) if own == ALL => Err(WrongSource::NamedAll(without_secrets(text))),
            Some((name, _)) => Ok(Self { name: name.to_owned(), address }),
            None if own.is_empty() => Err(WrongSource::Nameless(without_secrets(text))),
            None => Ok(Self { name: own, address }),
        }
    }
}

/// Why the sources are none that can be relayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error(
        "no source; name one with --from, as --from ws://127.0.0.1:28257/, or a file of them with --sources"
    )]
    None,
    /// The file can't be read.
    #[error("can't read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A line of it is no source.
    #[error("{}, line {line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong.
        source: WrongSource,
    },
    /// Two have one name.
    #[error("two sources are called {0}; give one another name: NAME=URL")]
    SameName(String),
}

/// All sources.
#[derive(Debug, Default)]
pub struct Sources {
    /// Of the command line.
    given: Vec<From>,
    file: Option<PathBuf>,
    /// Of the file.
    listed: Vec<From>,
    /// What adb has.
    devices: Vec<Entry>,
    /// Serial numbers that two devices had at one time.
    shared: HashSet<String>,
}

impl Sources {
    /// Those of the command line and of a file.
    pub fn new(given: Vec<From>, file: Option<PathBuf>) -> Result<Self, Error> {
        if given.is_empty() && file.is_none() {
            return Err(Error::None);
        }
        let mut this = Self { given, file, ..Self::default() };
        this.reread()?;
        Ok(this)
    }

    /// Reads the file again; if that fails, what it said before stands.
    pub fn reread(&mut self) -> Result<(), Error> {
        let listed = match &self.file {
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| Error::Read(path.clone(), error))?;
                let wrong = |(line, source)| Error::Line { path: path.clone(), line, source };
                listed(&text).map_err(wrong)?
            }
            None => Vec::new(),
        };
        let mut names = HashSet::new();
        for From { name, .. } in self.given.iter().chain(&listed) {
            if name != ALL && !names.insert(name) {
                return Err(Error::SameName(name.clone()));
            }
        }
        self.listed = listed;
        Ok(())
    }

    /// Adb has these devices now.
    pub fn devices(&mut self, devices: Vec<Entry>) {
        for (at, entry) in devices.iter().enumerate() {
            if devices[..at].iter().any(|other| other.serial == entry.serial) {
                self.shared.insert(entry.serial.clone());
            }
        }
        self.devices = devices;
    }

    /// Whether it depends on which devices adb has.
    pub fn follow_devices(&self) -> bool {
        self.named().any(From::is_all)
    }

    fn named(&self) -> impl Iterator<Item = &From> {
        self.given.iter().chain(&self.listed)
    }

    /// All of them, by name, each with its address and what else the device may be called.
    pub fn all(&self) -> BTreeMap<String, (Address, Option<Other>)> {
        let own = self.named().filter(|from| !from.is_all());
        let mut all: BTreeMap<String, (Address, Option<Other>)> =
            own.map(|From { name, address }| (name.clone(), (address.clone(), None))).collect();
        // A device that has a name is not there a second time by its serial number.
        let taken: HashSet<String> =
            all.values().filter_map(|(address, _)| address.serial().map(str::to_owned)).collect();
        for every in self.named().filter(|from| from.is_all()) {
            for entry in self.devices.iter().filter(|entry| entry.state == "device") {
                let Some((name, other, serial)) = self.device(entry) else { continue };
                if !taken.contains(&entry.serial) && !entry.port().is_some_and(|port| taken.contains(port)) {
                    all.entry(name).or_insert_with(|| (every.address.of_device(serial), other));
                }
            }
        }
        all
    }

    /// What a device is called, what else, and how adb knows it. `None`: adb can't tell it from another.
    fn device<'a>(&self, entry: &'a Entry) -> Option<(String, Option<Other>, &'a str)> {
        let serial = &entry.serial;
        let apart = entry.port().map(|port| (format!("{serial}@{port}"), port));
        if !self.shared.contains(serial) {
            // A relay before this one may have seen two.
            return Some((serial.clone(), apart.map(|(name, _)| Other::Again(name)), serial));
        }
        apart.map(|(name, port)| (name, Some(Other::Before(serial.clone())), port))
    }
}

/// The sources of a file: one a line, `#` begins a comment. An error with its line's number.
fn listed(text: &str) -> Result<Vec<From>, (usize, WrongSource)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| line.parse().map_err(|wrong| (number, wrong))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn froms(texts: &[&str]) -> Vec<From> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn entry(serial: &str, state: &str, about: &str) -> Entry {
        Entry { serial: serial.to_owned(), state: state.to_owned(), about: about.to_owned() }
    }

    /// Names and addresses of all.
    fn all(sources: &Sources) -> Vec<(String, String)> {
        sources.all().into_iter().map(|(name, (address, _))| (name, address.to_string())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect()
    }

    #[test]
    fn a_device_has_the_name_that_it_is_given_or_that_of_its_place() {
        for (text, name, shown) in [
            ("lab=ws://h:1/?comm=curl", "lab", "ws://h:1/"),
            ("ws://h:1/?comm=curl", "h:1", "ws://h:1/"),
            ("adb:R5", "R5", "adb:R5"),
            ("gw=adb:R5?pid=1", "gw", "adb:R5"),
            ("only=adb:", "only", "adb:"),
            ("adb:*?comm=curl", "*", "adb:*"),
            ("ws+unix:/run/p.sock", "/run/p.sock", "ws+unix:/run/p.sock"),
        ] {
            let from: From = text.parse().unwrap();
            assert_eq!((from.name.as_str(), from.address.to_string()), (name, shown.to_owned()), "{text}");
        }
        for stored in ["nats://u:secret@h/?device=a", "lab=nats://u:secret@h/?device=a"] {
            let error = stored.parse::<From>().unwrap_err().to_string();
            assert!(error.contains("stored in NATS already") && !error.contains("secret"), "{error}");
        }
        for wrong in [
            "=ws://h/",
            "lab=h?token=SECRET",
            "lab=wss://h/?token=SECRET",
            "adb:",
            "lab=adb:*?token=SECRET",
            "adb:?token=SECRET",
        ] {
            let error = wrong.parse::<From>().unwrap_err().to_string();
            assert!(!error.contains("SECRET"), "{error}");
        }
        for start in ["lab=ws://h/?backlog=none", "adb:*?comm=a&backlog=5", "ws+unix:/p?after=3&run=a"] {
            let error = start.parse::<From>().unwrap_err().to_string();
            assert!(error.contains("leave out backlog"), "{error}");
        }
    }

    #[test]
    fn all_devices_are_those_that_can_be_used_and_have_no_other_name() {
        let mut sources = Sources::new(froms(&["adb:*?comm=curl", "lab=adb:B", "ws://h:1/"]), None).unwrap();
        assert!(sources.follow_devices());
        assert_eq!(all(&sources), pairs(&[("h:1", "ws://h:1/"), ("lab", "adb:B")]));
        sources.devices(vec![
            entry("A", "device", "usb:1-1 model:x"),
            entry("B", "device", "usb:1-2"),
            entry("C", "unauthorized", "usb:1-3"),
            entry("127.0.0.1:5555", "device", ""),
        ]);
        let now = pairs(&[
            ("127.0.0.1:5555", "adb:127.0.0.1:5555"),
            ("A", "adb:A"),
            ("h:1", "ws://h:1/"),
            ("lab", "adb:B"),
        ]);
        assert_eq!(all(&sources), now);
        assert_eq!(sources.all()["A"].0.path, "/?comm=curl");
        sources.devices(vec![]);
        assert_eq!(all(&sources).len(), 2);
    }

    #[test]
    fn devices_that_share_a_serial_number_are_told_by_their_ports_from_then_on() {
        let mut sources = Sources::new(froms(&["adb:*", "third=adb:usb:1-3"]), None).unwrap();
        let three = ["usb:1-1", "usb:1-2", "usb:1-3"].map(|port| entry("0123", "device", port));
        sources.devices(three[..1].to_vec());
        assert_eq!(all(&sources), pairs(&[("0123", "adb:0123"), ("third", "adb:usb:1-3")]));
        assert_eq!(sources.all()["0123"].1, Some(Other::Again("0123@usb:1-1".to_owned())));
        sources.devices(three.to_vec());
        let apart =
            [("0123@usb:1-1", "adb:usb:1-1"), ("0123@usb:1-2", "adb:usb:1-2"), ("third", "adb:usb:1-3")];
        assert_eq!(all(&sources), pairs(&apart));
        for (name, other) in [("0123@usb:1-1", Some("0123")), ("0123@usb:1-2", Some("0123")), ("third", None)]
        {
            assert_eq!(sources.all()[name].1, other.map(|serial| Other::Before(serial.to_owned())), "{name}");
        }
        sources.devices(three[1..2].to_vec());
        assert_eq!(all(&sources), pairs(&apart[1..]));
        // Nothing tells these two apart.
        sources.devices(vec![entry("9", "device", ""), entry("9", "device", "")]);
        assert_eq!(all(&sources), pairs(&[("third", "adb:usb:1-3")]));
    }

    #[test]
    fn a_file_is_read_again_and_stands_as_it_was_where_it_is_wrong() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# the lab\n\n a=ws://h:1/\nadb:*").unwrap();
        let mut sources = Sources::new(froms(&["b=ws://h:2/"]), Some(file.path().to_owned())).unwrap();
        let two = pairs(&[("a", "ws://h:1/"), ("b", "ws://h:2/")]);
        assert_eq!(all(&sources), two);
        writeln!(file, "c=h:3").unwrap();
        let error = crate::note::chain(&sources.reread().unwrap_err());
        assert!(error.contains("line 5: \"h:3\" "), "{error}");
        fs::write(file.path(), "b=ws://h:9/").unwrap();
        assert!(matches!(sources.reread(), Err(Error::SameName(name)) if name == "b"));
        assert_eq!(all(&sources), two);
        fs::write(file.path(), "c=ws://h:3/").unwrap();
        sources.reread().unwrap();
        assert_eq!(all(&sources), pairs(&[("b", "ws://h:2/"), ("c", "ws://h:3/")]));
        fs::remove_file(file.path()).unwrap();
        assert!(matches!(sources.reread(), Err(Error::Read(..))));
    }

    #[test]
    fn no_source_at_all_is_an_error() {
        assert!(matches!(Sources::new(vec![], None), Err(Error::None)));
    }
}
