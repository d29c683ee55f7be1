//! From any state of the device to a reset one, and from there to a running drive (virtio 1.2, 3.1, 4.1.5).
//!
//! A new instance finds the device as a failed predecessor left it: a queue running, requests in flight, bus mastership taken away by
//! the hypervisor, perhaps reset by it. [`Stopped::stop`] needs no mastership; the wiring gives it back between that and
//! [`Stopped::start`], when there is nothing left that would read the predecessor's rings.

use crate::config::Config as Identity;
use crate::memory;
use crate::queue::{Queue, Shape};
use crate::regs::{Features, REQUIRED};
use crate::slots::Slots;
use crate::transport::{QUEUE, RESET_US, VirtioPci};
use crate::{AREA_BYTES, Config, Hw, Virtio};
use blkback::disk::{Clock, DmaMemory, DriveInfo, NarrowMmio, ResetError};
use core::fmt;
use virtio_drivers::transport::{DeviceStatus, Transport};

/// Why the device is not driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// It could not be reset, or the memory for it is unsuitable.
    Reset(ResetError),
    /// It offers these features, and not all that are required.
    Features(u64),
    /// It does not agree to the features it offered.
    Refused,
    /// Its configuration is too short, or changes all the time.
    Unreadable,
    /// A drive as the backend cannot have one.
    Drive(Identity),
    /// Its queue has so many places, which are too few.
    Queue(u32),
    /// It gives its queue no interrupt vector.
    Vector,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(error) => write!(f, "{error}"),
            Self::Features(offered) => write!(
                f,
                "features {offered:#x}; VERSION_1 and ACCESS_PLATFORM are needed: give the device disable-legacy=on and iommu_platform=on"
            ),
            Self::Refused => write!(f, "the device refuses the features it offered"),
            Self::Unreadable => write!(f, "the device's configuration cannot be read"),
            Self::Drive(identity) => write!(f, "no drive that could be served: {identity:?}"),
            Self::Queue(size) => write!(f, "a queue of {size} places is too small"),
            Self::Vector => write!(f, "the device gives its queue no interrupt vector"),
        }
    }
}

/// What the status says about a device that was told to reset.
pub(crate) fn was_reset(status: u8) -> Result<(), ResetError> {
    match status {
        0 => Ok(()),
        u8::MAX => Err(ResetError::Gone),
        _ => Err(ResetError::Timeout { waited_us: RESET_US }),
    }
}

/// What initialisation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub features: Features,
    pub shape: Shape,
    pub info: DriveInfo,
}

/// Initialises a device that was reset, over cleared memory (3.1.1), up to the point where it serves its queue.
pub(crate) fn agree<M: NarrowMmio, D: DmaMemory, C: Clock>(
    registers: &mut VirtioPci<M, C>,
    dma: &D,
) -> Result<(Agreed, Queue), StartError> {
    // Resets once more, and waits.
    let features = registers.begin_init(Features::all());
    let status = registers.status();
    if !registers.get_status().contains(DeviceStatus::DRIVER) || status == u8::MAX {
        return Err(StartError::Reset(was_reset(status).err().unwrap_or(ResetError::Gone)));
    }
    if !features.contains(REQUIRED) {
        return Err(StartError::Features(registers.read_device_features()));
    }
    if !registers.get_status().contains(DeviceStatus::FEATURES_OK) {
        return Err(StartError::Refused);
    }
    let identity = Identity::read(registers, features).ok_or(StartError::Unreadable)?;
    let most = registers.max_queue_size(QUEUE);
    let indirect = features.contains(Features::INDIRECT_DESC);
    let shape = Shape::of(most, indirect, identity.seg_max).ok_or(StartError::Queue(most))?;
    let info = identity.describe(features, shape).ok_or(StartError::Drive(identity))?;
    memory::clear_rings(dma);
    let queue = Queue::new(dma, shape, features.contains(Features::EVENT_IDX));
    if !registers.route_interrupts() {
        return Err(StartError::Vector);
    }
    let (descriptors, available, used) = memory::areas(dma);
    registers.queue_set(QUEUE, shape.size.into(), descriptors, available, used);
    registers.finish_init();
    Ok((Agreed { features, shape, info }, queue))
}

/// A device that was reset: it does nothing by itself.
#[derive(Debug)]
pub struct Stopped<M, C> {
    registers: VirtioPci<M, C>,
}

impl<M: NarrowMmio, C: Clock> Stopped<M, C> {
    /// Resets the device, whatever it does.
    ///
    /// # Errors
    /// It does not answer, or does not stop.
    pub fn stop(mut registers: VirtioPci<M, C>) -> Result<Self, ResetError> {
        registers.set_status(DeviceStatus::empty());
        was_reset(registers.status())?;
        Ok(Self { registers })
    }

    /// Starts the drive in `dma`, of which [`AREA_BYTES`] are used. To be called with bus mastership.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start<D: DmaMemory>(mut self, dma: D, config: Config) -> Result<Virtio<M, D, C>, StartError> {
        let (addr, len) = (dma.device_addr(), dma.len_bytes());
        if len < AREA_BYTES || !addr.is_multiple_of(4096) {
            return Err(StartError::Reset(ResetError::BadMemory { addr, len }));
        }
        let (agreed, queue) = agree(&mut self.registers, &dma)?;
        Ok(Virtio::new(Hw { registers: self.registers, dma, config }, agreed, queue))
    }
}

impl<M: NarrowMmio, D: DmaMemory, C: Clock> Virtio<M, D, C> {
    /// Initialises a device that was reset anew. What it agrees to has to be what it agreed to before.
    pub(crate) fn agree_again(&mut self) -> Result<(), ResetError> {
        let (agreed, queue) = agree(&mut self.hw.registers, &self.hw.dma).map_err(|error| match error {
            StartError::Reset(error) => error,
            _ => ResetError::Gone,
        })?;
        if agreed != (Agreed { features: self.features, shape: self.queue.shape(), info: self.info }) {
            return Err(ResetError::Gone);
        }
        self.queue = queue;
        self.queue.interrupts_enable(&self.hw.dma, self.enabled);
        Ok(())
    }

    /// Forgets all requests.
    pub(crate) fn forget(&mut self) {
        self.slots = Slots::new(self.queue.shape().depth);
    }
}
