//! The probe: its options, its groups of attacks, and how they are run.
//!
//! Every attack runs in a process of its own and is undone. What a jail must be like is written down here and nowhere
//! read from the host: what an attack finds is compared with what the options say of the profile.

mod descriptors;
mod dev;
mod files;
mod ipc;
mod kernel;
mod mounts;
mod network;
mod privileges;
mod proc;
mod processes;
#[allow(unsafe_code)]
mod raw;
mod report;
mod scratch;
mod sockets;
mod terminal;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use report::{Outcome, Report};
use scratch::Scratch;

const USAGE: &str = "\
Tries from inside of a jail what a jail must refuse, and prints what came of it as JSON.

usage: ojail-probe [--text] [--root] [--network host|none|private] [--host-port PORT]... [--only GROUP]
       ojail-probe --watch [--root]

  --text            for people: a line each
  --root            the profile has `root = true`: sudo is expected to work, and all is tried once more with it
  --network KIND    the profile's network (default: host)
  --host-port PORT  a port that answers on the host's loopback, and must not in here; not with the host's network
  --only GROUP      one group of: GROUPS
  --watch           until the end of standard input, try to get hold of every process that appears; with --root, as root

exit status: 0 all contained, 1 something was reached, 2 wrong usage
";

/// What the jail's network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Host,
    None,
    Private,
}

/// What the caller says of the jail, and what the probe knows of itself.
#[derive(Debug)]
struct Setting {
    /// `root = true` in the profile.
    root: bool,
    network: Network,
    host_ports: Vec<u16>,
    /// This process is root, of the jail or of the host.
    am_root: bool,
    uid: u32,
    /// Descriptors above 2 that were open at the start.
    descriptors: Vec<String>,
    scratch: Scratch,
}

/// A group of attacks, which adds them to the report.
type Group = fn(&mut Report, &Setting);

/// The groups in their order.
const GROUPS: [(&str, Group); 13] = [
    ("descriptors", descriptors::attack),
    ("namespaces", kernel::namespaces),
    ("mounts", mounts::attack),
    ("kernel", kernel::attack),
    ("sockets", sockets::attack),
    ("terminal", terminal::attack),
    ("proc", proc::attack),
    ("dev", dev::attack),
    ("processes", processes::attack),
    ("ipc", ipc::attack),
    ("network", network::attack),
    ("privileges", privileges::attack),
    ("files", files::attack),
];

#[derive(Debug, PartialEq, Eq)]
struct Options {
    text: bool,
    root: bool,
    network: Network,
    host_ports: Vec<u16>,
    only: Option<String>,
    watch: bool,
}

impl Options {
    /// `None`: this is no usage of ours.
    fn parse(arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut options = Self {
            text: false,
            root: false,
            network: Network::Host,
            host_ports: Vec::new(),
            only: None,
            watch: false,
        };
        let mut arguments = arguments.map(|argument| argument.into_string().unwrap_or_default());
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--text" => options.text = true,
                "--root" => options.root = true,
                "--watch" => options.watch = true,
                "--network" => {
                    options.network = match arguments.next()?.as_str() {
                        "host" => Network::Host,
                        "none" => Network::None,
                        "private" => Network::Private,
                        _ => return None,
                    }
                }
                "--host-port" => options.host_ports.push(arguments.next()?.parse().ok()?),
                "--only" => {
                    let group = arguments.next()?;
                    if !GROUPS.iter().any(|(name, _)| *name == group) {
                        return None;
                    }
                    options.only = Some(group);
                }
                _ => return None,
            }
        }
        Some(options)
    }

    /// The same again, as arguments for the probe that runs as root.
    fn arguments(&self) -> Vec<String> {
        let network = match self.network {
            Network::Host => "host",
            Network::None => "none",
            Network::Private => "private",
        };
        let mut words = vec!["--root".to_owned(), "--network".to_owned(), network.to_owned()];
        for port in &self.host_ports {
            words.extend(["--host-port".to_owned(), port.to_string()]);
        }
        if let Some(group) = &self.only {
            words.extend(["--only".to_owned(), group.clone()]);
        }
        if self.watch {
            words.push("--watch".to_owned());
        }
        words
    }
}

pub(super) fn main() -> ExitCode {
    // Before anything of ours is open.
    let descriptors = descriptors::inherited();
    let Some(options) = Options::parse(std::env::args_os().skip(1)) else {
        let groups = GROUPS.map(|(name, _)| name).join(" ");
        let _ = std::io::stderr().write_all(USAGE.replace("GROUPS", &groups).as_bytes());
        return ExitCode::from(2);
    };
    let uid = nix::unistd::geteuid();
    let mut report = Report::default();
    if let Some(scratch) = Scratch::make() {
        let setting = Setting {
            root: options.root,
            network: options.network,
            host_ports: options.host_ports.clone(),
            am_root: uid.is_root(),
            uid: uid.as_raw(),
            descriptors,
            scratch,
        };
        run(&mut report, &setting, &options);
    } else {
        report.begin("probe");
        report.add("a directory to work in", Outcome::reached("none can be made, so nothing was tried"));
    }
    let printed = if options.text { report.text() } else { format!("{}\n", report.json()) };
    let _ = std::io::stdout().write_all(printed.as_bytes());
    ExitCode::from(if report.reached() == 0 { 0 } else { 1 })
}

fn run(report: &mut Report, setting: &Setting, options: &Options) {
    let as_root = setting.root && !setting.am_root;
    if options.watch && !as_root {
        report.begin("watch");
        return watch::attack(report, setting);
    }
    if !options.watch {
        for (name, attack) in GROUPS {
            if options.only.as_deref().is_none_or(|only| only == name) {
                report.begin(name);
                attack(report, setting);
            }
        }
    }
    if as_root {
        again_as_root(report, setting, options);
    }
}

/// Everything once more, by sudo. A copy of this program is run, for its own file may be the host's and have no path here.
fn again_as_root(report: &mut Report, setting: &Setting, options: &Options) {
    let copy = setting.scratch.path().join("ojail-probe");
    let output = std::fs::copy("/proc/self/exe", &copy).and_then(|_| {
        Command::new("sudo")
            .arg("-n")
            .arg(&copy)
            .args(options.arguments())
            .stdin(if options.watch { Stdio::inherit() } else { Stdio::null() })
            .output()
    });
    let why = match &output {
        Ok(output) => match report.add_printed("as root: ", &String::from_utf8_lossy(&output.stdout)) {
            Some(()) => return,
            None => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        },
        Err(e) => e.to_string(),
    };
    report.begin("privileges");
    report.add("everything as root of the jail", Outcome::reached(format!("could not be tried: {why}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Options> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_are_parsed_and_said_again() {
        let line = "--root --network private --host-port 22 --host-port 80 --only dev";
        let options = parse(line).unwrap();
        assert_eq!((options.network, options.host_ports.len()), (Network::Private, 2));
        assert_eq!(options.arguments().join(" "), line);
        assert_eq!(parse("").unwrap().network, Network::Host);
    }

    #[test]
    fn what_is_no_option_is_wrong_usage() {
        for line in ["x", "--help", "--network", "--network lan", "--host-port 70000", "--only all"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
