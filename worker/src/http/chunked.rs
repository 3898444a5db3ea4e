//! The chunked coding of responses (RFC 9112, 7.1). Reading it is `body`'s.

use bytes::Bytes;

/// Appends `pieces` as one chunk, and behind it the end of the body if that is the `last`. Nothing makes no chunk: an empty one would
/// end the body.
pub fn append_chunk(out: &mut Vec<Bytes>, pieces: Vec<Bytes>, last: bool) {
    let len: usize = pieces.iter().map(Bytes::len).sum();
    if len > 0 {
        out.push(format!("{len:x}\r\n").into());
        out.extend(pieces);
    }
    // The last chunk is followed by an empty trailer.
    let end: &[u8] = match (len > 0, last) {
        (true, false) => b"\r\n",
        (true, true) => b"\r\n0\r\n\r\n",
        (false, true) => b"0\r\n\r\n",
        (false, false) => return,
    };
    out.push(Bytes::from_static(end));
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Framing};
    use super::*;

    #[test]
    fn a_chunk_is_its_size_and_its_bytes() {
        let mut out = vec!["before ".into()];
        append_chunk(&mut out, vec!["hello ".into(), "world, hello".into()], false);
        append_chunk(&mut out, vec![], false);
        append_chunk(&mut out, vec!["!".into()], true);
        assert_eq!(out.concat(), b"before 12\r\nhello world, hello\r\n1\r\n!\r\n0\r\n\r\n");
        let mut out = Vec::new();
        append_chunk(&mut out, vec![Bytes::new()], true);
        assert_eq!(out.concat(), b"0\r\n\r\n");
    }

    #[test]
    fn what_is_written_in_chunks_is_read_back() {
        let mut out = Vec::new();
        let pieces = [1, 9, 10, 15, 16, 17, 255, 256, 70_000].map(|len| Bytes::from(vec![b'\r'; len]));
        pieces.iter().for_each(|piece| append_chunk(&mut out, vec![piece.clone()], false));
        append_chunk(&mut out, vec![], true);
        let (out, mut body) = (out.concat(), Vec::new());
        let mut decoder = Decoder::new(&Framing::Chunked, u64::MAX).unwrap();
        let read = decoder.advance(&out, &mut |run| body.extend_from_slice(run));
        assert_eq!(read, Ok((out.len(), true)));
        assert_eq!(body, pieces.concat());
    }
}
