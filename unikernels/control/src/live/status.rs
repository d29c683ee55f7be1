//! What everybody may read: `/xenolith/domain/N/…` and `/xenolith/history`. Nodes are written only where their value is another
//! than before, so that watchers hear of changes and of nothing else.

use super::Control;
use super::boot::dom_info;
use alloc::format;
use control::report::{Kind, Snapshot};
use libxenrt::{DomId, log};
use xenstore::{Access, Path, Perm, Perms};

/// Deaths in the history's node; the control socket tells more. They fit into one reply.
const HISTORY_LINES: usize = 10;

impl Control {
    /// Writes the nodes of one domain that changed, or the history; answers whether there is more to write.
    pub fn publish(&mut self) -> bool {
        if let Some(domid) = self.dirty.pop_first() {
            match dom_info(domid) {
                Ok(info) => {
                    for (key, value) in self.snapshot(&info).nodes() {
                        self.publish_node(&format!("/xenolith/domain/{domid}/{key}"), &value);
                    }
                }
                Err(e) => log::warn!("DOM_INFO of domain {domid}: {e}"),
            }
        } else if core::mem::take(&mut self.history_dirty) {
            let text = self.history.text(HISTORY_LINES);
            self.publish_node("/xenolith/history", &text);
        }
        !self.dirty.is_empty() || self.history_dirty
    }

    /// All that is known of a domain.
    pub fn snapshot<'a>(&'a self, info: &'a abi::xenolith::DomInfo) -> Snapshot<'a> {
        let link = self.links.iter().find(|l| l.domid == info.domid);
        Snapshot {
            info,
            kind: link.map_or(Kind::Control, |l| l.kind),
            supervised: self.supervisor.get(info.domid),
            last: self.history.last(info.domid),
        }
    }

    fn publish_node(&mut self, path: &str, value: &str) {
        if self.read(path).is_some_and(|old| old == value.as_bytes()) {
            return;
        }
        let Ok(path) = Path::absolute(path) else { return };
        let perms = Perms::single(Perm { access: Access::Read, domid: DomId::CONTROL });
        if let Err(e) = self.store.preset(&path, perms, value.as_bytes()) {
            log::warn!("{path} not published: {e}");
        }
    }
}
