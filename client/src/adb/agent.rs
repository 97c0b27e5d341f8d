//! The agent's life on the device, from start to end.

use std::time::{Duration, Instant};

use super::{
    Error,
    device::{Device, Facts, Root, new_enough},
    said,
    shell::{Piece, Shell, quoted, within},
};

/// How long the agent may take until it serves: the verifier's time, on a slow device.
const START: u64 = 60;
/// Between two looks whether it serves.
const LOOK: Duration = Duration::from_millis(100);
/// For an agent to take its probes away and end; then it is killed.
const END: u64 = 20;
/// Of its log so much is kept, to tell why it ended.
const MOST: usize = 64 << 10;

/// An agent that we started.
#[derive(Debug, Clone)]
pub struct Agent {
    root: Root,
    path: String,
    pid: u32,
}

/// Ends the agents of that path that an earlier run left behind; whether there were any.
pub fn end_others(device: &Device, root: Root, path: &str) -> Result<bool, Error> {
    Ok(!end(device, root, path, "$(pidof plaintapd)")?.is_empty())
}

/// Ends processes, if they run that program; which of them did.
fn end(device: &Device, root: Root, path: &str, pids: &str) -> Result<String, Error> {
    let path = quoted(path);
    // A program that was replaced while it ran has this behind its name.
    let script = format!(
        "ended=; for p in {pids}; do case \"$(readlink /proc/$p/exe)\" in {path}|{path}' (deleted)') \
         kill $p 2>/dev/null && ended=\"$ended $p\";; esac; done; \
         for p in $ended; do i=0; while [ -d /proc/$p ] && [ $i -lt 80 ]; do sleep 0.1; i=$((i + 1)); done; \
         [ ! -d /proc/$p ] || kill -9 $p; done; echo $ended"
    );
    let output = device.run("ending plaintapd", &root.command(&script), END)?;
    Ok(output.out)
}

/// The command line of the agent that runs from that path, if one does.
#[cfg(feature = "relay")]
pub fn command_line(device: &Device, root: Root, path: &str) -> Result<Option<Vec<String>>, Error> {
    let script = format!(
        "for p in $(pidof plaintapd); do if [ \"$(readlink /proc/$p/exe)\" = {} ]; then cat /proc/$p/cmdline; break; fi; done",
        quoted(path)
    );
    let output = device.run("looking for plaintapd", &root.command(&script), END)?;
    let words = output.out.split_terminator('\0').map(str::to_owned);
    Ok(Some(words.collect()).filter(|words: &Vec<String>| !words.is_empty()))
}

impl Agent {
    /// Starts it in a session of its own, which a pulled cable does not end, and waits until it `serves`.
    pub fn start(
        device: &Device,
        facts: &Facts,
        root: Root,
        path: &str,
        flags: &[String],
        serves: impl Fn() -> bool,
    ) -> Result<Self, Error> {
        let flags: String = flags.iter().map(|flag| format!(" {}", quoted(flag))).collect();
        // The shell outlives it to tell how it ended. setsid has no child of its own here: $! is the agent.
        let script =
            format!("setsid {}{flags} </dev/null & p=$!; echo pid=$p; wait $p; exit $?", quoted(path));
        let mut shell = device.shell(&root.command(&script))?;
        let deadline = within(START);
        let (mut pid, mut said) = (None, String::new());
        while Instant::now() < deadline {
            match shell.next(deadline.min(Instant::now() + LOOK))? {
                Piece::Out(data) | Piece::Err(data) => {
                    if said.len() < MOST {
                        said.push_str(&String::from_utf8_lossy(&data));
                    }
                    pid = pid.or_else(|| pid_in(&said));
                }
                Piece::Exit(code) => return Err(not_started(facts, code, &said)),
                Piece::Nothing => {
                    if let Some(pid) = pid.filter(|_| serves()) {
                        // From here on its log reaches us as part of the stream. A shell that nobody reads would hold it up.
                        drop::<Shell>(shell);
                        return Ok(Self { root, path: path.to_owned(), pid });
                    }
                }
            }
        }
        Err(Error::Late("plaintapd".to_owned(), START))
    }

    /// Ends it, if it still runs.
    pub fn end(&self, device: &Device) -> Result<(), Error> {
        end(device, self.root, &self.path, &self.pid.to_string()).map(drop)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// Whether somebody listens at that place of the device.
pub fn listens(device: &Device, place: &str) -> Result<bool, Error> {
    match device.server.open(&device.serial, place) {
        Ok(_) => Ok(true),
        Err(Error::Closed { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn pid_in(said: &str) -> Option<u32> {
    // Only whole lines: a number may come in two pieces.
    let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.into_iter().find_map(|line| line.trim().strip_prefix("pid=")?.parse().ok())
}

/// Why it did not start: its last words, and what its exit code means here. Source: docs/agent.md.
fn not_started(facts: &Facts, code: u8, log: &str) -> Error {
    let lines: Vec<&str> =
        log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("pid=")).collect();
    let error = lines.iter().rev().find_map(|line| line.strip_prefix("plaintapd: "));
    let said = error.or(lines.last().copied()).map_or_else(|| format!("exit code {code}"), said);
    let hint = match code {
        4 if !new_enough(&facts.kernel) => {
            format!(" (the device's kernel is {}, and plaintapd needs 5.10 or newer)", facts.kernel)
        }
        3 => " (the device lets root do less than it takes; SELinux, perhaps: plaintap doctor)".to_owned(),
        _ => String::new(),
    };
    Error::NotStarted { said, hint }
}

/// The agent's flags with a bound on its memory, unless they size it themselves. A device has other things to do.
pub fn bounded(mut flags: Vec<String>) -> Vec<String> {
    const SIZING: [&str; 4] = ["--memory-limit", "--ring-size", "--journal-size", "--config"];
    let name = |flag: &String| flag.split('=').next().is_some_and(|name| SIZING.contains(&name));
    if !flags.iter().any(name) {
        flags.extend(["--memory-limit", "8M"].map(str::to_owned));
    }
    flags
}

/// Where the flags have the agent listen, as adb names it; `None`: where adb does not lead.
pub fn place(flags: &[String]) -> Option<String> {
    let values =
        flags.iter().enumerate().filter_map(|(at, flag)| match flag.strip_prefix("--ecaptureq")? {
            "" => flags.get(at + 1).map(String::as_str),
            value => value.strip_prefix('='),
        });
    let mut values = values.peekable();
    if values.peek().is_none() {
        return Some(format!("tcp:{}", super::AGENT_PORT));
    }
    values.find_map(|value| {
        if let Some(name) = value.strip_prefix("ws+unix:") {
            return Some(match name.strip_prefix('@') {
                Some(name) => format!("localabstract:{name}"),
                None => format!("localfilesystem:{name}"),
            });
        }
        let authority = value.strip_prefix("ws://")?.split('/').next()?;
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "28257"));
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        ["127.0.0.1", "localhost", "0.0.0.0"].contains(&host).then(|| format!("tcp:{port}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_place_is_where_its_flags_say() {
        let place = |line: &str| place(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        for (line, expected) in [
            ("--uid 1000", Some("tcp:28257")),
            ("--ecaptureq ws://127.0.0.1:9000/", Some("tcp:9000")),
            ("--ecaptureq=ws://localhost", Some("tcp:28257")),
            ("--ecaptureq ws://usb0:1/ --ecaptureq ws+unix:@plaintap", Some("localabstract:plaintap")),
            ("--ecaptureq ws+unix:/run/p.sock", Some("localfilesystem:/run/p.sock")),
            ("--ecaptureq ws://usb0:28257/", None),
            ("--ecaptureq ws://127.0.0.1:0/", None),
            ("--ecaptureq", Some("tcp:28257")),
        ] {
            assert_eq!(place(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn the_agents_memory_is_bounded_unless_its_flags_say_how() {
        let bounded = |line: &str| bounded(line.split_whitespace().map(str::to_owned).collect()).join(" ");
        assert_eq!(bounded(""), "--memory-limit 8M");
        assert_eq!(bounded("--uid 1000"), "--uid 1000 --memory-limit 8M");
        for line in
            ["--memory-limit 64M", "--ring-size=8M", "--journal-size 1M", "--config /etc/plaintapd.conf"]
        {
            assert_eq!(bounded(line), line);
        }
    }

    #[test]
    fn an_agent_that_does_not_start_is_told_by_its_own_words() {
        let facts = Facts { kernel: "4.19.1".to_owned(), ..Facts::default() };
        let said = "pid=7\n2025-08-02T14:16:10Z INF plaintapd\nplaintapd: the kernel has no ring buffer\n";
        let error = not_started(&facts, 4, said).to_string();
        assert!(error.contains("no ring buffer (the device's kernel is 4.19.1"), "{error}");
        assert!(not_started(&facts, 139, "pid=7\n").to_string().ends_with("exit code 139"));
        let long = not_started(&facts, 3, &"x".repeat(60_000)).to_string();
        assert!(long.ends_with("plaintap doctor)") && long.len() < 400, "{long}");
    }

    #[test]
    fn a_pid_counts_only_when_its_line_is_whole() {
        assert_eq!(pid_in("pid=12"), None);
        assert_eq!(pid_in("hello\npid=123\r\n"), Some(123));
    }
}
