//! Request heads of HTTP/1.1 (RFC 9112), as much as this server answers to. Works on a bounded head; whatever does not fit or
//! does not parse names the status it is refused with.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// Longest head (request line and fields) accepted, in bytes.
pub const HEAD_MAX: usize = 4096;

/// Methods the site knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: as GET, without the body.
    Head,
    /// POST.
    Post,
    /// PUT, taken like POST by `/sink`.
    Put,
}

/// A parsed head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// Query without the question mark.
    pub query: String,
    /// Bytes of body that follow, if the client said.
    pub content_length: Option<u64>,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The connection stays open after the answer.
    pub keep_alive: bool,
}

/// A refusal: status code and reason phrase with what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status code.
    pub status: u16,
    /// What was wrong, for the body.
    pub why: &'static str,
}

const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

/// Length of the head at the start of `bytes`, its empty line included.
#[must_use]
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").and_then(|at| at.checked_add(4))
}

impl Head {
    /// Parses a complete head.
    ///
    /// # Errors
    /// The refusal to send; the connection is then closed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let Ok(text) = core::str::from_utf8(bytes) else { return refuse(400, "head is not UTF-8") };
        let mut lines = text.split("\r\n");
        let mut request = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (request.next(), request.next(), request.next(), request.next())
        else {
            return refuse(400, "request line is not 'METHOD TARGET VERSION'");
        };
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            _ => return refuse(501, "method not implemented"),
        };
        let mut keep_alive = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return refuse(505, "only HTTP/1.0 and HTTP/1.1"),
        };
        if !target.starts_with('/') {
            return refuse(400, "target is not an absolute path");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut content_length = None;
        let mut expects_continue = false;
        for line in lines.take_while(|l| !l.is_empty()) {
            let Some((name, value)) = line.split_once(':') else { return refuse(400, "field line without a colon") };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let Ok(n) = value.parse::<u64>() else { return refuse(400, "Content-Length is not a number") };
                if content_length.is_some_and(|earlier| earlier != n) {
                    return refuse(400, "two different Content-Lengths");
                }
                content_length = Some(n);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return refuse(411, "Transfer-Encoding is not taken; send Content-Length");
            } else if name.eq_ignore_ascii_case("expect") {
                expects_continue = value.eq_ignore_ascii_case("100-continue");
            } else if name.eq_ignore_ascii_case("connection") {
                if value.eq_ignore_ascii_case("close") {
                    keep_alive = false;
                } else if value.eq_ignore_ascii_case("keep-alive") {
                    keep_alive = true;
                }
            }
        }
        Ok(Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            content_length,
            expects_continue,
            keep_alive,
        })
    }

    /// Value of `key` in the query, as sent.
    #[must_use]
    pub fn query_value(&self, key: &str) -> Option<&str> {
        form_value(&self.query, key)
    }
}

/// Value of `key` in `a=b&c=d` text, as sent (our own values need no percent-decoding).
#[must_use]
pub fn form_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
}

/// Reason phrase of a status this server sends.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_curl_sends() {
        let raw = b"POST /sink?x=1&seed=2 HTTP/1.1\r\nHost: a\r\ncontent-length: 12\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(head_len(raw), Some(raw.len()));
        let head = Head::parse(raw).unwrap();
        assert_eq!(head.method, Method::Post);
        assert_eq!((head.path.as_str(), head.query_value("seed")), ("/sink", Some("2")));
        assert_eq!((head.content_length, head.expects_continue, head.keep_alive), (Some(12), true, true));
    }

    #[test]
    fn refuses_with_the_status_that_names_the_fault() {
        let status = |raw: &[u8]| Head::parse(raw).unwrap_err().status;
        assert_eq!(status(b"BREW / HTTP/1.1\r\n\r\n"), 501);
        assert_eq!(status(b"GET /\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/2\r\n\r\n"), 505);
        assert_eq!(status(b"GET x HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(status(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(status(b"\xff\xfe\r\n\r\n"), 400);
    }
}
