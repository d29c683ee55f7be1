//! Data pages: granted to the backend once, for good, and handed out as [`Buffer`]s. A backend with persistent grants maps each page once;
//! one without maps it for every request. It is the same to us.
//!
//! The backend may write any page at any time. So nobody borrows a buffer's bytes: they are copied in and out, out exactly once.

use crate::grant::{Access, GrantError, GrantedPage};
use abi::{DomId, GrantRef, PAGE_SIZE};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// The pages of one device.
#[derive(Debug)]
pub(super) struct Pool {
    pages: Vec<GrantedPage>,
    free: RefCell<Vec<u16>>,
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
        let free = RefCell::new((0..count).rev().collect());
        Ok(Rc::new(Self { pages, free, leaked: Cell::new(0) }))
    }

    /// Pages lost to a backend that broke the protocol.
    pub fn leaked(&self) -> u32 {
        self.leaked.get()
    }

    /// A buffer of `len` bytes, rounded up to pages; `None` where there are not so many free pages.
    pub fn take(self: &Rc<Self>, len: usize) -> Option<Buffer> {
        let count = len.div_ceil(PAGE_SIZE);
        let mut free = self.free.borrow_mut();
        let left = free.len().checked_sub(count)?;
        let pages = free.split_off(left);
        Some(Buffer { pool: Rc::clone(self), pages })
    }

    fn page(&self, index: u16) -> Option<&GrantedPage> {
        self.pages.get(usize::from(index))
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
    pages: Vec<u16>,
}

impl Buffer {
    /// Bytes it holds, whole pages.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.pages.len().wrapping_mul(PAGE_SIZE)
    }

    /// Whether it was taken from this pool.
    pub(super) fn is_of(&self, pool: &Rc<Pool>) -> bool {
        Rc::ptr_eq(&self.pool, pool)
    }

    /// References of its pages, in order.
    pub(super) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.pages.iter().filter_map(|&index| self.pool.page(index)).map(GrantedPage::gref)
    }

    /// The backend may still use the pages although it should not: they never become anything else.
    pub(super) fn leak(mut self) {
        let count = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        self.pages.clear();
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
            let Some(page) = self.pages.get(at / PAGE_SIZE).and_then(|&index| self.pool.page(index)) else { break };
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
        self.pool.free.borrow_mut().append(&mut self.pages);
    }
}
