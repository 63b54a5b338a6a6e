//! The two doors of a private network: `reach` and `publish`, and how ports are written. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Mistake, Source};

/// The two protocols that have ports and that can be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host's loopback that the jail reaches at the same number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reach {
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// A port of the host that leads to one of the jail's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The port on every address of the host.
    pub host: u16,
    /// The port inside.
    pub jail: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.jail, self.protocol)
    }
}

/// Ports below this one are for root's services (ip_unprivileged_port_start), and a jail is nobody's root outside.
const FIRST_UNPRIVILEGED: u16 = 1024;

impl Source<'_> {
    pub(super) fn reach(&self, raw: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<Reach>, Mistake> {
        self.ports(raw, "reach", |text| {
            let (port, protocol) = port(text)
                .ok_or_else(|| format!("\"{text}\" is no port; write it like \"5432/tcp\" or \"53/udp\""))?;
            Ok(Reach { port, protocol })
        })
    }

    pub(super) fn publish(&self, raw: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<Publish>, Mistake> {
        let published = self.ports(raw, "publish", |text| {
            let parsed = text.split_once(':').and_then(|(host, jail)| {
                let (jail, protocol) = port(jail)?;
                Some(Publish { host: number(host)?, jail, protocol })
            });
            let publish = parsed.ok_or_else(|| {
                format!("\"{text}\" is no pair of ports; write it like \"8080:80/tcp\": the host's, the jail's, the protocol")
            })?;
            if publish.host < FIRST_UNPRIVILEGED {
                return Err(format!(
                    "\"{text}\" would take the host's port {}; ports below {FIRST_UNPRIVILEGED} are for the host's own services",
                    publish.host
                ));
            }
            Ok(publish)
        })?;
        for (i, publish) in published.iter().enumerate() {
            let same = |other: &&Publish| (other.host, other.protocol) == (publish.host, publish.protocol);
            if published[..i].iter().any(|other| same(&other)) {
                let at = raw.get_ref()[i].span();
                let why = format!("the host's port {}/{} is published twice", publish.host, publish.protocol);
                return Err(self.mistake(Some(at), why));
            }
        }
        Ok(published)
    }

    fn ports<T: PartialEq>(
        &self,
        raw: &Spanned<Vec<Spanned<String>>>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Mistake> {
        if raw.get_ref().is_empty() {
            let why = format!("`{key}` names no port; name one or take the key out");
            return Err(self.mistake(Some(raw.span()), why));
        }
        let mut ports = Vec::new();
        for text in raw.get_ref() {
            let port = parse(text.get_ref()).map_err(|why| self.mistake(Some(text.span()), why))?;
            if ports.contains(&port) {
                let why = format!("\"{}\" is named twice", text.get_ref());
                return Err(self.mistake(Some(text.span()), why));
            }
            ports.push(port);
        }
        Ok(ports)
    }
}

fn number(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port != 0)
}

/// Reads `80/tcp`.
fn port(text: &str) -> Option<(u16, Protocol)> {
    let (digits, protocol) = text.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((number(digits)?, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_number_and_a_protocol() {
        assert_eq!(port("5432/tcp"), Some((5432, Protocol::Tcp)));
        assert_eq!(port("53/udp"), Some((53, Protocol::Udp)));
        for bad in
            ["", "80", "0/tcp", "65536/tcp", "-1/tcp", "+1/tcp", "80/sctp", "80/TCP", "a/tcp", "80/tcp/x"]
        {
            assert_eq!(port(bad), None, "{bad}");
        }
    }
}
