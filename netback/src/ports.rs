//! Ports of the virtual switch, and what the backend asks of it.

use crate::firewall::RuleError;
use crate::nic::MacAddr;

/// A port: the NIC or a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(u8);

impl PortId {
    /// The NIC.
    pub const UPLINK: Self = Self(0);
    /// Ports there can be, the uplink included.
    pub const MAX: usize = 32;

    /// The port of the vif in slot `slot` of the backend; `None` past the last.
    #[must_use]
    pub const fn vif(slot: usize) -> Option<Self> {
        if slot < Self::MAX.saturating_sub(1) { Some(Self((slot as u8).wrapping_add(1))) } else { None }
    }

    /// The vif's slot; `None` for the uplink.
    #[must_use]
    pub const fn vif_slot(self) -> Option<usize> {
        match self.0.checked_sub(1) {
            Some(slot) => Some(slot as usize),
            None => None,
        }
    }

    /// A number below [`MAX`](Self::MAX), 0 for the uplink.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of ports: where a frame goes. Empty = dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSet(u32);

impl PortSet {
    /// No port.
    pub const EMPTY: Self = Self(0);

    /// One port.
    #[must_use]
    pub const fn one(port: PortId) -> Self {
        Self(1u32.wrapping_shl(port.0 as u32))
    }
    /// With `port`.
    #[must_use]
    pub const fn with(self, port: PortId) -> Self {
        Self(self.0 | Self::one(port).0)
    }
    /// Without `port`.
    #[must_use]
    pub const fn without(self, port: PortId) -> Self {
        Self(self.0 & !Self::one(port).0)
    }
    /// Is `port` in it?
    #[must_use]
    pub const fn contains(self, port: PortId) -> bool {
        self.0 & Self::one(port).0 != 0
    }
    /// No port at all?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// The ports, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        (0..PortId::MAX as u8).map(PortId).filter(move |&port| self.contains(port))
    }
}

impl FromIterator<PortId> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortId>>(ports: I) -> Self {
        ports.into_iter().fold(Self::EMPTY, Self::with)
    }
}

/// What decides where frames go: the virtual switch with its firewall.
pub trait Fabric {
    /// Bytes at the beginning of a frame that [`forward`](Self::forward) may look at: Ethernet with a VLAN tag, IPv6 with
    /// options, TCP ports.
    const HEAD: usize = 128;

    /// A vif is connected; `mac` is the address its xenstore directory assigns to it.
    fn attach(&mut self, port: PortId, mac: MacAddr);

    /// The text of the vif's `rules` node, `None` where there is none. Before [`attach`](Self::attach) and at each change.
    ///
    /// # Errors
    /// The text makes no sense; nothing passes then.
    fn set_rules(&mut self, port: PortId, text: Option<&str>) -> Result<(), RuleError> {
        let _no_firewall = (port, text);
        Ok(())
    }

    /// A vif is gone; all that was learned of it is forgotten.
    fn detach(&mut self, port: PortId);

    /// Where the frame of `len` bytes that begins with `head` (at most [`HEAD`](Self::HEAD) bytes) and came in at `from`
    /// goes. Never contains `from`, never a port that is not attached.
    fn forward(&mut self, from: PortId, head: &[u8], len: u32, now_us: u64) -> PortSet;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_ports() {
        let vif = |n| PortId::vif(n).unwrap();
        let set: PortSet = [PortId::UPLINK, vif(0), vif(30)].into_iter().collect();
        assert_eq!((set.len(), PortId::vif(31)), (3, None));
        assert_eq!(set.iter().map(PortId::vif_slot).collect::<Vec<_>>(), [None, Some(0), Some(30)]);
        assert!(!set.without(vif(30)).contains(vif(30)) && PortSet::EMPTY.is_empty());
    }
}
