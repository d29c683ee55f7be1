//! What a guest asks for: requests of all kinds, at random, and how they are put on the ring.

use super::{DATA_PAGES, Guest, Link, Out, RING_PAGES, data_gref, list_gref};
use abi::PAGE_SIZE;
use abi::io::blkif::{Discard, Indirect, MAX_SEGMENTS_PER_REQUEST, ReadWrite, Segment, op};

impl Guest {
    /// A request of some kind, if there is room for one.
    pub(super) fn invent(&mut self, free: u32) -> Option<Out> {
        if free == 0 {
            return None;
        }
        let size = self.judge.sectors;
        let unit = self.nature.granularity;
        let operation = match self.chance(20) {
            _ if self.nature.read_only => op::READ,
            0..=6 => op::READ,
            7..=14 => op::WRITE,
            15 | 16 => op::FLUSH_DISKCACHE,
            17 | 18 => op::WRITE_BARRIER,
            _ => op::DISCARD,
        };
        let empty = matches!(operation, op::FLUSH_DISKCACHE | op::WRITE_BARRIER) && self.chance(3) > 0;
        if empty {
            let case = self.judge.ask(operation, 0, 0);
            return Some(Out { operation, first: 0, sectors: 0, segments: vec![], pages: vec![], list: None, case });
        }
        if operation == op::DISCARD {
            let first = u64::from(self.chance((size / unit) as u32)) * unit;
            let sectors = ((1 + u64::from(self.chance(30))) * unit).min(size - first);
            let case = self.judge.ask(operation, first, sectors);
            return Some(Out { operation, first, sectors, segments: vec![], pages: vec![], list: None, case });
        }
        let many = self.nature.indirect
            && !self.free_lists.is_empty()
            && self.chance(3) == 0
            && matches!(operation, op::READ | op::WRITE);
        let most = if many { 20 } else { MAX_SEGMENTS_PER_REQUEST };
        let count = 1 + self.chance(most as u32) as usize;
        if self.free_pages.len() < count {
            return None;
        }
        let mut segments = Vec::new();
        let mut sectors = 0;
        let mut pages = Vec::new();
        for _ in 0..count {
            let (a, b) = (self.chance(8) as u8, self.chance(8) as u8);
            let (first_sect, last_sect) = if self.chance(2) == 0 || unit > 1 { (0, 7) } else { (a.min(b), a.max(b)) };
            let here = u64::from(last_sect - first_sect) + 1;
            if sectors + here > size {
                break;
            }
            let page = self.free_pages.pop()?;
            sectors += here;
            segments.push(Segment { gref: data_gref(page), first_sect, last_sect, pad: 0 });
            pages.push(page);
        }
        let first = u64::from(self.chance(((size - sectors) / unit) as u32 + 1)) * unit;
        // Any of them: backends keep few, and must part with one that others in the ring name.
        let any = if many { self.chance(self.free_lists.len() as u32) as usize } else { 0 };
        let list = many.then(|| self.free_lists.swap_remove(any));
        let case = self.judge.ask(operation, first, sectors);
        Some(Out { operation, first, sectors, segments, pages, list, case })
    }

    pub(super) fn put(&mut self, link: &mut Link, out: Out) {
        self.next_id += 1;
        let id = self.next_id;
        let writes = out.operation != op::READ;
        for (&addr, sector) in self.places(&out).iter().zip(out.first..) {
            let bytes = if writes { self.judge.content(&out.case, sector) } else { [0xEE; 512] };
            self.world.write(addr, &bytes);
        }
        for &page in &out.pages {
            let readonly = writes && !self.nature.persistent;
            self.world.grant_unless_there(self.dom, data_gref(page), self.frames[RING_PAGES + page], readonly);
        }
        let words = match out.operation {
            op::DISCARD => {
                let (sector_number, nr_sectors) = (out.first, out.sectors);
                Discard { operation: op::DISCARD, id, sector_number, nr_sectors, ..Discard::default() }.to_words()
            }
            operation => match out.list {
                Some(list) => self.indirect(list, id, operation, &out),
                None => {
                    let nr_segments = out.segments.len() as u8;
                    let mut form =
                        ReadWrite { operation, nr_segments, id, sector_number: out.first, ..Default::default() };
                    form.segments[..out.segments.len()].copy_from_slice(&out.segments);
                    form.to_words()
                }
            },
        };
        if link.ring.push(words).is_err() {
            self.fail("the ring is full");
        }
        link.order.push(id);
        link.out.insert(id, out);
    }

    fn indirect(&self, list: usize, id: u64, indirect_op: u8, out: &Out) -> [u32; 28] {
        let mfn = self.frames[RING_PAGES + DATA_PAGES + list];
        for (n, segment) in out.segments.iter().enumerate() {
            let [a, b] = segment.to_words();
            let at = mfn.0 * PAGE_SIZE as u64 + n as u64 * 8;
            self.world.write32(at, a);
            self.world.write32(at + 4, b);
        }
        // Our own frontend grants its lists only to be read, Linux for both.
        self.world.grant_unless_there(self.dom, list_gref(list), mfn, self.nature.order > 0 || !self.nature.persistent);
        let mut form =
            Indirect { operation: op::INDIRECT, indirect_op, id, sector_number: out.first, ..Default::default() };
        form.nr_segments = out.segments.len() as u16;
        form.indirect_grefs[0] = list_gref(list);
        form.to_words()
    }
}
