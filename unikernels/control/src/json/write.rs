//! Writes JSON into a text. Objects and arrays are closed by the scope that opened them.

use alloc::string::String;
use core::fmt::Write;

/// The text so far.
#[derive(Debug, Default)]
pub struct Writer {
    text: String,
}

/// An open object: each call adds one key.
#[derive(Debug)]
pub struct Object<'a> {
    writer: &'a mut Writer,
    first: bool,
}

/// An open array.
#[derive(Debug)]
pub struct Array<'a> {
    writer: &'a mut Writer,
    first: bool,
}

impl Writer {
    /// An object as the whole text.
    #[must_use]
    pub fn object(fill: impl FnOnce(&mut Object)) -> String {
        let mut writer = Self::default();
        writer.put_object(fill);
        writer.text
    }

    fn put_object(&mut self, fill: impl FnOnce(&mut Object)) {
        self.text.push('{');
        fill(&mut Object { writer: self, first: true });
        self.text.push('}');
    }

    fn put_text(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                // Control characters, and the two line ends of JavaScript.
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(c));
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn separate(&mut self, first: &mut bool) {
        if !core::mem::replace(first, false) {
            self.text.push(',');
        }
    }
}

impl Object<'_> {
    fn key(&mut self, key: &str) -> &mut Writer {
        self.writer.separate(&mut self.first);
        self.writer.put_text(key);
        self.writer.text.push(':');
        self.writer
    }
    /// A text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key).put_text(value);
        self
    }
    /// A number.
    pub fn number(&mut self, key: &str, value: impl Into<u64>) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(self.key(key).text, "{}", value.into());
        self
    }
    /// A number or null.
    pub fn optional(&mut self, key: &str, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.number(key, value),
            None => self.raw(key, "null"),
        }
    }
    /// true or false.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, if value { "true" } else { "false" })
    }
    /// JSON made elsewhere.
    pub fn raw(&mut self, key: &str, json: &str) -> &mut Self {
        self.key(key).text.push_str(json);
        self
    }
    /// An object.
    pub fn object(&mut self, key: &str, fill: impl FnOnce(&mut Object)) -> &mut Self {
        self.key(key).put_object(fill);
        self
    }
    /// An array.
    pub fn array(&mut self, key: &str, fill: impl FnOnce(&mut Array)) -> &mut Self {
        let writer = self.key(key);
        writer.text.push('[');
        fill(&mut Array { writer, first: true });
        self.writer.text.push(']');
        self
    }
    /// Bytes of the text so far, the enclosing objects' included.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.writer.text.len()
    }
}

impl Array<'_> {
    /// An object as the next element.
    pub fn object(&mut self, fill: impl FnOnce(&mut Object)) -> &mut Self {
        self.writer.separate(&mut self.first);
        self.writer.put_object(fill);
        self
    }
    /// A text as the next element.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.writer.separate(&mut self.first);
        self.writer.put_text(value);
        self
    }
    /// Bytes of the text so far, the enclosing objects' included.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.writer.text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn objects_and_arrays_nest() {
        let text = Writer::object(|o| {
            o.number("id", 1u32).optional("none", None).flag("yes", true);
            o.object("ok", |o| {
                o.array("list", |a| {
                    a.text("x").object(|o| {
                        o.text("k", "v");
                    });
                });
            });
        });
        assert_eq!(text, r#"{"id":1,"none":null,"yes":true,"ok":{"list":["x",{"k":"v"}]}}"#);
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_stays_on_one_line(key in ".*", value in any::<String>()) {
            let text = Writer::object(|o| {
                o.text(&key, &value);
            });
            prop_assert!(!text.contains('\n'));
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read[&key].as_str(), Some(&value[..]));
            prop_assert!(crate::json::parse(text.as_bytes(), 2).is_ok());
        }
    }
}
