//! Transfers in both directions while something else happens: threads that run until they are done or told not to begin anew.

use crate::hostnet::client::{self, Transfer};
use anyhow::{Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to host.
    Down,
    /// Host to guest.
    Up,
}

/// A running load.
pub struct Load {
    down: JoinHandle<Result<Vec<Transfer>>>,
    up: JoinHandle<Result<Vec<Transfer>>>,
    /// Bytes that arrived so far, guest to host.
    pub bytes_down: Arc<AtomicU64>,
    /// Bytes that were sent so far, host to guest.
    pub bytes_up: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// What it came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Totals {
    /// Transfers, each on one connection.
    pub down: Vec<Transfer>,
    /// Transfers, each on one connection.
    pub up: Vec<Transfer>,
}

impl Totals {
    /// Bytes of a direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.of(direction).iter().map(|t| t.bytes).sum()
    }
    /// Every transfer's hash was right.
    pub fn hash_ok(&self) -> bool {
        self.down.iter().chain(&self.up).all(|t| t.hash_ok)
    }
    /// Mbit/s over all transfers of a direction.
    pub fn rate(&self, direction: Direction) -> f64 {
        let millis: u64 = self.of(direction).iter().map(|t| t.millis).sum();
        self.bytes(direction) as f64 * 8.0 / 1000.0 / millis.max(1) as f64
    }
    fn of(&self, direction: Direction) -> &[Transfer] {
        match direction {
            Direction::Down => &self.down,
            Direction::Up => &self.up,
        }
    }
}

impl Load {
    /// Transfers `bytes` on one connection in each direction, again and again until [`Load::finish`].
    pub fn start(port: u16, bytes: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (bytes_down, bytes_up) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let spawn = |direction: Direction, progress: &Arc<AtomicU64>| {
            let (stop, progress) = (Arc::clone(&stop), Arc::clone(progress));
            std::thread::spawn(move || {
                let mut done = Vec::new();
                for seed in 1.. {
                    let transfer = match direction {
                        Direction::Down => client::download(port, bytes, seed, &progress),
                        Direction::Up => client::upload(port, bytes, seed | 1 << 32, &progress),
                    }?;
                    done.push(transfer);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Ok(done)
            })
        };
        let down = spawn(Direction::Down, &bytes_down);
        let up = spawn(Direction::Up, &bytes_up);
        Self { down, up, bytes_down, bytes_up, stop }
    }

    /// Bytes moved so far, both ways.
    pub fn progress(&self) -> u64 {
        self.bytes_down.load(Ordering::Relaxed) + self.bytes_up.load(Ordering::Relaxed)
    }

    /// A direction has failed, or ended.
    pub fn stopped(&self) -> bool {
        self.down.is_finished() || self.up.is_finished()
    }

    /// Both directions have ended, well or not.
    pub fn ended(&self) -> bool {
        self.down.is_finished() && self.up.is_finished()
    }

    /// Lets no further transfer begin.
    pub fn wind_down(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets the transfers under way come to their end, and begins no other.
    ///
    /// # Errors
    /// The first transfer that failed.
    pub fn finish(self) -> Result<Totals> {
        self.wind_down();
        let join = |handle: JoinHandle<Result<Vec<Transfer>>>| {
            handle.join().map_err(|_| anyhow!("a transfer panicked; its message stands above"))?
        };
        let (down, up) = (join(self.down), join(self.up));
        Ok(Totals { down: down?, up: up? })
    }
}
