//! Compression of bodies: bytes in, a content coding out (RFC 9110, 8.4.1; RFC 7932; RFC 8878).
//!
//! It owns how hard each coding tries and which media types are worth it. Which coding a client wants, and on which thread
//! the work is done, is left to the caller.
//!
//! The same bytes, in the same pieces, give the same output: a response cut off by a death can be made again and continued.
//!
//! Levels, measured on one core of a cloud machine with 52 KB of prose and 524 KB of source text (ratio, MB/s):
//!
//! | coding | prose | source | memory | neighbours |
//! |---|---|---|---|---|
//! | gzip 5 | 2.62, 47 | 3.68, 56 | 0.4 MiB | 4 saves no time; 6 gains 0.4 % for a third more time |
//! | br 5, window 2^18 | 2.72, 16 | 3.96, 26 | 4.9 MiB | 4 is no smaller than gzip; 2^22 gains 0.3 % for 19 MiB |
//! | zstd fastest | 2.08, 48 | 2.53, 48 | 2.8 MiB | the only level of the encoder |
//!
//! So zstd is for a client that takes nothing else.

use std::io::Write;

use brotli::CompressorWriter;
use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::http::Coding;

const GZIP_LEVEL: u32 = 5;
const BROTLI_LEVEL: u32 = 5;
/// The binary logarithm of the window's bytes. With 16 and less the encoder takes tables of 33 MiB.
const BROTLI_WINDOW: u32 = 18;
/// Bytes of the brotli encoder's own output buffer.
const BROTLI_BUFFER: usize = 4096;

/// Bytes that a stream codes as one frame of zstd, for the crate has no encoder that is fed piece by piece. Any number of frames
/// makes a body (RFC 8878, 3.1), each a little larger for knowing nothing of those before it.
const ZSTD_FRAME: usize = 1 << 20;

/// `bytes`, coded. Costs memory for the output and what the module says, and time by the megabyte: not for an event loop.
pub(super) fn whole(coding: Coding, bytes: &[u8]) -> Vec<u8> {
    if coding == Coding::Zstd {
        return zstd_frame(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len() / 3 + 64);
    let mut stream = Stream::new(coding);
    stream.push(bytes, &mut out);
    stream.finish(&mut out);
    out
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// A body coded piece by piece. What has been put out ends where the coding is ready to, not where a piece does.
pub(super) struct Stream(Encoder);

/// Boxed: their states are large, a stream is moved about.
enum Encoder {
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    /// What is to be the next frame. It waits for one byte more, so that the last is not empty.
    Zstd(Vec<u8>),
}

impl Stream {
    /// An encoder for `coding`.
    pub(super) fn new(coding: Coding) -> Stream {
        Stream(match coding {
            Coding::Gzip => Encoder::Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL)))),
            Coding::Brotli => {
                let encoder = CompressorWriter::new(Vec::new(), BROTLI_BUFFER, BROTLI_LEVEL, BROTLI_WINDOW);
                Encoder::Brotli(Box::new(encoder))
            }
            Coding::Zstd => Encoder::Zstd(Vec::new()),
        })
    }

    /// Takes `bytes` in and appends to `out` what is ready, which may be nothing.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // An encoder fails only when what it writes to does, and a Vec takes everything.
        match &mut self.0 {
            Encoder::Gzip(encoder) => {
                let _infallible = encoder.write_all(bytes);
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(encoder) => {
                let _infallible = encoder.write_all(bytes);
                out.append(encoder.get_mut());
            }
            Encoder::Zstd(frame) => {
                let mut rest = bytes;
                while frame.len() + rest.len() > ZSTD_FRAME {
                    let (now, later) = rest.split_at(ZSTD_FRAME - frame.len());
                    frame.extend_from_slice(now);
                    out.append(&mut zstd_frame(&std::mem::take(frame)));
                    rest = later;
                }
                frame.extend_from_slice(rest);
            }
        }
    }

    /// Appends the rest to `out`.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        match self.0 {
            Encoder::Gzip(encoder) => out.append(&mut encoder.finish().unwrap_or_default()),
            Encoder::Brotli(encoder) => out.append(&mut encoder.into_inner()),
            Encoder::Zstd(frame) => out.append(&mut zstd_frame(&frame)),
        }
    }
}

/// Media types outside `text/` that are text, or as good as. Sorted.
const COMPRESSIBLE: [&str; 26] = [
    "application/ecmascript",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/json5",
    "application/jsonl",
    "application/manifest",
    "application/postscript",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-javascript",
    "application/x-ndjson",
    "application/x-perl",
    "application/x-sh",
    "application/x-sql",
    "application/x-tex",
    "application/xml",
    "application/yaml",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "image/x-icon",
];

/// Structured syntax suffixes of text (RFC 6839, RFC 9512).
const COMPRESSIBLE_SUFFIXES: [&str; 4] = ["+json", "+text", "+xml", "+yaml"];

/// Whether bodies of that type get smaller: text in its many names, WebAssembly, fonts and images that are not compressed
/// already. Parameters and case do not matter.
pub(super) fn is_compressible(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || COMPRESSIBLE.binary_search(&essence.as_str()).is_ok()
        || COMPRESSIBLE_SUFFIXES.iter().any(|suffix| essence.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const KINDS: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    fn decode(coding: Coding, coded: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut bytes).unwrap(),
            Coding::Brotli => brotli::Decompressor::new(coded, 4096).read_to_end(&mut bytes).unwrap(),
            Coding::Zstd => {
                let (mut rest, mut count) = (coded, 0);
                while !rest.is_empty() {
                    count +=
                        ruzstd::decoding::StreamingDecoder::new(&mut rest).unwrap().read_to_end(&mut bytes).unwrap();
                }
                count
            }
        };
        bytes
    }

    /// Bytes that nothing makes smaller.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| next()).collect()
    }

    /// Text: words that come again, in an order that does not.
    fn prose(len: usize) -> Vec<u8> {
        let words = ["the ", "worker ", "dies, ", "its ", "successor ", "answers ", "and ", "nobody ", "notices.\n"];
        noise(len).iter().flat_map(|byte| words[usize::from(*byte) % words.len()].bytes()).take(len).collect()
    }

    fn samples() -> Vec<Vec<u8>> {
        let sizes = [0, 1, 2, 1024, 65_535, 131_072, 131_073, ZSTD_FRAME, ZSTD_FRAME + 1];
        sizes.iter().flat_map(|len| [prose(*len), noise(*len), vec![b'a'; *len]]).collect()
    }

    #[test]
    fn what_is_coded_comes_back_and_is_always_the_same() {
        for bytes in samples() {
            for kind in KINDS {
                let coded = whole(kind, &bytes);
                assert!(decode(kind, &coded) == bytes, "{kind:?} of {} bytes", bytes.len());
                assert!(whole(kind, &bytes) == coded, "{kind:?} of {} bytes", bytes.len());
                assert!(coded.len() <= bytes.len() + bytes.len() / 1000 + 64, "{kind:?}: {} bytes", coded.len());
            }
        }
    }

    #[test]
    fn a_stream_comes_back_whatever_its_pieces_and_is_the_same_for_the_same() {
        for bytes in samples() {
            let pieces = [(Coding::Gzip, 1 << 16), (Coding::Gzip, 1009), (Coding::Brotli, 40_009)];
            for (kind, piece) in pieces.into_iter().chain([(Coding::Zstd, 400_009), (Coding::Zstd, 3 << 20)]) {
                let coded = || {
                    let (mut stream, mut out) = (Stream::new(kind), Vec::new());
                    bytes.chunks(piece).for_each(|piece| stream.push(piece, &mut out));
                    stream.finish(&mut out);
                    out
                };
                let once = coded();
                assert!(decode(kind, &once) == bytes, "{kind:?} of {} bytes by {piece}", bytes.len());
                assert!(once == coded(), "{kind:?} of {} bytes by {piece}", bytes.len());
            }
        }
    }

    #[test]
    fn a_stream_gives_its_bytes_as_they_come_ready() {
        for kind in KINDS {
            let (mut stream, mut out) = (Stream::new(kind), Vec::new());
            noise((4 << 20) + 1).chunks(1 << 16).for_each(|piece| stream.push(piece, &mut out));
            assert!(out.len() > 3 << 20, "{kind:?} holds back all but {} bytes", out.len());
        }
    }

    #[test]
    fn a_stream_may_move_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<Stream>();
    }

    #[test]
    fn a_gzip_header_tells_neither_time_nor_name() {
        assert_eq!(whole(Coding::Gzip, b"x")[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn text_is_compressible_and_what_is_compressed_is_not() {
        assert!(COMPRESSIBLE.is_sorted());
        for (media_type, expected) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/CSS", true),
            ("text/javascript", true),
            ("application/javascript", true),
            ("application/json;charset=utf-8", true),
            ("application/ld+json", true),
            ("application/manifest+json", true),
            ("application/atom+xml", true),
            ("application/xhtml+xml ; q", true),
            ("image/svg+xml", true),
            ("application/wasm", true),
            ("application/x-ndjson", true),
            ("font/ttf", true),
            ("font/otf", true),
            ("image/x-icon", true),
            ("font/woff", false),
            ("font/woff2", false),
            ("image/png", false),
            ("image/jpeg", false),
            ("video/mp4", false),
            ("application/zip", false),
            ("application/gzip", false),
            ("application/pdf", false),
            ("application/octet-stream", false),
            ("application/jsonx", false),
            ("multipart/byteranges; boundary=text/plain", false),
            ("", false),
        ] {
            assert_eq!(is_compressible(media_type), expected, "{media_type}");
        }
    }
}
