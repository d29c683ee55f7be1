//! What a restart must know of the connected devices, kept in the part of the survivor page that the journal leaves free. With it a
//! fresh instance takes up all rings without asking xenstore; it compares with xenstore once work flows again.
//!
//! The page is written by code that may have been failing, so the cache is believed only whole: magic, size and CRC-32 must fit. It is
//! all or nothing, because the journal's record must find its ring: where a device does not fit, there is no cache, and the next start
//! asks xenstore first. What a device's words mean is its backend's business (`netback::cache`, `blkback::cache`).
//!
//! ```text
//! word 0 magic   1 devices   2 words behind the header   3 CRC-32 of 1, 2 and those words   4.. words
//! ```

use abi::PAGE_SIZE;
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

/// Forgets what was kept.
pub fn clear<S: SharedMem>(page: &S) {
    page.store_release(at(0), 0);
}

/// Keeps the devices, or nothing where they do not fit; `encode` appends a device's words, `None` where it has no place here.
pub fn save<S: SharedMem, D>(
    page: &S,
    magic: u32,
    devices: impl Iterator<Item = D>,
    mut encode: impl FnMut(&mut Vec<u32>, D) -> Option<()>,
) {
    clear(page);
    let mut body = Vec::new();
    let mut count = 0u32;
    for device in devices {
        if encode(&mut body, device).is_none() {
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
    page.store_release(at(0), magic);
}

/// What was kept; `None` where nothing was, or it is damaged. `decode` takes a device's words off the front.
pub fn load<S: SharedMem, D>(page: &S, magic: u32, mut decode: impl FnMut(&mut &[u32]) -> Option<D>) -> Option<Vec<D>> {
    let [found, count, words, stored] = [0, 1, 2, 3].map(|word| page.load_acquire(at(word)));
    if found != magic || words as usize > ROOM {
        return None;
    }
    let body: Vec<u32> = (HEADER..).take(words as usize).map(|word| page.read(at(word))).collect();
    if crc(count, &body) != stored {
        return None;
    }
    let mut rest = body.as_slice();
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(decode(&mut rest)?);
    }
    rest.is_empty().then_some(devices)
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
