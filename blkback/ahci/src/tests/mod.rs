//! The driver against the model. Words of FISes and descriptors are tested in `fis`, the order of commands in `slots`.

mod commands;
mod errors;
mod life;

use crate::model::{BUFFERS, DriveSetup, Model, QEMU, QEMU_7_2_0, Setup};
use crate::{Ahci, Config, Stopped};
use blkback::disk::{Command, Completion, Disks, DriveId, IoError, Op, Segment};

type Driver = Ahci<Model, Model, Model>;

const D0: DriveId = DriveId(0);
const D1: DriveId = DriveId(1);
/// All kinds of controllers.
fn setups() -> [Setup; 3] {
    [Setup::default(), QEMU, QEMU_7_2_0]
}

fn one(setup: Setup, drive: DriveSetup) -> (Model, Driver) {
    let model = Model::new(setup, vec![Some(drive)]);
    let driver = start(&model);
    (model, driver)
}

fn start(model: &Model) -> Driver {
    Stopped::stop(model.clone(), model.clone()).unwrap().start(model.clone(), Config::default()).unwrap()
}

/// Device address of the n-th page of buffers.
fn page(n: usize) -> u64 {
    BUFFERS + n as u64 * 4096
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..4096).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Submits a command of one page, at page `token`.
fn submit(d: &mut Driver, op: Op, sector: u64, token: u32) {
    let size = d.info(D0).unwrap().sector_size;
    let segments = [Segment { addr: page(token as usize), len: 4096 }];
    d.submit(D0, &Command { op, sector, sectors: 4096 / size, segments: &segments }, token).unwrap();
}

fn flush(d: &mut Driver, token: u32) {
    d.submit(D0, &Command { op: Op::Flush, sector: 0, sectors: 0, segments: &[] }, token).unwrap();
}

/// What is over now.
fn over(d: &mut Driver) -> Vec<(u32, Result<(), IoError>)> {
    let mut all: Vec<_> =
        std::iter::from_fn(|| d.completed()).map(|(_, Completion { token, result })| (token, result)).collect();
    all.sort_by_key(|(token, _)| *token);
    all
}

/// Runs like a backend that sleeps until an interrupt or the driver's time, until `count` commands are over or a minute has passed.
fn run(model: &Model, d: &mut Driver, count: usize) -> Vec<(u32, Result<(), IoError>)> {
    let mut all = over(d);
    for _ in 0..600_000 {
        if all.len() >= count || d.fault().is_some() {
            break;
        }
        d.tick();
        model.advance_us(100);
        for _ in 0..1000 {
            if !model.line() {
                break;
            }
            d.interrupt();
        }
        assert!(
            !model.line(),
            "the line stays high: {:x} {:x} {:?} {:?}",
            model.peek(0x110),
            model.peek(0x130),
            d.fault(),
            d.stats(D0)
        );
        all.extend(over(d));
    }
    all.sort_by_key(|(token, _)| *token);
    all
}

const MEDIA_ERROR: Result<(), IoError> = Err(IoError::Device { status: 0x41, error: 0x40 });
