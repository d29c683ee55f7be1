//! Watches: who hears of which change, and the events that wait to be sent.

use super::quota::Quota;
use super::transaction::Change;
use super::{Session, Store};
use abi::DomId;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use xenstore::{Path, XsError};

/// A watch event: the payload of `XS_WATCH_EVENT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The changed path, relative if the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

impl Event {
    fn bytes(&self) -> usize {
        self.path.len().saturating_add(self.token.len())
    }
}

#[derive(Debug)]
struct Watch {
    path: Path,
    /// Registered by a path relative to the domain's directory: events are told the same way.
    relative: bool,
    token: String,
    /// The queue is full, and the event of the watched path itself waits in it: until an event goes, nothing is left to tell.
    told: bool,
}

impl Watch {
    fn bytes(&self) -> usize {
        self.path.as_str().len().saturating_add(self.token.len())
    }

    fn event(&self, changed: &Path, domid: DomId) -> Event {
        let path = if self.relative { changed.relative_to(domid) } else { None };
        Event { path: String::from(path.unwrap_or(changed.as_str())), token: self.token.clone() }
    }
}

/// One domain's watches and queued events.
#[derive(Debug, Default)]
pub struct Watches {
    list: Vec<Watch>,
    queue: Queue,
}

/// Events that wait to be sent.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// Of all of them.
    bytes: usize,
    /// How often it was searched.
    #[cfg(test)]
    searches: usize,
}

impl Watches {
    pub fn len(&self) -> usize {
        self.list.len()
    }
    #[cfg(test)]
    pub const fn searches(&self) -> usize {
        self.queue.searches
    }
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.queue.events.pop_front()?;
        self.gone(event.bytes());
        Some(event)
    }
    pub fn has_events(&self) -> bool {
        !self.queue.events.is_empty()
    }

    /// Events of so many bytes are gone: there may be room.
    fn gone(&mut self, bytes: usize) {
        self.queue.bytes = self.queue.bytes.saturating_sub(bytes);
        self.list.iter_mut().for_each(|watch| watch.told = false);
    }
}

impl Queue {
    /// Queues the event unless the same one waits already. Where the queue is full, the watched path itself stands for
    /// whatever changed below it: at most one such event per watch, so the queue stays bounded and no change goes unheard.
    /// It is not even looked for again, so that many changes cost no more than the queue is long.
    #[inline(never)]
    fn tell(&mut self, watch: &mut Watch, changed: &Path, domid: DomId, quota: &Quota) {
        if watch.told {
            return;
        }
        #[cfg(test)]
        (self.searches += 1);
        let mut event = watch.event(changed, domid);
        if self.events.contains(&event) {
            return;
        }
        if self.events.len() >= quota.events || self.bytes.saturating_add(event.bytes()) > quota.event_bytes {
            watch.told = true;
            event = watch.event(&watch.path, domid);
            if self.events.contains(&event) {
                return;
            }
        }
        self.bytes = self.bytes.saturating_add(event.bytes());
        self.events.push_back(event);
    }
}

impl Session {
    fn fire(&mut self, domid: DomId, quota: &Quota, change: &Change) {
        let Watches { list, queue } = &mut self.watches;
        for watch in list {
            let hit = if change.exact { change.path == watch.path } else { change.path.is_at_or_below(&watch.path) };
            if hit {
                queue.tell(watch, &change.path, domid, quota);
            }
        }
    }
}

impl Store {
    /// Queues events for all who watch and may see the changes.
    pub(super) fn fire(&mut self, changes: &[Change]) {
        for change in changes {
            let node = self.tree.get(&change.path).map(|n| &n.perms);
            let parent = change.path.parent().and_then(|p| self.tree.get(&p)).map(|n| &n.perms);
            for (&domid, session) in &mut self.sessions {
                let seen = [node, change.removed.as_ref(), parent];
                if seen.into_iter().flatten().any(|perms| perms.access(domid).reads()) {
                    session.fire(domid, &self.quota, change);
                }
            }
        }
    }

    /// Queues a special event (`@introduceDomain`, …). They are for the control domain only, as xenstored's default is.
    pub(super) fn fire_special(&mut self, name: &str) {
        let Some(session) = self.sessions.get_mut(&DomId::CONTROL) else { return };
        let Ok(path) = Path::watchable(name.as_bytes(), DomId::CONTROL) else { return };
        let Watches { list, queue } = &mut session.watches;
        for watch in list.iter_mut().filter(|w| w.path == path) {
            queue.tell(watch, &path, DomId::CONTROL, &self.quota);
        }
    }

    /// Registers a watch; its first event is queued at once.
    ///
    /// # Errors
    /// EINVAL for a bad path or token, EEXIST, ENOSPC.
    pub fn watch(&mut self, domid: DomId, raw_path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let path = Path::watchable(raw_path, domid).map_err(|_| XsError::Inval)?;
        let token = String::from(core::str::from_utf8(token).map_err(|_| XsError::Inval)?);
        let relative = !matches!(raw_path.first(), Some(b'/' | b'@'));
        let quota = self.quota;
        let session = self.sessions.get_mut(&domid).ok_or(XsError::Inval)?;
        let Watches { list, queue } = &mut session.watches;
        if list.iter().any(|w| w.path == path && w.token == token) {
            return Err(XsError::Exist);
        }
        let mut watch = Watch { path, relative, token, told: false };
        let bytes = list.iter().fold(watch.bytes(), |sum, w| sum.saturating_add(w.bytes()));
        if domid != DomId::CONTROL && (list.len() >= quota.watches || bytes > quota.watch_bytes) {
            return Err(XsError::NoSpc);
        }
        let path = watch.path.clone();
        queue.tell(&mut watch, &path, domid, &quota);
        list.push(watch);
        Ok(())
    }

    /// Removes a watch and its queued events.
    ///
    /// # Errors
    /// EINVAL for a bad path, ENOENT.
    pub fn unwatch(&mut self, domid: DomId, raw_path: &[u8], token: &[u8]) -> Result<(), XsError> {
        let path = Path::watchable(raw_path, domid).map_err(|_| XsError::Inval)?;
        let session = self.sessions.get_mut(&domid).ok_or(XsError::Inval)?;
        let watches = &mut session.watches;
        let at =
            watches.list.iter().position(|w| w.path == path && w.token.as_bytes() == token).ok_or(XsError::NoEnt)?;
        let watch = watches.list.remove(at);
        if !watches.list.iter().any(|w| w.token == watch.token) {
            let mut bytes = 0usize;
            watches.queue.events.retain(|e| {
                let stays = e.token != watch.token;
                bytes = bytes.saturating_add(if stays { 0 } else { e.bytes() });
                stays
            });
            watches.gone(bytes);
        }
        Ok(())
    }

    /// Whether a domain hears of changes of exactly this path.
    #[must_use]
    pub fn is_watched(&self, domid: DomId, path: &Path) -> bool {
        self.sessions.get(&domid).is_some_and(|session| session.watches.list.iter().any(|w| w.path == *path))
    }

    /// Removes all watches of a domain and its queued events.
    pub fn reset_watches(&mut self, domid: DomId) {
        if let Some(session) = self.sessions.get_mut(&domid) {
            session.watches = Watches::default();
        }
    }
}
