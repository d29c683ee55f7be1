//! What the drives have finished.

use super::{Backend, Flight};
use crate::disk::{Disks, DriveId, IoError};
use crate::line::Phase;
use crate::table::{Table, Ticket};
use crate::vbd::Connection;
use crate::{Platform, mutated};
use abi::io::blkif::rsp;
use alloc::vec::Vec;
use hw::DmaMemory;
use ring::SharedMem;

/// How an error of the drive is told.
fn status(error: IoError) -> i16 {
    match error {
        IoError::Unsupported => rsp::EOPNOTSUPP,
        IoError::Device { .. } | IoError::Timeout | IoError::Gone => rsp::ERROR,
    }
}

impl<P: Platform, D: Disks, M: DmaMemory, S: SharedMem> Backend<P, D, M, S> {
    /// Takes all that was completed; true if there was anything.
    pub(super) fn reap(&mut self) -> bool {
        self.disks.tick();
        let mut any = false;
        while let Some((drive, completion)) = self.disks.completed() {
            any = true;
            self.stirred = true;
            let place = self.flights.get_mut(completion.token as usize);
            let Some(flight) = place.and_then(Option::take) else {
                log::error!("drive {}: completed {:#x}, which it was not given", drive.0, completion.token);
                continue;
            };
            if let (Err(error), Flight::Data(ticket)) = (completion.result, &flight) {
                self.tell(ticket.slot, format_args!("drive {}: {error:?}", drive.0));
            }
            let result = completion.result.map_err(status);
            match flight {
                Flight::Data(ticket) => self.data_done(ticket, result),
                Flight::Flush(tickets) => {
                    if let Some(drive) = self.drives.get_mut(usize::from(drive.0)) {
                        drive.flushing = false;
                    }
                    tickets.into_iter().for_each(|ticket| self.flush_done(ticket, result));
                }
                Flight::Table(len) => self.table_read(drive, result.ok().map(|()| len)),
            }
        }
        any
    }

    fn table_read(&mut self, drive: DriveId, len: Option<u32>) {
        self.scratch_of = None;
        let read = self.drives.get_mut(usize::from(drive.0)).is_some_and(|drive| drive.read(len, &self.scratch));
        if read {
            self.look_again();
        }
    }

    fn data_done(&mut self, ticket: Ticket, result: Result<(), i16>) {
        let Some(vbd) = self.vbds.get_mut(ticket.slot) else { return };
        let Some(connection) = vbd.connection.as_mut().filter(|c| c.epoch == ticket.epoch) else {
            return self.orphan_done(ticket);
        };
        connection.out = connection.out.saturating_sub(1);
        let Some(request) = connection.line.get_mut(ticket.index) else { return };
        request.out = request.out.saturating_sub(1);
        if let Err(status) = result {
            request.error.get_or_insert(status);
        }
        let over = request.is_given() || request.error.is_some();
        if request.out == 0 && over && request.phase != Phase::Answered {
            let status = request.error.unwrap_or(rsp::OKAY);
            self.finish(ticket.slot, ticket.index, status);
        }
    }

    /// A command of a connection that was closed meanwhile.
    fn orphan_done(&mut self, ticket: Ticket) {
        let Some(vbd) = self.vbds.get_mut(ticket.slot) else { return };
        let Some(place) = vbd.orphans.iter().position(|orphans| orphans.epoch == ticket.epoch) else { return };
        if let Some(orphans) = vbd.orphans.get_mut(place) {
            orphans.out = orphans.out.saturating_sub(1);
            if orphans.out > 0 {
                return;
            }
        }
        self.garbage.extend(vbd.orphans.swap_remove(place).pages);
        // Somebody may wait for it.
        self.look_again();
    }

    pub(super) fn flush_done(&mut self, ticket: Ticket, result: Result<(), i16>) {
        let Some(connection) = self.connection_of(ticket) else { return };
        // One whose drive has gone was answered.
        let request = connection.line.get_mut(ticket.index).filter(|request| request.phase == Phase::Flushing);
        let Some(request) = request else { return };
        match result {
            Ok(()) if request.sectors > 0 => request.phase = Phase::Moving,
            Ok(()) => self.finish(ticket.slot, ticket.index, rsp::OKAY),
            Err(status) => self.finish(ticket.slot, ticket.index, status),
        }
    }

    /// Says why a request of a vbd fails: of the first, the second, the fourth, …, as a frontend can have as many as it likes.
    pub(super) fn tell(&self, slot: usize, why: core::fmt::Arguments<'_>) {
        let Some(vbd) = self.vbds.get(slot) else { return };
        if vbd.stats.errors.saturating_add(1).is_power_of_two() {
            log::warn!("{vbd}: a request fails: {why}");
        }
    }

    /// A request's answer is known.
    pub(super) fn finish(&mut self, slot: usize, index: u32, status: i16) {
        let Some(vbd) = self.vbds.get_mut(slot) else { return };
        let Some(connection) = &mut vbd.connection else { return };
        if let Err(fault) = connection.finish(&mut vbd.stats, index, status, &mut self.garbage) {
            self.faults.push((slot, fault));
        }
    }

    /// The connection a ticket belongs to, if it is still there.
    pub(super) fn connection_of(&mut self, ticket: Ticket) -> Option<&mut Connection<P::Page>> {
        let connection = self.vbds.get_mut(ticket.slot)?.connection.as_mut()?;
        (connection.epoch == ticket.epoch).then_some(connection)
    }

    /// The controller has forgotten all commands: what it was given is to be given again.
    pub(super) fn forget_flights(&mut self) {
        let flights: Vec<Flight> = self.flights.iter_mut().filter_map(Option::take).collect();
        self.scratch_of = None;
        for flight in flights {
            match flight {
                Flight::Data(ticket) if mutated!(ResetIsDone) => self.data_done(ticket, Ok(())),
                Flight::Data(ticket) => {
                    let Some(connection) = self.connection_of(ticket) else { continue };
                    connection.out = 0;
                    if let Some(request) = connection.line.get_mut(ticket.index) {
                        request.again();
                    }
                }
                Flight::Flush(tickets) => {
                    for ticket in tickets {
                        let Some(connection) = self.connection_of(ticket) else { continue };
                        let drive = usize::from(connection.extent.drive.0);
                        if let Some(drive) = self.drives.get_mut(drive) {
                            drive.waiters.push(ticket);
                        }
                    }
                }
                Flight::Table(_) => {}
            }
        }
        for drive in &mut self.drives {
            drive.flushing = false;
            if let Table::Reading { out, .. } = &mut drive.table {
                *out = false;
            }
        }
        for vbd in self.vbds.iter_mut() {
            for orphans in vbd.orphans.drain(..) {
                self.garbage.extend(orphans.pages);
            }
        }
        self.stirred = true;
        self.look_again();
    }
}
