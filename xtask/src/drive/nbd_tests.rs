//! The server as a client sees it.

use super::*;
use crate::units::Span;
use std::os::unix::fs::FileExt;

const LEN: u64 = 1 << 20;

struct Drive {
    server: Server,
    file: Arc<File>,
    _folder: crate::machine::Folder,
}

impl Drive {
    fn new(faults: &str) -> Self {
        let folder = crate::machine::folder("nbd-test").unwrap();
        let image = folder.join("image");
        let file = Arc::new(File::options().read(true).write(true).create_new(true).open(image).unwrap());
        file.set_len(LEN).unwrap();
        let text = format!("model = 'ahci'\naddress = '00:04.0'\nsize = '1MiB'\nvolatile = true\n{faults}");
        let disk: Disk = toml::from_str(&text).unwrap();
        let server = Server::start(&folder.join("s"), Arc::clone(&file), LEN, &disk).unwrap();
        Self { server, file, _folder: folder }
    }

    fn first_byte(&self) -> u8 {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.server.stop();
    }
}

/// A client as QEMU is one: it asks for structured replies first, then for the export.
struct Peer(UnixStream);

impl Peer {
    fn new(drive: &Drive) -> Self {
        let mut stream = UnixStream::connect(drive.server.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(u64::from_be_bytes(array(&mut stream).unwrap()), NBDMAGIC);
        assert_eq!(u64::from_be_bytes(array(&mut stream).unwrap()), IHAVEOPT);
        assert_eq!(u16::from_be_bytes(array(&mut stream).unwrap()), HANDSHAKE_FLAGS);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        let mut peer = Self(stream);
        assert_eq!(peer.option(8, &[]), [(REP_ERR_UNSUP, vec![])]);
        let replies = peer.option(OPT_GO, &[0, 0, 0, 0, 0, 0]);
        assert_eq!(replies[0].1, [&[0, 0][..], &LEN.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat());
        assert_eq!(replies[1].1[..6], [0, 3, 0, 0, 2, 0]);
        peer
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let head = [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
        self.0.write_all(&[&head[..], data].concat()).unwrap();
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(array(&mut self.0).unwrap()), REPLY_MAGIC);
            assert_eq!(u32::from_be_bytes(array(&mut self.0).unwrap()), option);
            let kind = u32::from_be_bytes(array(&mut self.0).unwrap());
            let mut data = vec![0; u32::from_be_bytes(array(&mut self.0).unwrap()) as usize];
            self.0.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind != REP_INFO {
                return replies;
            }
        }
    }

    fn send(&mut self, handle: u64, flags: u16, kind: u16, offset: u64, length: u32, data: &[u8]) {
        let head = [&REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
        let rest = [&handle.to_be_bytes()[..], &offset.to_be_bytes(), &length.to_be_bytes(), data].concat();
        self.0.write_all(&[head, rest].concat()).unwrap();
    }

    /// The next answer: its handle and error.
    fn answer(&mut self) -> (u64, u32) {
        assert_eq!(u32::from_be_bytes(array(&mut self.0).unwrap()), SIMPLE_REPLY_MAGIC);
        let error = u32::from_be_bytes(array(&mut self.0).unwrap());
        (u64::from_be_bytes(array(&mut self.0).unwrap()), error)
    }
}

#[test]
fn a_write_is_stable_after_a_flush_and_lost_without_one() {
    let drive = Drive::new("");
    let mut peer = Peer::new(&drive);
    peer.send(7, 0, CMD_WRITE, 0, 512, &[1; 512]);
    assert_eq!(peer.answer(), (7, 0));
    assert_eq!(drive.first_byte(), 0);
    peer.send(8, 0, CMD_FLUSH, 0, 0, &[]);
    assert_eq!(peer.answer(), (8, 0));
    assert_eq!(drive.first_byte(), 1);
    peer.send(9, CMD_FLAG_FUA, CMD_WRITE, 0, 512, &[2; 512]);
    assert_eq!(peer.answer(), (9, 0));
    assert_eq!(drive.first_byte(), 2, "FUA passes the cache");
    peer.send(10, 0, CMD_READ, 0, 512, &[]);
    assert_eq!(peer.answer(), (10, 0));
    assert_eq!(array::<512>(&mut peer.0).unwrap(), [2; 512]);
    let counts = drive.server.counts();
    assert_eq!((counts.writes, counts.fua, counts.reads), (2, 1, 1));
    assert_eq!((counts.flushes_arrived, counts.flushes), (1, 1));
}

#[test]
fn what_the_protocol_or_the_drive_forbids_is_refused_and_the_connection_lives() {
    let drive = Drive::new("");
    let mut peer = Peer::new(&drive);
    for (handle, kind, offset, length) in
        [(1, CMD_READ, LEN, 512), (2, CMD_READ, 1, 512), (3, CMD_TRIM, 0, 0), (4, 99, 0, 512)]
    {
        peer.send(handle, 0, kind, offset, length, &[]);
        assert_eq!(peer.answer(), (handle, EINVAL));
    }
    peer.send(5, 0, CMD_FLUSH, 0, 0, &[]);
    assert_eq!(peer.answer(), (5, 0));
}

#[test]
fn rules_fail_and_delay_and_others_pass_meanwhile() {
    let drive = Drive::new(
        "[[fault]]\non = 'read'\nfirst = 2\nsectors = 1\ntimes = 1\nerror = true\n[[fault]]\non = 'flush'\ndelay = '300ms'",
    );
    let mut peer = Peer::new(&drive);
    peer.send(1, 0, CMD_READ, 1024, 512, &[]);
    assert_eq!(peer.answer(), (1, EIO));
    peer.send(2, 0, CMD_FLUSH, 0, 0, &[]);
    peer.send(3, 0, CMD_WRITE, 0, 512, &[1; 512]);
    assert_eq!(peer.answer(), (3, 0), "the write is not held by the flush");
    assert_eq!(drive.server.counts().flushes, 0, "the flush is not done before it is answered");
    assert_eq!(peer.answer(), (2, 0));
    let counts = drive.server.counts();
    assert_eq!((counts.flushes_arrived, counts.flushes, counts.failed, counts.delayed), (1, 1, 1, 1));
    drive.server.calm();
    drive.server.rule(Fault {
        on: Deed::Write,
        first: 0,
        sectors: None,
        after: 0,
        times: None,
        delay: Span::default(),
        error: true,
    });
    peer.send(4, 0, CMD_WRITE, 0, 512, &[9; 512]);
    assert_eq!(peer.answer(), (4, EIO));
    assert_eq!(drive.first_byte(), 1, "a write that failed was not done");
}

#[test]
fn a_flush_under_way_at_a_power_cut_covers_nothing() {
    let drive = Drive::new("[[fault]]\non = 'flush'\ndelay = '200ms'");
    let mut peer = Peer::new(&drive);
    for sector in 0..64 {
        peer.send(sector, 0, CMD_WRITE, sector * 512, 512, &[1; 512]);
        assert_eq!(peer.answer().1, 0);
    }
    peer.send(100, 0, CMD_FLUSH, 0, 0, &[]);
    while drive.server.counts().flushes_arrived == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let cut = drive.server.cut(&mut Random::new(3)).unwrap();
    assert!(cut.uncovered == 64 && cut.lost > 0, "{cut:?}");
    assert_eq!(peer.answer(), (100, EIO), "its drive lost power");
    assert_eq!(drive.server.counts().flushes, 0);
}
