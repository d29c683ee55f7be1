//! A client of the web guest over an ordinary socket of the host: `GET /blob` checked byte by byte and by SHA-256,
//! `POST /sink` whose answer has to be the SHA-256 of what was sent.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

// The guest's own generator, so that both ends can only agree.
#[path = "../../../unikernels/web/src/blob.rs"]
#[allow(dead_code, reason = "the guest uses the rest")]
pub mod blob;

/// Longest wait for a byte: an outage with all retransmissions is far below.
const PATIENCE: Duration = Duration::from_secs(30);
const CHUNK: usize = 64 << 10;
const REFUSED: &str = "the web guest takes no request";

/// What a transfer came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Transfer {
    /// Bytes of the body.
    pub bytes: u64,
    /// They were the right ones.
    pub hash_ok: bool,
    /// Time from the request to the last byte.
    pub millis: u64,
}

impl Transfer {
    fn new(bytes: u64, hash_ok: bool, start: Instant) -> Self {
        Self { bytes, hash_ok, millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) }
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to the endpoint")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads a response head; returns status and length of the body.
fn head(reader: &mut impl BufRead) -> Result<(u16, u64)> {
    let mut status = 0;
    let mut length = 0;
    for number in 0..64 {
        let mut line = String::new();
        let n = reader.by_ref().take(8192).read_line(&mut line).context("no answer from the web guest")?;
        ensure!(n > 0, "the web guest closed the connection before it answered");
        let line = line.trim_end();
        if number == 0 {
            let code = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|c| c.parse().ok());
            status = code.with_context(|| format!("`{line}` is no status line"))?;
        } else if line.is_empty() {
            return Ok((status, length));
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().with_context(|| format!("`{line}` has no number"))?;
        }
    }
    bail!("the web guest's answer has no end of its head")
}

/// Fetches a path whole.
///
/// # Errors
/// No connection, no answer, or no whole answer.
pub fn get(port: u16, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = connect(port)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n").context(REFUSED)?;
    let mut reader = BufReader::new(stream);
    let (status, length) = head(&mut reader)?;
    let mut body = vec![0; usize::try_from(length.min(16 << 20))?];
    reader.read_exact(&mut body).with_context(|| format!("{path}: the answer is cut"))?;
    Ok((status, body))
}

/// `GET /blob`: `bytes` of the stream of `seed`; `progress` counts them as they come.
///
/// # Errors
/// The connection ended early, stood still for too long, or the answer was not 200.
pub fn download(port: u16, bytes: u64, seed: u64, progress: &AtomicU64) -> Result<Transfer> {
    let start = Instant::now();
    let mut stream = connect(port)?;
    write!(stream, "GET /blob?bytes={bytes}&seed={seed} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")
        .context(REFUSED)?;
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    let (status, length) = head(&mut reader)?;
    ensure!(status == 200 && length == bytes, "GET /blob: status {status}, {length} bytes instead of {bytes}");
    let (mut got, mut right) = (Sha256::new(), Sha256::new());
    let mut expected = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let part = reader.fill_buf().with_context(|| format!("GET /blob: stuck after {at} of {bytes} bytes"))?;
        ensure!(!part.is_empty(), "GET /blob: the connection ended after {at} of {bytes} bytes");
        let n = part.len().min(CHUNK).min(usize::try_from(bytes - at).unwrap_or(CHUNK));
        let expected = &mut expected[..n];
        blob::fill(seed, at, expected);
        if let Some(wrong) = part[..n].iter().zip(expected.iter()).position(|(a, b)| a != b) {
            bail!("GET /blob: byte {} is wrong", at + wrong as u64);
        }
        got.update(&part[..n]);
        right.update(expected);
        reader.consume(n);
        at += n as u64;
        progress.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(Transfer::new(bytes, got.finalize() == right.finalize(), start))
}

/// `POST /sink`: sends the stream of `seed` and compares the SHA-256 in the answer.
///
/// # Errors
/// As [`download`].
pub fn upload(port: u16, bytes: u64, seed: u64, progress: &AtomicU64) -> Result<Transfer> {
    let start = Instant::now();
    let mut stream = connect(port)?;
    write!(stream, "POST /sink HTTP/1.1\r\nHost: guest\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    let mut sent = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let n = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
        blob::fill(seed, at, &mut chunk[..n]);
        sent.update(&chunk[..n]);
        stream.write_all(&chunk[..n]).with_context(|| format!("POST /sink: stuck after {at} of {bytes} bytes"))?;
        at += n as u64;
        progress.fetch_add(n as u64, Ordering::Relaxed);
    }
    let mut reader = BufReader::new(stream);
    let (status, length) = head(&mut reader)?;
    let mut body = vec![0; usize::try_from(length.min(4096))?];
    reader.read_exact(&mut body).context("POST /sink: the answer is cut")?;
    ensure!(status == 200, "POST /sink: status {status}: {}", String::from_utf8_lossy(&body));
    let expected: String = sent.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let answer = String::from_utf8_lossy(&body).to_lowercase();
    Ok(Transfer::new(bytes, answer.contains(&expected), start))
}
