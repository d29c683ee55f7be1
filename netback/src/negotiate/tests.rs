use super::*;
use XenbusState::Connected;
use std::collections::BTreeMap;

/// A store that is a map, counting round trips.
#[derive(Default)]
struct Tree(BTreeMap<String, String>, usize);

impl Store for Tree {
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        self.1 += 1;
        Ok(paths.iter().map(|path| self.0.get(path).cloned()).collect())
    }
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        self.1 += 1;
        let children = |path: &String| {
            let inside = self.0.keys().filter_map(|key| key.strip_prefix(path)?.strip_prefix('/'));
            let mut names: Vec<String> = inside.map(|rest| rest.split('/').next().unwrap().to_string()).collect();
            names.dedup();
            names
        };
        Ok(paths.iter().map(children).collect())
    }
    fn write(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError> {
        self.0.extend(nodes.iter().cloned());
        Ok(())
    }
    fn watch(&mut self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }
    fn unwatch(&mut self, _: &str) {}
}

fn tree(vifs: &[(u16, u16)], front: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::default();
    for (f, i) in vifs {
        let (back, side) =
            (format!("/local/domain/2/backend/vif/{f}/{i}"), format!("/local/domain/{f}/device/vif/{i}"));
        for (node, value) in [("frontend", side.as_str()), ("mac", "02:00:00:00:00:07"), ("state", "4")] {
            tree.0.insert(format!("{back}/{node}"), value.into());
        }
        for (node, value) in front {
            tree.0.insert(format!("{side}/{node}"), (*value).into());
        }
    }
    tree
}

const LINUX: [(&str, &str); 8] = [
    ("state", "4"),
    ("tx-ring-ref", "768"),
    ("rx-ring-ref", "769"),
    ("event-channel-tx", "11"),
    ("event-channel-rx", "12"),
    ("request-rx-copy", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
];

#[test]
fn all_vifs_are_found_in_four_round_trips() {
    let mut tree = tree(&[(3, 0), (3, 1), (12, 0)], &LINUX);
    let vifs = Nodes::discover(&mut tree, DomId(2)).unwrap();
    assert_eq!(tree.1, 4);
    assert_eq!(vifs.len(), 3);
    let vif = vifs.iter().find(|vif| vif.place.device == 1).unwrap();
    assert_eq!((vif.place.frontend, vif.back_state, vif.front_state), (DomId(3), Connected, Connected));
    assert_eq!(vif.nodes.mac, Some([2, 0, 0, 0, 0, 7]));
    let keys = vif.nodes.keys.unwrap();
    assert_eq!((keys.tx_ring, keys.rx_ring), (GrantRef(768), GrantRef(769)));
    assert_eq!((keys.tx_port, keys.rx_port), (EvtchnPort(11), EvtchnPort(12)));
    let features = Features { sg: true, gso_v4: true, blank_v4: true, ..Features::default() };
    assert_eq!(keys.features, features);
}

#[test]
fn one_event_channel_serves_both_rings() {
    let mut nodes: Vec<_> = LINUX.into_iter().filter(|(node, _)| !node.starts_with("event")).collect();
    nodes.push(("event-channel", "9"));
    let keys = Nodes::discover(&mut tree(&[(3, 0)], &nodes), DomId(2)).unwrap()[0].nodes.keys.unwrap();
    assert_eq!((keys.tx_port, keys.rx_port), (EvtchnPort(9), EvtchnPort(9)));
}

#[test]
fn a_bad_node_is_named() {
    for (name, bad) in [("tx-ring-ref", "x"), ("event-channel-tx", "4096"), ("request-rx-copy", "0")] {
        let nodes: Vec<_> = LINUX.into_iter().map(|(n, v)| (n, if n == name { bad } else { v })).collect();
        let vifs = Nodes::discover(&mut tree(&[(3, 0)], &nodes), DomId(2)).unwrap();
        assert_eq!(vifs[0].nodes.keys, Err(BadKey(name)));
    }
    assert_eq!(parse_mac("01:00:00:00:00:07"), None, "a group address");
    assert_eq!(parse_mac("02:00:00:00:00:07:08"), None);
}
