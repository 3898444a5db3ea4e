//! Bodies to be compressed, and what compressed ones hold.

use std::io::Read;

use super::{Response, pattern};

/// Text that no coding makes much smaller than three quarters, and that differs from place to place.
pub(crate) fn text_pattern(len: usize, salt: u64) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 \n";
    pattern(len, salt).into_iter().map(|byte| LETTERS[usize::from(byte % 64)]).collect()
}

/// The body without its content coding; panics when it is damaged, or ends early.
#[track_caller]
pub(crate) fn decoded(response: &Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    let coded = response.body.as_slice();
    let result = match response.header("content-encoding") {
        None => return response.body.clone(),
        Some("gzip") => flate2::read::GzDecoder::new(coded).read_to_end(&mut bytes),
        Some("br") => brotli::Decompressor::new(coded, 4096).read_to_end(&mut bytes),
        Some("zstd") => return zstd_decoded(coded),
        Some(other) => panic!("an unheard-of coding {other}: {response}"),
    };
    result.unwrap_or_else(|error| panic!("decode {response}: {error}"));
    bytes
}

/// One frame after the other.
fn zstd_decoded(mut coded: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !coded.is_empty() {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut coded).expect("a frame of zstd");
        decoder.read_to_end(&mut bytes).expect("a whole frame of zstd");
    }
    bytes
}
