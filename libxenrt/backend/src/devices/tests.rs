use super::*;
use abi::Errno;
use abi::io::xenbus::XenbusState;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const ME: DomId = DomId(7);

/// A store that is a map; it refuses everything while `broken`.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<String, String>,
    watches: BTreeSet<String>,
    broken: bool,
}

impl Tree {
    fn with(devices: &[(u16, u16)]) -> Self {
        let mut tree = Self::default();
        for &(frontend, device) in devices {
            tree.add(frontend, device);
        }
        tree
    }
    fn add(&mut self, frontend: u16, device: u16) {
        let place = place(frontend, device);
        self.nodes.insert(format!("{}/frontend", place.back), place.front);
    }
    fn remove(&mut self, frontend: u16, device: u16) {
        self.nodes.remove(&format!("{}/frontend", place(frontend, device).back));
    }
    fn answer<T>(&self, value: T) -> Result<T, StoreError> {
        if self.broken { Err(StoreError::Refused(Errno::EIO)) } else { Ok(value) }
    }
    fn watches(&self) -> Vec<&str> {
        self.watches.iter().map(String::as_str).collect()
    }
}

impl Store for Tree {
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        self.answer(paths.iter().map(|path| self.nodes.get(path).cloned()).collect())
    }
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        let children = |path: &String| -> Vec<String> {
            let inside = self.nodes.keys().filter_map(|key| key.strip_prefix(path)?.strip_prefix('/'));
            let names: BTreeSet<&str> = inside.filter_map(|rest| rest.split('/').next()).collect();
            names.into_iter().map(String::from).collect()
        };
        self.answer(paths.iter().map(children).collect())
    }
    fn write(&mut self, _: &[(String, String)]) -> Result<(), StoreError> {
        self.answer(())
    }
    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.answer(())?;
        assert!(self.watches.insert(path.into()), "{path} is watched already");
        Ok(())
    }
    fn unwatch(&mut self, path: &str) {
        self.watches.remove(path);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Nodes;

type Said = Directory<Nodes>;

impl Kind for Nodes {
    const NAME: &'static str = "tap";
    const OTHERS: &'static [&'static str] = &["mode"];
    fn discover<S: Store>(store: &mut S, me: DomId) -> Result<Vec<Said>, StoreError> {
        xenbus::discover(store, me, [], [], |[], []| Self)
    }
}

#[derive(Debug)]
struct Tap(Place);

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tap{}.{}", self.0.frontend, self.0.device)
    }
}

impl Device for Tap {
    type Kind = Nodes;
    const MAX: usize = 3;

    fn new(directory: &Said) -> Self {
        Self(directory.place.clone())
    }
    fn place(&self) -> &Place {
        &self.0
    }
}

fn place(frontend: u16, device: u16) -> Place {
    Place::usual(ME, Nodes::NAME, DomId(frontend), device)
}

fn said(devices: &[(u16, u16)]) -> Vec<Said> {
    let (back_state, front_state) = (XenbusState::Unknown, XenbusState::Unknown);
    let said = |&(f, d): &(u16, u16)| Directory { place: place(f, d), back_state, front_state, nodes: Nodes };
    devices.iter().map(said).collect()
}

fn names(devices: &Devices<Tap>) -> Vec<(usize, String)> {
    devices.enumerate().map(|(slot, device)| (slot, device.to_string())).collect()
}

const ROOT: &str = "/local/domain/7/backend/tap";
const ONE: &str = "/local/domain/1/device/tap/0/state";
const TWO: &str = "/local/domain/2/device/tap/0/state";

#[test]
fn a_start_without_a_cache_asks_the_store_and_watches() {
    let mut tree = Tree::with(&[(1, 0), (2, 0)]);
    let (mut devices, directories) = Devices::<Tap>::find(&mut tree, ME, None).unwrap();
    assert_eq!(directories, said(&[(1, 0), (2, 0)]));
    assert_eq!(names(&devices), [(0, "tap1.0".into()), (1, "tap2.0".into())]);
    assert_eq!(tree.watches(), [ROOT], "a device that comes from here on is not missed");
    assert_eq!(devices.reattached(&mut tree, &directories, 100), Ok(true), "they are to be followed now");
    assert_eq!(tree.watches(), [ONE, TWO, ROOT]);
    assert_eq!(devices.due_us(100), None);
    tree.broken = true;
    assert!(Devices::<Tap>::find(&mut tree, ME, None).is_err());
}

#[test]
fn a_start_from_the_cache_leaves_the_store_alone_until_the_first_look() {
    let mut tree = Tree { broken: true, ..Tree::with(&[(1, 0), (2, 0)]) };
    let (mut devices, directories) = Devices::<Tap>::find(&mut tree, ME, Some(said(&[(2, 0)]))).unwrap();
    assert_eq!(devices.reattached(&mut tree, &directories, 100), Ok(false));
    let verify_us = 100 + VERIFY_DELAY_US;
    assert_eq!(devices.due_us(100), Some(verify_us));
    assert!(!devices.due(false, verify_us - 1) && devices.due(false, verify_us));

    assert!(devices.look(&mut tree).is_none(), "it does not answer");
    assert_eq!(devices.due_us(verify_us), None, "when to look again is the caller's");
    tree.broken = false;
    assert_eq!(devices.look(&mut tree), Some(said(&[(1, 0), (2, 0)])));
    assert_eq!(tree.watches(), [TWO, ROOT], "of what is known");
    assert_eq!(devices.look(&mut tree), Some(said(&[(1, 0), (2, 0)])), "watches are set once");
    assert_eq!(devices.slot_of(&mut tree, &said(&[(1, 0)])[0]), Some(1));
    assert_eq!(tree.watches(), [ONE, TWO, ROOT]);
}

#[test]
fn work_puts_a_look_off_but_not_for_ever() {
    let mut devices = Devices::<Tap>::find(&mut Tree::default(), ME, None).unwrap().0;
    assert!(!devices.due(false, u64::MAX), "nothing has changed");
    devices.changed(ROOT, 1000);
    assert!(devices.due(false, 1000));
    assert!(!devices.due(true, 1000 + LOOK_DELAY_US - 1) && devices.due(true, 1000 + LOOK_DELAY_US));
    devices.changed(ROOT, 2000);
    assert_eq!(devices.due_us(0), Some(1000), "a later change does not put it off");
    assert_eq!(devices.due_us(3000), Some(3000));
    devices.look_at(500);
    assert_eq!(devices.due_us(0), Some(500), "an earlier one brings it forward");
}

#[test]
fn only_what_others_change_asks_for_a_look() {
    let mut devices = Devices::<Tap>::find(&mut Tree::with(&[(1, 0)]), ME, None).unwrap().0;
    let Place { back, front, .. } = place(1, 0);
    for (path, wanted) in [
        (back.clone(), true),
        (format!("{back}/mode"), true),
        (format!("{back}/state"), false),
        (format!("{front}/state"), true),
        ("/local/domain/2/device/tap/0/state".into(), false),
    ] {
        devices.changed(&path, 9);
        assert_eq!(devices.look_us.take().is_some(), wanted, "{path}");
    }
}

#[test]
fn a_device_that_goes_leaves_its_slot_to_the_next() {
    let mut tree = Tree::with(&[(1, 0), (2, 0)]);
    let (mut devices, directories) = Devices::<Tap>::find(&mut tree, ME, None).unwrap();
    devices.reattached(&mut tree, &directories, 0).unwrap();
    tree.remove(1, 0);
    tree.add(3, 0);
    let now = devices.look(&mut tree).unwrap();
    assert_eq!(devices.gone(&now), [0]);
    devices.remove(&mut tree, 0);
    assert_eq!(tree.watches(), [TWO, ROOT]);
    assert_eq!((devices.slots(), devices.get(0).is_none(), devices.get_mut(1).is_some()), (2, true, true));
    let slots: Vec<_> = now.iter().map(|directory| devices.slot_of(&mut tree, directory)).collect();
    assert_eq!(slots, [Some(1), Some(0)], "who is known keeps its slot");
    assert_eq!(names(&devices), [(0, "tap3.0".into()), (1, "tap2.0".into())]);
}

#[test]
fn a_device_made_again_before_its_slot_is_free_is_still_watched() {
    let mut tree = Tree::with(&[(1, 0)]);
    let (mut devices, directories) = Devices::<Tap>::find(&mut tree, ME, None).unwrap();
    devices.reattached(&mut tree, &directories, 0).unwrap();
    tree.remove(1, 0);
    let now = devices.look(&mut tree).unwrap();
    assert_eq!(devices.gone(&now), [0], "but the backend keeps it: its drive is not done with it");
    tree.add(1, 0);
    let now = devices.look(&mut tree).unwrap();
    assert_eq!(devices.slot_of(&mut tree, &now[0]), Some(0));
    assert_eq!(tree.watches(), [ONE, ROOT]);
}

#[test]
fn no_more_than_there_is_room_for_and_none_unwatched() {
    let all = [(1, 0), (1, 1), (1, 2), (1, 3)];
    let mut tree = Tree::with(&all);
    let (mut devices, directories) = Devices::<Tap>::find(&mut tree, ME, None).unwrap();
    assert_eq!((directories.len(), devices.slots()), (4, Tap::MAX));
    assert_eq!(devices.slot_of(&mut tree, &directories[3]), None, "there is no room");
    devices.remove(&mut tree, 1);
    tree.broken = true;
    assert_eq!(devices.slot_of(&mut tree, &directories[3]), None, "nobody would tell of its state");
    assert_eq!(devices.slot_of(&mut tree, &directories[2]), Some(2), "who is known needs no watch");
    tree.broken = false;
    assert_eq!(devices.slot_of(&mut tree, &directories[3]), Some(1));
    assert_eq!((devices.iter().count(), devices.iter_mut().count(), devices.enumerate_mut().count()), (3, 3, 3));
}
