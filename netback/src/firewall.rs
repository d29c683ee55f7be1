//! Layer-4 rules of one vif: stateless, the first that matches decides.
//!
//! The text comes from xenstore (`/local/domain/B/backend/vif/F/I/rules`), rules separated by `;` or line ends:
//!
//! ```text
//! (allow|deny) (in|out|any) [ip4|ip6] [tcp|udp|icmp|icmp6|NUMBER] [from PREFIX] [to PREFIX] [sport PORTS] [port PORTS]
//! default (allow|deny)
//! ```
//!
//! `in` is towards the guest. `PREFIX` is an address with an optional `/LENGTH`, `PORTS` is `N` or `N-M`; `port` is the destination's. Without a
//! `default` line what matches nothing is allowed.
//!
//! Nothing is guessed: where a rule could match but needs what the packet does not show (the ports of a later fragment, a protocol behind
//! headers cut short), the packet is denied. Frames that are neither IP nor ARP pass only where there are no rules; ARP always passes, as
//! no rule can name it. IPv6 guests need their neighbour discovery allowed (`allow any icmp6`) where the default is `deny`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

/// Rules of one vif.
pub const MAX_RULES: usize = 64;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.unwrap_or(most);
        (len <= most).then_some(Self { address, len })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let (a, b, bits) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32u32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        // A shift by the whole width (length 0) leaves nothing to compare.
        (a ^ b).checked_shr(bits.saturating_sub(u32::from(self.len))).unwrap_or(0) == 0
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let this = Self { first: first.parse().ok()?, last: last.parse().ok()? };
        (this.first <= this.last).then_some(this)
    }

    const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    direction: Option<Direction>,
    ipv4: Option<bool>,
    protocol: Option<u8>,
    from: Option<Prefix>,
    to: Option<Prefix>,
    sport: Option<Ports>,
    port: Option<Ports>,
}

/// What is wrong with a text of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleError {
    /// Not a word of the grammar, or not at this place.
    Word(String),
    /// A keyword without its value.
    Missing(&'static str),
    /// Ports of a protocol that has none, or of none given.
    PortsWithoutProtocol,
    /// Addresses and family, or addresses among themselves, contradict each other.
    Family,
    /// More than [`MAX_RULES`].
    TooMany,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "firewall rules: unexpected \"{word}\""),
            Self::Missing(what) => write!(f, "firewall rules: {what} is missing"),
            Self::PortsWithoutProtocol => write!(f, "firewall rules: ports need tcp or udp"),
            Self::Family => write!(f, "firewall rules: IPv4 and IPv6 in one rule"),
            Self::TooMany => write!(f, "firewall rules: more than {MAX_RULES}"),
        }
    }
}

/// The first match of a rule.
enum Match {
    Yes,
    No,
    Unknown,
}

impl Rule {
    fn parse(text: &str) -> Result<Self, RuleError> {
        let word = |w: &str| RuleError::Word(w.to_string());
        let mut words = text.split_whitespace();
        let allow = action(words.next())?;
        let direction = match words.next() {
            Some("in") => Some(Direction::In),
            Some("out") => Some(Direction::Out),
            Some("any") => None,
            Some(other) => return Err(word(other)),
            None => return Err(RuleError::Missing("the direction")),
        };
        let mut rule =
            Self { allow, direction, ipv4: None, protocol: None, from: None, to: None, sport: None, port: None };
        while let Some(w) = words.next() {
            let mut value = |what| words.next().ok_or(RuleError::Missing(what));
            match w {
                "ip4" if rule.ipv4.is_none() => rule.ipv4 = Some(true),
                "ip6" if rule.ipv4.is_none() => rule.ipv4 = Some(false),
                "from" | "to" => {
                    let v = value("an address")?;
                    let slot = if w == "from" { &mut rule.from } else { &mut rule.to };
                    *slot = Some(Prefix::parse(v).filter(|_| slot.is_none()).ok_or_else(|| word(v))?);
                }
                "sport" | "port" => {
                    let v = value("a port")?;
                    let slot = if w == "sport" { &mut rule.sport } else { &mut rule.port };
                    *slot = Some(Ports::parse(v).filter(|_| slot.is_none()).ok_or_else(|| word(v))?);
                }
                _ => {
                    let number = match w {
                        "tcp" => Some(protocol::TCP),
                        "udp" => Some(protocol::UDP),
                        "icmp" => Some(protocol::ICMP),
                        "icmp6" => Some(protocol::ICMP6),
                        _ => w.parse().ok(),
                    };
                    rule.protocol = Some(number.filter(|_| rule.protocol.is_none()).ok_or_else(|| word(w))?);
                }
            }
        }
        rule.check()
    }

    fn check(mut self) -> Result<Self, RuleError> {
        let has_ports = matches!(self.protocol, Some(protocol::TCP | protocol::UDP));
        if (self.port.is_some() || self.sport.is_some()) && !has_ports {
            return Err(RuleError::PortsWithoutProtocol);
        }
        for prefix in [self.from, self.to].into_iter().flatten() {
            let v4 = prefix.address.is_ipv4();
            if *self.ipv4.get_or_insert(v4) != v4 {
                return Err(RuleError::Family);
            }
        }
        Ok(self)
    }

    fn matches(&self, direction: Direction, packet: &Packet) -> Match {
        let known = self.direction.is_none_or(|d| d == direction)
            && self.ipv4.is_none_or(|v4| v4 == packet.source.is_ipv4())
            && self.from.is_none_or(|p| p.contains(packet.source))
            && self.to.is_none_or(|p| p.contains(packet.destination));
        if !known {
            return Match::No;
        }
        match (self.protocol, packet.protocol) {
            (None, _) => return Match::Yes,
            (Some(_), None) => return Match::Unknown,
            (Some(a), Some(b)) if a != b => return Match::No,
            _ => {}
        }
        if self.sport.is_none() && self.port.is_none() {
            return Match::Yes;
        }
        let Some((source, destination)) = packet.ports else { return Match::Unknown };
        let ports = self.sport.is_none_or(|p| p.contains(source)) && self.port.is_none_or(|p| p.contains(destination));
        if ports { Match::Yes } else { Match::No }
    }
}

fn action(word: Option<&str>) -> Result<bool, RuleError> {
    match word {
        Some("allow") => Ok(true),
        Some("deny") => Ok(false),
        Some(other) => Err(RuleError::Word(other.to_string())),
        None => Err(RuleError::Missing("allow or deny")),
    }
}

/// The rules of one vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    rules: Vec<Rule>,
    default_allow: bool,
}

impl Default for Firewall {
    /// No rules: all passes.
    fn default() -> Self {
        Self { rules: Vec::new(), default_allow: true }
    }
}

impl Firewall {
    /// Nothing passes but ARP: what a vif with unreadable rules gets.
    #[must_use]
    pub const fn closed() -> Self {
        Self { rules: Vec::new(), default_allow: false }
    }

    /// Reads rules.
    ///
    /// # Errors
    /// The first defect, see [`RuleError`].
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut this = Self::default();
        for line in text.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("default ") {
                let mut words = rest.split_whitespace();
                this.default_allow = action(words.next())?;
                if let Some(extra) = words.next() {
                    return Err(RuleError::Word(extra.to_string()));
                }
                continue;
            }
            if this.rules.len() >= MAX_RULES {
                return Err(RuleError::TooMany);
            }
            this.rules.push(Rule::parse(line)?);
        }
        Ok(this)
    }

    /// Whether the frame that begins with `head` may pass.
    #[must_use]
    pub fn permits(&self, direction: Direction, head: &[u8]) -> bool {
        if self.rules.is_empty() && self.default_allow {
            return true;
        }
        let packet = match Packet::parse(head) {
            Parsed::Arp => return true,
            Parsed::Other => return false,
            Parsed::Ip(packet) => packet,
        };
        for rule in &self.rules {
            match rule.matches(direction, &packet) {
                Match::Yes => return rule.allow,
                Match::Unknown => return false,
                Match::No => {}
            }
        }
        self.default_allow
    }
}

/// Protocol numbers (IANA).
mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMP6: u8 = 58;
    pub const DESTINATION: u8 = 60;
}

/// What rules can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    /// `None` where the header that tells lies outside of the head.
    protocol: Option<u8>,
    /// Source and destination; `None` where there are none to be seen.
    ports: Option<(u16, u16)>,
}

enum Parsed {
    Ip(Packet),
    Arp,
    /// Another protocol, or an IP header that is none.
    Other,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

impl Packet {
    fn parse(head: &[u8]) -> Parsed {
        const VLAN: u16 = 0x8100;
        let (kind, at) = match be16(head, 12) {
            Some(VLAN) => (be16(head, 16), 18),
            kind => (kind, 14),
        };
        let body = head.get(at..).unwrap_or_default();
        let packet = match kind {
            Some(0x0800) => Self::parse_v4(body),
            Some(0x86dd) => Self::parse_v6(body),
            Some(0x0806) => return Parsed::Arp,
            _ => None,
        };
        packet.map_or(Parsed::Other, Parsed::Ip)
    }

    /// RFC 791, 3.1.
    fn parse_v4(ip: &[u8]) -> Option<Self> {
        let first = *ip.first()?;
        let header = usize::from(first & 0xf).checked_mul(4)?;
        if first >> 4 != 4 || header < 20 || ip.len() < 20 || usize::from(be16(ip, 2)?) < header {
            return None;
        }
        let protocol = *ip.get(9)?;
        let offset = be16(ip, 6)? & 0x1fff;
        let total = usize::from(be16(ip, 2)?);
        let payload = ip.get(header..total.min(ip.len())).unwrap_or_default();
        Some(Self {
            source: IpAddr::from(array::<4>(ip, 12)?),
            destination: IpAddr::from(array::<4>(ip, 16)?),
            protocol: Some(protocol),
            ports: if offset == 0 { Self::ports(protocol, payload) } else { None },
        })
    }

    /// RFC 8200, 3 and 4.
    fn parse_v6(ip: &[u8]) -> Option<Self> {
        if *ip.first()? >> 4 != 6 || ip.len() < 40 {
            return None;
        }
        // A payload length of 0 (a jumbogram, or a frame yet to be segmented) says nothing; what is in the head counts.
        let len = match usize::from(be16(ip, 4)?) {
            0 => usize::MAX,
            len => len.checked_add(40)?,
        };
        let ip = ip.get(..len.min(ip.len()))?;
        let (protocol, payload) = Self::last_header(*ip.get(6)?, ip.get(40..)?);
        Some(Self {
            source: IpAddr::from(array::<16>(ip, 8)?),
            destination: IpAddr::from(array::<16>(ip, 24)?),
            protocol,
            ports: protocol.zip(payload).and_then(|(protocol, payload)| Self::ports(protocol, payload)),
        })
    }

    /// Walks the extension headers: the protocol behind them, and its bytes unless this is a later fragment.
    fn last_header(mut next: u8, mut rest: &[u8]) -> (Option<u8>, Option<&[u8]>) {
        loop {
            let len = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                    rest.get(1).and_then(|&units| usize::from(units).checked_add(1)?.checked_mul(8))
                }
                protocol::FRAGMENT => {
                    let offset = be16(rest, 2).map(|field| field >> 3);
                    match offset {
                        Some(0) => Some(8),
                        // A later fragment names the protocol but carries neither ports nor further extension headers.
                        Some(_) => return (rest.first().copied().filter(|&n| !Self::is_extension(n)), None),
                        None => None,
                    }
                }
                _ => return (Some(next), Some(rest)),
            };
            let Some((following, tail)) = len.and_then(|len| rest.first().copied().zip(rest.get(len..))) else {
                return (None, None);
            };
            next = following;
            rest = tail;
        }
    }

    const fn is_extension(next: u8) -> bool {
        matches!(next, protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION | protocol::FRAGMENT)
    }

    fn ports(protocol: u8, payload: &[u8]) -> Option<(u16, u16)> {
        match protocol {
            protocol::TCP | protocol::UDP => be16(payload, 0).zip(be16(payload, 2)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
