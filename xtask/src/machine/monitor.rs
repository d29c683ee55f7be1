//! QEMU's monitor (QMP), for the one thing no guest can be asked: what a frame of the machine holds.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a frame.
pub const FRAME: u64 = 4096;

/// The monitor's connection.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Where QEMU writes what it is asked for.
    file: PathBuf,
}

impl Monitor {
    /// Takes up the connection QEMU made.
    ///
    /// # Errors
    /// It does not speak QMP.
    pub fn start(stream: UnixStream, file: PathBuf) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self { stream: BufReader::new(stream), file };
        let greeting = this.line()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's monitor greets with {greeting}");
        }
        this.call(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(this)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).context("no answer of QEMU's monitor")?;
        if read == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// One command; events that come meanwhile are passed over.
    fn call(&mut self, command: &Value) -> Result<()> {
        writeln!(self.stream.get_mut(), "{command}")?;
        loop {
            let answer = self.line()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor refuses {command}: {error}");
            }
        }
    }

    /// What the machine frame that holds physical address `address` contains now.
    ///
    /// # Errors
    /// Of the monitor, or of reading what it wrote.
    pub fn frame(&mut self, address: u64) -> Result<Vec<u8>> {
        let file = self.file.display().to_string();
        let arguments = json!({ "val": address & !(FRAME - 1), "size": FRAME, "filename": file });
        self.call(&json!({ "execute": "pmemsave", "arguments": arguments }))?;
        std::fs::read(&self.file).with_context(|| format!("cannot read {file}"))
    }
}
