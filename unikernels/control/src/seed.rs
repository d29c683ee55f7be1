//! The initial xenstore as xtask compiled it (`docs/architecture.md`): lines of `path TAB permissions TAB value`, parents first.
//!
//! It is not only read at the start. What it says of a guest is that guest's at the begin of each of its lives: a guest that is
//! created, or restarted, finds its nodes as they were at first, and so do its backends.

use crate::store::Store;
use abi::DomId;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{Path, Perms, XsError};

/// A node.
#[derive(Clone, Debug)]
struct Node<'a> {
    path: Path,
    perms: Perms,
    value: &'a str,
}

/// The text.
#[derive(Clone, Copy, Debug)]
pub struct Seeds<'a>(&'a str);

/// Reads a line.
fn node(line: &str) -> Result<Node<'_>, String> {
    let mut fields = line.splitn(3, '\t');
    let (Some(path), Some(perms), Some(value)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(String::from("expected path, permissions and value"));
    };
    let path = Path::absolute(path).map_err(|e| format!("{e}"))?;
    let perms = Perms::parse(perms.as_bytes(), b',').map_err(|e| format!("{e:?}"))?;
    Ok(Node { path, perms, value })
}

/// The directory that lives and dies with one domain, and that domain: `/local/domain/N`, or what a backend has for its frontend N,
/// `/local/domain/B/backend/KIND/N`. Everything else is for ever.
fn home(path: &str) -> Option<(DomId, &str)> {
    const HOMES: &str = "/local/domain/";
    let rest = path.strip_prefix(HOMES)?;
    let words: Vec<&str> = rest.splitn(5, '/').collect();
    let (word, len) = match words.as_slice() {
        [backend, "backend", kind, frontend, ..] => {
            // Three slashes in between.
            let len = backend.len().saturating_add("backend".len()).saturating_add(kind.len());
            (*frontend, len.saturating_add(frontend.len()).saturating_add(3))
        }
        [domain, ..] => (*domain, domain.len()),
        [] => return None,
    };
    Some((DomId(word.parse().ok()?), path.get(..HOMES.len().saturating_add(len))?))
}

impl<'a> Seeds<'a> {
    /// Takes the text as it is; [`Seeds::plant`] reads it.
    #[must_use]
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    fn lines(self) -> impl Iterator<Item = (usize, &'a str)> {
        (1..).zip(self.0.lines()).filter(|(_, line)| !line.is_empty())
    }

    /// The lines of a domain's life.
    fn of(self, domid: DomId) -> impl Iterator<Item = &'a str> {
        let path = |line: &'a str| line.split('\t').next().unwrap_or_default();
        self.lines().map(|(_, line)| line).filter(move |line| home(path(line)).is_some_and(|(of, _)| of == domid))
    }

    /// Sets all nodes, but for those that belong to the life of a domain that `waits` to be created.
    ///
    /// # Errors
    /// The first line that is no node, for people.
    pub fn plant(self, store: &mut Store, waits: impl Fn(DomId) -> bool) -> Result<(), String> {
        for (number, line) in self.lines() {
            let bad = |what: &str| format!("initial xenstore, line {number}: {what}");
            let Node { path, perms, value } = node(line).map_err(|what| bad(&what))?;
            if !home(path.as_str()).is_some_and(|(of, _)| waits(of)) {
                store.preset(&path, perms, value.as_bytes()).map_err(|e| bad(e.name()))?;
            }
        }
        Ok(())
    }

    /// Whether there is a node of this path.
    #[must_use]
    pub fn has(self, path: &str) -> bool {
        self.lines().any(|(_, line)| line.split('\t').next() == Some(path))
    }

    /// Puts all nodes of a domain's life back to how they were at first; its backends see the old ones go and the new ones come
    /// at once.
    ///
    /// # Errors
    /// The store's; nothing has changed then.
    pub fn renew(self, store: &mut Store, domid: DomId) -> Result<(), XsError> {
        self.replace(store, domid, true)
    }

    /// Removes all nodes of a domain's life; its backends see them go at once.
    ///
    /// # Errors
    /// The store's; nothing has changed then.
    pub fn remove(self, store: &mut Store, domid: DomId) -> Result<(), XsError> {
        self.replace(store, domid, false)
    }

    fn replace(self, store: &mut Store, domid: DomId, anew: bool) -> Result<(), XsError> {
        // All lines were read once, at the start.
        let nodes: Vec<Node> = self.of(domid).filter_map(|line| node(line).ok()).collect();
        let mut homes: Vec<&str> = Vec::new();
        for (_, home) in nodes.iter().filter_map(|node| home(node.path.as_str())) {
            if !homes.contains(&home) {
                homes.push(home);
            }
        }
        store.run(DomId::CONTROL, |view| {
            for path in homes.iter().filter_map(|home| Path::absolute(home).ok()) {
                view.rm(&path)?;
            }
            for Node { path, perms, value } in nodes.iter().filter(|_| anew) {
                view.write(path, value.as_bytes())?;
                view.set_perms(path, perms.clone())?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Quota;
    use std::vec;

    const TEXT: &str = "/local\tr0\t\n/local/domain\tr0\t\n/local/domain/1\tn0,r1\t\n/local/domain/1/backend\tn1\t\n\
        /local/domain/1/backend/vif\tn1\t\n/local/domain/2\tn0,r2\t\n/local/domain/2/name\tn0,r2\tlinux\n\
        /local/domain/22\tn0,r22\t\n/local/domain/22/name\tn0,r22\tother\n\
        /local/domain/1/backend/vif/2\tn1,r2\t\n/local/domain/1/backend/vif/2/0\tn1,r2\t\n\
        /local/domain/1/backend/vif/2/0/state\tn1,r2\t1\n/local/domain/1/backend/vif/22\tn1,r22\t\n\
        /local/domain/2/device\tn0,r2\t\n/local/domain/2/device/vif\tn2\t\n/local/domain/2/device/vif/0\tn2,r1\t\n\
        /local/domain/2/device/vif/0/state\tn2,r1\t1\n";

    fn path(text: &str) -> Path {
        Path::absolute(text).unwrap()
    }
    fn read(store: &mut Store, text: &str) -> Option<Vec<u8>> {
        store.run(DomId::CONTROL, |v| v.read(&path(text))).ok()
    }
    fn store() -> Store {
        let mut store = Store::new(Quota::default());
        [1, 2, 22].into_iter().for_each(|d| store.introduce(DomId(d)));
        Seeds::new(TEXT).plant(&mut store, |_| false).unwrap();
        store
    }

    #[test]
    fn a_node_belongs_to_the_life_of_one_domain_or_of_none() {
        for (at, found) in [
            ("/local/domain/2", Some((2, "/local/domain/2"))),
            ("/local/domain/2/device/vif/0/state\tn2\t1", Some((2, "/local/domain/2"))),
            ("/local/domain/1/backend/vif", Some((1, "/local/domain/1"))),
            ("/local/domain/1/backend/vif/2/0/mac\tn1\tx", Some((2, "/local/domain/1/backend/vif/2"))),
            ("/local/domain/1/backend/vif/2", Some((2, "/local/domain/1/backend/vif/2"))),
            ("/xenolith/domain/2/kind", None),
            ("/local/domain", None),
            ("/local/domain/", None),
        ] {
            assert_eq!(home(at.split('\t').next().unwrap()), found.map(|(d, home)| (DomId(d), home)), "{at}");
        }
    }

    #[test]
    fn a_new_life_finds_the_nodes_of_the_first_and_nothing_else() {
        let mut store = store();
        let backend = "/local/domain/1/backend/vif/2/0";
        for (by, at) in [
            (2, "/local/domain/2/device/vif/0/state"),
            (2, "/local/domain/2/device/vif/0/tx-ring-ref"),
            (1, "/local/domain/1/backend/vif/2/0/state"),
            (1, "/local/domain/1/backend/vif/2/0/feature-sg"),
            (2, "/local/domain/2/device/vif/7/garbage"),
        ] {
            store.run(DomId(by), |v| v.write(&path(at), b"4")).unwrap();
        }
        let before = store.total();
        store.watch(DomId(1), b"backend/vif", b"t").unwrap();
        while store.next_event(DomId(1)).is_some() {}
        Seeds::new(TEXT).renew(&mut store, DomId(2)).unwrap();
        assert_eq!(read(&mut store, "/local/domain/2/device/vif/0/state"), Some(b"1".to_vec()));
        assert_eq!(read(&mut store, &format!("{backend}/state")), Some(b"1".to_vec()));
        assert_eq!(read(&mut store, &format!("{backend}/feature-sg")), None);
        assert_eq!(read(&mut store, "/local/domain/2/device/vif/7"), None);
        assert_eq!(read(&mut store, "/local/domain/22/name"), Some(b"other".to_vec()));
        let perms = store.run(DomId::CONTROL, |v| v.perms(&path("/local/domain/2"))).unwrap();
        assert_eq!(perms.to_text(',', false), "n0,r2", "the home itself is laid anew as well");
        assert!(store.next_event(DomId(1)).is_some(), "its backend hears of it");
        assert!(store.total().nodes < before.nodes);
        // The guest may write again where it could.
        store.run(DomId(2), |v| v.write(&path("/local/domain/2/device/vif/0/state"), b"3")).unwrap();
        assert!(store.run(DomId(2), |v| v.write(&path("/local/domain/2/name"), b"x")).is_err());
    }

    #[test]
    fn a_domain_that_is_gone_leaves_no_node_and_one_that_waits_has_none() {
        let mut gone = store();
        Seeds::new(TEXT).remove(&mut gone, DomId(2)).unwrap();
        let mut waits = Store::new(Quota::default());
        Seeds::new(TEXT).plant(&mut waits, |d| d == DomId(2)).unwrap();
        for mut store in [gone, waits] {
            assert_eq!(read(&mut store, "/local/domain/2"), None);
            assert_eq!(read(&mut store, "/local/domain/1/backend/vif/2"), None);
            assert_eq!(read(&mut store, "/local/domain/1/backend/vif/22"), Some(vec![]));
            Seeds::new(TEXT).renew(&mut store, DomId(2)).unwrap();
            assert_eq!(read(&mut store, "/local/domain/1/backend/vif/2/0/state"), Some(b"1".to_vec()));
        }
    }

    #[test]
    fn lives_leave_the_store_as_large_as_it_was() {
        let mut store = store();
        let size = store.total();
        for _ in 0..20 {
            Seeds::new(TEXT).renew(&mut store, DomId(2)).unwrap();
            assert_eq!(store.total(), size);
            store.run(DomId(2), |v| v.write(&path("/local/domain/2/device/vif/0/x"), &[0; 1000])).unwrap();
            Seeds::new(TEXT).remove(&mut store, DomId(2)).unwrap();
        }
        assert_eq!(store.usage(DomId(2)).nodes, 0);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let plant = |text: &str| Seeds::new(text).plant(&mut Store::new(Quota::default()), |_| false).unwrap_err();
        assert_eq!(plant("/a\tn0\t\n/b"), "initial xenstore, line 2: expected path, permissions and value");
        assert!(plant("/a\tz0\t").starts_with("initial xenstore, line 1"));
        assert!(Seeds::new(TEXT).has("/local/domain/2/name") && !Seeds::new(TEXT).has("/local/domain/2/nam"));
    }
}
