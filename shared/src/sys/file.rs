//! Reading files without waiting for a disk.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Reads what of `file` at `offset` is in the page cache, at most `bytes` (preadv2(2), RWF_NOWAIT). Fails with `WouldBlock` when
/// a disk, or what takes its place, would have to be waited for; returns 0 at the end of the file, and less than asked for
/// where the cache ends.
pub fn read_cached(file: &impl AsFd, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the vector names `bytes`, which is borrowed mutably for the call.
    let count = unsafe {
        libc::preadv2(file.as_fd().as_raw_fd(), &raw const vector, 1, offset as libc::off_t, libc::RWF_NOWAIT)
    };
    if count >= 0 {
        return Ok(count as usize);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A file system that cannot tell is as good as cold.
        Some(libc::EOPNOTSUPP) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Err(error),
    }
}

/// Whether the byte at `offset` can be had without waiting. An error is told by whoever reads it.
pub fn is_cached(file: &impl AsFd, offset: u64) -> bool {
    let mut byte = [0];
    read_cached(file, &mut byte, offset).map_or_else(|error| error.kind() != io::ErrorKind::WouldBlock, |_| true)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_just_written_is_cached() {
        let path = std::env::temp_dir().join(format!("phalanx-cached-{}", std::process::id()));
        File::create(&path).unwrap().write_all(b"Hello").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(read_cached(&file, &mut bytes, 1).unwrap(), 4);
        assert_eq!(&bytes[..4], b"ello");
        assert_eq!(read_cached(&file, &mut bytes, 5).unwrap(), 0);
        assert!(is_cached(&file, 0) && is_cached(&file, 4));
    }
}
