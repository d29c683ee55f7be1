//! The driver against the model.

mod commands;
mod errors;
mod life;

use crate::model::{self, BUFFERS, Lie, Model, Setup};
use crate::{Config, Stopped, Virtio, VirtioPci};
use blkback::disk::{Clock, Command, Completion, Disks, DriveId, IoError, Op, ResetError, Segment, SubmitError};

type Driver = Virtio<model::Bar, Model, Model>;
type Done = Vec<(u32, Result<(), IoError>)>;

const D0: DriveId = DriveId(0);
const WRITE: Op = Op::Write { fua: false };
const FUA: Op = Op::Write { fua: true };

/// Devices of all kinds that can be driven.
fn setups() -> Vec<Setup> {
    let usual = Setup::default;
    vec![
        usual(),
        usual().without(&[model::EVENT_IDX]),
        usual().without(&[model::INDIRECT]),
        usual().without(&[model::INDIRECT, model::EVENT_IDX, model::CONFIG_WCE]),
        Setup { queue_size: 64, latency_us: 300, ..usual() },
        Setup { eager: true, latency_us: 200, ..usual() },
        Setup { eager: true, latency_us: 200, ..usual().without(&[model::EVENT_IDX]) },
        Setup { blk_size: 4096, messages: true, ..usual() },
        Setup { reset_us: 700, latency_us: 50, messages: true, ..usual() },
        Setup { writeback: 0, ..usual() },
        usual().without(&[model::FLUSH]),
    ]
}

fn open(model: &Model) -> VirtioPci<model::Bar, Model> {
    VirtioPci::open(&Model::places(), model.clone(), |bar| Ok::<_, ()>(model.bar(bar))).unwrap()
}

fn config(setup: &Setup) -> Config {
    Config { message_interrupts: setup.messages, ..Config::default() }
}

fn one(setup: Setup) -> (Model, Driver) {
    let model = Model::new(setup.clone());
    let driver = start(&model, &setup);
    (model, driver)
}

fn start(model: &Model, setup: &Setup) -> Driver {
    Stopped::stop(open(model)).unwrap().start(model.clone(), config(setup)).unwrap()
}

/// Device address of the n-th page of buffers.
fn page(n: u32) -> u64 {
    BUFFERS + u64::from(n) * 4096
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..4096).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Submits a command of one page, at page `token`; `sector` has 4096 bytes.
fn submit(d: &mut Driver, op: Op, sector: u64, token: u32) {
    let ratio = u64::from(4096 / d.info(D0).unwrap().sector_size);
    let segments = [Segment { addr: page(token), len: 4096 }];
    let command = Command { op, sector: sector * ratio, sectors: ratio as u32, segments: &segments };
    d.submit(D0, &command, token).unwrap();
}

fn flush(d: &mut Driver, token: u32) {
    d.submit(D0, &Command { op: Op::Flush, sector: 0, sectors: 0, segments: &[] }, token).unwrap();
}

/// What is over now.
fn over(d: &mut Driver) -> Done {
    std::iter::from_fn(|| d.completed()).map(|(_, Completion { token, result })| (token, result)).collect()
}

/// Runs like a backend that sleeps until an interrupt or the driver's time, until `count` commands are over or a minute has passed.
fn run(model: &Model, d: &mut Driver, count: usize) -> Done {
    let mut all = Vec::new();
    for _ in 0..600_000 {
        d.interrupts_enable(true);
        all.extend(over(d));
        if all.len() >= count || d.fault().is_some() {
            break;
        }
        let until = d.tick().map_or(u64::MAX, |at| at.max(model.now_us() + 1));
        while !model.line() && model.now_us() < until.min(model.now_us() + 200_000_000) && until != u64::MAX {
            model.advance_us(20.min(until - model.now_us()));
        }
        if model.line() {
            model.now_us();
            d.interrupt();
            model.take_message();
        }
        d.interrupts_enable(false);
        all.extend(over(d));
    }
    all.sort_by_key(|(token, _)| *token);
    all
}

fn fine(count: u32) -> Done {
    (0..count).map(|token| (token, Ok(()))).collect()
}

const IO_ERROR: Result<(), IoError> = Err(IoError::Device { status: 1, error: 0 });
