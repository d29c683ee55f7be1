//! The driver against the model. Lengths, wraps and lies here; the words of descriptors in `desc`.

mod life;
mod receive;
mod transmit;

use crate::model::{MEMORY, Model, Quirks, RINGS_LEN};
use crate::{Before, Config, E1000};
use netback::nic::{Nic, Segment};

type Driver = E1000<Model, Model, Model>;

/// QEMU's device.
const QEMU: Quirks = Quirks {
    ignores_reset: true,
    stuck_in_reset: false,
    gone: false,
    deaf_after_rctl_us: 1_000_000,
    sticky_missed: true,
    slow_transmit: false,
    no_eeprom: false,
};

fn start(model: &Model) -> Driver {
    start_with(model, Config::default())
}

fn start_with(model: &Model, config: Config) -> Driver {
    E1000::start(model.clone(), model.clone(), model.clone(), config, Before::Running).unwrap()
}

/// Device address of the n-th buffer of 2048 bytes behind the rings.
fn buffer(n: usize) -> u64 {
    MEMORY + RINGS_LEN as u64 + n as u64 * 2048
}

/// Stores `bytes` from buffer `n` on and describes them as segments of at most `piece` bytes.
fn segments(model: &Model, n: usize, bytes: &[u8], piece: usize) -> Vec<Segment> {
    model.store(buffer(n), bytes);
    let mut at = buffer(n);
    bytes
        .chunks(piece)
        .map(|c| {
            let s = Segment { addr: at, len: c.len() as u32 };
            at += c.len() as u64;
            s
        })
        .collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Posts `count` buffers with tokens from `first` on.
fn post(driver: &mut Driver, first: u32, count: u32) {
    for token in first..first + count {
        driver.rx_post(buffer(token as usize % 256), token).unwrap();
    }
    driver.rx_flush();
}
