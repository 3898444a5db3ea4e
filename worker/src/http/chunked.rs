//! The chunked coding of responses (RFC 9112, 7.1). Reading it is `body`'s.

use std::io::Write;

/// The last chunk and an empty trailer: the end of the body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Bytes of a chunk beside its own at most: the size in hexadecimal and two line ends.
const CHUNK_OVERHEAD: usize = 16 + 4;

/// Appends `bytes` as one chunk. Nothing is appended for no bytes: an empty chunk would end the body.
#[inline]
pub fn append_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    out.reserve(CHUNK_OVERHEAD + bytes.len());
    // A Vec takes every byte.
    let _ = write!(out, "{:x}\r\n", bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Framing};
    use super::*;

    #[test]
    fn a_chunk_is_its_size_and_its_bytes() {
        let mut out = b"before ".to_vec();
        append_chunk(&mut out, b"hello world, hello");
        append_chunk(&mut out, b"");
        append_chunk(&mut out, b"!");
        out.extend_from_slice(LAST_CHUNK);
        assert_eq!(out, b"before 12\r\nhello world, hello\r\n1\r\n!\r\n0\r\n\r\n");
    }

    #[test]
    fn what_is_written_in_chunks_is_read_back() {
        let mut out = Vec::new();
        let pieces = [1, 9, 10, 15, 16, 17, 255, 256, 70_000].map(|len| vec![b'\r'; len]);
        pieces.iter().for_each(|piece| append_chunk(&mut out, piece));
        out.extend_from_slice(LAST_CHUNK);
        let mut body = Vec::new();
        let mut decoder = Decoder::new(&Framing::Chunked, u64::MAX).unwrap();
        let read = decoder.advance(&out, &mut |run| body.extend_from_slice(run));
        assert_eq!(read, Ok((out.len(), true)));
        assert_eq!(body, pieces.concat());
    }
}
