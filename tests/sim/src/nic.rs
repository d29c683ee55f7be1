//! A NIC behind an IOMMU: does its work when it is stepped, not when it is told; reads memory only then; has checksum
//! and segmentation offload, or not. It checks what the driver domain tells it as strictly as hardware would misbehave.

use crate::wire;
use crate::world::{BACKEND, World};
use netback::nic::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

struct Queued {
    segments: Vec<Segment>,
    meta: TxMeta,
    token: u32,
}

/// The device and the wire behind it; outlives the driver domain.
pub struct Device {
    world: Rc<World>,
    pub offloads: bool,
    queue: VecDeque<Queued>,
    flushed: usize,
    done: VecDeque<u32>,
    posted: VecDeque<(u64, u32)>,
    posted_flushed: usize,
    filled: VecDeque<RxFrame>,
    enabled: bool,
    fault: Option<NicFault>,
    pub resets: u64,
    /// From the wire, not yet received.
    pub incoming: VecDeque<Vec<u8>>,
    /// Sent to the wire.
    pub sent: Vec<wire::Seen>,
}

/// Descriptors of each ring.
const RING: usize = 64;

impl Device {
    pub fn new(world: &Rc<World>, offloads: bool) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            world: world.clone(),
            offloads,
            queue: VecDeque::new(),
            flushed: 0,
            done: VecDeque::new(),
            posted: VecDeque::new(),
            posted_flushed: 0,
            filled: VecDeque::new(),
            enabled: false,
            fault: None,
            resets: 0,
            incoming: VecDeque::new(),
            sent: Vec::new(),
        }))
    }

    /// What the hypervisor does to it before its owner starts again, and what a reset does.
    pub fn quiesce(&mut self) {
        self.queue.clear();
        self.done.clear();
        self.posted.clear();
        self.filled.clear();
        (self.flushed, self.posted_flushed) = (0, 0);
        self.enabled = false;
        self.fault = None;
    }

    /// From now on the device does nothing until it is reset.
    pub fn break_down(&mut self) {
        self.fault = Some(NicFault::Gone);
    }

    /// Is its interrupt raised?
    pub fn interrupting(&self) -> bool {
        self.enabled && self.fault.is_none() && !(self.done.is_empty() && self.filled.is_empty())
    }

    /// Sends one frame or receives one; false if there is nothing to do.
    pub fn step(&mut self) -> bool {
        if self.fault.is_some() {
            return false;
        }
        self.send_one() || self.receive_one()
    }

    fn reach(&self, addr: u64, len: u32) -> bool {
        let pages = addr / 4096..=(addr + u64::from(len).max(1) - 1) / 4096;
        let mine = pages.into_iter().all(|page| self.world.owner(page * 4096) == Some(BACKEND));
        if !mine {
            self.world.fail(format!("IOMMU fault: {len} bytes at {addr:#x}"));
        }
        mine
    }

    fn send_one(&mut self) -> bool {
        if self.flushed == 0 {
            return false;
        }
        let Some(Queued { segments, meta, token }) = self.queue.pop_front() else { return false };
        self.flushed -= 1;
        let mut frame = Vec::new();
        for segment in &segments {
            if self.reach(segment.addr, segment.len) {
                let mut bytes = vec![0; segment.len as usize];
                self.world.read(segment.addr, &mut bytes);
                frame.extend(bytes);
            }
        }
        self.transmit(frame, &meta);
        self.done.push_back(token);
        true
    }

    fn transmit(&mut self, mut frame: Vec<u8>, meta: &TxMeta) {
        if self.world.from_hostile(&frame) {
            return; // it may hold anything
        }
        let frames = match (meta.gso, meta.checksum) {
            (Some(gso), Some(_)) => {
                let blank = u16::from_be_bytes([frame[50], frame[51]]);
                if blank != wire::fold(wire::pseudo(&frame, 0)) || frame[24..26] != [0, 0] {
                    self.world.fail(format!("a frame to be cut does not have the NIC's form ({blank:04x})"));
                }
                wire::segment(&frame, usize::from(gso.header_len), usize::from(gso.mss))
            }
            (None, Some(Checksum { start: 34, offset })) => {
                if wire::check(&frame, true).is_err() {
                    self.world.fail(format!("blank frame on its way out: {:?}", wire::check(&frame, true)));
                }
                wire::finish(&mut frame, 34 + usize::from(offset), false);
                vec![frame]
            }
            (None, None) => vec![frame],
            other => return self.world.fail(format!("the NIC was told {other:?}")),
        };
        for frame in frames {
            match wire::check(&frame, false) {
                Ok(seen) if frame.len() <= 1514 => self.sent.push(seen),
                Ok(seen) => self.world.fail(format!("{} bytes on the wire: {seen:?}", frame.len())),
                Err(why) => self.world.fail(format!("on the wire: {why}")),
            }
        }
    }

    fn receive_one(&mut self) -> bool {
        if self.posted_flushed == 0 || self.incoming.is_empty() {
            return false;
        }
        let (Some((addr, token)), Some(frame)) = (self.posted.pop_front(), self.incoming.pop_front()) else {
            return false;
        };
        self.posted_flushed -= 1;
        if self.reach(addr, 2048) {
            self.world.write(addr, &frame);
        }
        let checksum_ok = self.offloads;
        self.filled.push_back(RxFrame { token, len: frame.len() as u32, end: true, checksum_ok, error: false });
        true
    }
}

/// The driver of the device.
pub struct Driver(pub Rc<RefCell<Device>>);

impl Nic for Driver {
    fn mac(&self) -> MacAddr {
        [2, 0xFF, 0, 0, 0, 0]
    }
    fn caps(&self) -> Caps {
        let on = self.0.borrow().offloads;
        Caps {
            tx_checksum_v4: on,
            tx_checksum_v6: on,
            tso_v4: on,
            tso_v6: on,
            gso_pseudo_with_len: false,
            rx_checksum: on,
            max_segments: if on { 20 } else { 4 },
            max_segment: 4096,
            max_frame: 1514,
            max_gso: 65536,
            max_gso_header: 240,
            rx_buffer: 2048,
        }
    }
    fn link(&mut self) -> Link {
        Link { up: true, mbit: 1000, full_duplex: true }
    }
    fn tx_room(&self) -> usize {
        RING - self.0.borrow().queue.iter().map(|queued| queued.segments.len()).sum::<usize>().min(RING)
    }
    fn tx(&mut self, segments: &[Segment], meta: &TxMeta, token: u32) -> Result<(), TxError> {
        if self.tx_room() < segments.len() {
            return Err(TxError::Full);
        }
        if segments.is_empty() || segments.iter().any(|s| s.len == 0 || s.len > 4096) {
            return Err(TxError::BadSegments(segments.len()));
        }
        if let Some(gso) = meta.gso
            && segments.iter().any(|s| s.len > 4 * u32::from(gso.mss))
        {
            let why = format!("segments of {} bytes overrun the FIFO", gso.mss);
            self.0.borrow().world.fail(why);
        }
        self.0.borrow_mut().queue.push_back(Queued { segments: segments.to_vec(), meta: *meta, token });
        Ok(())
    }
    fn tx_flush(&mut self) {
        let mut device = self.0.borrow_mut();
        device.flushed = device.queue.len();
    }
    fn tx_done(&mut self) -> Option<u32> {
        self.0.borrow_mut().done.pop_front()
    }
    fn rx_room(&self) -> usize {
        let device = self.0.borrow();
        RING - (device.posted.len() + device.filled.len()).min(RING)
    }
    fn rx_post(&mut self, addr: u64, token: u32) -> Result<(), RxError> {
        self.0.borrow_mut().posted.push_back((addr, token));
        Ok(())
    }
    fn rx_flush(&mut self) {
        let mut device = self.0.borrow_mut();
        device.posted_flushed = device.posted.len();
    }
    fn rx_poll(&mut self) -> Option<RxFrame> {
        self.0.borrow_mut().filled.pop_front()
    }
    fn interrupt(&mut self) -> Causes {
        Causes::default()
    }
    fn interrupts_enable(&mut self, on: bool) {
        self.0.borrow_mut().enabled = on;
    }
    fn set_receive_filter(&mut self, _: &RxFilter<'_>) {}
    fn stats(&mut self) -> NicStats {
        NicStats::default()
    }
    fn fault(&self) -> Option<NicFault> {
        self.0.borrow().fault
    }
    fn reset(&mut self) -> Result<(), ResetError> {
        let mut device = self.0.borrow_mut();
        device.quiesce();
        device.resets += 1;
        Ok(())
    }
    fn point_dma_at(&mut self, _: u64) {}
}
