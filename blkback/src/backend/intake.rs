//! Requests come out of the rings: each is copied once, its indirect page read once, checked, and put in its vbd's line.

use super::Backend;
use crate::disk::Disks;
use crate::grants::Held;
use crate::request::{self, Asked, Data, Kind, Limits, Name};
use crate::vbd::Connection;
use crate::{MapError, MapRequest, Mapped, Platform, mutated};
use abi::GrantRef;
use abi::io::blkif::{REQUEST_WORDS, rsp};
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::SharedMem;

/// What bounds requests to a drive that has gone: all of them fail.
const NOTHING: Limits = Limits { sectors: 0, ratio: 1, read_only: true, indirect: 0, discard: false, segment_ratio: 1 };

/// A slot that was taken.
struct Fresh<M> {
    slot: usize,
    words: [u32; REQUEST_WORDS],
    asked: Result<Asked, i16>,
    limits: Limits,
    /// Its indirect page is among those being mapped.
    mapping: bool,
    /// Its indirect page is kept, and held for it: others of this turn take pages in, and would have it evicted before it is read.
    pinned: Option<Held<M>>,
}

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// Takes all requests for which there is room; true if there was any.
    pub(super) fn take_requests(&mut self) -> bool {
        let mut fresh = Vec::new();
        let mut maps = core::mem::take(&mut self.maps);
        for slot in 0..self.vbds.slots() {
            self.take_from(slot, &mut fresh, &mut maps);
        }
        let mut results = Vec::new();
        if !maps.is_empty() {
            self.map(&maps, &mut results);
        }
        maps.clear();
        self.maps = maps;
        let mut results = results.into_iter();
        let any = !fresh.is_empty();
        self.stirred |= any;
        for fresh in fresh {
            let page = if fresh.mapping { results.next() } else { None };
            self.admit(fresh, page);
        }
        any
    }

    fn take_from(&mut self, slot: usize, fresh: &mut Vec<Fresh<P::Page>>, maps: &mut Vec<MapRequest>) {
        let Some(connection) = self.vbds.get(slot).and_then(|vbd| vbd.connection.as_ref()) else { return };
        let drive = connection.extent.drive;
        let info = self.info(drive);
        let lost = self.is_lost(connection, self.platform.now_us());
        let mut pages = self.page_room(slot).saturating_sub(maps.len());
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        let frontend = vbd.place.frontend;
        let Some(connection) = &mut vbd.connection else { return };
        connection.stalled = false;
        let limits = match info {
            _ if lost => NOTHING,
            Some(info) => connection.limits(&info, &self.config),
            None => {
                connection.stalled = true;
                return;
            }
        };
        loop {
            // Any request may have an indirect page.
            if pages == 0 {
                if !connection.evict(&mut self.garbage) {
                    connection.stalled = true;
                    return;
                }
                pages = 1;
            }
            let words = match connection.ring.take() {
                Ok(Some((_, words))) => words,
                Ok(None) => return,
                Err(fault) => return self.faults.push((slot, fault)),
            };
            let asked = request::parse(&words, &limits);
            let (mut mapping, mut pinned) = (false, None);
            if let Ok(Asked { data: Data::Indirect(gref, _), .. }) = &asked {
                pinned = connection.lists.reuse(*gref).map(|(held, _)| held);
                mapping = pinned.is_none();
                if mutated!(EarlyEviction)
                    && let Some(held) = pinned.take()
                {
                    connection.lists.release(held, &mut self.garbage);
                }
                if mapping {
                    maps.push(MapRequest { dom: frontend, gref: *gref, readonly: true, device: false });
                    pages = pages.saturating_sub(1);
                }
            }
            fresh.push(Fresh { slot, words, asked, limits, mapping, pinned });
        }
    }

    fn admit(&mut self, fresh: Fresh<P::Page>, page: Option<Result<Mapped<P::Page>, MapError>>) {
        let Some(vbd) = self.vbds.get_mut(fresh.slot) else { return };
        let Some(connection) = &mut vbd.connection else { return };
        let mut request = connection.line.blank();
        request.name = Name::of(&fresh.words);
        let segments = &mut request.segments;
        let checked = fresh.asked.and_then(|asked| {
            match asked.data {
                Data::None(sectors) => return Ok((asked, sectors)),
                Data::Direct(count) => request::direct(&fresh.words, count, segments),
                Data::Indirect(gref, count) => {
                    let read = |page: &P::Page| request::indirect(count, |at| page.read(at), segments);
                    let words = read_indirect(connection, gref, page, &mut self.garbage, read);
                    if let Some(held) = fresh.pinned {
                        connection.lists.release(held, &mut self.garbage);
                    }
                    words.ok_or(rsp::ERROR)?;
                }
            }
            let sectors = request::measure(&fresh.limits, asked.kind, asked.first, segments)?;
            Ok((asked, sectors))
        });
        let index = connection.line.next();
        match checked {
            Ok((asked, sectors)) => {
                (request.kind, request.first, request.sectors) = (asked.kind, asked.first, sectors);
                let waits = connection.line.push(request);
                vbd.stats.overlaps = vbd.stats.overlaps.saturating_add(u64::from(waits));
            }
            Err(status) => {
                request.kind = Kind::Refused;
                connection.line.push(request);
                if let Err(fault) = connection.finish(&mut vbd.stats, index, status, &mut self.garbage) {
                    self.faults.push((fresh.slot, fault));
                }
            }
        }
        vbd.stats.max_depth = vbd.stats.max_depth.max(connection.line.len() as u32);
    }

    /// One call maps all of these.
    pub(super) fn map(&mut self, maps: &[MapRequest], results: &mut Vec<Result<Mapped<P::Page>, MapError>>) {
        self.stats.map_calls = self.stats.map_calls.saturating_add(1);
        self.stats.maps = self.stats.maps.saturating_add(maps.len() as u64);
        self.platform.map(maps, results);
    }
}

/// Reads an indirect page, kept or mapped for it. `None` where its grant was bad.
fn read_indirect<M: SharedMem, R>(
    connection: &mut Connection<M>,
    gref: GrantRef,
    page: Option<Result<Mapped<M>, MapError>>,
    garbage: &mut Vec<M>,
    read: impl FnOnce(&M) -> R,
) -> Option<R> {
    let held = match connection.lists.reuse(gref) {
        Some((held, _)) => {
            // Mapped as well for another request of this turn: that one is kept.
            garbage.extend(page.and_then(Result::ok).map(|mapped| mapped.page));
            held
        }
        None => connection.lists.take_in(gref, page?.ok()?, garbage).0,
    };
    let words = connection.lists.page(&held).map(read);
    connection.lists.release(held, garbage);
    words
}
