//! Several ranges as one body, `multipart/byteranges` (RFC 9110, 14.6 and 15.3.7.2), laid out without reading a byte.
//!
//! It owns the bytes between the parts. Which parts there are is `range`'s decision; the bytes of the parts themselves
//! are the caller's to send.

use super::reply::fingerprint;

/// A body in several parts. Everything about it follows from what it is made from, so that a successor makes it again to
/// the byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    media_type: String,
    parts: Vec<(u64, u64)>,
    size: u64,
}

/// A run of a body's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// These bytes: the end of a part, the head of the next.
    Text(Vec<u8>),
    /// Bytes of the representation.
    Range {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Segment {
    /// How many bytes it has.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Segment::Text(text) => text.len() as u64,
            Segment::Range { len, .. } => *len,
        }
    }

    /// It has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Multipart {
    /// Lays out `parts` (offset and length, none empty, all within `size`) of a representation of `media_type` that has
    /// `size` bytes.
    ///
    /// The boundary follows from `seed` alone. Take a hash of what tells the representation from any other, times of change
    /// included, so that who writes its contents cannot write the boundary into them.
    pub fn new(parts: Vec<(u64, u64)>, media_type: &str, size: u64, seed: u64) -> Multipart {
        Multipart { boundary: boundary(seed), media_type: media_type.to_owned(), parts, size }
    }

    /// The value of the response's `Content-Type`.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Bytes of the body: exactly those of all [`segments`](Multipart::segments).
    pub fn len(&self) -> u64 {
        self.segments().fold(0, |sum, segment| sum.saturating_add(segment.len()))
    }

    /// Never: the last delimiter is always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The body in the order in which it is sent.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let parts = self.parts.iter().enumerate().flat_map(|(index, &(offset, len))| {
            [Segment::Text(self.head(index == 0, offset, len)), Segment::Range { offset, len }]
        });
        parts.chain([Segment::Text(format!("\r\n--{}--\r\n", self.boundary).into_bytes())])
    }

    /// The delimiter before a part and the part's fields. The CRLF in front belongs to the delimiter (RFC 2046, 5.1.1);
    /// in front of the first part nothing is left for it to end.
    fn head(&self, first: bool, offset: u64, len: u64) -> Vec<u8> {
        let Multipart { boundary, media_type, size, .. } = self;
        let last = offset.saturating_add(len).saturating_sub(1);
        let line_end = if first { "" } else { "\r\n" };
        format!(
            "{line_end}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {offset}-{last}/{size}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// 128 bits, in hexadecimal.
fn boundary(seed: u64) -> String {
    format!("{:016x}{:016x}", fingerprint(&(seed, 0)), fingerprint(&(seed, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body as a client gets it.
    fn body(multipart: &Multipart, representation: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for segment in multipart.segments() {
            match segment {
                Segment::Text(text) => body.extend_from_slice(&text),
                Segment::Range { offset, len } => {
                    body.extend_from_slice(&representation[offset as usize..][..len as usize]);
                }
            }
        }
        body
    }

    #[test]
    fn parts_stand_between_delimiters_and_say_what_they_are() {
        let multipart = Multipart::new(vec![(0, 2), (8, 2)], "text/plain", 10, 7);
        let boundary = multipart.content_type().split_once("boundary=").unwrap().1.to_owned();
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(body(&multipart, b"0123456789")).unwrap(), expected);
        assert!(multipart.content_type().starts_with("multipart/byteranges; boundary="));
    }

    #[test]
    fn the_length_is_exact() {
        let representation = vec![b'x'; 100_000];
        for parts in [vec![], vec![(0, 1)], vec![(99_999, 1), (0, 10)], vec![(5, 99_000), (0, 1), (99_100, 900)]] {
            let multipart = Multipart::new(parts, "application/octet-stream", 100_000, 1);
            assert_eq!(multipart.len(), body(&multipart, &representation).len() as u64);
            assert!(!multipart.is_empty());
        }
        let most = (0..32).map(|at| (at * 3000, 1)).collect();
        let multipart = Multipart::new(most, "text/html; charset=utf-8", 100_000, 1);
        assert_eq!(multipart.len(), body(&multipart, &representation).len() as u64);
    }

    #[test]
    fn lengths_that_no_u64_holds_do_not_panic() {
        let multipart = Multipart::new(vec![(u64::MAX, u64::MAX), (1, u64::MAX)], "a/b", u64::MAX, 1);
        assert_eq!(multipart.len(), u64::MAX);
    }

    #[test]
    fn the_boundary_follows_from_the_seed_alone() {
        let content_type = |seed| Multipart::new(vec![(0, 1)], "a/b", 1, seed).content_type();
        let mut seen = std::collections::HashSet::new();
        for seed in (0..1000).chain([u64::MAX, u64::MAX - 1, 1 << 63, 0x9e37_79b9_7f4a_7c15]) {
            let boundary = boundary(seed);
            assert_eq!(content_type(seed), format!("multipart/byteranges; boundary={boundary}"));
            assert!(boundary.len() == 32 && boundary.bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert!(seen.insert(boundary), "{seed}");
        }
        // Another build must make the same.
        assert_eq!(boundary(0), "21ce683a865794df1cde2ab9eeba7829");
    }
}
