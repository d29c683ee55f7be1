//! Whose requests go on now: deficit round robin by bytes among the vbds, and a reserve. Of a drive's places and of the pages that can be
//! mapped each connected vbd can always have some, however much another has in flight.

use super::Backend;
use crate::Platform;
use crate::disk::{Disks, DriveId};
use crate::line::{Phase, Request};
use crate::request::Kind;
use crate::table::Ticket;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::SharedMem;

/// The least a request counts, in bytes.
const LEAST_COST: u64 = 4096;
/// A vbd's reserve of a drive's places is one in so many of an equal share.
const RESERVE: usize = 4;

/// A vbd while shares are given out.
struct Share {
    slot: usize,
    drive: DriveId,
    /// Requests that could go on, in order.
    queue: VecDeque<u32>,
    /// Places of the drive it has, or is about to have.
    places: usize,
}

/// What a request still counts. A discard moves no bytes, however many it is about: counted by them, one of a whole drive would take a
/// round of [`Backend::choose`] for each quantum of it, more than a turn may last.
fn cost<H>(request: &Request<H>) -> u64 {
    match request.kind {
        Kind::Discard => LEAST_COST,
        _ => request.len_bytes().saturating_sub(request.given).max(LEAST_COST),
    }
}

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// The requests that go on now, in the order in which they do.
    pub(super) fn choose(&mut self) -> Vec<Ticket> {
        let mut shares = self.shares();
        let mut room: Vec<usize> = (0..self.disks.drives()).map(|n| self.disks.room(DriveId(n))).collect();
        // What is planned to be mapped, of all together.
        let mut planned: usize = 0;
        let mut chosen = Vec::new();
        let begin = shares.iter().position(|share| share.slot >= self.first).unwrap_or(0);
        let order: Vec<usize> = (begin..shares.len()).chain(0..begin).collect();
        let mut next_first = None;
        let mut again = true;
        while again {
            again = false;
            for &n in &order {
                let reserved = self.reserved(&shares, n);
                let Some(share) = shares.get_mut(n) else { continue };
                let mut pages = self.page_room(share.slot).saturating_sub(planned);
                let Some(drive_room) = room.get_mut(usize::from(share.drive.0)) else { continue };
                let Some(connection) = self.vbds.get_mut(share.slot).and_then(|vbd| vbd.connection.as_mut()) else {
                    continue;
                };
                if share.queue.is_empty() {
                    connection.deficit = 0;
                    continue;
                }
                let quantum = u64::from(self.config.quantum).max(LEAST_COST);
                connection.deficit = connection.deficit.saturating_add(quantum);
                while let Some(&index) = share.queue.front() {
                    let Some(request) = connection.line.get(index) else { break };
                    let cost = cost(request);
                    let wanted = match request.held.is_empty() {
                        true => request
                            .segments
                            .iter()
                            .map(|run| connection.grants.missing(run.first.gref, run.pages))
                            .sum(),
                        false => 0,
                    };
                    while wanted > pages && connection.evict(&mut self.garbage) {
                        // It counts as garbage until it is unmapped, which comes before anything is mapped.
                        pages = pages.saturating_add(1);
                    }
                    if *drive_room <= reserved || wanted > pages {
                        // Who had to stop is the first next time.
                        next_first.get_or_insert(share.slot);
                        connection.deficit = connection.deficit.min(quantum.max(cost));
                        share.queue.clear();
                        break;
                    }
                    again = true;
                    let Some(left) = connection.deficit.checked_sub(cost) else { break };
                    connection.deficit = left;
                    share.queue.pop_front();
                    share.places = share.places.saturating_add(1);
                    pages = pages.saturating_sub(wanted);
                    planned = planned.saturating_add(wanted);
                    *drive_room = drive_room.saturating_sub(1);
                    chosen.push(Ticket { slot: share.slot, epoch: connection.epoch, index });
                }
            }
        }
        self.first =
            next_first.unwrap_or_else(|| self.first.wrapping_add(1).checked_rem(self.vbds.slots()).unwrap_or(0));
        chosen
    }

    fn shares(&self) -> Vec<Share> {
        let connections = self.vbds.enumerate();
        let connections =
            connections.filter_map(|(slot, vbd)| Some((slot, vbd.connection.as_ref().filter(|c| !c.lost)?)));
        let share = |(slot, connection): (usize, &crate::vbd::Connection<P::Page>)| {
            let line = &connection.line;
            let can = |index: &u32| {
                line.get(*index).is_some_and(|request| match (request.phase, request.kind) {
                    (Phase::Moving, _) => !request.is_given() && request.error.is_none(),
                    (Phase::Waiting, Kind::Read | Kind::Write | Kind::Discard) => line.may_begin(*index),
                    _ => false,
                })
            };
            let queue = line.indices().filter(can).collect();
            Share { slot, drive: connection.extent.drive, queue, places: connection.out }
        };
        connections.map(share).collect()
    }

    /// Places of its drive that share `n` must leave to the others, because they have reserved them and do not use them yet.
    fn reserved(&self, shares: &[Share], n: usize) -> usize {
        let Some(own) = shares.get(n) else { return 0 };
        let depth = self.disks.info(own.drive).map_or(0, |info| usize::from(info.depth));
        let neighbours = || shares.iter().filter(|share| share.drive == own.drive);
        let each = depth.checked_div(neighbours().count().saturating_mul(RESERVE)).unwrap_or(0).max(1);
        let unused = |share: &Share| if share.slot == own.slot { 0 } else { each.saturating_sub(share.places) };
        let all = neighbours().map(unused).fold(0, usize::saturating_add);
        // A drive without a place for each serves them in turn.
        if all < depth { all } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discard_of_a_whole_drive_needs_no_more_than_one_quantum() {
        let of = |kind, sectors| {
            let mut request = Request::<()>::blank();
            (request.kind, request.sectors) = (kind, sectors);
            cost(&request)
        };
        let quantum = u64::from(super::super::Config::default().quantum);
        assert!(of(Kind::Discard, 1 << 31) <= quantum, "a tebibyte");
        assert_eq!(
            (of(Kind::Write, 1 << 11), of(Kind::Read, 1), of(Kind::Flush, 0)),
            (1 << 20, LEAST_COST, LEAST_COST)
        );
    }
}
