//! What may begin is mapped and given to the drives: flushes first, then what `share` has chosen.

use super::{Backend, Flight};
use crate::command::{append, cut};
use crate::disk::{Command, Disks, DriveInfo, Op, Segment, SubmitError};
use crate::grants::{Held, Known};
use crate::line::{Phase, Request};
use crate::request::Kind;
use crate::run::{Run, pages};
use crate::source::sector_ratio;
use crate::table::{Table, Ticket};
use crate::{MapError, MapRequest, Mapped, Platform, mutated};
use abi::io::blkif::{SECTOR_SIZE, rsp};
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::SharedMem;

/// When to try again where the hypervisor had no room, in microseconds.
const RETRY_US: u64 = 1000;

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// Gives the drives what they can take; true if they got anything.
    pub(super) fn issue(&mut self, now_us: u64) -> bool {
        let all_there = self.drives.iter().all(|drive| self.disks.info(drive.id).is_some());
        let stirred = core::mem::take(&mut self.stirred);
        if !stirred && all_there && self.retry_us.is_none_or(|at| now_us < at) {
            // Nothing came, nothing was done: nothing can go on that could not before.
            return false;
        }
        self.fail_missing(now_us);
        let mut any = self.read_tables();
        any |= self.flush();
        let chosen = self.choose();
        self.unmap();
        self.platform.crash_point();
        self.retry_us = None;
        self.map_data(&chosen, now_us);
        for ticket in chosen {
            any |= self.submit(ticket);
        }
        if any {
            self.platform.crash_point();
            self.disks.kick();
        }
        any
    }

    /// Requests whose drive has gone or will not come.
    fn fail_missing(&mut self, now_us: u64) {
        for slot in 0..self.vbds.slots() {
            let Some(connection) = self.vbds.get(slot).and_then(|vbd| vbd.connection.as_ref()) else {
                continue;
            };
            if !self.is_lost(connection, now_us) {
                continue;
            }
            let waits = |index: &u32| {
                connection.line.get(*index).is_some_and(|request| request.phase != Phase::Answered && request.out == 0)
            };
            let lost: Vec<u32> = connection.line.indices().filter(waits).collect();
            lost.into_iter().for_each(|index| self.finish(slot, index, rsp::ERROR));
        }
    }

    /// Goes on with partition tables, one drive at a time.
    fn read_tables(&mut self) -> bool {
        for n in 0..self.drives.len() {
            let Some(drive) = self.drives.get(n) else { continue };
            let (id, Some(info)) = (drive.id, self.info(drive.id)) else { continue };
            let Some((sector, sectors, segment)) = drive.next_read(&info, &self.scratch) else { continue };
            if self.scratch_of.is_some() || self.disks.room(id) == 0 {
                return false;
            }
            let token = self.fly(Flight::Table(segment.len));
            let command = Command { op: Op::Read, sector, sectors, segments: &[segment] };
            let result = self.disks.submit(id, &command, token);
            let Some(drive) = self.drives.get_mut(n) else { continue };
            match result {
                Ok(()) => {
                    self.scratch_of = Some(id);
                    if let Table::Reading { out, .. } = &mut drive.table {
                        *out = true;
                    }
                    return true;
                }
                Err(SubmitError::Full | SubmitError::Faulty) => self.land(token),
                Err(error) => {
                    log::warn!("drive {}: partition table: {error:?}", id.0);
                    if drive.read(None, &self.scratch) {
                        self.look_again();
                    }
                    self.land(token);
                }
            }
        }
        false
    }

    /// Requests that wait for a flush, and may, get one; all that wait now share it.
    fn flush(&mut self) -> bool {
        for slot in 0..self.vbds.slots() {
            self.collect_flushes(slot);
        }
        let mut any = false;
        for n in 0..self.drives.len() {
            let Some(drive) = self.drives.get_mut(n).filter(|d| !d.flushing && !d.waiters.is_empty()) else { continue };
            let id = drive.id;
            if self.disks.room(id) == 0 {
                continue;
            }
            let tickets = core::mem::take(&mut drive.waiters);
            if mutated!(NoFlush) {
                tickets.into_iter().for_each(|ticket| self.flush_done(ticket, Ok(())));
                continue;
            }
            let token = self.fly(Flight::Flush(tickets));
            let command = Command { op: Op::Flush, sector: 0, sectors: 0, segments: &[] };
            let result = self.disks.submit(id, &command, token);
            if result.is_ok() {
                any = true;
                if let Some(drive) = self.drives.get_mut(n) {
                    drive.flushing = true;
                }
                continue;
            }
            let flight = self.flights.get_mut(token as usize).and_then(Option::take);
            let Some(Flight::Flush(tickets)) = flight else { continue };
            match result {
                Err(SubmitError::Full | SubmitError::Faulty) => {
                    if let Some(drive) = self.drives.get_mut(n) {
                        drive.waiters = tickets;
                    }
                }
                _ => tickets.into_iter().for_each(|ticket| self.flush_done(ticket, Err(rsp::ERROR))),
            }
        }
        any
    }

    fn collect_flushes(&mut self, slot: usize) {
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        // The drive in that place may be another by now.
        let Some(connection) = vbd.connection.as_mut().filter(|connection| !connection.lost) else { return };
        let is_ready = |index: &u32| {
            let waits = connection.line.get(*index).is_some_and(|request| {
                request.phase == Phase::Waiting && matches!(request.kind, Kind::Flush | Kind::Barrier)
            });
            waits && connection.line.may_begin(*index)
        };
        let ready: Vec<u32> = connection.line.indices().filter(is_ready).collect();
        for index in ready {
            if let Some(request) = connection.line.get_mut(index) {
                request.phase = Phase::Flushing;
            }
            if let Some(drive) = self.drives.get_mut(usize::from(connection.extent.drive.0)) {
                drive.waiters.push(Ticket { slot, epoch: connection.epoch, index });
            }
        }
    }

    /// Maps the data of those that have none mapped, all in one call. Those whose grants are bad are answered.
    fn map_data(&mut self, chosen: &[Ticket], now_us: u64) {
        let mut maps = core::mem::take(&mut self.maps);
        // For each segment of them what is kept already.
        let mut known = core::mem::take(&mut self.known);
        let mut wanting = Vec::new();
        for &ticket in chosen {
            let Some(vbd) = self.vbds.get_mut(ticket.slot) else { continue };
            let dom = vbd.place.frontend;
            let Some(connection) = &mut vbd.connection else { continue };
            let Some(request) = connection.line.get_mut(ticket.index) else { continue };
            if !request.held.is_empty() || request.segments.is_empty() {
                continue;
            }
            if request.segments.iter().all(|run| connection.grants.missing(run.first.gref, run.pages) == 0) {
                // Nothing has to be mapped.
                let mut merged: u64 = 0;
                for run in &request.segments {
                    let mut done = 0;
                    while let Some(left) = run.pages.checked_sub(done).filter(|&left| left > 0)
                        && let Some((pages, base, count)) = connection.grants.reuse_run(run.gref(done), left)
                    {
                        let piece = Run { pages: count, ..*run };
                        merged =
                            merged.saturating_add(hold(&mut request.held, &mut request.data, piece, (pages, base)));
                        done = done.saturating_add(count);
                    }
                }
                vbd.stats.segments = vbd.stats.segments.saturating_add(pages(&request.segments));
                vbd.stats.merged = vbd.stats.merged.saturating_add(merged);
                continue;
            }
            let readonly = !connection.grants.persistent() && request.kind != Kind::Read;
            for segment in request.segments.iter().flat_map(Run::segments) {
                let kept = connection.grants.reuse(segment.gref);
                if kept.is_none() {
                    maps.push(MapRequest { dom, gref: segment.gref, readonly, device: true });
                }
                known.push_back(kept);
            }
            wanting.push(ticket);
        }
        let mut results = Vec::new();
        if !maps.is_empty() {
            self.map(&maps, &mut results);
        }
        maps.clear();
        self.maps = maps;
        let mut results = results.into_iter();
        for ticket in wanting {
            self.take_pages(ticket, &mut known, &mut results, now_us);
        }
        known.clear();
        self.known = known;
    }

    /// A request gets its pages: those that were kept, and the next of those that were mapped.
    fn take_pages(
        &mut self,
        ticket: Ticket,
        known: &mut Known<P::Page>,
        results: &mut impl Iterator<Item = Result<Mapped<P::Page>, MapError>>,
        now_us: u64,
    ) {
        let Some(vbd) = self.vbds.get_mut(ticket.slot) else { return };
        let Some(connection) = &mut vbd.connection else { return };
        let Some(request) = connection.line.get_mut(ticket.index) else { return };
        let mut refused = None;
        let mut merged: u64 = 0;
        for segment in request.segments.iter().flat_map(Run::segments) {
            let page = match known.pop_front().flatten() {
                Some(kept) => kept,
                None => match results.next().unwrap_or(Err(MapError::NoRoom)) {
                    Ok(page) => connection.grants.take_in(segment.gref, page, &mut self.garbage),
                    Err(error) => {
                        refused.get_or_insert(error);
                        continue;
                    }
                },
            };
            merged = merged.saturating_add(hold(
                &mut request.held,
                &mut request.data,
                Run { first: segment, pages: 1 },
                page,
            ));
        }
        vbd.stats.segments = vbd.stats.segments.saturating_add(pages(&request.segments));
        vbd.stats.merged = vbd.stats.merged.saturating_add(merged);
        let Some(error) = refused else { return };
        request.data.clear();
        for held in request.held.drain(..) {
            connection.grants.release(held, &mut self.garbage);
        }
        match error {
            MapError::NoRoom => self.retry_us = Some(now_us.saturating_add(RETRY_US)),
            MapError::Refused(why) => {
                self.tell(ticket.slot, format_args!("a page of its frontend could not be mapped, status {why}"));
                self.finish(ticket.slot, ticket.index, rsp::ERROR);
            }
        }
    }

    /// Gives a request to its drive as far as that takes it; true if anything.
    fn submit(&mut self, ticket: Ticket) -> bool {
        let Some(drive) = self.connection_of(ticket).map(|connection| connection.extent.drive) else { return false };
        let Some(info) = self.info(drive) else { return false };
        let mut any = false;
        let mut segments = core::mem::take(&mut self.segments);
        while self.disks.room(drive) > 0 {
            let Some(connection) = self.connection_of(ticket) else { break };
            let first = if mutated!(NoOffset) { 0 } else { connection.extent.first };
            let Some(request) = connection.line.get_mut(ticket.index) else { break };
            let mapped = request.segments.is_empty() || !request.data.is_empty();
            let failed = request.error.is_some() || request.phase == Phase::Answered;
            if !mapped || failed || request.is_given() {
                break;
            }
            let len = length(&info, request, &mut segments);
            let size = u64::from(info.sector_size.max(1));
            let at = first.saturating_add(request.first).checked_div(sector_ratio(&info)).unwrap_or(0);
            let sector = at.saturating_add(request.given.checked_div(size).unwrap_or(0));
            let sectors = u32::try_from(len.checked_div(size).unwrap_or(0)).unwrap_or(0);
            let op = match request.kind {
                Kind::Read => Op::Read,
                Kind::Discard => Op::Discard,
                Kind::Write | Kind::Refused => Op::Write { fua: false },
                Kind::Flush | Kind::Barrier => Op::Write { fua: info.write_cache },
            };
            request.phase = Phase::Moving;
            let token = self.fly(Flight::Data(ticket));
            let result = match sectors {
                0 => Err(SubmitError::BadSegments(segments.len())),
                _ => self.disks.submit(drive, &Command { op, sector, sectors, segments: &segments }, token),
            };
            if let Err(error) = result {
                self.land(token);
                if !matches!(error, SubmitError::Full | SubmitError::Faulty) {
                    log::warn!("{}: {op:?} of {sectors} at {sector}: {error:?}", self.name(ticket.slot));
                    self.refused(ticket, error);
                }
                break;
            }
            let Some(connection) = self.connection_of(ticket) else { break };
            connection.out = connection.out.saturating_add(1);
            if let Some(request) = connection.line.get_mut(ticket.index) {
                request.given = request.given.saturating_add(len);
                request.out = request.out.saturating_add(1);
            }
            self.stats.commands = self.stats.commands.saturating_add(1);
            any = true;
        }
        self.segments = segments;
        if any && mutated!(EarlyAnswer) {
            self.finish(ticket.slot, ticket.index, rsp::OKAY);
        }
        if any && mutated!(EarlyUnmap) {
            let mut garbage = core::mem::take(&mut self.garbage);
            if let Some(connection) = self.connection_of(ticket)
                && let Some(request) = connection.line.get_mut(ticket.index)
            {
                for held in core::mem::take(&mut request.held) {
                    connection.grants.release(held, &mut garbage);
                }
            }
            self.garbage = garbage;
        }
        any
    }

    /// The drive does not take it: it fails, once what it has taken of it is done.
    fn refused(&mut self, ticket: Ticket, error: SubmitError) {
        let status = if error == SubmitError::Unsupported { rsp::EOPNOTSUPP } else { rsp::ERROR };
        let Some(connection) = self.connection_of(ticket) else { return };
        let Some(request) = connection.line.get_mut(ticket.index) else { return };
        request.error.get_or_insert(status);
        if request.out == 0 {
            self.finish(ticket.slot, ticket.index, status);
        }
    }

    /// A token for what a drive is about to get.
    fn fly(&mut self, flight: Flight) -> u32 {
        let free = self.flights.iter().position(Option::is_none).unwrap_or(self.flights.len());
        match self.flights.get_mut(free) {
            Some(place) => *place = Some(flight),
            None => self.flights.push(Some(flight)),
        }
        free as u32
    }

    /// The drive did not take it.
    fn land(&mut self, token: u32) {
        if let Some(place) = self.flights.get_mut(token as usize) {
            *place = None;
        }
    }
}

/// Notes that pages are held and where the drive sees the data in them: how many of them continue the page before.
fn hold<M>(
    all: &mut Vec<Held<M>>,
    data: &mut Vec<Segment>,
    Run { first, pages }: Run,
    (page, base): (Held<M>, u64),
) -> u64 {
    page.append(all);
    let addr = base.saturating_add(u64::from(first.first_sect).saturating_mul(u64::from(SECTOR_SIZE)));
    let sectors = u32::from(first.sectors().unwrap_or(0)).saturating_mul(u32::from(pages));
    let len = sectors.saturating_mul(SECTOR_SIZE);
    let joined = u64::from(append(data, addr, len));
    u64::from(pages).saturating_sub(1).saturating_add(joined)
}

/// The bytes of a request's next command, and its segments.
fn length<H>(info: &DriveInfo, request: &Request<H>, segments: &mut Vec<Segment>) -> u64 {
    if request.kind != Kind::Discard {
        return u64::from(cut(info, &request.data, request.given, segments));
    }
    segments.clear();
    let most = u64::from(info.max_discard).saturating_mul(u64::from(info.sector_size));
    request.len_bytes().saturating_sub(request.given).min(most)
}
