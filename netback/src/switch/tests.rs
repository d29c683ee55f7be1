use super::*;
use proptest::prelude::*;

const UPLINK: PortId = PortId::UPLINK;
const BROADCAST: MacAddr = [0xff; 6];
const NIC: MacAddr = [0x52, 0x54, 0, 0, 0, 1];

fn vif(n: usize) -> PortId {
    PortId::vif(n).unwrap()
}

fn guest(n: u8) -> MacAddr {
    [0, 0x16, 0x3e, 0, 0, n]
}

fn outside(n: u8) -> MacAddr {
    [2, 0, 0, 0, 0, n]
}

fn frame(to: MacAddr, from: MacAddr) -> Vec<u8> {
    let mut f = to.to_vec();
    f.extend(from);
    f.extend([0x88, 0xb5, 1, 2, 3]);
    f
}

/// A switch with `vifs` guests.
fn switch(vifs: u8) -> Switch {
    let mut s = Switch::new(NIC, SwitchConfig::default(), Firewall::default());
    for n in 0..vifs {
        s.attach(vif(n.into()), guest(n));
    }
    s
}

fn send(s: &mut Switch, at: PortId, to: MacAddr, from: MacAddr) -> PortSet {
    s.forward(at, &frame(to, from), 17, 0)
}

fn set(ports: &[PortId]) -> PortSet {
    ports.iter().copied().collect()
}

#[test]
fn unicast_goes_to_exactly_one_port() {
    let mut s = switch(3);
    assert_eq!(send(&mut s, vif(0), guest(1), guest(0)), set(&[vif(1)]));
    assert_eq!(send(&mut s, vif(0), outside(9), guest(0)), set(&[UPLINK]));
    assert_eq!(send(&mut s, UPLINK, guest(2), outside(9)), set(&[vif(2)]));
    assert_eq!(send(&mut s, UPLINK, guest(7), outside(9)), PortSet::EMPTY, "nobody's: not flooded");
    assert_eq!(send(&mut s, UPLINK, outside(8), outside(9)), PortSet::EMPTY, "hairpin");
    assert_eq!(send(&mut s, vif(0), guest(0), guest(0)), PortSet::EMPTY);
    assert_eq!(send(&mut s, vif(0), NIC, guest(0)), set(&[UPLINK]));
    assert_eq!((s.stats(vif(0)).forwarded, s.stats(vif(0)).unknown, s.stats(UPLINK).unknown), (3, 1, 2));
}

#[test]
fn groups_are_flooded_but_not_back_and_not_the_links_own() {
    let mut s = switch(2);
    assert_eq!(send(&mut s, vif(0), BROADCAST, guest(0)), set(&[UPLINK, vif(1)]));
    assert_eq!(send(&mut s, UPLINK, [0x33, 0x33, 0, 0, 0, 1], outside(1)), set(&[vif(0), vif(1)]));
    assert_eq!(send(&mut s, vif(0), [0x01, 0x80, 0xc2, 0, 0, 0x0e], guest(0)), PortSet::EMPTY);
    assert_eq!(send(&mut s, vif(0), [0x01, 0x80, 0xc2, 0, 0, 0x10], guest(0)).len(), 2);
}

#[test]
fn a_vif_speaks_only_for_itself() {
    let mut s = switch(2);
    send(&mut s, UPLINK, guest(0), outside(9));
    for source in [guest(1), NIC, outside(9), outside(10), [0; 6], BROADCAST] {
        assert_eq!(send(&mut s, vif(0), BROADCAST, source), PortSet::EMPTY, "{source:x?}");
    }
    assert_eq!(s.stats(vif(0)).spoofed, 6);
    // And the wire does not speak for a vif or the NIC.
    assert_eq!(send(&mut s, UPLINK, guest(0), guest(1)), PortSet::EMPTY);
    assert_eq!(send(&mut s, UPLINK, guest(0), NIC), PortSet::EMPTY);
    // Traffic to the victims goes where it went.
    assert_eq!(send(&mut s, UPLINK, guest(1), outside(9)), set(&[vif(1)]));
}

#[test]
fn two_vifs_with_one_address_are_not_both_connected() {
    let mut s = switch(1);
    s.attach(vif(1), guest(0));
    s.attach(vif(2), NIC);
    s.attach(vif(3), BROADCAST);
    assert_eq!(send(&mut s, UPLINK, guest(0), outside(9)), set(&[vif(0)]));
    for n in 1..4 {
        assert_eq!(send(&mut s, vif(n), BROADCAST, guest(0)), PortSet::EMPTY);
    }
    assert_eq!(send(&mut s, UPLINK, BROADCAST, outside(9)), set(&[vif(0)]));
    // Attaching anew, as after a reconnect, is no conflict with itself.
    s.attach(vif(0), guest(0));
    assert_eq!(send(&mut s, UPLINK, guest(0), outside(9)), set(&[vif(0)]));
}

#[test]
fn detached_ports_are_silent() {
    let mut s = switch(2);
    s.detach(vif(0));
    s.detach(UPLINK);
    assert_eq!(send(&mut s, vif(0), BROADCAST, guest(0)), PortSet::EMPTY);
    assert_eq!(send(&mut s, vif(1), guest(0), guest(1)), set(&[UPLINK]));
    assert_eq!(send(&mut s, vif(1), BROADCAST, guest(1)), set(&[UPLINK]));
}

#[test]
fn a_trusted_vif_learns_a_few_more_and_they_age() {
    let mut s = switch(2);
    s.set_extra(vif(0), 2);
    let inner = |n| [6, 0, 0, 0, 0, n];
    let at = |s: &mut Switch, port, to, from, now| s.forward(port, &frame(to, from), 17, now);
    assert_eq!(at(&mut s, vif(0), outside(1), inner(1), 0).len(), 1);
    assert_eq!(at(&mut s, vif(0), outside(1), inner(2), 0).len(), 1);
    assert_eq!(at(&mut s, vif(0), outside(1), inner(3), 0).len(), 0, "two and no more");
    assert_eq!(at(&mut s, UPLINK, inner(1), outside(1), 0), set(&[vif(0)]));
    assert_eq!(at(&mut s, UPLINK, inner(3), outside(1), 0), PortSet::EMPTY);
    // Not what the uplink or another vif has.
    assert_eq!(at(&mut s, vif(0), inner(1), outside(1), 1), PortSet::EMPTY);
    assert_eq!(at(&mut s, vif(1), outside(1), inner(1), 1), PortSet::EMPTY);
    assert_eq!(at(&mut s, UPLINK, guest(1), inner(1), 1), PortSet::EMPTY, "the uplink does not take it over either");
    // After 300 s of silence there is room again.
    let later = SwitchConfig::default().age_us;
    assert_eq!(at(&mut s, UPLINK, inner(1), outside(1), later), PortSet::EMPTY);
    assert_eq!(at(&mut s, vif(0), outside(1), inner(3), later).len(), 1);
}

#[test]
fn floods_are_limited_per_port() {
    let mut s = switch(3);
    let Rate { per_second, burst } = SwitchConfig::default().vif_flood;
    let flood = |s: &mut Switch, port: PortId, from, now, count: u32| {
        (0..count).filter(|_| !s.forward(port, &frame(BROADCAST, from), 17, now).is_empty()).count() as u32
    };
    assert_eq!(flood(&mut s, vif(0), guest(0), 0, 1000), burst);
    assert_eq!(flood(&mut s, vif(1), guest(1), 0, 1000), burst, "its own bucket");
    assert_eq!(flood(&mut s, vif(0), guest(0), 100_000, 1000), per_second / 10);
    assert_eq!(flood(&mut s, vif(0), guest(0), 100_000, 1000), 0, "time stands");
    assert_eq!(flood(&mut s, vif(0), guest(0), u64::MAX, 1000), burst);
    assert_eq!(send(&mut s, vif(0), guest(1), guest(0)), set(&[vif(1)]), "unicast is not limited");
    assert!(s.stats(vif(0)).flood_limited > 0);
}

#[test]
fn rules_hold_in_both_directions() {
    let mut s = Switch::new(NIC, SwitchConfig::default(), Firewall::parse("default deny").unwrap());
    s.attach(vif(0), guest(0));
    s.set_rules(vif(1), Some("")).unwrap();
    s.attach(vif(1), guest(1));
    assert_eq!(send(&mut s, UPLINK, BROADCAST, outside(1)), set(&[vif(1)]));
    assert_eq!(send(&mut s, vif(0), outside(1), guest(0)), PortSet::EMPTY);
    assert_eq!(s.stats(vif(0)).filtered, 1);
    assert_eq!(send(&mut s, vif(1), outside(1), guest(1)), set(&[UPLINK]));
    assert!(s.set_rules(vif(1), Some("allow everything")).is_err());
    assert_eq!(send(&mut s, vif(1), outside(1), guest(1)), PortSet::EMPTY, "unreadable rules close");
    s.set_rules(vif(1), None).unwrap();
    assert_eq!(send(&mut s, vif(1), outside(1), guest(1)), PortSet::EMPTY, "the default again");
}

fn any_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![(0u8..5).prop_map(guest), (0u8..40).prop_map(outside), Just(NIC), Just(BROADCAST), any::<MacAddr>(),]
}

proptest! {
    /// Whatever is sent, in whatever order, with ports coming and going.
    #[test]
    fn the_switch_keeps_its_promises(
        steps in proptest::collection::vec((0u8..20, 0usize..5, any_mac(), any_mac(), 0u64..100_000_000), 1..400),
        extra in 0u8..3,
    ) {
        let mut s = switch(4);
        s.set_extra(vif(3), extra);
        let mut attached = [true, true, true, true, true];
        let mut now = 0;
        for (op, port, to, from, pass) in steps {
            now += pass;
            match (op, port) {
                (0, 1..) => { s.detach(vif(port - 1)); attached[port] = false; }
                (1, 1..) => { s.attach(vif(port - 1), guest(port as u8 - 1)); attached[port] = true; }
                _ => {
                    let at = if port == 0 { UPLINK } else { vif(port - 1) };
                    let out = s.forward(at, &frame(to, from), 17, now);
                    prop_assert!(!out.contains(at), "back to where it came from");
                    prop_assert!(out.iter().all(|p| attached[p.index()]), "to a port that is not there");
                    if !is_group(&to) {
                        prop_assert!(out.len() <= 1, "unicast to one port");
                        // What belongs to an attached guest reaches nobody else.
                        let owner = (0..4).find(|&n| attached[usize::from(n) + 1] && guest(n) == to);
                        if let Some(n) = owner {
                            prop_assert!(out.without(vif(n.into())).is_empty(), "leaked");
                        }
                    }
                    if port > 0 && !out.is_empty() {
                        let own = guest(port as u8 - 1);
                        prop_assert!(from == own || port == 4 && extra > 0, "spoofed");
                        prop_assert!(from != NIC && !is_group(&from));
                        prop_assert!((0..4).all(|n| from != guest(n) || from == own || !attached[usize::from(n) + 1]));
                    }
                }
            }
        }
    }

    #[test]
    fn short_frames_go_nowhere(len in 0usize..14) {
        let mut s = switch(1);
        prop_assert!(s.forward(vif(0), &frame(BROADCAST, guest(0))[..len], len as u32, 0).is_empty());
    }
}
