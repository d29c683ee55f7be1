//! What the status page shows, as JSON. Texts come from xenstore, written by other domains: they are escaped here and once
//! more by the page, which only ever sets text, never markup.

use crate::throughput::{INTERVAL_MS, Throughput};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// One domain as the control domain publishes it under `/xenolith/domain/N`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainStatus {
    /// Number.
    pub domid: u32,
    /// `key`, `value` of every node in its directory.
    pub fields: Vec<(String, String)>,
}

/// What a driver domain publishes about one drive or one virtual disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    /// The driver domain's number.
    pub backend: u32,
    /// `drive/N`, `drive/N/model` or `vbd/FRONTEND/DEVICE`.
    pub subject: String,
    /// `name=number` words, or the model.
    pub counters: String,
}

/// Everything the page shows but the throughput.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// This guest's name.
    pub name: String,
    /// Addresses of this guest.
    pub addresses: Vec<String>,
    /// Domains by number.
    pub domains: Vec<DomainStatus>,
    /// Drives and virtual disks.
    pub disks: Vec<DiskStatus>,
    /// Last restarts, newest first, one line each.
    pub history: Vec<String>,
    /// Names this guest may crash.
    pub may_crash: Vec<String>,
}

/// Writes `text` as a JSON string.
pub fn json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 || c == '\u{2028}' || c == '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json_list<T>(out: &mut String, items: impl IntoIterator<Item = T>, mut one: impl FnMut(&mut String, T)) {
    out.push('[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        one(out, item);
    }
    out.push(']');
}

/// The body of `/status.json`.
#[must_use]
pub fn json(snapshot: &Snapshot, throughput: &Throughput, uptime_ms: u64) -> String {
    let mut out = String::with_capacity(8192);
    out.push_str("{\"name\":");
    json_string(&mut out, &snapshot.name);
    let _ = write!(out, ",\"uptime_ms\":{uptime_ms},\"interval_ms\":{INTERVAL_MS},\"addresses\":");
    json_list(&mut out, &snapshot.addresses, |o, a| json_string(o, a));
    out.push_str(",\"may_crash\":");
    json_list(&mut out, &snapshot.may_crash, |o, a| json_string(o, a));
    out.push_str(",\"history\":");
    json_list(&mut out, &snapshot.history, |o, a| json_string(o, a));
    out.push_str(",\"domains\":");
    json_list(&mut out, &snapshot.domains, |o, d| {
        let _ = write!(o, "{{\"domid\":{}", d.domid);
        for (key, value) in &d.fields {
            o.push(',');
            json_string(o, key);
            o.push(':');
            json_string(o, value);
        }
        o.push('}');
    });
    out.push_str(",\"disks\":");
    json_list(&mut out, &snapshot.disks, |o, d| {
        let _ = write!(o, "{{\"backend\":{},\"subject\":", d.backend);
        json_string(o, &d.subject);
        o.push_str(",\"counters\":");
        json_string(o, &d.counters);
        o.push('}');
    });
    out.push_str(",\"tx\":");
    json_list(&mut out, throughput.samples(), |o, s| {
        let _ = write!(o, "{}", s.tx_bytes);
    });
    out.push_str(",\"rx\":");
    json_list(&mut out, throughput.samples(), |o, s| {
        let _ = write!(o, "{}", s.rx_bytes);
    });
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_a_string() {
        let mut out = String::new();
        json_string(&mut out, "a\"b\\c\n\u{1}</script>");
        assert_eq!(out, r#""a\"b\\c\n\u0001</script>""#);
    }

    #[test]
    fn a_disk_is_an_object() {
        let disk = DiskStatus { backend: 3, subject: "vbd/2/51712".into(), counters: "depth=1 \"".into() };
        let out = json(&Snapshot { disks: Vec::from([disk]), ..Snapshot::default() }, &Throughput::default(), 5);
        let disks = r#""disks":[{"backend":3,"subject":"vbd/2/51712","counters":"depth=1 \""}]"#;
        assert!(out.contains(disks), "{out}");
    }

    #[test]
    fn an_empty_system_is_valid_json() {
        let out = json(&Snapshot::default(), &Throughput::default(), 5);
        assert_eq!(
            out,
            r#"{"name":"","uptime_ms":5,"interval_ms":100,"addresses":[],"may_crash":[],"history":[],"domains":[],"disks":[],"tx":[],"rx":[]}"#
        );
    }
}
