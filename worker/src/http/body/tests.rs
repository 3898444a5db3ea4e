//! Bodies as tables: in chunks and of known length, in pieces of any size, at their bounds.

use super::*;

type Outcome = Result<(Vec<u8>, usize, bool), u16>;

fn whole(bytes: &[u8], framing: Framing, limit: u64) -> Outcome {
    in_pieces(bytes, bytes.len().max(1), framing, limit)
}

fn in_pieces(bytes: &[u8], piece: usize, framing: Framing, limit: u64) -> Outcome {
    let mut decoder = Decoder::new(&framing, limit).map_err(|refusal| refusal.status)?;
    let (mut body, mut taken) = (Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        let (count, done) =
            decoder.advance(piece, &mut |run| body.extend_from_slice(run)).map_err(|refusal| refusal.status)?;
        taken += count;
        assert_eq!(done, decoder.is_done());
        if done {
            break;
        }
        assert_eq!(count, piece.len());
    }
    assert_eq!(decoder.received(), body.len() as u64);
    Ok((body, taken, decoder.is_done()))
}

const VALID: &[(&str, &str)] = &[
    ("0\r\n\r\n", ""),
    ("5\r\nhello\r\n0\r\n\r\n", "hello"),
    ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world"),
    ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
    ("A\r\n0123456789\r\n000\r\n\r\n", "0123456789"),
    ("0000000000000001\r\nx\r\n0\r\n\r\n", "x"),
    ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ("1;a\r\nx\r\n0\r\n\r\n", "x"),
    ("1;a;b = c ; d=\"\\\"; e\"\r\nx\r\n0\r\n\r\n", "x"),
    ("1;a=b;c=\"d e\"\r\nx\r\n0;last\r\n\r\n", "x"),
    ("1 ; a\r\nx\r\n0\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nTrailer: value\r\nOther:\r\n\r\n", "x"),
    ("1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n", "x"),
];

const INVALID: &[&str] = &[
    "\r\n",
    "x\r\n",
    "-1\r\n",
    "+1\r\n",
    " 1\r\n",
    "0x1\r\n",
    "1\n",
    "1\rx",
    "1 \r\n",
    "1 x\r\n",
    "1;\r\n",
    "1; \r\n",
    "1;=\r\n",
    "1;a\nx",
    "1;;a\r\n",
    "1;a b\r\n",
    "1;a=\r\n",
    "1;a=\"b\r\n",
    "1;a=\"b\"c\r\n",
    "1;a \r\n",
    "0;\r\n",
    "1;a\x00\r\n",
    "1;a\rb",
    "00000000000000001\r\n",
    "11111111111111111\r\n",
    "1\r\nxy\r\n",
    "1\r\nx\n",
    "1\r\nx\rx",
    "1\r\nx0\r\n",
    ";a\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\r\n\rx",
    "0\r\n a: b\r\n",
    "0\r\na b: c\r\n",
    "0\r\n: b\r\n",
    "0\r\na: b\n",
    "0\r\na: b\rc",
    "0\r\na: \x00\r\n",
    "0\r\na\r\n",
    "0\r\na :b\r\n",
    "0\r\nx: y\r\n z\r\n",
];

#[test]
fn chunks_are_joined_and_the_end_is_exact() {
    for &(text, body) in VALID {
        let pipelined = format!("{text}GET / HTTP/1.1\r\n");
        let expected = Ok((body.as_bytes().to_vec(), text.len(), true));
        assert_eq!(whole(pipelined.as_bytes(), Framing::Chunked, 100), expected, "{text:?}");
    }
}

#[test]
fn pieces_of_any_size_give_the_same() {
    let valid = VALID.iter().map(|&(text, _)| text);
    for text in valid.chain(INVALID.iter().copied()) {
        let expected = whole(text.as_bytes(), Framing::Chunked, 100);
        for piece in 1..text.len() {
            assert_eq!(in_pieces(text.as_bytes(), piece, Framing::Chunked, 100), expected, "{text:?} by {piece}");
        }
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for text in INVALID {
        assert_eq!(whole(text.as_bytes(), Framing::Chunked, 100), Err(400), "{text:?}");
    }
}

#[test]
fn a_body_of_known_length_ends_there() {
    assert_eq!(whole(b"hello world", Framing::Length(5), 5), Ok((b"hello".to_vec(), 5, true)));
    assert_eq!(whole(b"hel", Framing::Length(5), 5), Ok((b"hel".to_vec(), 3, false)));
    assert_eq!(in_pieces(b"hello world", 2, Framing::Length(5), 5), Ok((b"hello".to_vec(), 5, true)));
    assert_eq!(whole(b"x", Framing::Length(0), 0), Ok((vec![], 0, true)));
    assert_eq!(whole(b"x", Framing::None, 0), Ok((vec![], 0, true)));
}

#[test]
fn the_limit_is_reached_exactly() {
    assert_eq!(whole(b"hello", Framing::Length(5), 4), Err(413));
    assert_eq!(whole(b"", Framing::Length(u64::MAX), u64::MAX), Ok((vec![], 0, false)));
    let chunked = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    assert_eq!(whole(chunked, Framing::Chunked, 5), Ok((b"hello".to_vec(), chunked.len(), true)));
    assert_eq!(whole(chunked, Framing::Chunked, 4), Err(413));
    assert_eq!(whole(b"ffffffffffffffff\r\n", Framing::Chunked, 100), Err(413));
    assert_eq!(whole(b"1\r\nx\r\nffffffffffffffff\r\n", Framing::Chunked, u64::MAX), Err(413));
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let extension = |len: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(len - 1));
    assert!(whole(extension(MAX_EXTENSION).as_bytes(), Framing::Chunked, 100).is_ok());
    assert_eq!(whole(extension(MAX_EXTENSION + 1).as_bytes(), Framing::Chunked, 100), Err(400));
    let trailer = |len: usize| format!("0\r\na:{}\r\n\r\n", "v".repeat(len - "a:\r\n".len()));
    assert!(whole(trailer(MAX_TRAILER).as_bytes(), Framing::Chunked, 100).is_ok());
    assert_eq!(whole(trailer(MAX_TRAILER + 1).as_bytes(), Framing::Chunked, 100), Err(431));
    let fields = |count: u8| format!("0\r\n{}\r\n", "a:\r\n".repeat(count.into()));
    assert!(whole(fields(MAX_TRAILER_FIELDS).as_bytes(), Framing::Chunked, 100).is_ok());
    assert_eq!(whole(fields(MAX_TRAILER_FIELDS + 1).as_bytes(), Framing::Chunked, 100), Err(431));
    assert_eq!(whole(b"0\r\n", Framing::Chunked, 100), Ok((vec![], 3, false)));
    assert_eq!(whole(format!("0\r\n{}", "a:\r\n".repeat(4096)).as_bytes(), Framing::Chunked, 100), Err(431));
}

#[test]
fn a_trailer_is_kept_when_asked_for_whatever_the_pieces() {
    let text = "1;a\r\nx\r\n0;b\r\nDigest: 1\r\nContent-Length: 9\r\nx:\r\n\r\nGET";
    for piece in 1..=text.len() {
        let mut decoder = Decoder::new(&Framing::Chunked, 1).unwrap().with_trailer();
        for piece in text.as_bytes().chunks(piece) {
            assert!(decoder.is_done() || decoder.take_trailer().is_empty());
            decoder.advance(piece, &mut |_| ()).unwrap();
        }
        let trailer = decoder.take_trailer();
        assert_eq!(trailer.fields().collect::<Vec<_>>(), [("Digest", &b"1"[..]), ("x", b"")], "by {piece}");
    }
    let mut unasked = Decoder::new(&Framing::Chunked, 1).unwrap();
    unasked.advance(text.as_bytes(), &mut |_| ()).unwrap();
    assert!(unasked.take_trailer().is_empty());
    let mut without = Decoder::new(&Framing::Length(1), 1).unwrap().with_trailer();
    without.advance(b"x", &mut |_| ()).unwrap();
    assert!(without.take_trailer().is_empty());
}

#[test]
fn a_size_has_at_most_as_many_digits_as_a_u64_holds() {
    for (digits, expected) in [(15, true), (16, true), (17, false), (1000, false)] {
        let text = format!("{:0>digits$}\r\nx\r\n{:0>digits$}\r\n\r\n", 1, 0);
        assert_eq!(whole(text.as_bytes(), Framing::Chunked, 1).is_ok(), expected, "{digits} digits");
    }
}

#[test]
fn many_extensions_with_little_data_are_refused() {
    /// A chunk of one byte, whose line has `len` bytes.
    fn chunk(len: usize) -> String {
        format!("1;{}\r\nx\r\n", "e".repeat(len - "1;\r\n".len()))
    }
    // The line ends behind the data count with the chunk that follows.
    let allowed = CHUNK_ALLOWANCE as usize + 2;
    let (first, more) = (259 - allowed, 259 + 2 - allowed);
    let count = (MAX_OVERHEAD as usize - first) / more;
    let left = MAX_OVERHEAD as usize - first - count * more;
    let most = chunk(259).repeat(1 + count) + &chunk(left + allowed - 2);
    assert!(whole(format!("{most}0\r\n\r\n").as_bytes(), Framing::Chunked, 1000).is_ok());
    let above = chunk(259).repeat(1 + count) + &chunk(left + allowed - 1);
    assert_eq!(whole(format!("{above}0\r\n\r\n").as_bytes(), Framing::Chunked, 1000), Err(400));
    // Data makes up for them, and small chunks without extensions never add up.
    let signed = format!("400;{}\r\n{}\r\n", "e".repeat(200), "x".repeat(1024)).repeat(200) + "0\r\n\r\n";
    assert!(whole(signed.as_bytes(), Framing::Chunked, 1_000_000).is_ok());
    let small = "1\r\nx\r\n".repeat(50_000) + "0\r\n\r\n";
    assert!(whole(small.as_bytes(), Framing::Chunked, 1_000_000).is_ok());
}

#[test]
fn no_byte_in_any_state_panics() {
    for &(text, _) in VALID {
        for at in 0..text.len() {
            for byte in 0..=255 {
                let mut mangled = text.as_bytes().to_vec();
                mangled[at] = byte;
                let _ = whole(&mangled, Framing::Chunked, 100);
            }
        }
    }
}
