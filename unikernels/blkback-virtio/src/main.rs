//! The driver domain of a virtio block device: this file names the driver, `blkback-domain` does the rest.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use blkback_virtio_driver::capabilities::Places;
use blkback_virtio_driver::{AREA_BYTES, Config, Stopped, Virtio, VirtioPci};
use driver_domain::{Function, PvClock, Registers, Rings};

libxenrt::main!(run);

fn run() {
    blkback_domain::run(bring_up)
}

fn bring_up(function: &Function) -> Result<Virtio<Registers, Rings, PvClock>, String> {
    let device = function.device();
    let read = |offset| device.pci_read(offset, 4).unwrap_or(u32::MAX);
    let places = Places::find(function.id(), read).map_err(|e| format!("{e}"))?;
    let memory = Rings::alloc(AREA_BYTES).ok_or("no memory for rings")?;
    let registers = VirtioPci::open(&places, PvClock, |bar| function.registers(bar.into()))?;
    let stopped = Stopped::stop(registers).map_err(|e| format!("virtio: {e}"))?;
    // The device was reset: nothing reads the predecessor's rings any more.
    function.allow_dma()?;
    // A message needs no end of interrupt, and the device's MSI-X is the hypervisor's to program.
    let config = Config { message_interrupts: device.info().needs_eoi == 0, ..Config::default() };
    stopped.start(memory, config).map_err(|e| format!("virtio: {e}"))
}
