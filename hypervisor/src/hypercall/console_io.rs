//! `console_io`: text into the domain's log and, line by line, to the serial line.

use super::Caller;
use crate::console;
use abi::Errno;
use abi::console::{WRITE, WRITE_MAX};

/// Bytes taken at once.
const PART: u64 = 256;

pub fn call(caller: &Caller<'_>, [cmd, count, buffer, ..]: [u64; 5]) -> Result<i64, Errno> {
    if cmd != WRITE {
        return Err(Errno::ENOSYS);
    }
    if count > WRITE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut done = 0;
    while done < count {
        let mut part = [0; PART as usize];
        let part = part.get_mut(..(count - done).min(PART) as usize).unwrap_or_default();
        caller.mem.read_bytes(buffer.checked_add(done).ok_or(Errno::EFAULT)?, part)?;
        console::domain_write(caller.domain, part);
        done += part.len() as u64;
    }
    Ok(0)
}
