//! The drive that QEMU does not serve itself: a small NBD server on a socket, which QEMU's `nbd` block driver speaks to. It is a device
//! model that counts: what arrived, what was answered, and what a flush has covered.
//!
//! Protocol: the NBD project's `doc/proto.md`, fixed newstyle negotiation, simple replies. Only what QEMU 7.2 to 10 use is answered; the
//! rest is refused as the protocol says.

use super::cache::{Cache, Cut};
use super::rules::{Rules, Verdict};
use crate::manifest::disk::{Deed, Disk, Fault};
use anyhow::{Context, Result};
use blkcheck::random::Random;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES.
const HANDSHAKE_FLAGS: u16 = 1 | 2;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// NBD_FLAG_HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM.
const EXPORT_FLAGS: u16 = 1 | 4 | 8 | 32;
const READ_ONLY: u16 = 2;
const CMD_FLAG_FUA: u16 = 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
/// Bytes of the largest command, as told to the client.
const LARGEST: u32 = 32 << 20;

/// What the drive counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Reads answered.
    pub reads: u64,
    /// Writes answered.
    pub writes: u64,
    /// Of them with FUA.
    pub fua: u64,
    /// Flushes that arrived.
    pub flushes_arrived: u64,
    /// Flushes answered well.
    pub flushes: u64,
    /// Discards answered.
    pub discards: u64,
    /// Commands answered with an error by rule.
    pub failed: u64,
    /// Commands a rule delayed.
    pub delayed: u64,
}

struct State {
    cache: Cache,
    rules: Rules,
    counts: Counts,
    /// Power cycles; commands of an earlier one are void.
    power: u64,
}

struct Inner {
    state: Mutex<State>,
    len: u64,
    sector: u32,
    read_only: bool,
    stop: AtomicBool,
    socket: PathBuf,
}

/// A served drive; clones share it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

/// A command of the client.
struct Request {
    flags: u16,
    kind: u16,
    handle: u64,
    offset: u64,
    data: Vec<u8>,
    length: u32,
}

/// A connection: the answers of delayed commands come from other threads.
#[derive(Clone)]
struct Client {
    writer: Arc<Mutex<UnixStream>>,
    power: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn refused(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Server {
    /// Serves `file` on `socket` until [`Server::stop`].
    ///
    /// # Errors
    /// The socket or the thread cannot be made.
    pub fn start(socket: &Path, file: Arc<File>, len: u64, disk: &Disk) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let server = Self(Arc::new(Inner {
            state: Mutex::new(State {
                cache: Cache::new(file, len, disk.sector_size, disk.volatile),
                rules: Rules::new(&disk.faults),
                counts: Counts::default(),
                power: 0,
            }),
            len,
            sector: disk.sector_size,
            read_only: disk.read_only,
            stop: AtomicBool::new(false),
            socket: socket.to_path_buf(),
        }));
        let accepting = server.clone();
        let accept = move || {
            for stream in listener.incoming() {
                if accepting.0.stop.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { break };
                let server = accepting.clone();
                // An end of the connection is the client's; what it asked wrongly it is told by closing.
                let _ = std::thread::Builder::new().name("nbd".into()).spawn(move || server.attend(stream));
            }
        };
        std::thread::Builder::new().name("nbd-accept".into()).spawn(accept).context("NBD thread")?;
        Ok(server)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.0.socket
    }

    /// Takes no further client.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = UnixStream::connect(&self.0.socket);
    }

    /// What it counted so far.
    pub fn counts(&self) -> Counts {
        lock(&self.0.state).counts
    }

    /// Adds a rule.
    pub fn rule(&self, fault: Fault) {
        lock(&self.0.state).rules.add(fault);
    }

    /// Takes all rules away.
    pub fn calm(&self) {
        lock(&self.0.state).rules.clear();
    }

    /// Cuts the power: to be called when the machine on it is dead. Commands under way are void, the cache loses what a seed chooses.
    ///
    /// # Errors
    /// Of the image.
    pub fn cut(&self, random: &mut Random) -> io::Result<Cut> {
        let mut state = lock(&self.0.state);
        state.power += 1;
        state.cache.cut(random)
    }

    /// Takes everything to the image, as an orderly end does.
    ///
    /// # Errors
    /// Of the image.
    pub fn settle(&self) -> io::Result<()> {
        lock(&self.0.state).cache.flush()
    }

    fn attend(&self, stream: UnixStream) -> io::Result<()> {
        let client = Client { writer: Arc::new(Mutex::new(stream.try_clone()?)), power: lock(&self.0.state).power };
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        if !self.negotiate(&mut reader, &client)? {
            return Ok(());
        }
        while let Some(request) = self.request(&mut reader)? {
            self.serve(request, &client)?;
        }
        Ok(())
    }

    fn export(&self) -> u16 {
        EXPORT_FLAGS | if self.0.read_only { READ_ONLY } else { 0 }
    }

    /// Speaks with the client until it enters the transmission phase (true) or leaves.
    fn negotiate(&self, reader: &mut impl Read, client: &Client) -> io::Result<bool> {
        let mut writer = lock(&client.writer);
        writer.write_all(
            &[&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat(),
        )?;
        let client_flags = u32::from_be_bytes(array(reader)?);
        loop {
            let magic = u64::from_be_bytes(array(reader)?);
            let option = u32::from_be_bytes(array(reader)?);
            let length = u32::from_be_bytes(array(reader)?);
            if magic != IHAVEOPT || length > 8192 {
                return Err(refused(format_args!("option {option} of {length} bytes, magic {magic:#x}")));
            }
            let mut data = vec![0; length as usize];
            reader.read_exact(&mut data)?;
            let mut reply = |kind: u32, data: &[u8]| {
                let head = [&REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
                writer.write_all(&[&head[..], &(data.len() as u32).to_be_bytes(), data].concat())
            };
            let export = [&self.0.len.to_be_bytes()[..], &self.export().to_be_bytes()].concat();
            match option {
                OPT_EXPORT_NAME => {
                    let zeros = if client_flags & 2 == 0 { 124 } else { 0 };
                    writer.write_all(&[&export[..], &vec![0; zeros]].concat())?;
                    return Ok(true);
                }
                OPT_INFO | OPT_GO => {
                    reply(REP_INFO, &[&INFO_EXPORT.to_be_bytes()[..], &export].concat())?;
                    let sizes = [self.0.sector, 4096, LARGEST].map(u32::to_be_bytes).concat();
                    reply(REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
                    reply(REP_ACK, &[])?;
                    if option == OPT_GO {
                        return Ok(true);
                    }
                }
                OPT_ABORT => {
                    reply(REP_ACK, &[])?;
                    return Ok(false);
                }
                _ => reply(REP_ERR_UNSUP, &[])?,
            }
        }
    }

    /// The next command; none when the client leaves.
    fn request(&self, reader: &mut impl Read) -> io::Result<Option<Request>> {
        let magic = u32::from_be_bytes(array(reader)?);
        let flags = u16::from_be_bytes(array(reader)?);
        let kind = u16::from_be_bytes(array(reader)?);
        let handle = u64::from_be_bytes(array(reader)?);
        let offset = u64::from_be_bytes(array(reader)?);
        let length = u32::from_be_bytes(array(reader)?);
        if magic != REQUEST_MAGIC || (matches!(kind, CMD_READ | CMD_WRITE) && length > LARGEST) {
            return Err(refused(format_args!("command {kind} of {length} bytes, magic {magic:#x}")));
        }
        let mut data = Vec::new();
        if kind == CMD_WRITE {
            data.resize(length as usize, 0);
            reader.read_exact(&mut data)?;
        }
        Ok((kind != CMD_DISC).then_some(Request { flags, kind, handle, offset, data, length }))
    }

    /// Judges a command on its arrival and answers it, now or later.
    fn serve(&self, request: Request, client: &Client) -> io::Result<()> {
        let deed = match request.kind {
            CMD_READ => Deed::Read,
            CMD_WRITE => Deed::Write,
            CMD_FLUSH => Deed::Flush,
            CMD_TRIM => Deed::Discard,
            _ => return client.answer(request.handle, Err(EINVAL)),
        };
        let verdict = {
            let mut state = lock(&self.0.state);
            let sector = u64::from(self.0.sector);
            let verdict = state.rules.judge(deed, request.offset / sector, u64::from(request.length).div_ceil(sector));
            state.counts.flushes_arrived += u64::from(deed == Deed::Flush);
            state.counts.delayed += u64::from(!verdict.delay.is_zero());
            verdict
        };
        if verdict.delay.is_zero() {
            return client.answer(request.handle, self.execute(deed, &request, verdict, client.power));
        }
        let (server, client) = (self.clone(), client.clone());
        let due = Instant::now() + verdict.delay;
        let later = move || {
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                // In short naps, so that an image is not held long after its drive is given up.
                std::thread::sleep(left.min(Duration::from_millis(50)));
                if server.0.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            // The client may have left meanwhile.
            let _ = client.answer(request.handle, server.execute(deed, &request, verdict, client.power));
        };
        std::thread::Builder::new().name("nbd-delay".into()).spawn(later)?;
        Ok(())
    }

    /// Does it; the error is an NBD error value.
    fn execute(&self, deed: Deed, request: &Request, verdict: Verdict, power: u64) -> Result<Vec<u8>, u32> {
        let mut state = lock(&self.0.state);
        let State { cache, counts, power: now, .. } = &mut *state;
        if power != *now {
            return Err(EIO);
        }
        if deed != Deed::Flush && !cache.holds(request.offset, u64::from(request.length)) {
            return Err(EINVAL);
        }
        if self.0.read_only && matches!(deed, Deed::Write | Deed::Discard) {
            return Err(EPERM);
        }
        if verdict.error {
            counts.failed += 1;
            return Err(EIO);
        }
        let mut read = Vec::new();
        let fua = request.flags & CMD_FLAG_FUA != 0;
        let done = match deed {
            Deed::Read => {
                counts.reads += 1;
                read.resize(request.length as usize, 0);
                cache.read(request.offset, &mut read)
            }
            Deed::Write => {
                counts.writes += 1;
                counts.fua += u64::from(fua);
                cache.write(request.offset, &request.data, fua)
            }
            Deed::Flush => {
                counts.flushes += 1;
                cache.flush()
            }
            Deed::Discard => {
                counts.discards += 1;
                cache.discard(request.offset, u64::from(request.length))
            }
        };
        done.map(|()| read).map_err(|_| EIO)
    }
}

impl Client {
    fn answer(&self, handle: u64, result: Result<Vec<u8>, u32>) -> io::Result<()> {
        let error = result.as_ref().err().copied().unwrap_or(0);
        let data = result.unwrap_or_default();
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes.extend(error.to_be_bytes());
        bytes.extend(handle.to_be_bytes());
        bytes.extend(data);
        lock(&self.writer).write_all(&bytes)
    }
}

#[cfg(test)]
#[path = "nbd_tests.rs"]
mod tests;
