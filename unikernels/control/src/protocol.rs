//! The requests of the control socket: from bytes to lines, from a line to a [`Command`]. The form is fixed in
//! `docs/control-protocol.md`; what is wrong is answered with an error that names the thing and the place.

use crate::json::{self, Object, Value, Writer};
use crate::rights::{Crash, KINDS};
use abi::DomId;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Version in `ping` and `ready`.
pub const VERSION: u32 = 1;
/// Longest request line, bytes.
pub const LINE_MAX: usize = 4096;
/// Deepest nesting of a request.
pub const DEPTH_MAX: usize = 8;
/// Longest id, bytes.
pub const ID_MAX: usize = 64;
/// Most bytes of console text in one reply.
pub const TEXT_MAX: u32 = 8192;
/// A reply is cut short (lists) before it is longer than this.
pub const REPLY_MAX: usize = 64 * 1024;

/// Collects bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    too_long: bool,
}

/// What a finished line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// To be read.
    Bytes(Vec<u8>),
    /// Longer than [`LINE_MAX`]; its bytes were dropped.
    TooLong,
}

impl Lines {
    /// Takes a byte; answers a line when it ends one. Empty lines are nothing.
    pub fn push(&mut self, byte: u8) -> Option<Line> {
        if byte != b'\n' {
            if self.line.len() < LINE_MAX {
                self.line.push(byte);
            } else {
                self.too_long = true;
            }
            return None;
        }
        let mut line = core::mem::take(&mut self.line);
        if core::mem::take(&mut self.too_long) {
            return Some(Line::TooLong);
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        (!line.is_empty()).then_some(Line::Bytes(line))
    }
}

/// A domain as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By number.
    Id(DomId),
    /// By name.
    Name(String),
    /// The hypervisor itself (only for `log` and `console`).
    Hypervisor,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/control-protocol.md says what each does")]
pub enum Command {
    Ping,
    List,
    Stats,
    Log { dom: Target, seq: u64, max: u32 },
    Console { dom: Target, follow: bool, seq: u64 },
    Input { dom: Target, text: String },
    Restart { dom: Target },
    Crash { dom: Target, crash: Crash },
    Create { dom: Target },
    Destroy { dom: Target },
    Shutdown { dom: Target, reboot: bool },
    Kill { dom: Target },
    Pause { dom: Target, on: bool },
    History { max: usize },
    XsRead { path: String },
    XsLs { path: String },
    Subscribe { on: bool },
    Poweroff { code: u64 },
}

/// A line taken apart: the id as JSON, to be echoed, and the command or why it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `null`, or a number or text as JSON.
    pub id: String,
    /// What to do.
    pub command: Result<Command, String>,
}

/// Reads a line.
#[must_use]
pub fn read(line: &Line) -> Request {
    let refuse = |what: String| Request { id: String::from("null"), command: Err(what) };
    let bytes = match line {
        Line::Bytes(bytes) => bytes,
        Line::TooLong => return refuse(format!("line longer than {LINE_MAX} bytes")),
    };
    match json::parse(bytes, DEPTH_MAX) {
        Ok(Value::Object(mut keys)) => {
            let id = match take(&mut keys, "id").map(id_text) {
                None => String::from("null"),
                Some(Ok(id)) => id,
                Some(Err(what)) => return refuse(what),
            };
            Request { id, command: command(keys) }
        }
        Ok(_) => refuse(String::from("a request is an object: {\"id\":1,\"cmd\":\"list\"}")),
        Err(malformed) => refuse(format!("{malformed}")),
    }
}

type Keys = Vec<(String, Value)>;

fn take(keys: &mut Keys, key: &str) -> Option<Value> {
    let at = keys.iter().position(|(k, _)| k == key)?;
    Some(keys.remove(at).1)
}

fn id_text(value: Value) -> Result<String, String> {
    let text = match value {
        Value::Null => return Ok(String::from("null")),
        Value::Number(text) => text,
        Value::Text(text) => quote(&text),
        _ => return Err(String::from("id: expected a number or a text")),
    };
    if text.len() > ID_MAX { Err(format!("id: longer than {ID_MAX} bytes")) } else { Ok(text) }
}

/// A text as JSON.
fn quote(text: &str) -> String {
    let object = Writer::object(|o| {
        o.text("", text);
    });
    // `{"":…}`
    object.get(4..object.len().saturating_sub(1)).map(String::from).unwrap_or_default()
}

/// A text from outside, cut for an error message.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

fn command(mut keys: Keys) -> Result<Command, String> {
    let name = match take(&mut keys, "cmd") {
        Some(Value::Text(name)) => name,
        Some(_) => return Err(String::from("cmd: expected a text")),
        None => return Err(String::from("cmd: missing")),
    };
    let k = &mut keys;
    let command = match name.as_str() {
        "ping" => Command::Ping,
        "list" => Command::List,
        "stats" => Command::Stats,
        "log" => {
            let dom = optional(k, "dom", target)?.unwrap_or(Target::Hypervisor);
            let max = optional(k, "max", number)?.unwrap_or(4096).min(u64::from(TEXT_MAX));
            Command::Log {
                dom,
                seq: optional(k, "seq", number)?.unwrap_or(0),
                max: u32::try_from(max).unwrap_or(TEXT_MAX),
            }
        }
        "console" => Command::Console {
            dom: required(k, "dom", target)?,
            follow: optional(k, "follow", flag)?.unwrap_or(true),
            seq: optional(k, "seq", number)?.unwrap_or(0),
        },
        "input" => Command::Input { dom: required(k, "dom", domain)?, text: required(k, "text", text)? },
        "restart" => Command::Restart { dom: required(k, "dom", domain)? },
        "crash" => {
            let (dom, how) = (required(k, "dom", domain)?, required(k, "how", text)?);
            let count = optional(k, "count", number)?.unwrap_or(0);
            let count = u32::try_from(count).map_err(|_| String::from("count: too large"))?;
            let crash = Crash::new(&how, count);
            let unknown = || format!("how: unknown kind \"{}\", expected one of {}", cut(&how), KINDS.join(", "));
            Command::Crash { dom, crash: crash.ok_or_else(unknown)? }
        }
        "create" => Command::Create { dom: required(k, "dom", domain)? },
        "destroy" => Command::Destroy { dom: required(k, "dom", domain)? },
        "shutdown" => Command::Shutdown { dom: required(k, "dom", domain)?, reboot: false },
        "reboot" => Command::Shutdown { dom: required(k, "dom", domain)?, reboot: true },
        "kill" => Command::Kill { dom: required(k, "dom", domain)? },
        "pause" => Command::Pause { dom: required(k, "dom", domain)?, on: true },
        "unpause" => Command::Pause { dom: required(k, "dom", domain)?, on: false },
        "history" => {
            let max = optional(k, "max", number)?.unwrap_or(64);
            Command::History { max: usize::try_from(max).unwrap_or(usize::MAX) }
        }
        "xs-read" => Command::XsRead { path: required(k, "path", text)? },
        "xs-ls" => Command::XsLs { path: optional(k, "path", text)?.unwrap_or_else(|| String::from("/")) },
        "subscribe" => Command::Subscribe { on: optional(k, "on", flag)?.unwrap_or(true) },
        "poweroff" => Command::Poweroff { code: optional(k, "code", number)?.unwrap_or(0) },
        other => return Err(format!("cmd: unknown command \"{}\"", cut(other))),
    };
    match keys.first() {
        Some((key, _)) => Err(format!("unknown key \"{}\" for {name}", cut(key))),
        None => Ok(command),
    }
}

type Read<T> = fn(&Value) -> Result<T, &'static str>;

fn optional<T>(keys: &mut Keys, key: &str, read: Read<T>) -> Result<Option<T>, String> {
    let value = take(keys, key);
    value.map(|v| read(&v)).transpose().map_err(|what| format!("{key}: expected {what}"))
}

fn required<T>(keys: &mut Keys, key: &str, read: Read<T>) -> Result<T, String> {
    optional(keys, key, read)?.ok_or_else(|| format!("{key}: missing"))
}

fn number(value: &Value) -> Result<u64, &'static str> {
    value.as_u64().ok_or("a whole number")
}

fn flag(value: &Value) -> Result<bool, &'static str> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        _ => Err("true or false"),
    }
}

fn text(value: &Value) -> Result<String, &'static str> {
    value.as_text().map(String::from).ok_or("a text")
}

fn domain(value: &Value) -> Result<Target, &'static str> {
    match target(value)? {
        Target::Hypervisor => Err("a domain"),
        target => Ok(target),
    }
}

fn target(value: &Value) -> Result<Target, &'static str> {
    if let Some(id) = value.as_u64() {
        let id = u16::try_from(id).ok().map(DomId).filter(|d| *d < DomId::FIRST_RESERVED);
        return id.map(Target::Id).ok_or("a domain's number");
    }
    match value.as_text() {
        Some("hypervisor") => Ok(Target::Hypervisor),
        Some(name) => Ok(Target::Name(String::from(name))),
        None => Err("a domain's name or number"),
    }
}

/// The reply line to a request that was carried out, with its `\n`.
#[must_use]
pub fn ok(id: &str, fill: impl FnOnce(&mut Object)) -> String {
    let mut line = Writer::object(|o| {
        o.raw("id", id).object("ok", fill);
    });
    line.push('\n');
    line
}

/// The reply line to a request that was not, with its `\n`.
#[must_use]
pub fn error(id: &str, what: &str) -> String {
    let mut line = Writer::object(|o| {
        o.raw("id", id).text("error", what);
    });
    line.push('\n');
    line
}

/// An event line, with its `\n`.
#[must_use]
pub fn event(name: &str, fill: impl FnOnce(&mut Object)) -> String {
    let mut line = Writer::object(|o| {
        o.text("event", name);
        fill(o);
    });
    line.push('\n');
    line
}

/// As much of a text that goes on as ends with a whole character: the rest of one may come with the next bytes. All of it where
/// nothing would be left of a buffer of `room` bytes that is full.
#[must_use]
pub fn whole_text(bytes: &[u8], room: usize) -> &[u8] {
    let half = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let goes_on = core::str::from_utf8(half).is_err_and(|e| e.error_len().is_none());
    let end = bytes.len().saturating_sub(if goes_on { half.len() } else { 0 });
    if end == 0 && bytes.len() >= room { bytes } else { bytes.get(..end).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(line: &str) -> Request {
        read(&Line::Bytes(line.as_bytes().to_vec()))
    }
    fn refusal(line: &str) -> String {
        request(line).command.unwrap_err()
    }

    #[test]
    fn a_text_is_cut_between_characters_only() {
        let text = "aé€😀".as_bytes();
        let ends: Vec<_> = (1..=text.len()).map(|n| whole_text(&text[..n], 99).len()).collect();
        assert_eq!(ends, [1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        // What is no character at all, and what is too long for the room, is not waited for.
        assert_eq!(whole_text(b"a\xff", 99), b"a\xff");
        assert_eq!(whole_text(b"\xffa\xc3", 99), b"\xffa");
        assert_eq!(whole_text(b"\xe2\x82", 2), b"\xe2\x82");
        assert_eq!(whole_text(b"", 0), b"");
    }

    #[test]
    fn commands_are_read_with_their_defaults() {
        let netback = || Target::Name("netback".into());
        for (line, command) in [
            (r#"{"cmd":"list"}"#, Command::List),
            (r#"{"cmd":"log"}"#, Command::Log { dom: Target::Hypervisor, seq: 0, max: 4096 }),
            (r#"{"cmd":"log","dom":2,"max":99999}"#, Command::Log { dom: Target::Id(DomId(2)), seq: 0, max: TEXT_MAX }),
            (r#"{"cmd":"console","dom":"netback"}"#, Command::Console { dom: netback(), follow: true, seq: 0 }),
            (
                r#"{"cmd":"crash","dom":"netback","how":"dma","count":7}"#,
                Command::Crash { dom: netback(), crash: Crash { kind: "dma", count: 7 } },
            ),
            (
                r#"{"cmd":"input","dom":"netback","text":"ls\u0003\n"}"#,
                Command::Input { dom: netback(), text: "ls\u{3}\n".into() },
            ),
            (r#"{"cmd":"shutdown","dom":"netback"}"#, Command::Shutdown { dom: netback(), reboot: false }),
            (r#"{"cmd":"reboot","dom":"netback"}"#, Command::Shutdown { dom: netback(), reboot: true }),
            (r#"{"cmd":"create","dom":"netback"}"#, Command::Create { dom: netback() }),
            (r#"{"cmd":"destroy","dom":3}"#, Command::Destroy { dom: Target::Id(DomId(3)) }),
            (r#"{"cmd":"unpause","dom":"netback"}"#, Command::Pause { dom: netback(), on: false }),
            (r#"{"cmd":"xs-ls"}"#, Command::XsLs { path: "/".into() }),
            (r#"{"cmd":"poweroff","code":3}"#, Command::Poweroff { code: 3 }),
        ] {
            assert_eq!(request(line), Request { id: "null".into(), command: Ok(command) });
        }
    }

    #[test]
    fn ids_are_echoed_as_they_came() {
        assert_eq!(request(r#"{"id":1e3,"cmd":"ping"}"#).id, "1e3");
        assert_eq!(request(r#"{"id":"a\"b","cmd":"ping"}"#).id, r#""a\"b""#);
        assert_eq!(error(r#""a\"b""#, "x"), "{\"id\":\"a\\\"b\",\"error\":\"x\"}\n");
        assert_eq!(refusal(r#"{"id":[],"cmd":"ping"}"#), "id: expected a number or a text");
        assert_eq!(refusal(&format!(r#"{{"id":"{}","cmd":"ping"}}"#, "x".repeat(64))), "id: longer than 64 bytes");
    }

    #[test]
    fn refusals_name_the_thing() {
        assert_eq!(refusal("hello"), "byte 0: expected a value, found 'h'");
        assert_eq!(refusal("[1]"), "a request is an object: {\"id\":1,\"cmd\":\"list\"}");
        assert_eq!(refusal("{}"), "cmd: missing");
        assert_eq!(refusal(r#"{"cmd":"explode"}"#), "cmd: unknown command \"explode\"");
        assert_eq!(refusal(r#"{"cmd":"list","colour":1}"#), "unknown key \"colour\" for list");
        assert_eq!(refusal(r#"{"cmd":"restart"}"#), "dom: missing");
        assert_eq!(refusal(r#"{"cmd":"restart","dom":"hypervisor"}"#), "dom: expected a domain");
        assert_eq!(refusal(r#"{"cmd":"restart","dom":70000}"#), "dom: expected a domain's number");
        assert_eq!(refusal(r#"{"cmd":"log","seq":-1}"#), "seq: expected a whole number");
        assert!(
            refusal(r#"{"cmd":"crash","dom":1,"how":"x"}"#)
                .starts_with("how: unknown kind \"x\", expected one of panic,")
        );
    }

    #[test]
    fn lines_end_at_newlines_and_overlong_ones_are_dropped_whole() {
        let mut lines = Lines::default();
        let mut feed = |bytes: &[u8]| bytes.iter().filter_map(|&b| lines.push(b)).collect::<Vec<_>>();
        assert_eq!(feed(b"ab\r\n\n\r\nc"), [Line::Bytes(b"ab".to_vec())]);
        assert_eq!(feed(&[b'x'; 2 * LINE_MAX]), []);
        assert_eq!(feed(b"\nd\n"), [Line::TooLong, Line::Bytes(b"d".to_vec())]);
        assert_eq!(read(&Line::TooLong).command.unwrap_err(), "line longer than 4096 bytes");
    }

    proptest! {
        #[test]
        fn every_line_of_garbage_is_answered_by_one_valid_line(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut lines = Lines::default();
            for line in raw.iter().chain(b"\n").filter_map(|&b| lines.push(b)) {
                let Request { id, command } = read(&line);
                let reply = match command {
                    Ok(_) => ok(&id, |_| {}),
                    Err(what) => error(&id, &what),
                };
                prop_assert!(serde_json::from_str::<serde_json::Value>(&reply).is_ok());
                prop_assert_eq!(reply.matches('\n').count(), 1);
            }
        }

        #[test]
        fn near_requests_never_panic(cmd in "(ping|list|log|crash|console|xs-read|poweroff|x)", key in "(dom|how|seq|path|id|max)",
                                     value in "(1|-1|\"x\"|null|\\[\\]|\\{\\}|1e9|\"panic\"|99999999999999999999)") {
            let line = format!("{{\"cmd\":\"{cmd}\",\"{key}\":{value}}}");
            let _ = request(&line);
        }
    }
}
