//! Request bodies: the decoder takes the same whatever the pieces, never a byte behind the end, never more than its limit,
//! and reads the chunked coding as a second reader does that sees all of it at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_fuzz::piece_sizes;
use phalanx_worker::http::{Decoder, Framing};

/// The body, the bytes it took in the coding, whether it is complete; or the status.
type Outcome = Result<(Vec<u8>, usize, bool), u16>;

// The first byte chooses the limit, the second a length for the other framing.
fuzz_target!(|input: &[u8]| {
    let [limit, length, bytes @ ..] = input else { return };
    let limit = if *limit == 255 { u64::MAX } else { u64::from(*limit) };
    let whole = decode(bytes, bytes.len().max(1), Framing::Chunked, limit);
    if let Ok((body, taken, _)) = &whole {
        assert!(body.len() as u64 <= limit && body.len() <= *taken && *taken <= bytes.len());
    }
    for size in piece_sizes(bytes.len()) {
        assert_eq!(decode(bytes, size, Framing::Chunked, limit), whole, "in pieces of {size}");
    }
    agrees_with_a_second_reader(bytes, &whole);
    length_is_kept(bytes, u64::from(*length), limit);
});

fn decode(bytes: &[u8], piece: usize, framing: Framing, limit: u64) -> Outcome {
    let mut decoder = Decoder::new(&framing, limit).map_err(|refusal| refusal.status)?;
    let (mut body, mut taken) = (Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        let advanced = decoder.advance(piece, &mut |run| body.extend_from_slice(run));
        let (count, done) = advanced.map_err(|refusal| refusal.status)?;
        taken += count;
        assert_eq!(done, decoder.is_done());
        if done {
            break;
        }
        assert_eq!(count, piece.len(), "it is not done and has left bytes");
    }
    assert_eq!(decoder.received(), body.len() as u64);
    Ok((body, taken, decoder.is_done()))
}

fn length_is_kept(bytes: &[u8], length: u64, limit: u64) {
    match decode(bytes, 5, Framing::Length(length), limit) {
        Ok((body, taken, done)) => {
            let end = bytes.len().min(length as usize);
            assert!(length <= limit && taken == end && body == bytes[..end] && done == (end as u64 == length));
        }
        Err(status) => assert!(length > limit && status == 413),
    }
}

/// What is complete for one is for the other, with the same body and the same end.
fn agrees_with_a_second_reader(bytes: &[u8], outcome: &Outcome) {
    match (outcome, read_at_once(bytes)) {
        (Ok((body, taken, true)), second) => assert_eq!(second, Some((body.clone(), *taken))),
        // Only its bounds may make the decoder refuse what is well formed.
        (Err(413 | 431), _) => {}
        (Err(_), Some((_, end))) => assert!(bytes[..end].len() > 256, "a well-formed body is refused"),
        (Ok((_, _, false)), second) => assert_eq!(second, None),
        (Err(_), None) => {}
    }
}

/// RFC 9112, 7.1, line by line; none for what is malformed or not complete.
fn read_at_once(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = line_at(bytes, at)?;
        at += line.len() + 2;
        let size = size_of(line)?;
        if size == 0 {
            break;
        }
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(at..end)?);
        (bytes.get(end..end.checked_add(2)?)? == b"\r\n").then_some(())?;
        at = end + 2;
    }
    loop {
        let line = line_at(bytes, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((body, at));
        }
        let colon = line.iter().position(|&byte| byte == b':')?;
        (colon > 0 && line[..colon].iter().all(|&byte| is_token(byte)) && is_text(&line[colon..])).then_some(())?;
    }
}

/// The line from `at` on, without its CRLF; none if a CR or LF stands alone before that.
fn line_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| b"\r\n".contains(byte))?;
    rest[end..].starts_with(b"\r\n").then_some(&rest[..end])
}

fn size_of(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    (digits <= 16).then_some(())?;
    are_extensions(&line[digits..])?;
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, and nothing behind it.
fn are_extensions(mut rest: &[u8]) -> Option<()> {
    while !rest.is_empty() {
        rest = behind_blanks(behind_blanks(rest).strip_prefix(b";")?);
        rest = behind_token(rest)?;
        if let Some(value) = behind_blanks(rest).strip_prefix(b"=") {
            let value = behind_blanks(value);
            rest = match value.strip_prefix(b"\"") {
                Some(inside) => behind_quoted(inside)?,
                None => behind_token(value)?,
            };
        }
    }
    Some(())
}

fn behind_blanks(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| b" \t".contains(byte)).count()..]
}

fn behind_token(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().take_while(|&&byte| is_token(byte)).count();
    (len > 0).then_some(&text[len..])
}

fn behind_quoted(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match text {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', byte, rest @ ..] if is_text(&[*byte]) => rest,
            [byte, rest @ ..] if *byte != b'\\' && is_text(&[*byte]) => rest,
            _ => return None,
        };
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_text(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control())
}
