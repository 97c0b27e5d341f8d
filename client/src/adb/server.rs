//! The adb server of this computer: where it is, which devices it has, and connections through it.

use std::{
    convert::Infallible,
    env,
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Error, stream::Stream};

/// Source: AOSP, packages/modules/adb, adb.h, DEFAULT_ADB_PORT.
const PORT: u16 = 5037;
const PATIENCE: Duration = Duration::from_secs(5);
/// So long a server may have no news of its devices.
const SILENCE: Duration = Duration::from_secs(30);
/// How long `adb start-server` may take: it waits for the server to be up.
const START: Duration = Duration::from_secs(15);

/// Where the server is.
#[derive(Debug, Clone)]
pub struct Server {
    host: String,
    port: u16,
}

/// A device as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called by.
    pub serial: String,
    /// `device` if it can be used.
    pub state: String,
    /// `model:…` and what else the server knows, as it says it.
    pub about: String,
}

impl Entry {
    /// The port that it is plugged into, as `usb:1-1.2`: a name for it where others have the same serial number.
    pub fn port(&self) -> Option<&str> {
        self.about.split_whitespace().next().filter(|word| word.starts_with("usb:"))
    }

    /// Whether that names it: its serial number, or its port.
    pub fn is_called(&self, name: &str) -> bool {
        self.serial == name || self.port() == Some(name)
    }
}

impl Server {
    /// Where the environment says it is, by the same variables as for adb itself.
    pub fn find() -> Result<Self, Error> {
        Self::from(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let wrong = |variable, value: &str| Error::Environment { variable, value: value.to_owned() };
        if let Some(socket) = variable("ADB_SERVER_SOCKET") {
            let wrong = || wrong("ADB_SERVER_SOCKET", &socket);
            let place = socket.strip_prefix("tcp:").ok_or_else(wrong)?;
            let (host, port) = place.rsplit_once(':').unwrap_or(("127.0.0.1", place));
            let host = host.trim_matches(['[', ']']).to_owned();
            return Ok(Self { host, port: port_number(port).ok_or_else(wrong)? });
        }
        let host = variable("ANDROID_ADB_SERVER_ADDRESS").unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = match variable("ANDROID_ADB_SERVER_PORT") {
            Some(port) => port_number(&port).ok_or_else(|| wrong("ANDROID_ADB_SERVER_PORT", &port))?,
            None => PORT,
        };
        Ok(Self { host, port })
    }

    /// `HOST:PORT`.
    pub fn place(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Has the adb program start the server, if none listens.
    pub fn ensure(&self) -> Result<(), Error> {
        let Err(refused) = self.connect() else { return Ok(()) };
        let Some(program) = program() else { return Err(Error::NoProgram(self.place())) };
        // It reads the same environment. The server that it leaves behind must not hold our stdout open.
        let child = Command::new(program)
            .arg("start-server")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.map_err(|error| Error::NoServer(self.place(), error))?;
        let deadline = Instant::now() + START;
        while Instant::now() < deadline && child.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(20));
        }
        if child.try_wait()?.is_none() {
            // It hangs, and nobody else will end it.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.connect().map(drop).map_err(|_| refused)
    }

    fn connect(&self) -> Result<Stream, Error> {
        let failed = |error| Error::NoServer(self.place(), error);
        let mut last = std::io::ErrorKind::AddrNotAvailable.into();
        for address in (self.host.as_str(), self.port).to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(socket) => return Stream::new(socket),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// A question that is answered with a text.
    pub fn ask(&self, request: &str) -> Result<String, Error> {
        let mut stream = self.connect()?;
        stream.ask(request)?;
        stream.text()
    }

    /// Its protocol's version.
    pub fn version(&self) -> Result<String, Error> {
        self.ask("host:version")
    }

    /// All devices, whatever their state.
    pub fn devices(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.ask("host:devices-l")?.lines().filter_map(entry).collect())
    }

    /// Tells of all devices now, at each change, and in between now and then, until the server ends or `tell` fails.
    pub fn track(&self, mut tell: impl FnMut(Vec<Entry>) -> Result<(), Error>) -> Result<Infallible, Error> {
        loop {
            let mut stream = self.connect()?;
            stream.ask("host:track-devices")?;
            // One whose host is gone is as silent as one without news: it is asked anew.
            while stream.wait(SILENCE)? {
                tell(stream.text()?.lines().filter_map(entry).collect())?;
            }
        }
    }

    /// The device that `serial` names, or if it is empty ANDROID_SERIAL, or the only one, if it can be used.
    pub fn choose(&self, serial: &str) -> Result<String, Error> {
        let own = env::var("ANDROID_SERIAL").unwrap_or_default();
        choose(self.devices()?, if serial.is_empty() { &own } else { serial })
    }

    /// A connection to a service of the device.
    pub fn open(&self, serial: &str, service: &str) -> Result<Stream, Error> {
        let mut stream = self.connect()?;
        stream.ask(&format!("host:transport:{serial}"))?;
        match stream.ask(service) {
            Err(Error::Refused { answer, .. })
                if answer == "closed" && (service.starts_with("tcp:") || service.starts_with("local")) =>
            {
                Err(Error::Closed { serial: serial.to_owned(), place: service.to_owned() })
            }
            asked => asked.map(|()| stream),
        }
    }

    /// Has a free port of this computer lead to `remote` on the device; the port.
    pub fn forward(&self, serial: &str, local: u16, remote: &str) -> Result<u16, Error> {
        let mut stream = self.connect()?;
        let request = format!("host-serial:{serial}:forward:tcp:{local};{remote}");
        stream.ask(&request)?;
        // The first word says that the server knows the request, the second that it was done.
        stream.granted(&request)?;
        let port = stream.text()?;
        port_number(&port).ok_or_else(|| Error::Wrong(format!("it forwards port {port:?}")))
    }

    /// Takes a forward away.
    pub fn remove_forward(&self, serial: &str, local: u16) -> Result<(), Error> {
        let mut stream = self.connect()?;
        let request = format!("host-serial:{serial}:killforward:tcp:{local}");
        stream.ask(&request)?;
        stream.granted(&request)
    }

    /// The forwards of a device, as `LOCAL REMOTE`.
    pub fn forwards(&self, serial: &str) -> Result<Vec<String>, Error> {
        let all = self.ask("host:list-forward")?;
        let mine = all.lines().filter_map(|line| line.strip_prefix(serial)?.strip_prefix(' '));
        Ok(mine.map(str::to_owned).collect())
    }
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// `SERIAL STATE KEY:VALUE…`, the state of a device without permissions being a sentence.
fn entry(line: &str) -> Option<Entry> {
    let (serial, rest) = line.trim().split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    if rest.starts_with("no permissions") {
        return Some(Entry { serial: serial.to_owned(), state: rest.to_owned(), about: String::new() });
    }
    let (state, about) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Entry { serial: serial.to_owned(), state: state.to_owned(), about: about.trim().to_owned() })
}

fn choose(all: Vec<Entry>, serial: &str) -> Result<String, Error> {
    let serials = |all: &[Entry]| all.iter().map(|entry| entry.serial.clone()).collect::<Vec<_>>();
    let device = if serial.is_empty() {
        // Those that can't be used are no choice, where one can.
        let usable: Vec<_> = all.iter().filter(|entry| entry.state == "device").collect();
        match (&usable[..], &all[..]) {
            ([one], _) => *one,
            ([], []) => return Err(Error::NoDevice),
            ([], [one]) => one,
            _ => return Err(Error::Several(serials(&all))),
        }
    } else {
        let found = all.iter().find(|entry| entry.is_called(serial));
        found.ok_or_else(|| Error::Unknown(serial.to_owned(), serials(&all)))?
    };
    let serial = if serial.is_empty() { device.serial.clone() } else { serial.to_owned() };
    match device.state.as_str() {
        "device" => Ok(serial),
        "unauthorized" | "authorizing" => Err(Error::Unauthorized(serial)),
        state => Err(Error::NotReady { serial, state: state.to_owned() }),
    }
}

/// The adb program: on PATH, else in the SDK.
pub fn program() -> Option<PathBuf> {
    let name = format!("adb{}", env::consts::EXE_SUFFIX);
    let path = env::var_os("PATH").unwrap_or_default();
    let sdks = ["ANDROID_HOME", "ANDROID_SDK_ROOT"].into_iter().filter_map(env::var_os);
    let folders = env::split_paths(&path).chain(sdks.map(|sdk| Path::new(&sdk).join("platform-tools")));
    folders.map(|folder| folder.join(&name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(variables: &[(&str, &str)]) -> Result<String, Error> {
        let found = Server::from(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        found.map(|server| server.place())
    }

    #[test]
    fn the_server_is_where_the_environment_says() {
        assert_eq!(server(&[]).unwrap(), "127.0.0.1:5037");
        assert_eq!(server(&[("ANDROID_ADB_SERVER_PORT", "6000")]).unwrap(), "127.0.0.1:6000");
        assert_eq!(server(&[("ANDROID_ADB_SERVER_ADDRESS", "h")]).unwrap(), "h:5037");
        for (socket, place) in
            [("tcp:6000", "127.0.0.1:6000"), ("tcp:h:1", "h:1"), ("tcp:[::1]:7", "[::1]:7")]
        {
            let variables = [("ADB_SERVER_SOCKET", socket), ("ANDROID_ADB_SERVER_PORT", "9")];
            assert_eq!(server(&variables).unwrap(), place);
        }
        for wrong in ["6000", "tcp:", "tcp:h:0", "localfilesystem:/x"] {
            let error = server(&[("ADB_SERVER_SOCKET", wrong)]).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("tcp:127.0.0.1:5037"), "{error}");
        }
        assert!(server(&[("ANDROID_ADB_SERVER_PORT", "x")]).is_err());
    }

    fn entries(lines: &str) -> Vec<Entry> {
        lines.lines().filter_map(entry).collect()
    }

    #[test]
    fn a_line_of_the_list_is_a_device() {
        let all = entries(
            "0123456789ABCDEF       device usb:1-1 product:p model:Pixel_7 transport_id:1\n\
             192.168.1.5:5555 offline transport_id:2\n\
             ????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n\
             lonely\n",
        );
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].serial.as_str(), all[0].state.as_str()), ("0123456789ABCDEF", "device"));
        assert!(all[0].about.contains("model:Pixel_7"));
        assert_eq!((all[0].port(), all[1].port()), (Some("usb:1-1"), None));
        assert_eq!((all[1].serial.as_str(), all[1].state.as_str()), ("192.168.1.5:5555", "offline"));
        assert!(all[2].state.starts_with("no permissions (user"));
    }

    #[test]
    fn the_device_is_the_one_named_or_the_only_one_that_can_be_used() {
        let chosen = |lines: &str, serial: &str| choose(entries(lines), serial);
        assert_eq!(chosen("a device", "").unwrap(), "a");
        assert_eq!(chosen("a device\nb device", "b").unwrap(), "b");
        assert_eq!(chosen("a offline\nb device", "").unwrap(), "b");
        assert_eq!(chosen("a device usb:1-1 model:x\na device usb:1-2", "usb:1-2").unwrap(), "usb:1-2");
        assert!(matches!(chosen("", ""), Err(Error::NoDevice)));
        assert!(matches!(chosen("", "a"), Err(Error::Unknown(..))));
        assert!(matches!(chosen("b device", "a"), Err(Error::Unknown(..))));
        assert!(matches!(chosen("a device\nb device", ""), Err(Error::Several(all)) if all == ["a", "b"]));
        assert!(matches!(chosen("a unauthorized", ""), Err(Error::Unauthorized(_))));
        assert!(matches!(chosen("a offline", "a"), Err(Error::NotReady { .. })));
    }

    #[test]
    fn each_error_names_the_thing_and_the_remedy_on_one_line() {
        for (error, words) in [
            (choose(vec![], "").unwrap_err(), "adb devices"),
            (choose(entries("a device\nb device"), "").unwrap_err(), "-s SERIAL"),
            (choose(entries("a unauthorized"), "").unwrap_err(), "Allow USB debugging"),
            (choose(entries("a offline"), "").unwrap_err(), "plug it in again"),
            (choose(entries("a device"), "x").unwrap_err(), "\"x\"; there are: a"),
        ] {
            let text = error.to_string();
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
    }
}
