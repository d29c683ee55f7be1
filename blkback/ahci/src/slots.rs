//! The commands of one drive, and which of them go next. No register and no memory here.
//!
//! A slot is a place in the port's command list and, for queued commands, the tag. Slots wait, then are issued, then done. Queued commands
//! go together; a command that is not queued (flush, discard, everything on a drive without queuing) goes alone, because a drive aborts
//! all that is queued when it gets one (SATA 13.6.2). Order is that of submission: what is queued later does not overtake a command
//! that wants to be alone, so neither kind starves the other. Flushes that wait together are one command to the drive.

use blkback::disk::IoError;

/// Slots of a command list.
pub const SLOTS: u8 = 32;

/// What a slot's command does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes; with `then_flush` a flush follows in the same slot.
    Write {
        /// The drive cannot force it to media.
        then_flush: bool,
    },
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The backend's name for it.
    pub token: u32,
    /// What it does.
    pub kind: Kind,
    /// Bytes it moves.
    pub bytes: u32,
    /// Region descriptors.
    pub prds: u16,
    /// When it was issued, microseconds.
    pub since: u64,
    /// Recoveries it was in without anybody knowing whose fault they were.
    pub doubts: u8,
    /// Deadlines it missed.
    pub late: u8,
    /// Its end.
    pub result: Result<(), IoError>,
    order: u64,
}

const FREE: Slot =
    Slot { token: 0, kind: Kind::Flush, bytes: 0, prds: 0, since: 0, doubts: 0, late: 0, result: Ok(()), order: 0 };

/// What may be issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing now.
    Nothing,
    /// These, queued, a bit each.
    Queued(u32),
    /// This one, alone.
    Alone(u8),
}

/// The slots of a drive. Masks have a bit per slot.
#[derive(Debug)]
pub struct Slots {
    slot: [Slot; SLOTS as usize],
    /// Slots that may be used.
    usable: u32,
    /// Given by the backend, not with the drive.
    waiting: u32,
    /// With the drive. Flushes that ride along with another are among them.
    issued: u32,
    /// Over, the backend does not know yet.
    done: u32,
    /// Their end is known; kept until the drive is known to be quiet.
    failing: u32,
    /// Not queued commands.
    alone: u32,
    /// One of these brought a recovery; each is tried by itself until it is known which.
    suspects: u32,
    /// The one that the drive was given, when it is alone.
    leader: Option<u8>,
    next_order: u64,
}

const fn bit(slot: u8) -> u32 {
    1u32.wrapping_shl(slot as u32)
}

/// The slots below `depth`.
const fn below(depth: u8) -> u32 {
    if depth >= SLOTS { u32::MAX } else { bit(depth).wrapping_sub(1) }
}

/// The slots of a mask, from 0.
pub fn each(mask: u32) -> impl Iterator<Item = u8> {
    (0..SLOTS).filter(move |s| mask & bit(*s) != 0)
}

impl Slots {
    /// `depth` free slots.
    #[must_use]
    pub fn new(depth: u8) -> Self {
        Self {
            slot: [FREE; SLOTS as usize],
            usable: below(depth),
            waiting: 0,
            issued: 0,
            done: 0,
            failing: 0,
            alone: 0,
            suspects: 0,
            leader: None,
            next_order: 0,
        }
    }

    /// Another drive takes `depth` commands. What is over of the one before is still to be reported.
    pub fn set_depth(&mut self, depth: u8) {
        self.usable = below(depth);
    }

    /// A slot's command.
    #[must_use]
    pub fn get(&self, slot: u8) -> &Slot {
        self.slot.get(usize::from(slot)).unwrap_or(&FREE)
    }

    fn with(&mut self, slot: u8, f: impl FnOnce(&mut Slot)) {
        if let Some(s) = self.slot.get_mut(usize::from(slot)) {
            f(s);
        }
    }

    const fn used(&self) -> u32 {
        self.waiting | self.issued | self.done | self.failing
    }

    /// Slots that are free.
    #[must_use]
    pub const fn room(&self) -> u32 {
        (self.usable & !self.used()).count_ones()
    }

    /// A free slot, if there is one.
    #[must_use]
    pub fn free(&self) -> Option<u8> {
        each(self.usable & !self.used()).next()
    }

    /// With the drive.
    #[must_use]
    pub const fn issued(&self) -> u32 {
        self.issued
    }

    /// The bits that the controller was given for them: all, or the one that is alone.
    #[must_use]
    pub fn given(&self) -> u32 {
        self.leader.map_or(self.issued, bit)
    }

    /// The command that is alone with the drive.
    #[must_use]
    pub const fn leader(&self) -> Option<u8> {
        self.leader
    }

    /// Takes a free slot for a command, `alone` or queued.
    pub fn put(&mut self, slot: u8, alone: bool, command: (u32, Kind, u32, u16)) {
        let (token, kind, bytes, prds) = command;
        let order = self.order();
        self.with(slot, |s| *s = Slot { token, kind, bytes, prds, order, ..FREE });
        self.waiting |= bit(slot);
        self.set_alone(slot, alone);
    }

    fn order(&mut self) -> u64 {
        self.next_order = self.next_order.wrapping_add(1);
        self.next_order
    }

    fn set_alone(&mut self, slot: u8, alone: bool) {
        self.alone = if alone { self.alone | bit(slot) } else { self.alone & !bit(slot) };
    }

    fn oldest(&self, mask: u32) -> Option<u8> {
        each(mask).min_by_key(|s| self.get(*s).order)
    }

    /// What may be issued now.
    #[must_use]
    pub fn next(&self) -> Next {
        if self.leader.is_some() {
            return Next::Nothing;
        }
        let suspects = self.suspects & self.waiting;
        if self.suspects != 0 {
            // One at a time; the others wait until all suspects are through.
            return match self.oldest(suspects) {
                Some(s) if self.issued == 0 && self.alone & bit(s) != 0 => Next::Alone(s),
                Some(s) if self.issued == 0 => Next::Queued(bit(s)),
                _ => Next::Nothing,
            };
        }
        let Some(alone) = self.oldest(self.waiting & self.alone) else {
            return if self.waiting == 0 { Next::Nothing } else { Next::Queued(self.waiting) };
        };
        let order = self.get(alone).order;
        let before =
            each(self.waiting & !self.alone).filter(|s| self.get(*s).order < order).fold(0, |mask, s| mask | bit(s));
        match (before, self.issued) {
            (0, 0) => Next::Alone(alone),
            (0, _) => Next::Nothing,
            _ => Next::Queued(before),
        }
    }

    /// Notes that these go to the drive, queued.
    pub fn issue_queued(&mut self, mask: u32, now: u64) {
        self.waiting &= !mask;
        self.issued |= mask;
        each(mask).for_each(|s| self.with(s, |slot| slot.since = now));
    }

    /// Notes that this one goes to the drive; other flushes that wait go with a flush.
    pub fn issue_alone(&mut self, slot: u8, now: u64) {
        let mut mask = bit(slot);
        if self.get(slot).kind == Kind::Flush {
            mask |= each(self.waiting).filter(|s| self.get(*s).kind == Kind::Flush).fold(0, |m, s| m | bit(s));
        }
        self.issue_queued(mask, now);
        self.leader = Some(slot);
    }

    /// Notes that the drive is done with these, queued ones, without an error; says which have to go on as flushes.
    pub fn finish(&mut self, mask: u32) -> u32 {
        let mask = mask & self.issued;
        self.issued &= !mask;
        self.suspects &= !mask;
        let mut flush = 0;
        for s in each(mask) {
            if self.get(s).kind == (Kind::Write { then_flush: true }) {
                let order = self.order();
                self.with(s, |slot| (slot.kind, slot.order, slot.prds) = (Kind::Flush, order, 0));
                self.set_alone(s, true);
                flush |= bit(s);
            }
        }
        self.waiting |= flush;
        self.done |= mask & !flush;
        flush
    }

    /// The same for the one that was alone, and those that rode along.
    pub fn finish_alone(&mut self) -> u32 {
        self.leader = None;
        self.finish(self.issued)
    }

    /// A command that needs nothing of the drive is over.
    pub fn finish_waiting(&mut self, slot: u8) {
        self.waiting &= !bit(slot);
        self.done |= bit(slot);
    }

    /// Ends issued commands with an error, to be reported after [`Slots::release`].
    pub fn fail(&mut self, mask: u32, error: IoError) {
        let mask = mask & self.issued;
        each(mask).for_each(|s| self.with(s, |slot| slot.result = Err(error)));
        self.issued &= !mask;
        self.suspects &= !mask;
        self.failing |= mask;
    }

    /// Takes everything back from the drive, to be issued again; says what it was.
    pub fn recall(&mut self) -> u32 {
        let mask = self.issued;
        self.waiting |= mask;
        self.issued = 0;
        self.leader = None;
        mask
    }

    /// Each of these is to be tried by itself.
    pub fn suspect(&mut self, mask: u32) {
        self.suspects |= mask & self.waiting;
    }

    /// Nothing is suspected any more.
    pub fn trust(&mut self) {
        self.suspects = 0;
    }

    /// Counts a doubt against each of these, all issued; ends those that had `max` before.
    pub fn doubt(&mut self, mask: u32, max: u8, error: IoError) {
        let over = each(mask).filter(|s| self.get(*s).doubts >= max).fold(0, |m, s| m | bit(s));
        each(mask).for_each(|s| self.with(s, |slot| slot.doubts = slot.doubts.saturating_add(1)));
        self.fail(over, error);
    }

    /// Counts a missed deadline against each of these, all issued; ends those that missed one before.
    pub fn missed(&mut self, mask: u32) {
        let over = each(mask).filter(|s| self.get(*s).late > 0).fold(0, |m, s| m | bit(s));
        each(mask).for_each(|s| self.with(s, |slot| slot.late = slot.late.saturating_add(1)));
        self.fail(over, IoError::Timeout);
    }

    /// The drive is quiet: failed commands may be reported.
    pub fn release(&mut self) {
        self.done |= self.failing;
        self.failing = 0;
    }

    /// Fails a command that waits; the drive is quiet.
    pub fn fail_waiting(&mut self, slot: u8, error: IoError) {
        let mask = bit(slot) & self.waiting;
        self.waiting &= !mask;
        self.suspects &= !mask;
        each(mask).for_each(|s| self.with(s, |slot| slot.result = Err(error)));
        self.done |= mask;
    }

    /// Ends everything that is not over; the drive is quiet.
    pub fn fail_all(&mut self, error: IoError) {
        let mask = self.waiting | self.issued;
        each(mask).for_each(|s| self.with(s, |slot| slot.result = Err(error)));
        self.done |= mask | self.failing;
        (self.waiting, self.issued, self.failing, self.suspects, self.leader) = (0, 0, 0, 0, None);
    }

    /// The next that is over; its slot is free.
    pub fn reap(&mut self) -> Option<Slot> {
        let slot = self.oldest(self.done)?;
        self.done &= !bit(slot);
        Some(*self.get(slot))
    }

    /// Issued commands by when they have to be done.
    pub fn deadlines(&self, limit: impl Fn(Kind) -> u64) -> impl Iterator<Item = (u8, u64)> {
        each(self.issued).map(move |s| (s, self.get(s).since.saturating_add(limit(self.get(s).kind))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Kind = Kind::Read;

    fn put(slots: &mut Slots, kind: Kind) -> u8 {
        let slot = slots.free().unwrap();
        let alone = matches!(kind, Kind::Flush | Kind::Discard);
        slots.put(slot, alone, (u32::from(slot), kind, 0, 0));
        slot
    }

    #[test]
    fn what_is_alone_is_not_overtaken_and_does_not_wait_for_what_comes_after_it() {
        let mut s = Slots::new(32);
        let (a, b) = (put(&mut s, READ), put(&mut s, READ));
        let f = put(&mut s, Kind::Flush);
        let c = put(&mut s, READ);
        assert_eq!(s.next(), Next::Queued(bit(a) | bit(b)));
        s.issue_queued(bit(a) | bit(b), 0);
        assert_eq!(s.next(), Next::Nothing);
        s.finish(bit(a));
        // A place became free and is taken again: it queues up behind the flush.
        assert_eq!(s.reap().unwrap().token, u32::from(a));
        let d = put(&mut s, READ);
        assert_eq!((d, s.next()), (a, Next::Nothing));
        s.finish(bit(b));
        assert_eq!(s.next(), Next::Alone(f));
        s.issue_alone(f, 0);
        assert_eq!((s.next(), s.given()), (Next::Nothing, bit(f)));
        s.finish_alone();
        assert_eq!(s.next(), Next::Queued(bit(c) | bit(d)));
    }

    #[test]
    fn flushes_that_wait_together_are_one() {
        let mut s = Slots::new(32);
        let (f, r, g, d) =
            (put(&mut s, Kind::Flush), put(&mut s, READ), put(&mut s, Kind::Flush), put(&mut s, Kind::Discard));
        assert_eq!(s.next(), Next::Alone(f));
        s.issue_alone(f, 0);
        assert_eq!((s.given(), s.issued()), (bit(f), bit(f) | bit(g)));
        s.finish_alone();
        assert_eq!([s.reap().unwrap().token, s.reap().unwrap().token], [u32::from(f), u32::from(g)]);
        assert_eq!(s.next(), Next::Queued(bit(r)));
        s.issue_queued(bit(r), 0);
        s.finish(bit(r));
        assert_eq!(s.next(), Next::Alone(d));
    }

    #[test]
    fn a_write_that_cannot_be_forced_goes_on_as_a_flush() {
        let mut s = Slots::new(32);
        let w = put(&mut s, Kind::Write { then_flush: true });
        let r = put(&mut s, READ);
        s.issue_queued(bit(w) | bit(r), 0);
        assert_eq!(s.finish(bit(w)), bit(w));
        assert!(s.reap().is_none());
        assert_eq!(s.next(), Next::Nothing);
        s.finish(bit(r));
        s.reap();
        assert_eq!(s.next(), Next::Alone(w));
        s.issue_alone(w, 0);
        assert_eq!(s.finish_alone(), 0);
        assert_eq!(s.reap().unwrap().token, u32::from(w));
        assert_eq!(s.room(), 32);
    }

    #[test]
    fn suspects_go_one_by_one_and_nothing_else_meanwhile() {
        let mut s = Slots::new(32);
        let all = [put(&mut s, READ), put(&mut s, READ), put(&mut s, READ)];
        s.issue_queued(7, 0);
        let mask = s.recall();
        s.suspect(mask);
        let late = put(&mut s, READ);
        for i in all {
            assert_eq!(s.next(), Next::Queued(bit(i)));
            s.issue_queued(bit(i), 0);
            assert_eq!(s.next(), Next::Nothing);
            if i == 1 {
                s.fail(bit(i), IoError::Timeout);
                assert!(s.done == bit(0), "kept until the drive is quiet");
                s.release();
            } else {
                s.finish(bit(i));
            }
        }
        assert_eq!(s.next(), Next::Queued(bit(late)));
        let results: Vec<bool> = std::iter::from_fn(|| s.reap()).map(|s| s.result.is_ok()).collect();
        assert_eq!(results, [true, false, true]);
    }

    #[test]
    fn doubts_and_missed_deadlines_end() {
        let mut s = Slots::new(4);
        assert_eq!(s.room(), 4);
        let (a, b) = (put(&mut s, READ), put(&mut s, READ));
        s.issue_queued(3, 10);
        assert_eq!(s.deadlines(|_| 5).collect::<Vec<_>>(), [(a, 15), (b, 15)]);
        s.missed(bit(a));
        assert_eq!(s.recall(), 3);
        s.issue_queued(3, 20);
        s.missed(bit(a));
        assert_eq!(s.recall(), bit(b));
        s.release();
        assert_eq!(s.reap().unwrap().result, Err(IoError::Timeout));
        for round in 0..3 {
            s.issue_queued(bit(b), 30);
            s.doubt(bit(b), 2, IoError::Device { status: 1, error: 4 });
            assert_eq!(s.recall() == 0, round == 2);
        }
        s.release();
        assert_eq!(s.reap().unwrap().result, Err(IoError::Device { status: 1, error: 4 }));
        assert_eq!(s.room(), 4);
    }
}
