//! What a workload needs of a disk: blkfront gives it in a guest, the AHCI driver on the bare machine, memory in tests.

/// What shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Read,
    /// Write.
    Write {
        /// Stable when it completes.
        fua: bool,
    },
    /// All that was completed before is stable when it completes.
    Flush,
    /// The content is no longer needed.
    Discard,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What.
    pub op: Op,
    /// First sector of 512 bytes.
    pub sector: u64,
    /// Sectors; 0 for a flush.
    pub sectors: u32,
}

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Addresses and lengths are multiples of it, in sectors of 512 bytes.
    pub align: u32,
    /// Sectors of one read or write.
    pub max_sectors: u32,
    /// It discards.
    pub discard: bool,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk says so.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Done<B> {
    /// As submitted.
    pub token: u32,
    /// How.
    pub result: Result<(), Failure>,
    /// The data, unless the disk may still use it.
    pub buffer: Option<B>,
}

/// A disk with requests in flight.
pub trait Disk {
    /// Memory for one request; given back when dropped.
    type Buffer;
    /// What it is.
    fn info(&self) -> Info;
    /// Microseconds, never going back.
    fn now_us(&self) -> u64;
    /// Memory for `len` bytes; `None` while there is none.
    fn buffer(&mut self, len: usize) -> Option<Self::Buffer>;
    /// Copies into a buffer.
    fn put(&mut self, buffer: &mut Self::Buffer, offset: usize, from: &[u8]);
    /// Copies out of a buffer.
    fn get(&self, buffer: &Self::Buffer, offset: usize, to: &mut [u8]);
    /// Queues a request.
    ///
    /// # Errors
    /// The buffer back: there is no room at this moment.
    fn submit(
        &mut self,
        command: Command,
        buffer: Option<Self::Buffer>,
        token: u32,
    ) -> Result<(), Option<Self::Buffer>>;
    /// Tells the disk of all that was queued.
    fn kick(&mut self);
    /// The next request that has ended.
    fn completed(&mut self) -> Option<Done<Self::Buffer>>;
}
