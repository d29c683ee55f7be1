//! Reads one value from a line. Nothing is assumed of the input; depth is limited by the caller, size by the line.

use alloc::string::String;
use alloc::vec::Vec;

/// A value. Numbers keep their text, so that an id is echoed as it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// As written.
    Number(String),
    /// Unescaped.
    Text(String),
    /// In order.
    Array(Vec<Value>),
    /// In order; keys are distinct.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// A number without sign, fraction or exponent.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(text) => text.parse().ok(),
            _ => None,
        }
    }
    /// A text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What is wrong, and at which byte (from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where.
    pub at: usize,
    /// What would have been right.
    pub expected: &'static str,
    /// What is there; `None` = the end of the line.
    pub found: Option<u8>,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { at, expected, found } = self;
        match found {
            None => write!(f, "byte {at}: expected {expected}, found the end of the line"),
            Some(b) if b.is_ascii_graphic() => write!(f, "byte {at}: expected {expected}, found '{}'", char::from(*b)),
            Some(b) => write!(f, "byte {at}: expected {expected}, found byte {b:#04x}"),
        }
    }
}

type Result<T> = core::result::Result<T, Malformed>;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Reads the one value that `line` is to hold, nested at most `depth` levels.
///
/// # Errors
/// The first place where it is no JSON.
pub fn parse(line: &[u8], depth: usize) -> Result<Value> {
    let mut reader = Reader { bytes: line, at: 0 };
    let value = reader.value(depth)?;
    reader.skip_space();
    if reader.peek().is_some() {
        return reader.fail("the end of the line");
    }
    Ok(value)
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn advance(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn fail<T>(&self, expected: &'static str) -> Result<T> {
        Err(Malformed { at: self.at, expected, found: self.peek() })
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.advance();
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if there {
            self.advance();
        }
        there
    }

    fn word(&mut self, word: &'static str, value: Value) -> Result<Value> {
        for &byte in word.as_bytes() {
            if !self.eat(byte) {
                return self.fail(word);
            }
        }
        Ok(value)
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        self.skip_space();
        match self.peek() {
            Some(b'n') => self.word("null", Value::Null),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'"') => Ok(Value::Text(self.text()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'[' | b'{') if depth == 0 => self.fail("no deeper nesting"),
            Some(b'[') => self.array(depth.saturating_sub(1)),
            Some(b'{') => self.object(depth.saturating_sub(1)),
            _ => self.fail("a value"),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value> {
        self.advance();
        let mut list = Vec::new();
        self.skip_space();
        if self.eat(b']') {
            return Ok(Value::Array(list));
        }
        loop {
            list.push(self.value(depth)?);
            self.skip_space();
            if self.eat(b']') {
                return Ok(Value::Array(list));
            }
            if !self.eat(b',') {
                return self.fail("',' or ']'");
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value> {
        self.advance();
        let mut list: Vec<(String, Value)> = Vec::new();
        self.skip_space();
        if self.eat(b'}') {
            return Ok(Value::Object(list));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return self.fail("a key");
            }
            let start = self.at;
            let key = self.text()?;
            if list.iter().any(|(k, _)| *k == key) {
                self.at = start;
                return self.fail("a key that is not there yet");
            }
            self.skip_space();
            if !self.eat(b':') {
                return self.fail("':'");
            }
            list.push((key, self.value(depth)?));
            self.skip_space();
            if self.eat(b'}') {
                return Ok(Value::Object(list));
            }
            if !self.eat(b',') {
                return self.fail("',' or '}'");
            }
        }
    }

    fn digits(&mut self) -> Result<()> {
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return self.fail("a digit");
        }
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.advance();
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value> {
        let start = self.at;
        self.eat(b'-');
        if self.eat(b'0') {
            if self.peek().is_some_and(|b| b.is_ascii_digit()) {
                return self.fail("no digit after a leading zero");
            }
        } else {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.advance();
            if let Some(b'+' | b'-') = self.peek() {
                self.advance();
            }
            self.digits()?;
        }
        let text = self.bytes.get(start..self.at).unwrap_or_default();
        Ok(Value::Number(text.iter().copied().map(char::from).collect()))
    }

    fn text(&mut self) -> Result<String> {
        self.advance();
        let mut text = Vec::new();
        loop {
            let start = self.at;
            match self.peek() {
                Some(b'"') => {
                    self.advance();
                    return match String::from_utf8(text) {
                        Ok(text) => Ok(text),
                        Err(_) => {
                            self.at = start;
                            self.fail("UTF-8 before this")
                        }
                    };
                }
                Some(b'\\') => {
                    self.advance();
                    let c = self.escape()?;
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(0..=0x1f) | None => return self.fail("'\"'"),
                Some(byte) => {
                    text.push(byte);
                    self.advance();
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let c = match self.peek() {
            Some(b @ (b'"' | b'\\' | b'/')) => char::from(b),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.advance();
                return self.unicode();
            }
            _ => return self.fail("an escape"),
        };
        self.advance();
        Ok(c)
    }

    /// After `\u`: one code unit, or a surrogate pair.
    fn unicode(&mut self) -> Result<char> {
        let high = self.hex4()?;
        let mut code = high;
        if (0xd800..0xdc00).contains(&high) {
            if !(self.eat(b'\\') && self.eat(b'u')) {
                return self.fail("the second half of a surrogate pair");
            }
            let low = self.hex4()?;
            if !(0xdc00..0xe000).contains(&low) {
                return self.fail("a low surrogate before this");
            }
            // At most 0x10_ffff.
            code = ((high & 0x3ff) << 10 | low & 0x3ff).wrapping_add(0x1_0000);
        }
        match char::from_u32(code) {
            Some(c) => Ok(c),
            None => self.fail("a high surrogate before this"),
        }
    }

    fn hex4(&mut self) -> Result<u32> {
        let mut code = 0u32;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(16)) else {
                return self.fail("four hexadecimal digits");
            };
            code = code << 4 | digit;
            self.advance();
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn error(line: &str) -> String {
        parse(line.as_bytes(), 3).unwrap_err().to_string()
    }

    #[test]
    fn a_request_line_is_read() {
        let value = parse(br#" {"id":-1.5e3 ,"cmd":"a\u00e9\ud83d\ude00\n","x":[true,null,{}]} "#, 3).unwrap();
        let Value::Object(keys) = value else { panic!() };
        assert_eq!(keys[0], ("id".into(), Value::Number("-1.5e3".into())));
        assert_eq!(keys[1].1.as_text(), Some("a\u{e9}\u{1f600}\n"));
        assert_eq!(keys[2].1, Value::Array(vec![Value::Bool(true), Value::Null, Value::Object(vec![])]));
        assert_eq!(parse(b"7", 0).unwrap().as_u64(), Some(7));
        assert_eq!(parse(b"-7", 0).unwrap().as_u64(), None);
    }

    #[test]
    fn errors_name_place_and_expectation() {
        assert_eq!(error(r#"{"id":1 x}"#), "byte 8: expected ',' or '}', found 'x'");
        assert_eq!(error(r#"{"id""#), "byte 5: expected ':', found the end of the line");
        assert_eq!(error(r#"{"a":1,"a":2}"#), "byte 7: expected a key that is not there yet, found '\"'");
        assert_eq!(error("[[[[1]]]]"), "byte 3: expected no deeper nesting, found '['");
        assert_eq!(error("01"), "byte 1: expected no digit after a leading zero, found '1'");
        assert_eq!(error("1 2"), "byte 2: expected the end of the line, found '2'");
        assert_eq!(error("\"\u{1}\""), "byte 1: expected '\"', found byte 0x01");
        assert_eq!(error(""), "byte 0: expected a value, found the end of the line");
        for bad in [
            r#""\ud83d""#,
            r#""\ud83dx""#,
            r#""\ud83d\u0041""#,
            r#""\ude00""#,
            r#""\q""#,
            "nul",
            "{1:2}",
            "[1,]",
            "-",
            "1.",
        ] {
            assert!(parse(bad.as_bytes(), 3).is_err(), "{bad}");
        }
        assert!(parse(b"\"\xff\"", 1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&raw, 8);
        }
        /// What another implementation accepts, this one does too, and the other way round.
        #[test]
        fn it_agrees_with_serde(raw in "[\\[\\]{}:,\"\\\\ntru0-9eE.au \\-]{0,24}") {
            let ours = parse(raw.as_bytes(), 50);
            let theirs = serde_json::from_str::<serde_json::Value>(&raw);
            // serde lets keys repeat and refuses numbers out of a double's range.
            let differs = matches!(ours, Err(Malformed { expected: "a key that is not there yet", .. }));
            let range = theirs.as_ref().is_err_and(|e| e.to_string().contains("out of range"));
            prop_assert!(differs || range || ours.is_ok() == theirs.is_ok(), "{:?} {:?}", ours, theirs);
        }
    }
}
