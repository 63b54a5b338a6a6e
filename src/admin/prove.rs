//! `ojail prove USER`: opens a session for the user as every PAM service would, and has a probe attack the jail from inside.
//!
//! For each service one process, as host root until PAM has moved it: it does what a login program does after it has
//! authenticated somebody. This one stays on the host. Whether the other is in the jail is for the kernel to say here, and
//! not for the other; one that is not is told to end before it has become the user.

mod session;

use std::io::IsTerminal;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::check::pam::{Service, services};
use super::check::{self, Finding, many, paint};
use super::{configuration, jailed, say};
use crate::account::Account;
use crate::config::Profile;
use crate::error::{Act, Result};

/// How the session of one service came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
enum Outcome {
    /// In the user's jail; what the probe said.
    Jailed { attempts: Vec<Attempt>, reached: usize },
    /// PAM said no.
    Refused { why: String },
    /// The session was opened, and is not in the user's jail.
    Host { why: String },
    /// It could not be told.
    Unknown { why: String },
}

/// One attack, as `ojail-probe` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    group: String,
    attack: String,
    contained: bool,
    answer: String,
}

/// A service and what came of it.
#[derive(Debug, Serialize)]
struct Proof {
    service: String,
    way_in: bool,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Proof {
    /// Whether this is as it should be.
    fn holds(&self) -> bool {
        match &self.outcome {
            Outcome::Jailed { reached, .. } => *reached == 0,
            Outcome::Refused { .. } => true,
            Outcome::Host { .. } => !self.way_in,
            Outcome::Unknown { .. } => false,
        }
    }

    fn reached(&self) -> impl Iterator<Item = &Attempt> {
        let attempts = match &self.outcome {
            Outcome::Jailed { attempts, .. } => attempts.as_slice(),
            _ => &[],
        };
        attempts.iter().filter(|attempt| !attempt.contained)
    }
}

pub(super) fn run(user: &str, json: bool) -> Result<ExitCode> {
    let config = configuration()?;
    let (account, profile) = jailed(&config, user)?;
    let bait = Bait::lay(profile)?;
    let arguments = bait.arguments(profile);
    let mut proofs = Vec::new();
    for Service { name, way_in } in services() {
        let Some(outcome) = session::prove(&account, &name, &arguments)? else {
            // The process of the session, which has done its part.
            return Ok(ExitCode::SUCCESS);
        };
        proofs.push(Proof { service: name, way_in, outcome });
    }
    drop(bait);
    let sshd = check::of_sshd(&account.name);
    let holds = proofs.iter().all(Proof::holds) && !sshd.iter().any(Finding::is_error);
    if json {
        say(serde_json::json!({
            "user": account.name,
            "profile": profile.name,
            "services": proofs,
            "sshd": sshd,
            "proven": holds,
        }));
    } else {
        let colours =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        say(text(&account, profile, &proofs, &sshd, colours));
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What there is on the host to be reached from a jail, while the probe is at it: an abstract socket and a port.
struct Bait {
    _socket: UnixListener,
    ports: Vec<TcpListener>,
}

impl Bait {
    fn lay(profile: &Profile) -> Result<Self> {
        let name = format!("ojail-prove-{}", std::process::id());
        let socket = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .act("listen on", "an abstract socket")?;
        let mut ports = Vec::new();
        // In the host's network its ports are there by design.
        if network(profile) != "host" {
            for place in [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()] {
                let place: std::net::SocketAddr = place;
                // A host may be without one of the two.
                ports.extend(TcpListener::bind(place));
            }
        }
        Ok(Self { _socket: socket, ports })
    }

    fn arguments(&self, profile: &Profile) -> Vec<String> {
        let mut arguments = vec!["--network".to_owned(), network(profile)];
        if profile.root {
            arguments.push("--root".into());
        }
        for port in self.ports.iter().filter_map(|listener| listener.local_addr().ok()) {
            arguments.extend(["--host-port".to_owned(), port.port().to_string()]);
        }
        arguments
    }
}

/// As the configuration spells it: its values and their variants have the same names.
fn network(profile: &Profile) -> String {
    format!("{:?}", profile.network).to_lowercase()
}

/// For people: a line a service, what was reached below it, and what it comes to.
fn text(account: &Account, profile: &Profile, proofs: &[Proof], sshd: &[Finding], colours: bool) -> String {
    let width = proofs.iter().map(|proof| proof.service.len()).max().unwrap_or_default();
    let (good, bad, note) = (paint("✓", "32", colours), paint("✗", "31", colours), paint("·", "2", colours));
    let mut lines = vec![format!("{} in profile {}", account.name, profile.name)];
    let mut shown: Option<(&str, Vec<(&str, &str)>)> = None;
    for proof in proofs {
        let (mark, said) = match &proof.outcome {
            Outcome::Jailed { attempts, reached: 0 } => {
                (&good, format!("jailed, {} contained", many(attempts.len(), "attack")))
            }
            Outcome::Jailed { attempts, reached } => (
                &bad,
                format!("jailed, {} contained, {reached} not", many(attempts.len() - reached, "attack")),
            ),
            Outcome::Refused { why } => (&good, format!("refused: {why}")),
            Outcome::Host { why } if proof.way_in => (&bad, format!("ON THE HOST: {why}")),
            Outcome::Host { .. } => {
                (&note, "on the host; who opens it is root already, or the user".to_owned())
            }
            Outcome::Unknown { why } => (&bad, format!("not known: {why}")),
        };
        lines.push(format!("  {mark} {:width$}  {said}", proof.service));
        let reached: Vec<(&str, &str)> =
            proof.reached().map(|attempt| (attempt.group.as_str(), attempt.attack.as_str())).collect();
        match &shown {
            _ if reached.is_empty() => {}
            Some((service, same)) if *same == reached => {
                lines.push(format!("      the same as by {service}"))
            }
            _ => {
                for attempt in proof.reached() {
                    lines.push(format!(
                        "      {bad} {}: {}: {}",
                        attempt.group, attempt.attack, attempt.answer
                    ));
                }
                shown = Some((&proof.service, reached));
            }
        }
    }
    lines.push("What asks no PAM cannot be seen so. Of that, what sshd's own settings say:".to_owned());
    for finding in sshd {
        let mark = if finding.is_error() { &bad } else { &note };
        lines.push(format!("  {mark} {:width$}  {}", "sshd", finding.sentence()));
    }
    lines.push(String::new());
    lines.push(summary(proofs));
    lines.join("\n")
}

fn summary(proofs: &[Proof]) -> String {
    let count = |kind: fn(&Proof) -> bool| proofs.iter().filter(|proof| kind(proof)).count();
    let jailed = count(|proof| matches!(proof.outcome, Outcome::Jailed { .. }));
    let refused = count(|proof| matches!(proof.outcome, Outcome::Refused { .. }));
    let host = count(|proof| proof.way_in && matches!(proof.outcome, Outcome::Host { .. }));
    let unknown = count(|proof| matches!(proof.outcome, Outcome::Unknown { .. }));
    let reached: usize = proofs.iter().map(|proof| proof.reached().count()).sum();
    let all: usize = proofs
        .iter()
        .map(|proof| if let Outcome::Jailed { attempts, .. } = &proof.outcome { attempts.len() } else { 0 })
        .sum();
    let mut words = vec![format!("{jailed} jailed"), format!("{refused} refused")];
    if host > 0 {
        words.push(format!("{} ON THE HOST", many(host, "way")));
    }
    if unknown > 0 {
        words.push(format!("{unknown} not known"));
    }
    format!("{}; {} of {} contained.", words.join(", "), all - reached, many(all, "attack"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(outcome: Outcome, way_in: bool) -> Proof {
        Proof { service: "s".into(), way_in, outcome }
    }

    fn jailed(contained: bool) -> Outcome {
        let attempt = Attempt { group: "g".into(), attack: "a".into(), contained, answer: "EPERM".into() };
        Outcome::Jailed { attempts: vec![attempt], reached: usize::from(!contained) }
    }

    #[test]
    fn what_is_contained_or_refused_holds_and_nothing_else() {
        let why = || "x".to_owned();
        assert!(proof(jailed(true), true).holds());
        assert!(!proof(jailed(false), true).holds());
        assert!(proof(Outcome::Refused { why: why() }, true).holds());
        assert!(!proof(Outcome::Host { why: why() }, true).holds());
        assert!(proof(Outcome::Host { why: why() }, false).holds());
        assert!(!proof(Outcome::Unknown { why: why() }, false).holds());
    }

    #[test]
    fn the_summary_counts() {
        let proofs = [proof(jailed(true), true), proof(jailed(false), true)];
        assert_eq!(summary(&proofs), "2 jailed, 0 refused; 1 of 2 attacks contained.");
        let proofs = [proof(Outcome::Host { why: String::new() }, true)];
        assert_eq!(summary(&proofs), "0 jailed, 0 refused, 1 way ON THE HOST; 0 of 0 attacks contained.");
    }
}
