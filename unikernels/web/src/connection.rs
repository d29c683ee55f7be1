//! One HTTP connection over one TCP socket: a state machine that moves as many bytes as the socket takes and never waits.

use crate::blob;
use crate::http::{HEAD_MAX, Head, Method, Refusal, form_value, head_len, reason};
use crate::page::PAGE;
use crate::server::Site;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use sha2::{Digest, Sha256};
use smoltcp::socket::tcp::{Socket, State as TcpState};

/// Longest body of a form (`POST /crash`), in bytes.
const FORM_MAX: u64 = 512;

enum Work {
    /// Collecting a request head.
    Head,
    /// Sending what is in `out`, then a blob's bytes `position..end`.
    Send { blob: Option<Blob> },
    /// Hashing `left` bytes of body.
    Sink { hasher: Sha256, bytes: u64, left: u64 },
    /// Collecting a form of `left` more bytes.
    Form { body: Vec<u8>, left: u64, head: Head },
    /// Answered for the last time; the peer closes.
    Drain,
}

struct Blob {
    seed: u64,
    position: u64,
    end: u64,
}

/// Bytes that one poll moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Sent.
    pub tx_bytes: u64,
    /// Received.
    pub rx_bytes: u64,
}

/// A connection's state; reset when its socket listens again.
pub struct Connection {
    work: Work,
    head: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    keep_alive: bool,
}

impl Default for Connection {
    fn default() -> Self {
        Self { work: Work::Head, head: Vec::new(), out: Vec::new(), sent: 0, keep_alive: true }
    }
}

impl Connection {
    /// Does what can be done now. The socket listens again on `port` once its connection is over; in TIME-WAIT it is not: the peer
    /// may have missed our last acknowledgement, and would get a reset for the FIN it then sends again.
    pub fn poll(&mut self, socket: &mut Socket<'_>, port: u16, site: &mut impl Site) -> Moved {
        let mut moved = Moved::default();
        match socket.state() {
            TcpState::Closed => {
                self.listen(socket, port);
                return moved;
            }
            TcpState::Listen | TcpState::TimeWait => return moved,
            _ => {}
        }
        while self.step(socket, site, &mut moved) {}
        // The peer has finished and so have we.
        if !socket.may_recv()
            && socket.may_send()
            && matches!(self.work, Work::Head | Work::Drain | Work::Form { .. } | Work::Sink { .. })
        {
            socket.close();
        }
        moved
    }

    /// Lets a socket listen whose connection is over, or in TIME-WAIT, of which nothing is left then.
    pub fn listen(&mut self, socket: &mut Socket<'_>, port: u16) {
        *self = Self::default();
        if let Err(e) = socket.listen(port) {
            log::error!("http: cannot listen on port {port}: {e}");
        }
    }

    /// One step; true when another may make progress.
    fn step(&mut self, socket: &mut Socket<'_>, site: &mut impl Site, moved: &mut Moved) -> bool {
        match &mut self.work {
            Work::Head => self.read_head(socket, site, moved),
            Work::Send { .. } => self.send(socket, moved),
            Work::Sink { hasher, bytes, left } => {
                let n = take_body(socket, *left, |data| hasher.update(data));
                moved.rx_bytes = moved.rx_bytes.saturating_add(n);
                *bytes = bytes.saturating_add(n);
                *left = left.saturating_sub(n);
                if *left > 0 {
                    return n > 0;
                }
                let mut body = format!("{{\"bytes\":{bytes},\"sha256\":\"");
                for byte in core::mem::take(hasher).finalize() {
                    let _ = write!(body, "{byte:02x}");
                }
                body.push_str("\"}\n");
                self.answer(200, "application/json", &body, false);
                true
            }
            Work::Form { body, left, head } => {
                let n = take_body(socket, *left, |data| body.extend_from_slice(data));
                moved.rx_bytes = moved.rx_bytes.saturating_add(n);
                *left = left.saturating_sub(n);
                if *left > 0 {
                    return n > 0;
                }
                let form = String::from_utf8(core::mem::take(body)).unwrap_or_default();
                let head = head.clone();
                self.crash(&head, &form, site);
                true
            }
            Work::Drain => take_body(socket, u64::MAX, |_| ()) > 0,
        }
    }

    fn read_head(&mut self, socket: &mut Socket<'_>, site: &mut impl Site, moved: &mut Moved) -> bool {
        let head = &mut self.head;
        let room = HEAD_MAX.saturating_sub(head.len());
        // Take up to the end of the head and not a byte of the body.
        let taken = socket.recv(|data| {
            let before = head.len();
            head.extend_from_slice(data.get(..data.len().min(room)).unwrap_or_default());
            let end = head_len(head).unwrap_or(head.len());
            head.truncate(end);
            let n = end.saturating_sub(before);
            (n, n)
        });
        let n = taken.unwrap_or(0);
        moved.rx_bytes = moved.rx_bytes.saturating_add(n as u64);
        if head_len(&self.head).is_none() {
            if self.head.len() >= HEAD_MAX {
                self.refuse(Refusal { status: 431, why: "request head is longer than 4096 bytes" });
                return true;
            }
            return n > 0;
        }
        let parsed = Head::parse(&self.head);
        self.head.clear();
        match parsed {
            Ok(head) => self.route(&head, site),
            Err(refusal) => self.refuse(refusal),
        }
        true
    }

    fn route(&mut self, head: &Head, site: &mut impl Site) {
        self.keep_alive = head.keep_alive;
        let head_only = head.method == Method::Head;
        let reading = matches!(head.method, Method::Get | Method::Head);
        if reading && head.content_length.unwrap_or(0) > 0 {
            return self.refuse(Refusal { status: 400, why: "GET with a body" });
        }
        match (head.path.as_str(), reading) {
            ("/", true) => self.answer(200, "text/html; charset=utf-8", PAGE, head_only),
            ("/status.json", true) => {
                let body = site.status_json();
                self.answer(200, "application/json", &body, head_only);
            }
            ("/blob", true) => self.blob(head, head_only),
            ("/sink", false) => {
                let Some(left) = head.content_length else {
                    return self.refuse(Refusal { status: 411, why: "POST /sink needs Content-Length" });
                };
                self.work = Work::Sink { hasher: Sha256::new(), bytes: 0, left };
                self.expect_continue(head);
            }
            ("/crash", false) => match head.content_length.unwrap_or(0) {
                left if left > FORM_MAX => self.refuse(Refusal { status: 413, why: "form is longer than 512 bytes" }),
                left => self.work = Work::Form { body: Vec::new(), left, head: head.clone() },
            },
            ("/" | "/status.json" | "/blob" | "/sink" | "/crash", _) => {
                self.refuse(Refusal { status: 405, why: "/sink and /crash take POST, the others GET" });
            }
            _ => self
                .refuse_kept(head, Refusal { status: 404, why: "there is /, /status.json, /blob, /sink and /crash" }),
        }
    }

    fn blob(&mut self, head: &Head, head_only: bool) {
        let number = |key: &str| head.query_value(key).map(str::parse::<u64>);
        let (Some(Ok(bytes)), Ok(seed)) = (number("bytes"), number("seed").unwrap_or(Ok(0))) else {
            let why = "usage: /blob?bytes=N&seed=S with decimal numbers";
            return self.refuse_kept(head, Refusal { status: 400, why });
        };
        self.start_answer(200, "application/octet-stream", bytes);
        let blob = (!head_only).then_some(Blob { seed, position: 0, end: bytes });
        self.work = Work::Send { blob };
    }

    fn crash(&mut self, head: &Head, form: &str, site: &mut impl Site) {
        let value = |key| form_value(form, key).or_else(|| head.query_value(key));
        let (Some(domain), Some(how)) = (value("domain"), value("how")) else {
            return self
                .refuse_kept(head, Refusal { status: 400, why: "usage: POST /crash with domain=NAME&how=KIND" });
        };
        match site.crash(domain, how) {
            Ok(()) => self.answer(202, "text/plain; charset=utf-8", "ordered\n", false),
            Err(refusal) => self.refuse_kept(head, refusal),
        }
    }

    /// Sends `100 Continue` ahead of the body where the client waits for it.
    fn expect_continue(&mut self, head: &Head) {
        if head.expects_continue {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    fn start_answer(&mut self, status: u16, kind: &str, len: u64) {
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: {connection}\r\n\r\n",
            reason(status)
        );
        self.out.extend_from_slice(head.as_bytes());
    }

    fn answer(&mut self, status: u16, kind: &str, body: &str, head_only: bool) {
        self.start_answer(status, kind, body.len() as u64);
        if !head_only {
            self.out.extend_from_slice(body.as_bytes());
        }
        self.work = Work::Send { blob: None };
    }

    /// Answers with an error and gives the connection up: what follows on it cannot be told apart any more.
    fn refuse(&mut self, refusal: Refusal) {
        self.keep_alive = false;
        self.answer(refusal.status, "text/plain; charset=utf-8", &format!("{}\n", refusal.why), false);
    }

    /// As [`Self::refuse`], but where the request was understood and its body read, the connection goes on.
    fn refuse_kept(&mut self, head: &Head, refusal: Refusal) {
        let body_unread = !matches!(self.work, Work::Form { .. }) && head.content_length.unwrap_or(0) > 0;
        if body_unread {
            return self.refuse(refusal);
        }
        self.answer(refusal.status, "text/plain; charset=utf-8", &format!("{}\n", refusal.why), false);
    }

    fn send(&mut self, socket: &mut Socket<'_>, moved: &mut Moved) -> bool {
        if !socket.may_send() {
            self.work = Work::Drain;
            return false;
        }
        let n = self.send_out(socket);
        moved.tx_bytes = moved.tx_bytes.saturating_add(n as u64);
        if !self.out.is_empty() {
            return n > 0;
        }
        let Work::Send { blob } = &mut self.work else { return false };
        if let Some(Blob { seed, position, end }) = blob {
            let sent = socket.send(|room| {
                let left = usize::try_from(end.saturating_sub(*position)).unwrap_or(usize::MAX);
                let n = room.len().min(left);
                blob::fill(*seed, *position, room.get_mut(..n).unwrap_or_default());
                (n, n)
            });
            let n = sent.unwrap_or(0) as u64;
            *position = position.saturating_add(n);
            moved.tx_bytes = moved.tx_bytes.saturating_add(n);
            if position < end {
                return n > 0;
            }
        }
        if self.keep_alive {
            self.work = Work::Head;
        } else {
            socket.close();
            self.work = Work::Drain;
        }
        true
    }

    fn send_out(&mut self, socket: &mut Socket<'_>) -> usize {
        let rest = self.out.get(self.sent..).unwrap_or_default();
        let n = socket.send_slice(rest).unwrap_or(0);
        self.sent = self.sent.saturating_add(n);
        if self.sent >= self.out.len() {
            self.out = Vec::new();
            self.sent = 0;
        }
        n
    }

    /// Sends a pending `100 Continue` while a body is being read.
    pub fn flush(&mut self, socket: &mut Socket<'_>) {
        if !self.out.is_empty() && matches!(self.work, Work::Sink { .. }) {
            self.send_out(socket);
        }
    }
}

/// Hands up to `most` received bytes to `consume`, returns how many.
fn take_body(socket: &mut Socket<'_>, most: u64, mut consume: impl FnMut(&[u8])) -> u64 {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let taken = socket.recv(|data| {
        let n = data.len().min(most);
        consume(data.get(..n).unwrap_or_default());
        (n, n)
    });
    taken.unwrap_or(0) as u64
}
