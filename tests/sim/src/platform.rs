//! The driver domain's side of the backend: hypercalls into the [`World`], shared pages whose every store is a point at
//! which it can die, packet memory.

use crate::world::{BACKEND, World};
use abi::grant::GrantCopy;
use abi::{DomId, Errno, EvtchnPort, GrantRef, PAGE_SIZE};
use backend::Runtime;
use blkback::{MapError, MapRequest, Mapped};
use hv_core::Mfn;
use hv_core::grants::GrantError;
use netback::{Area, Platform};
use ring::SharedMem;
use std::rc::Rc;

/// A page that the driver domain shares, with a peer or with its next life.
pub struct Page {
    world: Rc<World>,
    mfn: Mfn,
    /// The mapping to undo, and the life it belongs to.
    mapping: Option<(u32, u32)>,
}

impl Page {
    /// A page of the driver domain itself.
    pub fn own(world: &Rc<World>, mfn: Mfn) -> Self {
        Self { world: world.clone(), mfn, mapping: None }
    }
    fn addr(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(4) && offset < PAGE_SIZE, "word {offset} is outside of the page");
        self.mfn.0 * PAGE_SIZE as u64 + offset as u64
    }
}

impl SharedMem for Page {
    fn read(&self, offset: usize) -> u32 {
        self.world.access();
        self.world.read32(self.addr(offset))
    }
    fn write(&self, offset: usize, value: u32) {
        self.world.access();
        self.world.write32(self.addr(offset), value);
        self.world.point();
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some((handle, generation)) = self.mapping
            && generation == self.world.generation.get()
            && !std::thread::panicking()
        {
            self.world.unmap(BACKEND, handle, self.mfn);
        }
    }
}

/// Hypercalls.
pub struct Calls(pub Rc<World>);

impl Runtime for Calls {
    fn bind(&mut self, dom: DomId, port: EvtchnPort) -> Result<EvtchnPort, Errno> {
        self.0.point();
        let mut hv = self.0.hv.borrow_mut();
        let (local, notify) = hv.evtchn.bind_interdomain(BACKEND, dom, port)?;
        hv.pending.insert((notify.dom, notify.port));
        Ok(local)
    }

    fn unbind(&mut self, port: EvtchnPort) {
        self.0.point();
        let mut hv = self.0.hv.borrow_mut();
        let _was = hv.evtchn.close(BACKEND, port);
        hv.pending.remove(&(BACKEND, port));
    }

    fn notify(&mut self, ports: &[EvtchnPort]) {
        for &port in ports {
            self.0.point();
            self.0.send(BACKEND, port);
        }
    }

    fn now_us(&self) -> u64 {
        self.0.now_us.get()
    }

    fn crash_point(&mut self) {
        self.0.point();
    }
}

impl Platform for Calls {
    type Page = Page;

    fn map(&mut self, dom: DomId, grefs: [GrantRef; 2]) -> Result<[Page; 2], Errno> {
        self.0.point();
        let map = |gref| -> Result<Page, Errno> {
            let (mfn, handle) = self.0.map(BACKEND, dom, gref).map_err(|_| Errno::EINVAL)?;
            Ok(Page { world: self.0.clone(), mfn, mapping: Some((handle, self.0.generation.get())) })
        };
        let [a, b] = grefs.map(map);
        Ok([a?, b?])
    }

    fn copy(&mut self, operations: &mut [GrantCopy]) {
        self.0.point();
        for operation in operations {
            self.0.access(); // peers do not stand still during the call
            self.0.copy(BACKEND, operation);
        }
        self.0.point();
    }
}

/// Packet memory.
pub struct Packets {
    pub world: Rc<World>,
    pub base: u64,
    pub len: usize,
}

impl Area for Packets {
    fn base(&self) -> u64 {
        self.base
    }
    fn len_bytes(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= self.len);
        self.world.read(self.base + offset as u64, out);
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        self.world.write(self.base + offset as u64, bytes);
    }
}

impl blkback::Platform for Calls {
    type Page = Page;

    fn map(&mut self, requests: &[MapRequest], results: &mut Vec<Result<Mapped<Page>, MapError>>) {
        self.0.point();
        for request in requests {
            self.0.access(); // peers do not stand still during the call
            let MapRequest { dom, gref, readonly, device } = *request;
            let mapped = self.0.map_for(BACKEND, dom, gref, readonly, device);
            results.push(match mapped {
                Ok((mfn, handle)) => {
                    let mapping = Some((handle, self.0.generation.get()));
                    let page = Page { world: self.0.clone(), mfn, mapping };
                    Ok(Mapped { page, device_addr: if device { mfn.0 * PAGE_SIZE as u64 } else { 0 } })
                }
                Err(GrantError::NoHandle) => Err(MapError::NoRoom),
                Err(error) => Err(MapError::Refused(error.status())),
            });
        }
        self.0.point();
    }

    fn unmap(&mut self, pages: &mut Vec<Page>) {
        self.0.point();
        pages.clear();
        self.0.point();
    }
}
