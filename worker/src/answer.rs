//! Answers as a client reads them: for the test kit.

use crate::http::{Decoder, Framing};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its status line and fields, as sent.
    pub head: String,
    /// Its body, without a transfer coding.
    pub body: Vec<u8>,
}

/// The answer at the front of what was `got`, if it is whole (RFC 9112, 6.3); interim ones are taken off. `head_only`: it is one to
/// HEAD. `is_all`: no more comes.
///
/// # Errors
/// What is no answer.
pub fn take_answer(got: &mut Vec<u8>, head_only: bool, is_all: bool) -> Result<Option<Answer>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Response::new(&mut fields);
    let strange = |error: &dyn std::fmt::Display, got: &[u8]| format!("{error} in {:?}", String::from_utf8_lossy(got));
    let end = match parsed.parse(got) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(strange(&error, got)),
    };
    let status = parsed.code.unwrap_or(0);
    let field = |name: &str| {
        let found = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok())
    };
    let chunked = field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let length = field("content-length").and_then(|value| value.parse::<usize>().ok());
    let (head, body) = (String::from_utf8_lossy(&got[..end]).into_owned(), &got[end..]);
    let body = match length {
        _ if status < 200 && status != 101 => {
            got.drain(..end);
            return take_answer(got, head_only, is_all);
        }
        _ if head_only || matches!(status, 101 | 204 | 304) => Vec::new(),
        _ if chunked => {
            let mut bytes = Vec::new();
            let mut decoder =
                Decoder::new(&Framing::Chunked, u64::MAX).map_err(|refusal| refusal.status.to_string())?;
            match decoder.advance(body, &mut |run| bytes.extend_from_slice(run)) {
                Ok((_, true)) => bytes,
                Ok((_, false)) => return Ok(None),
                Err(_) => return Err(strange(&"what is no chunk", got)),
            }
        }
        Some(length) if body.len() < length => return Ok(None),
        Some(length) => body[..length].to_vec(),
        None if is_all => body.to_vec(),
        None => return Ok(None),
    };
    Ok(Some(Answer { status, head, body }))
}

impl Answer {
    /// Whether it is the same but for its date.
    pub fn is_like(&self, other: &Answer) -> bool {
        let is_date = |line: &&str| line.get(..5).is_some_and(|name| name.eq_ignore_ascii_case("date:"));
        let lines =
            |answer: &Answer| answer.head.lines().filter(|line| !is_date(line)).map(str::to_owned).collect::<Vec<_>>();
        self.body == other.body && lines(self) == lines(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, head_only: bool, is_all: bool) -> Option<(u16, String)> {
        let answer = take_answer(&mut text.into(), head_only, is_all).unwrap()?;
        Some((answer.status, String::from_utf8(answer.body).unwrap()))
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        let whole = |status: u16, body: &str| Some((status, body.to_owned()));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(read(chunks, false, false), whole(200, "abc"));
        assert_eq!(read(&chunks[..chunks.len() - 2], false, false), None);
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(
            (read(length, false, false), read(&length[..length.len() - 1], false, false)),
            (whole(200, "abc"), None)
        );
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n", false, false), whole(204, ""));
        assert_eq!(read("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false, false), whole(304, ""));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, false), whole(200, ""));
        assert_eq!(read(&format!("HTTP/1.1 100 Continue\r\n\r\n{length}"), false, false), whole(200, "abc"));
        let until_close = "HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!((read(until_close, false, false), read(until_close, false, true)), (None, whole(200, "abc")));
    }

    #[test]
    fn answers_are_alike_but_for_their_dates() {
        let of = |head: &str, body: &[u8]| Answer { status: 200, head: head.to_owned(), body: body.to_vec() };
        let first = of("HTTP/1.1 200 OK\r\nDate: then\r\nX: y\r\n\r\n", b"a");
        assert!(first.is_like(&of("HTTP/1.1 200 OK\r\ndate: now\r\nX: y\r\n\r\n", b"a")));
        assert!(!first.is_like(&of("HTTP/1.1 200 OK\r\nDate: then\r\nX: z\r\n\r\n", b"a")));
        assert!(!first.is_like(&of("HTTP/1.1 200 OK\r\nDate: then\r\nX: y\r\n\r\n", b"b")));
    }
}
