//! Response bodies in chunks (RFC 9112, 7.1): for a body whose length nobody knows before its end.

use std::io::Write;

/// What stands behind the last chunk of bytes: a chunk of none, no trailer, the end.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends `bytes` as one chunk. No bytes are no chunk, since an empty one would be the end.
pub fn append_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    // A Vec takes every byte.
    let _ = write!(out, "{:x}\r\n", bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}
