//! What a restart must know of the connected devices, kept in the part of the survivor page that the journal leaves free. With it a
//! fresh instance takes up all rings without asking xenstore; it compares with xenstore once work flows again.
//!
//! The page is written by code that may have been failing, so the cache is believed only whole: magic, size and CRC-32 must fit. It is
//! all or nothing, because the journal's record must find its ring: where a device does not fit, there is no cache, and the next start
//! asks xenstore first. Whose a device is stands before its nodes' words; what these mean is its backend's business (`netback::cache`,
//! `blkback::cache`).
//!
//! ```text
//! word 0 magic   1 devices   2 words behind the header   3 CRC-32 of 1, 2 and those words   4.. words
//! a device: frontend | device << 16, its nodes
//! ```

use crate::xenbus::{Directory, Kind, Place};
use abi::io::xenbus::XenbusState;
use abi::{DomId, PAGE_SIZE};
use alloc::string::String;
use alloc::vec::Vec;
use ring::{SURVIVOR_OWNER, SharedMem};

const HEADER: usize = 4;
/// Words behind the header that fit.
const ROOM: usize = (PAGE_SIZE - SURVIVOR_OWNER) / 4 - HEADER;

fn at(word: usize) -> usize {
    SURVIVOR_OWNER.saturating_add(word.saturating_mul(4))
}

fn crc(count: u32, body: &[u32]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for word in [count, body.len() as u32].iter().chain(body) {
        crc.update(&word.to_le_bytes());
    }
    crc.finalize()
}

fn clear<S: SharedMem>(page: &S) {
    page.store_release(at(0), 0);
}

/// A kind of device whose nodes can be kept.
pub trait Kept: Kind {
    /// Tells its cache from another kind's.
    const MAGIC: u32;

    /// Appends the words of a device; `None` where it has no place in the cache.
    fn encode(&self, body: &mut Vec<u32>) -> Option<()>;

    /// Takes them off the front; `None` where they are not of such a device.
    fn decode(rest: &mut &[u32]) -> Option<Self>;
}

/// Keeps the devices, or nothing where they do not fit or one is not known.
pub fn save<'a, S: SharedMem, K: Kept + 'a>(
    page: &S,
    me: DomId,
    devices: impl Iterator<Item = Option<&'a Directory<K>>>,
) {
    clear(page);
    let mut body = Vec::new();
    let mut count = 0u32;
    for device in devices {
        if device.and_then(|device| encode(&mut body, me, device)).is_none() {
            return;
        }
        count = count.saturating_add(1);
    }
    if body.len() > ROOM {
        return;
    }
    for (word, value) in (HEADER..).zip(&body) {
        page.store_release(at(word), *value);
    }
    page.store_release(at(1), count);
    page.store_release(at(2), body.len() as u32);
    page.store_release(at(3), crc(count, &body));
    page.store_release(at(0), K::MAGIC);
}

fn encode<K: Kept>(body: &mut Vec<u32>, me: DomId, directory: &Directory<K>) -> Option<()> {
    let Place { frontend, device, .. } = directory.place;
    // Paths are not kept; a device with others than the usual ones has no place here.
    if directory.place != Place::usual(me, K::NAME, frontend, device) {
        return None;
    }
    body.push(u32::from(frontend.0) | u32::from(device) << 16);
    directory.nodes.encode(body)
}

/// What was kept; `None` where nothing was, or it is damaged.
pub fn load<S: SharedMem, K: Kept>(page: &S, me: DomId) -> Option<Vec<Directory<K>>> {
    let [found, count, words, stored] = [0, 1, 2, 3].map(|word| page.load_acquire(at(word)));
    if found != K::MAGIC || words as usize > ROOM {
        return None;
    }
    let body: Vec<u32> = (HEADER..).take(words as usize).map(|word| page.read(at(word))).collect();
    if crc(count, &body) != stored {
        return None;
    }
    let mut rest = body.as_slice();
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(decode(&mut rest, me)?);
    }
    rest.is_empty().then_some(devices)
}

fn decode<K: Kept>(rest: &mut &[u32], me: DomId) -> Option<Directory<K>> {
    let (id, tail) = rest.split_first()?;
    *rest = tail;
    Some(Directory {
        place: Place::usual(me, K::NAME, DomId(*id as u16), (*id >> 16) as u16),
        back_state: XenbusState::Connected,
        front_state: XenbusState::Connected,
        nodes: K::decode(rest)?,
    })
}

/// Appends a text that may be missing.
pub fn put_text(body: &mut Vec<u32>, text: Option<&str>) {
    body.push(text.map_or(0, |text| (text.len() as u32).saturating_add(1)));
    for chunk in text.unwrap_or_default().as_bytes().chunks(4) {
        let mut word = [0; 4];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        body.push(u32::from_le_bytes(word));
    }
}

/// Takes off what [`put_text`] has put; the outer `None` where it cannot have.
pub fn take_text(rest: &mut &[u32]) -> Option<Option<String>> {
    let (len, tail) = rest.split_first()?;
    let Some(len) = len.checked_sub(1) else {
        *rest = tail;
        return Some(None);
    };
    let (words, tail) = tail.split_at_checked((len as usize).div_ceil(4))?;
    *rest = tail;
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).take(len as usize).collect();
    Some(Some(String::from_utf8(bytes).ok()?))
}

#[cfg(test)]
mod tests;
