//! Data pages: granted to the backend once, for good, and handed out as [`Buffer`]s. A backend with persistent grants maps each page once;
//! one without maps it for every request. It is the same to us.
//!
//! A buffer is one run of pages in a row: the backend maps them in a row, so the device is told of one region and not of hundreds.
//!
//! The backend may write any page at any time. So nobody borrows a buffer's bytes: they are copied in and out, out exactly once.

use crate::grant::{Access, GrantError, GrantedPage};
use crate::shared_page::SharedPage;
use abi::{DomId, GrantRef, PAGE_SIZE};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// A bit per page: set = taken.
#[derive(Debug)]
struct Map {
    words: Vec<u64>,
    pages: usize,
}

impl Map {
    fn new(pages: usize) -> Self {
        Self { words: alloc::vec![0; pages.div_ceil(64)], pages }
    }

    /// The first page from `at` on that is taken, or is not; `pages` where there is none.
    fn next(&self, at: usize, taken: bool) -> usize {
        let mut below = u64::MAX.checked_shl((at % 64) as u32).unwrap_or(0);
        for (index, &word) in self.words.iter().enumerate().skip(at / 64) {
            let found = if taken { word } else { !word } & below;
            if found != 0 {
                return index.wrapping_mul(64).wrapping_add(found.trailing_zeros() as usize).min(self.pages);
            }
            below = u64::MAX;
        }
        self.pages
    }

    /// The first run of `count` free pages.
    fn run(&self, count: usize) -> Option<usize> {
        let mut first = self.next(0, false);
        while first.checked_add(count)? <= self.pages {
            let end = self.next(first, true);
            if end.wrapping_sub(first) >= count {
                return Some(first);
            }
            first = self.next(end, false);
        }
        None
    }

    fn set(&mut self, first: usize, count: usize, taken: bool) {
        for page in first..first.saturating_add(count).min(self.pages) {
            if let Some(word) = self.words.get_mut(page / 64) {
                let bit = 1u64 << (page % 64);
                *word = if taken { *word | bit } else { *word & !bit };
            }
        }
    }
}

/// The pages of one device.
#[derive(Debug)]
pub(super) struct Pool {
    /// In the order of their addresses.
    pages: Vec<GrantedPage>,
    taken: RefCell<Map>,
    /// Pages given up for good, because a backend that broke the protocol may still use them.
    leaked: Cell<u32>,
}

impl Pool {
    /// `count` pages granted to `backend`.
    ///
    /// # Errors
    /// Memory or grants are exhausted.
    pub fn new(backend: DomId, count: u16) -> Result<Rc<Self>, GrantError> {
        let mut pages = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            pages.push(GrantedPage::alloc(backend, Access::ReadWrite)?);
        }
        pages.sort_unstable_by_key(|page| page.page().map(SharedPage::gfn));
        let taken = RefCell::new(Map::new(pages.len()));
        Ok(Rc::new(Self { pages, taken, leaked: Cell::new(0) }))
    }

    /// Pages lost to a backend that broke the protocol.
    pub fn leaked(&self) -> u32 {
        self.leaked.get()
    }

    /// A buffer of `len` bytes, rounded up to pages; `None` where there are not so many free pages in a row.
    pub fn take(self: &Rc<Self>, len: usize) -> Option<Buffer> {
        let count = len.div_ceil(PAGE_SIZE);
        let mut taken = self.taken.borrow_mut();
        let first = taken.run(count)?;
        taken.set(first, count, true);
        Some(Buffer { pool: Rc::clone(self), first, count })
    }

    /// The page behind a reference, as the backend finds it.
    #[cfg(test)]
    pub fn by_gref(&self, gref: GrantRef) -> Option<&GrantedPage> {
        self.pages.iter().find(|page| page.gref() == gref)
    }
}

/// Pages for one request. They go back to the device's pool when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    pool: Rc<Pool>,
    first: usize,
    count: usize,
}

impl Buffer {
    /// Bytes it holds, whole pages.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.count.wrapping_mul(PAGE_SIZE)
    }

    /// Whether it was taken from this pool.
    pub(super) fn is_of(&self, pool: &Rc<Pool>) -> bool {
        Rc::ptr_eq(&self.pool, pool)
    }

    fn pages(&self) -> &[GrantedPage] {
        self.pool.pages.get(self.first..self.first.saturating_add(self.count)).unwrap_or_default()
    }

    /// References of its pages, in order.
    pub(super) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.pages().iter().map(GrantedPage::gref)
    }

    /// The backend may still use the pages although it should not: they never become anything else.
    pub(super) fn leak(mut self) {
        let count = u32::try_from(core::mem::take(&mut self.count)).unwrap_or(u32::MAX);
        self.pool.leaked.set(self.pool.leaked.get().saturating_add(count));
    }

    /// Runs `each` over the parts of pages that `[offset, offset + len)` consists of: the page, the offset in it, and the range of the
    /// caller's bytes. Answers how many bytes that were.
    fn parts(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(&GrantedPage, usize, core::ops::Range<usize>),
    ) -> usize {
        let mut done = 0usize;
        while done < len {
            let at = offset.saturating_add(done);
            let Some(page) = self.pages().get(at / PAGE_SIZE) else { break };
            let inside = at % PAGE_SIZE;
            let here = len.saturating_sub(done).min(PAGE_SIZE.saturating_sub(inside));
            each(page, inside, done..done.saturating_add(here));
            done = done.saturating_add(here);
        }
        done
    }

    /// Copies bytes in at `offset`; answers how many (fewer than given only past the end).
    pub fn copy_in(&mut self, offset: usize, from: &[u8]) -> usize {
        self.parts(offset, from.len(), |page, at, range| {
            if let (Some(page), Some(from)) = (page.page(), from.get(range)) {
                page.copy_in(at, from);
            }
        })
    }

    /// Copies bytes out from `offset`; answers how many (fewer than asked only past the end).
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        self.parts(offset, to.len(), |page, at, range| {
            if let (Some(page), Some(to)) = (page.page(), to.get_mut(range)) {
                page.copy_out(at, to);
            }
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.taken.borrow_mut().set(self.first, self.count, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_the_first_run_that_is_long_enough() {
        let mut map = Map::new(130);
        assert_eq!((map.run(130), map.run(131), map.run(0)), (Some(0), None, Some(0)));
        map.set(3, 1, true);
        map.set(60, 8, true);
        assert_eq!(
            [map.run(3), map.run(4), map.run(56), map.run(57), map.run(63)],
            [Some(0), Some(4), Some(4), Some(68), None]
        );
        map.set(128, 2, true);
        assert_eq!([map.run(60), map.run(61)], [Some(68), None]);
        map.set(60, 8, false);
        assert_eq!(map.run(124), Some(4), "neighbours that came back are one run");
        map.set(0, 130, true);
        assert_eq!(map.run(1), None);
    }
}
