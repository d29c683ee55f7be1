//! The frontend against a backend made by hand: one that serves, late and out of order, and one that lies.

use super::file::{BlockFile, FileError, Sectors};
use super::*;
use abi::io::blkif::{self, Indirect, ReadWrite, Response, Segment, op, rsp};
use abi::io::ring as layout;
use abi::{DomId, GrantRef};
use embedded_io::{Read, Seek, SeekFrom, Write};
use ring::SharedMem;
use std::vec;
use std::vec::Vec;

const SECTORS: u64 = 8192;

fn info() -> Info {
    Info {
        sectors: SECTORS,
        sector_size: 512,
        physical_sector_size: 4096,
        read_only: false,
        max_sectors: 2048,
        flush: true,
        barrier: false,
        discard_granularity: 512,
    }
}

/// A frontend with a link, as after the negotiation.
fn front(info: Info) -> Blkfront {
    let mut disk =
        Blkfront::new(Device::of_test(), 51712, Options { pool_pages: 300, ring_order: 0, spin_us: 0 }).unwrap();
    relink(&mut disk, info);
    disk
}

fn relink(disk: &mut Blkfront, info: Info) {
    let channel = Channel::new(DomId(3), 0).unwrap();
    disk.link = Some(Link { event: Event::given(EvtchnPort(5)), channel, info: Some(info), notify: false });
    disk.establish();
}

/// A request as the backend finds it.
#[derive(Clone, Debug)]
struct Found {
    operation: u8,
    id: u64,
    sector: u64,
    segments: Vec<Segment>,
}

struct Backend {
    data: Vec<u8>,
    taken: u32,
    answered: u32,
}

impl Backend {
    fn new() -> Self {
        Self { data: vec![0; SECTORS as usize * 512], taken: 0, answered: 0 }
    }

    fn slot(index: u32) -> usize {
        layout::SLOTS + (index as usize % 32) * blkif::SLOT
    }

    /// All requests not yet seen.
    fn take(&mut self, disk: &Blkfront) -> Vec<Found> {
        let link = disk.link.as_ref().unwrap();
        let mem = link.channel.mem();
        let mut found = Vec::new();
        while self.taken != mem.read(layout::REQ_PROD) {
            let mut words = [0; blkif::REQUEST_WORDS];
            for (i, word) in words.iter_mut().enumerate() {
                *word = mem.read(Self::slot(self.taken) + i * 4);
            }
            self.taken = self.taken.wrapping_add(1);
            let direct = ReadWrite::from_words(&words);
            found.push(if direct.operation == op::INDIRECT {
                let indirect = Indirect::from_words(&words);
                let list = link.channel.list_by_gref(indirect.indirect_grefs[0]).unwrap();
                let segment = |i| Segment::from_words([list.read(i * 8), list.read(i * 8 + 4)]);
                Found {
                    operation: indirect.indirect_op,
                    id: indirect.id,
                    sector: indirect.sector_number,
                    segments: (0..usize::from(indirect.nr_segments)).map(segment).collect(),
                }
            } else {
                let segments = direct.segments[..usize::from(direct.nr_segments)].to_vec();
                Found { operation: direct.operation, id: direct.id, sector: direct.sector_number, segments }
            });
        }
        found
    }

    /// Moves the data.
    fn carry_out(&mut self, disk: &Blkfront, request: &Found) {
        let mut at = request.sector as usize * 512;
        for segment in &request.segments {
            let page = disk.pool.by_gref(segment.gref).unwrap().page().unwrap();
            let (from, len) = (usize::from(segment.first_sect) * 512, usize::from(segment.sectors().unwrap()) * 512);
            match request.operation {
                op::READ => assert_eq!(page.copy_in(from, &self.data[at..at + len]), len),
                op::WRITE | op::WRITE_BARRIER => {
                    assert_eq!(page.copy_out(from, &mut self.data[at..at + len]), len);
                }
                other => panic!("data with operation {other}"),
            }
            at += len;
        }
    }

    fn answer(&mut self, disk: &Blkfront, id: u64, operation: u8, status: i16) {
        let mem = disk.link.as_ref().unwrap().channel.mem();
        let words = Response { id, operation, status, ..Response::default() }.to_words();
        for (i, word) in words.iter().enumerate() {
            mem.write(Self::slot(self.answered) + i * 4, *word);
        }
        self.answered = self.answered.wrapping_add(1);
        mem.store_release(layout::RSP_PROD, self.answered);
    }

    fn serve(&mut self, disk: &Blkfront) -> Vec<u8> {
        let found = self.take(disk);
        for request in &found {
            self.carry_out(disk, request);
            self.answer(disk, request.id, request.operation, rsp::OKAY);
        }
        found.iter().map(|request| request.operation).collect()
    }
}

fn request(disk: &Blkfront, op: Op, sector: u64, sectors: u32, token: u64) -> Request {
    let data = matches!(op, Op::Read | Op::Write { .. });
    let buffer = data.then(|| disk.buffer(sectors as usize * 512).expect("pages"));
    Request { op, sector, sectors, buffer, token, deadline: None }
}

fn submit(disk: &mut Blkfront, op: Op, sector: u64, sectors: u32, token: u64) -> Result<(), Refusal> {
    let request = request(disk, op, sector, sectors, token);
    disk.submit(request).map_err(|refused| refused.why)
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 + i % 251 + salt) as u8).collect()
}

#[test]
fn data_goes_both_ways_in_one_request_of_a_mebibyte() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    let bytes = pattern(1 << 20, 3);
    let mut write = request(&disk, Op::Write { fua: false }, 1001, 2048, 1);
    assert_eq!(write.buffer.as_mut().unwrap().copy_in(0, &bytes), 1 << 20);
    disk.submit(write).unwrap();
    disk.kick();
    assert_eq!(backend.serve(&disk), [op::WRITE]);
    let done = disk.completed().unwrap();
    assert_eq!((done.token, done.result), (1, Ok(())));
    drop(done);
    assert!(backend.data[1001 * 512..][..1 << 20] == bytes);
    submit(&mut disk, Op::Read, 1003, 13, 2).unwrap();
    disk.kick();
    assert_eq!(backend.serve(&disk), [op::READ]);
    let mut back = vec![0; 13 * 512];
    assert_eq!(disk.completed().unwrap().buffer.unwrap().copy_out(0, &mut back), back.len());
    assert!(back == bytes[1024..][..13 * 512]);
    assert!(disk.completed().is_none() && disk.idle());
    assert_eq!((disk.counters().read_bytes, disk.counters().written_bytes), (13 * 512, 1 << 20));
}

#[test]
fn answers_out_of_order_find_their_requests_and_pages_come_back() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    for round in 0..20u64 {
        for n in 0..32 {
            submit(&mut disk, Op::Read, n * 8, 8, round << 8 | n).unwrap();
        }
        assert_eq!(submit(&mut disk, Op::Flush, 0, 0, 99), Err(Refusal::Full));
        disk.kick();
        let mut found = backend.take(&disk);
        found.reverse();
        for request in &found {
            backend.carry_out(&disk, request);
            backend.answer(&disk, request.id, request.operation, rsp::OKAY);
        }
        let mut tokens = Vec::new();
        assert_eq!(disk.poll(|done| tokens.push(done.token & 0xff)), 32);
        assert!(tokens.iter().copied().eq((0..32).rev()));
    }
    let all: Vec<_> = (0..300).map_while(|_| disk.buffer(4096)).collect();
    assert_eq!(all.len(), 300);
    assert!(disk.buffer(1).is_none());
}

#[test]
fn a_forced_write_is_a_write_and_a_flush_or_a_barrier() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    submit(&mut disk, Op::Write { fua: true }, 0, 8, 1).unwrap();
    disk.kick();
    assert_eq!(backend.serve(&disk), [op::WRITE]);
    assert!(disk.completed().is_none(), "not stable yet");
    assert_eq!(backend.serve(&disk), [op::FLUSH_DISKCACHE]);
    assert_eq!(disk.completed().unwrap().token, 1);

    let barrier = Info { barrier: true, flush: false, ..info() };
    let (mut disk, mut backend) = (front(barrier), Backend::new());
    submit(&mut disk, Op::Write { fua: true }, 0, 88, 1).unwrap();
    submit(&mut disk, Op::Write { fua: true }, 0, 96, 2).unwrap();
    submit(&mut disk, Op::Flush, 0, 0, 3).unwrap();
    disk.kick();
    let found = backend.take(&disk);
    assert_eq!(
        found.iter().map(|f| f.operation).collect::<Vec<_>>(),
        [op::WRITE_BARRIER, op::WRITE, op::WRITE_BARRIER]
    );
    assert_eq!(found[2].segments, []);

    let (mut disk, _) = (front(Info { flush: false, ..info() }), ());
    submit(&mut disk, Op::Flush, 0, 0, 7).unwrap();
    assert_eq!(disk.completed().unwrap().token, 7, "what is completed is stable there");
}

#[test]
fn discards_and_errors_are_told() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    submit(&mut disk, Op::Discard, 8, 4096, 1).unwrap();
    submit(&mut disk, Op::Read, 0, 1, 2).unwrap();
    disk.kick();
    let found = backend.take(&disk);
    assert_eq!((found[0].operation, found[0].sector), (op::DISCARD, 8));
    backend.answer(&disk, found[0].id, op::DISCARD, rsp::EOPNOTSUPP);
    backend.answer(&disk, found[1].id, op::READ, rsp::ERROR);
    assert_eq!(disk.completed().unwrap().result, Err(IoError::Unsupported));
    assert_eq!(disk.completed().unwrap().result, Err(IoError::Failed));
    assert_eq!((disk.counters().errors, disk.fault()), (2, None));
}

#[test]
fn what_does_not_fit_the_device_is_refused() {
    let disk = &mut front(Info { sector_size: 4096, ..info() });
    let write = Op::Write { fua: false };
    let bad = |sector, sectors| Err(Refusal::BadRange { sector, sectors });
    assert_eq!(submit(disk, Op::Read, 1, 8, 0), bad(1, 8));
    assert_eq!(submit(disk, Op::Read, 8, 4, 0), bad(8, 4));
    assert_eq!(submit(disk, write, SECTORS, 8, 0), bad(SECTORS, 8));
    assert_eq!(submit(disk, write, u64::MAX - 7, 8, 0), bad(u64::MAX - 7, 8));
    assert_eq!(submit(disk, Op::Read, 0, 0, 0), bad(0, 0));
    assert_eq!(submit(disk, Op::Read, 0, 2056, 0), bad(0, 2056));
    let mut short = request(disk, Op::Read, 0, 8, 0);
    short.sectors = 16;
    assert_eq!(disk.submit(short).unwrap_err().why, Refusal::BadBuffer);
    let other = front(info());
    let foreign = request(&other, Op::Read, 0, 8, 0);
    assert_eq!(disk.submit(foreign).unwrap_err().why, Refusal::BadBuffer);
    let disk = &mut front(Info { read_only: true, discard_granularity: 0, ..info() });
    assert_eq!(submit(disk, write, 0, 8, 0), Err(Refusal::ReadOnly));
    let disk = &mut front(Info { discard_granularity: 0, ..info() });
    assert_eq!(submit(disk, Op::Discard, 0, 8, 0), Err(Refusal::Unsupported));
    assert_eq!(disk.in_flight(), 0);
}

/// A backend that does `lie` with two reads out: every request fails, nothing of theirs is used again, nothing more is said to it.
fn lied(lie: impl FnOnce(&mut Backend, &Blkfront, &[Found])) -> Fault {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    submit(&mut disk, Op::Read, 0, 8, 1).unwrap();
    submit(&mut disk, Op::Read, 8, 16, 2).unwrap();
    disk.kick();
    let found = backend.take(&disk);
    lie(&mut backend, &disk, &found);
    let mut ended = Vec::new();
    disk.poll(|done| ended.push((done.token, done.result)));
    ended.retain(|(_, result)| result.is_err());
    assert!(!ended.is_empty() && ended.iter().all(|(_, result)| *result == Err(IoError::Broken)), "{ended:?}");
    assert_eq!(submit(&mut disk, Op::Read, 0, 8, 3), Err(Refusal::Broken));
    assert!(disk.leaked_pages() > 0);
    assert!(disk.idle());
    disk.fault().unwrap()
}

#[test]
fn lies_end_the_connection() {
    let far = lied(|_, disk, _| disk.link.as_ref().unwrap().channel.mem().store_release(layout::RSP_PROD, 3));
    assert!(matches!(far, Fault::Ring(FrontFault::BadProducer { prod: 3, cons: 0 })));
    let back = lied(|_, disk, _| disk.link.as_ref().unwrap().channel.mem().store_release(layout::RSP_PROD, u32::MAX));
    assert!(matches!(back, Fault::Ring(_)));
    assert_eq!(lied(|b, disk, _| b.answer(disk, 77 << 16 | 9, op::READ, rsp::OKAY)), Fault::BadId(77 << 16 | 9));
    assert_eq!(lied(|b, disk, _| b.answer(disk, u64::MAX, op::READ, rsp::OKAY)), Fault::BadId(u64::MAX));
    let twice = lied(|b, disk, found| {
        b.answer(disk, found[0].id, op::READ, rsp::OKAY);
        b.answer(disk, found[0].id, op::READ, rsp::OKAY);
    });
    assert!(matches!(twice, Fault::BadId(_)));
    let other = lied(|b, disk, found| b.answer(disk, found[0].id, op::WRITE, rsp::OKAY));
    assert_eq!(other, Fault::BadOperation { asked: op::READ, answered: op::WRITE });
    assert_eq!(lied(|b, disk, found| b.answer(disk, found[1].id, op::READ, 1)), Fault::BadStatus(1));
}

#[test]
fn an_old_id_in_a_place_that_is_in_use_again_is_noticed() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    submit(&mut disk, Op::Read, 0, 8, 1).unwrap();
    disk.kick();
    let old = backend.take(&disk).remove(0);
    backend.answer(&disk, old.id, op::READ, rsp::OKAY);
    assert!(disk.completed().is_some());
    submit(&mut disk, Op::Read, 0, 8, 2).unwrap();
    disk.kick();
    let new = backend.take(&disk).remove(0);
    assert_eq!(new.id as u16, old.id as u16, "the same place");
    backend.answer(&disk, old.id, op::READ, rsp::OKAY);
    assert_eq!(disk.completed().unwrap().result, Err(IoError::Broken));
    assert_eq!(disk.fault(), Some(Fault::BadId(old.id)));
}

#[test]
fn an_orderly_reconnection_submits_again_in_order_what_was_not_answered() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    for n in 0..6 {
        let mut write = request(&disk, Op::Write { fua: false }, n * 8, 8, n);
        write.buffer.as_mut().unwrap().copy_in(0, &[n as u8 + 1; 4096]);
        disk.submit(write).unwrap();
    }
    submit(&mut disk, Op::Read, SECTORS - 8, 8, 6).unwrap();
    disk.kick();
    let found = backend.take(&disk);
    for n in [4, 1] {
        backend.carry_out(&disk, &found[n]);
        backend.answer(&disk, found[n].id, op::WRITE, rsp::OKAY);
    }
    assert_eq!(disk.poll(drop), 2);
    disk.lose();
    assert_eq!((disk.is_up(), disk.in_flight(), disk.room()), (false, 5, 0));
    assert_eq!(submit(&mut disk, Op::Read, 0, 8, 50), Err(Refusal::Full));
    // The device has become smaller meanwhile.
    relink(&mut disk, Info { sectors: SECTORS - 8, ..info() });
    (backend.taken, backend.answered) = (0, 0);
    let found = backend.take(&disk);
    assert_eq!(found.iter().map(|f| f.sector).collect::<Vec<_>>(), [0, 16, 24, 40]);
    for request in &found {
        backend.carry_out(&disk, request);
        backend.answer(&disk, request.id, op::WRITE, rsp::OKAY);
    }
    let mut ended = Vec::new();
    disk.poll(|done| ended.push((done.token, done.result)));
    ended.sort_unstable_by_key(|(token, _)| *token);
    assert_eq!(ended, [(0, Ok(())), (2, Ok(())), (3, Ok(())), (5, Ok(())), (6, Err(IoError::Changed))]);
    assert!((0..6).all(|n| backend.data[n * 4096] == n as u8 + 1));
    assert_eq!((disk.counters().resubmitted, disk.counters().links), (4, 2));
}

#[test]
fn a_request_without_an_answer_is_given_up_and_its_pages_are_not_used_until_it_comes() {
    let (mut disk, mut backend) = (front(info()), Backend::new());
    let at = Instant::from_ns(1_000);
    for token in [1, 2] {
        let mut read = request(&disk, Op::Read, 0, 1200, token);
        read.deadline = Some(Instant::from_ns(token * 1_000));
        disk.submit(read).unwrap();
    }
    disk.kick();
    let channel = &mut disk.link.as_mut().unwrap().channel;
    assert_eq!(channel.soonest(), Some(at));
    assert!(channel.expired(Instant::from_ns(999)).is_none());
    let late = channel.expired(at).unwrap();
    assert_eq!((late.token, late.result), (1, Err(IoError::TimedOut)));
    assert!(late.buffer.is_none() && channel.expired(at).is_none());
    assert_eq!(channel.soonest(), Some(Instant::from_ns(2_000)));
    assert!(disk.buffer(4096).is_none(), "both still hold theirs");
    backend.serve(&disk);
    let done = disk.completed().unwrap();
    assert_eq!((done.token, disk.fault()), (2, None), "the late answer is no fault");
    assert!(disk.buffer(150 * 4096).is_some());
}

/// Sectors in memory, that count what is asked of them.
struct Memory {
    bytes: Vec<u8>,
    size: usize,
    asked: Vec<(char, u64, usize)>,
}

impl Sectors for Memory {
    fn sector_size(&self) -> usize {
        self.size
    }
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn request_max(&self) -> usize {
        8192
    }
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> Result<(), FileError> {
        self.asked.push(('r', at, to.len()));
        to.copy_from_slice(&self.bytes[at as usize..][..to.len()]);
        Ok(())
    }
    fn write_at(&mut self, at: u64, from: &[u8]) -> Result<(), FileError> {
        self.asked.push(('w', at, from.len()));
        self.bytes[at as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn sync(&mut self) -> Result<(), FileError> {
        self.asked.push(('f', 0, 0));
        Ok(())
    }
}

fn memory(size: usize) -> BlockFile<Memory> {
    BlockFile::new(Memory { bytes: pattern(64 << 10, 9), size, asked: Vec::new() })
}

#[test]
fn only_the_edges_of_a_write_are_read_first() {
    let mut file = memory(512);
    file.seek(SeekFrom::Start(500)).unwrap();
    file.write_all(&[0xee; 10_000]).unwrap();
    file.flush().unwrap();
    let asked = &file.get_mut().asked;
    let first = [('r', 0, 512), ('w', 0, 512), ('w', 512, 8192), ('w', 8704, 1536)];
    assert_eq!(asked[..4], first);
    assert_eq!(asked[4..], [('r', 10240, 512), ('w', 10240, 512), ('f', 0, 0)]);
    let mut expected = pattern(64 << 10, 9);
    expected[500..10_500].fill(0xee);
    assert!(file.get_mut().bytes == expected);
}

#[test]
fn any_range_reads_back_as_it_was_written() {
    for size in [512, 4096] {
        let mut file = memory(size);
        let mut expected = file.get_mut().bytes.clone();
        let mut state = 12345u64;
        for round in 0..500u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round | 1);
            let at = (state >> 33) as usize % expected.len();
            let len = ((state >> 20) as usize % 20_000).min(expected.len() - at);
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            if round % 2 == 0 {
                let bytes = pattern(len, round as usize);
                file.write_all(&bytes).unwrap();
                expected[at..at + len].copy_from_slice(&bytes);
            } else {
                let mut back = vec![0; len];
                file.read_exact(&mut back).unwrap();
                assert!(back == expected[at..at + len], "{at}+{len}");
            }
            assert_eq!(file.seek(SeekFrom::Current(0)), Ok((at + len) as u64));
        }
        assert!(file.get_mut().bytes == expected);
    }
}

#[test]
fn a_file_ends_where_the_device_does() {
    let mut file = memory(512);
    let len = file.seek(SeekFrom::End(-3)).unwrap() + 3;
    let mut three = [0; 10];
    assert_eq!(file.read(&mut three), Ok(3));
    assert_eq!(file.read(&mut three), Ok(0));
    assert_eq!(file.write(&[1]), Err(FileError::End));
    assert_eq!(file.seek(SeekFrom::Start(len + 1)), Ok(len + 1));
    assert_eq!(file.read(&mut three), Ok(0));
    assert_eq!(file.seek(SeekFrom::Current(-1 - len as i64 - 1)), Err(FileError::BadPosition));
}

#[test]
fn the_ring_may_span_pages() {
    let channel = Channel::new(DomId(1), 3).unwrap();
    assert_eq!((channel.grefs().len(), channel.room()), (8, 256));
    let distinct: std::collections::BTreeSet<GrantRef> = channel.grefs().into_iter().collect();
    assert_eq!(distinct.len(), 8);
}
