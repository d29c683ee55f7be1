//! The virtual switch: one uplink, up to 31 vifs, each with its firewall.
//!
//! A vif speaks only for the address that xenstore assigns to it ([`Switch::set_extra`] lets one with a bridge of its own speak for a
//! few more, learned). So nobody takes over another's address, and a unicast frame goes to exactly one port: to the vif that
//! owns the address, else to the uplink; from the uplink to a vif or nowhere. Only group addresses are flooded, at a rate that each
//! port's bucket allows. What is learned of the uplink only keeps vifs from claiming its addresses.

use crate::firewall::{Direction, Firewall, RuleError};
use crate::nic::{MacAddr, is_group};
use crate::ports::{Fabric, PortId, PortSet};
use alloc::vec::Vec;

/// Frames per second and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// After a silence.
    pub burst: u32,
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// How long a learned address lives without a frame from it, in microseconds.
    pub age_us: u64,
    /// Group frames that each vif may send.
    pub vif_flood: Rate,
    /// Group frames taken from the uplink.
    pub uplink_flood: Rate,
}

impl Default for SwitchConfig {
    /// 300 s as 802.1D, 7.9.2; enough groups for a booting guest, too few to keep the others busy.
    fn default() -> Self {
        Self {
            age_us: 300_000_000,
            vif_flood: Rate { per_second: 500, burst: 250 },
            uplink_flood: Rate { per_second: 5_000, burst: 1_000 },
        }
    }
}

/// Frames of one port by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Sent on to one port or several.
    pub forwarded: u64,
    /// Source address that the port may not use, or no address at all.
    pub spoofed: u64,
    /// Group frames above the rate.
    pub flood_limited: u64,
    /// Nobody there: unknown destination from the uplink, or its own.
    pub unknown: u64,
    /// Refused by rules on the way out of or into a vif.
    pub filtered: u64,
}

/// A token bucket in units of microseconds times the rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    tokens: u64,
    at_us: u64,
}

impl Bucket {
    const UNIT: u64 = 1_000_000;

    const fn new(rate: Rate) -> Self {
        Self { rate, tokens: (rate.burst as u64).saturating_mul(Self::UNIT), at_us: 0 }
    }

    fn take(&mut self, now_us: u64) -> bool {
        let full = u64::from(self.rate.burst).saturating_mul(Self::UNIT);
        let new = now_us.saturating_sub(self.at_us).saturating_mul(u64::from(self.rate.per_second));
        self.tokens = self.tokens.saturating_add(new).min(full);
        self.at_us = self.at_us.max(now_us);
        match self.tokens.checked_sub(Self::UNIT) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

const SETS: usize = 64;
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Learned {
    mac: MacAddr,
    port: PortId,
    seen_us: u64,
}

/// Learned addresses: 64 sets of 4, so a lookup is short and a flood of addresses evicts only its own kind by chance.
#[derive(Clone, Debug)]
struct Table {
    sets: Vec<[Option<Learned>; WAYS]>,
    age_us: u64,
}

impl Table {
    fn set(mac: &MacAddr) -> usize {
        // FNV-1a; nothing depends on its quality but the spread.
        let hash = mac.iter().fold(0x811c_9dc5u32, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        (hash ^ hash >> 16) as usize & (SETS - 1)
    }

    fn find(&self, mac: &MacAddr, now_us: u64) -> Option<PortId> {
        let fresh = |e: &&Learned| e.mac == *mac && now_us.saturating_sub(e.seen_us) < self.age_us;
        self.sets.get(Self::set(mac))?.iter().flatten().find(fresh).map(|e| e.port)
    }

    /// Notes that `mac` is at `port`, in its own place, an empty, an old, or the oldest that `may_evict` gives up.
    fn note(&mut self, mac: &MacAddr, port: PortId, now_us: u64, may_evict: impl Fn(PortId) -> bool) -> bool {
        let age_us = self.age_us;
        let Some(set) = self.sets.get_mut(Self::set(mac)) else { return false };
        let rank = |entry: &Option<Learned>| match entry {
            Some(e) if e.mac == *mac => Some((0, 0)),
            None => Some((1, 0)),
            Some(e) if now_us.saturating_sub(e.seen_us) >= age_us => Some((2, 0)),
            Some(e) if may_evict(e.port) => Some((3, e.seen_us)),
            Some(_) => None,
        };
        let place = set.iter_mut().filter_map(|e| rank(e).map(|r| (r, e))).min_by_key(|(r, _)| *r);
        match place {
            Some((_, entry)) => {
                *entry = Some(Learned { mac: *mac, port, seen_us: now_us });
                true
            }
            None => false,
        }
    }

    fn count(&self, port: PortId, now_us: u64) -> usize {
        let live = |e: &&Learned| e.port == port && now_us.saturating_sub(e.seen_us) < self.age_us;
        self.sets.iter().flatten().flatten().filter(live).count()
    }

    fn forget(&mut self, gone: impl Fn(&Learned) -> bool) {
        for entry in self.sets.iter_mut().flatten() {
            if entry.as_ref().is_some_and(&gone) {
                *entry = None;
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Port {
    /// The assigned address; `None` while not attached.
    mac: Option<MacAddr>,
    extra: u8,
    flood: Bucket,
    /// Its own rules; `None` = the switch's default.
    rules: Option<Firewall>,
    stats: PortStats,
}

/// Why a frame was dropped.
enum Drop {
    Spoofed,
    FloodLimit,
    Unknown,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Switch {
    ports: Vec<Port>,
    attached: PortSet,
    table: Table,
    default_rules: Firewall,
}

impl Switch {
    /// With an uplink whose device has the address `uplink`; vifs get `default_rules` unless they have their own.
    #[must_use]
    pub fn new(uplink: MacAddr, config: SwitchConfig, default_rules: Firewall) -> Self {
        let port = |i: usize| {
            let (mac, rate) = if i == 0 { (Some(uplink), config.uplink_flood) } else { (None, config.vif_flood) };
            Port { mac, extra: 0, flood: Bucket::new(rate), rules: None, stats: PortStats::default() }
        };
        Self {
            ports: (0..PortId::MAX).map(port).collect(),
            attached: PortSet::one(PortId::UPLINK),
            table: Table { sets: alloc::vec![[None; WAYS]; SETS], age_us: config.age_us },
            default_rules,
        }
    }

    /// Lets a vif speak for up to `count` addresses besides its own, as they are learned.
    pub fn set_extra(&mut self, port: PortId, count: u8) {
        if let Some(p) = self.port_mut(port) {
            p.extra = count;
        }
    }

    /// Counters of a port.
    #[must_use]
    pub fn stats(&self, port: PortId) -> PortStats {
        self.ports.get(port.index()).map_or_else(PortStats::default, |p| p.stats)
    }

    fn port_mut(&mut self, port: PortId) -> Option<&mut Port> {
        self.ports.get_mut(port.index())
    }

    /// The attached port that `mac` is assigned to.
    fn assigned(&self, mac: &MacAddr) -> Option<PortId> {
        self.attached.iter().find(|p| self.ports.get(p.index()).is_some_and(|port| port.mac == Some(*mac)))
    }

    /// Whether `from` may speak as `source`; learns it.
    fn admit(&mut self, from: PortId, source: &MacAddr, now_us: u64) -> bool {
        if is_group(source) || *source == [0; 6] {
            return false;
        }
        if let Some(owner) = self.assigned(source) {
            // Also a frame of a vif that comes back over the uplink.
            return owner == from && from != PortId::UPLINK;
        }
        match self.table.find(source, now_us) {
            Some(at) if at != from => return false,
            // Fewer than its share are a vif's; those of the uplink have no limit but the table's.
            None if from != PortId::UPLINK => {
                let extra = self.ports.get(from.index()).map_or(0, |p| usize::from(p.extra));
                if self.table.count(from, now_us) >= extra {
                    return false;
                }
            }
            _ => {}
        }
        let noted = self.table.note(source, from, now_us, |at| at == from || at == PortId::UPLINK);
        noted || from == PortId::UPLINK
    }

    fn route(&mut self, from: PortId, head: &[u8], now_us: u64) -> Result<PortSet, Drop> {
        let Some((destination, source)) = addresses(head) else { return Err(Drop::Spoofed) };
        if !self.admit(from, &source, now_us) {
            return Err(Drop::Spoofed);
        }
        if is_group(&destination) {
            // 802.1D, 7.12.6: what belongs to the link is not forwarded (pause, spanning tree, LACP).
            if matches!(destination, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f]) {
                return Err(Drop::Unknown);
            }
            let allowed = self.port_mut(from).is_some_and(|p| p.flood.take(now_us));
            return if allowed { Ok(self.attached.without(from)) } else { Err(Drop::FloodLimit) };
        }
        let to = self.assigned(&destination).or_else(|| self.table.find(&destination, now_us));
        match to.unwrap_or(PortId::UPLINK) {
            to if to == from => Err(Drop::Unknown),
            to => Ok(PortSet::one(to)),
        }
    }

    fn filter(&self, from: PortId, to: PortSet, head: &[u8]) -> PortSet {
        let permits = |port: PortId, direction| {
            let rules = self.ports.get(port.index()).and_then(|p| p.rules.as_ref()).unwrap_or(&self.default_rules);
            port == PortId::UPLINK || rules.permits(direction, head)
        };
        if !permits(from, Direction::Out) {
            return PortSet::EMPTY;
        }
        to.iter().filter(|&port| permits(port, Direction::In)).collect()
    }
}

fn addresses(head: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let (destination, rest) = head.split_first_chunk::<6>()?;
    let (source, rest) = rest.split_first_chunk::<6>()?;
    (rest.len() >= 2).then_some((*destination, *source))
}

impl Fabric for Switch {
    fn attach(&mut self, port: PortId, mac: MacAddr) {
        if port == PortId::UPLINK {
            return;
        }
        // An address that is another's already would have two owners; such a vif is not connected.
        let usable = !is_group(&mac) && mac != [0; 6] && self.assigned(&mac).is_none_or(|owner| owner == port);
        self.table.forget(|e| e.mac == mac || e.port == port);
        self.attached = if usable { self.attached.with(port) } else { self.attached.without(port) };
        if let Some(p) = self.port_mut(port) {
            p.mac = usable.then_some(mac);
        }
    }

    fn detach(&mut self, port: PortId) {
        if port == PortId::UPLINK {
            return;
        }
        self.table.forget(|e| e.port == port);
        self.attached = self.attached.without(port);
        if let Some(p) = self.port_mut(port) {
            p.mac = None;
            p.extra = 0;
            p.rules = None;
        }
    }

    fn set_rules(&mut self, port: PortId, text: Option<&str>) -> Result<(), RuleError> {
        let new = text.map(Firewall::parse).transpose();
        if let Some(p) = self.port_mut(port) {
            // Rules that cannot be read must not open what they meant to close.
            p.rules = new.clone().unwrap_or(Some(Firewall::closed()));
        }
        new.map(|_| ())
    }

    fn forward(&mut self, from: PortId, head: &[u8], _len: u32, now_us: u64) -> PortSet {
        if !self.attached.contains(from) {
            return PortSet::EMPTY;
        }
        let routed = self.route(from, head, now_us);
        let to = match routed {
            Ok(to) => self.filter(from, to, head),
            Err(_) => PortSet::EMPTY,
        };
        if let Some(p) = self.port_mut(from) {
            let counter = match routed {
                Ok(routed) if routed.is_empty() => &mut p.stats.unknown,
                Ok(_) if to.is_empty() => &mut p.stats.filtered,
                Ok(_) => &mut p.stats.forwarded,
                Err(Drop::Spoofed) => &mut p.stats.spoofed,
                Err(Drop::FloodLimit) => &mut p.stats.flood_limited,
                Err(Drop::Unknown) => &mut p.stats.unknown,
            };
            *counter = counter.saturating_add(1);
        }
        to
    }
}

#[cfg(test)]
mod tests;
