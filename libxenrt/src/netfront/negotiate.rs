//! The xenstore half of netfront: which state to write when (a pure function), what the backend offers, and what Linux' netfront
//! writes about itself (`public/io/netif.h`, "Feature negotiation").

use crate::store::{Store, StoreError, Transaction};
use abi::io::xenbus::XenbusState;
use alloc::format;
use alloc::string::String;

/// What to do next, see [`next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write our state.
    Write(XenbusState),
    /// Make rings, tell the backend of them and write Connected.
    Negotiate,
    /// The link is up.
    Established,
    /// The backend has left: give up the link and write Closing.
    Lose,
    /// Nothing until the backend's state changes.
    Wait,
}

/// The step from our own state and the backend's. `linked`: this instance has made the rings; `established`: the backend has
/// been seen Connected with them.
pub const fn next(own: XenbusState, linked: bool, established: bool, backend: XenbusState) -> Action {
    use XenbusState as S;
    match (own, linked) {
        (S::Connected, true) => match backend {
            S::Connected => Action::Established,
            S::Closing | S::Closed => Action::Lose,
            S::InitWait if established => Action::Lose,
            _ => Action::Wait,
        },
        // Left over from an earlier instance of this domain: its rings are gone.
        (S::Connected | S::Initialised, false) => Action::Write(S::Closing),
        (S::Closing, _) => match backend {
            S::Connected => Action::Wait,
            _ => Action::Write(S::Closed),
        },
        (S::Closed, _) => match backend {
            S::Closed | S::InitWait | S::Unknown | S::Initialising => Action::Write(S::Initialising),
            _ => Action::Wait,
        },
        (S::Initialising, _) => match backend {
            S::InitWait => Action::Negotiate,
            // It serves rings of an earlier instance, or is on its way out: make it close first.
            S::Connected | S::Closing => Action::Write(S::Closing),
            _ => Action::Wait,
        },
        _ => Action::Write(S::Initialising),
    }
}

/// Where the device and its backend are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `device/vif/I`, relative to this domain.
    pub front: String,
    /// Absolute.
    pub back: String,
}

/// What the backend offers to take from us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// More than one slot per frame.
    pub scatter_gather: bool,
    /// Blank checksums, IPv4.
    pub checksum_v4: bool,
    /// Blank checksums, IPv6.
    pub checksum_v6: bool,
    /// TCP segmentation, IPv4.
    pub gso_v4: bool,
    /// TCP segmentation, IPv6.
    pub gso_v6: bool,
}

impl Offers {
    /// Whether this has everything `promised` has.
    pub const fn covers(&self, promised: &Self) -> bool {
        (self.scatter_gather || !promised.scatter_gather)
            && (self.gso_v4 || !promised.gso_v4)
            && (self.gso_v6 || !promised.gso_v6)
    }

    /// Reads the backend's directory.
    ///
    /// # Errors
    /// The store's.
    pub fn read(store: &mut Store, paths: &Paths) -> Result<Self, StoreError> {
        let mut flag = |name: &str| {
            let value: Option<u32> = store.read_number(Transaction::NONE, &format!("{}/{name}", paths.back))?;
            Ok::<bool, StoreError>(value == Some(1))
        };
        let scatter_gather = flag("feature-sg")?;
        // The IPv4 offload is on unless refused; segmentation needs it, and slots for the segments.
        let checksum_v4 = !flag("feature-no-csum-offload")?;
        let checksum_v6 = flag("feature-ipv6-csum-offload")?;
        Ok(Self {
            scatter_gather,
            checksum_v4,
            checksum_v6,
            gso_v4: flag("feature-gso-tcpv4")? && scatter_gather && checksum_v4,
            gso_v6: flag("feature-gso-tcpv6")? && scatter_gather && checksum_v6,
        })
    }
}

/// What we tell the backend.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Grant of the TX ring.
    pub tx: abi::GrantRef,
    /// Grant of the RX ring.
    pub rx: abi::GrantRef,
    /// Our port.
    pub port: abi::EvtchnPort,
}

/// Writes rings and features in one transaction. The state follows apart, as with Linux.
///
/// # Errors
/// The store's.
pub fn publish(store: &mut Store, paths: &Paths, rings: Rings) -> Result<(), StoreError> {
    let nodes = [
        ("tx-ring-ref", rings.tx.0),
        ("rx-ring-ref", rings.rx.0),
        ("event-channel", rings.port.0),
        ("request-rx-copy", 1),
        ("feature-rx-notify", 1),
        ("feature-sg", 1),
        ("feature-gso-tcpv4", 1),
        ("feature-gso-tcpv6", 1),
        ("feature-ipv6-csum-offload", 1),
    ];
    store.transaction(|store, tx| {
        for (name, value) in nodes {
            store.write(tx, &format!("{}/{name}", paths.front), &format!("{value}"))?;
        }
        Ok(())
    })
}

/// Reads a state node; a missing one is `Unknown`.
///
/// # Errors
/// The store's.
pub fn state(store: &mut Store, directory: &str) -> Result<XenbusState, StoreError> {
    let text = store.read_opt(Transaction::NONE, &format!("{directory}/state"))?;
    Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
}

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState as S;

    #[test]
    fn macs_parse_exactly() {
        assert_eq!(parse_mac("00:16:3e:00:0a:fF"), Some([0, 0x16, 0x3e, 0, 0x0a, 0xff]));
        for bad in ["", "00:16:3e:00:0a", "00:16:3e:00:0a:ff:01", "0:16:3e:00:0a:ff", "00:16:3e:00:0a:+1"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    /// A backend that follows the frontend as Linux' netback does.
    fn backend(own: S, state: S) -> S {
        match (own, state) {
            (S::Initialising, S::Closed | S::Initialising) => S::InitWait,
            (S::Connected, S::InitWait) => S::Connected,
            (S::Closing, S::Connected | S::InitWait) => S::Closing,
            (S::Closed, _) => S::Closed,
            (_, state) => state,
        }
    }

    #[test]
    fn every_pair_of_states_ends_connected() {
        let all = [S::Unknown, S::Initialising, S::InitWait, S::Initialised, S::Connected, S::Closing, S::Closed];
        for own in all {
            for there in all {
                let (mut own, mut there, mut linked) = (own, there, false);
                let ended = (0..20).any(|_| {
                    match next(own, linked, false, there) {
                        Action::Write(state) => own = state,
                        Action::Negotiate => (own, linked) = (S::Connected, true),
                        Action::Lose => (own, linked) = (S::Closing, false),
                        Action::Established => return true,
                        Action::Wait => {}
                    }
                    there = backend(own, there);
                    false
                });
                // A backend that is itself only starting writes InitWait in time; nothing here makes it do so.
                let starting = matches!(there, S::Unknown | S::Initialised);
                assert!(ended || starting, "{own:?} {there:?}");
            }
        }
    }

    #[test]
    fn a_restarted_backend_that_keeps_connected_changes_nothing() {
        assert_eq!(next(S::Connected, true, true, S::Connected), Action::Established);
        assert_eq!(next(S::Connected, true, true, S::Closing), Action::Lose);
        assert_eq!(next(S::Connected, true, true, S::InitWait), Action::Lose);
        assert_eq!(next(S::Connected, true, false, S::InitWait), Action::Wait);
    }
}
