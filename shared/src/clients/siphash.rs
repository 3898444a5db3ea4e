//! SipHash-1-3 (Aumasson and Bernstein, 2012) of three words: short, keyed, and its output tells nothing of the key.

/// The hash of `words` under `key`.
pub(super) fn hash(key: (u64, u64), words: [u64; 3]) -> u64 {
    sip::<1, 3>(key, &words)
}

/// SipHash-C-D of whole words, as of their bytes in little-endian order.
fn sip<const C: usize, const D: usize>(key: (u64, u64), words: &[u64]) -> u64 {
    let mut state = [
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ];
    // The last block holds the length in its highest byte; whole words leave nothing else for it.
    let length = (words.len() as u64 * 8) << 56;
    for word in words.iter().chain([&length]) {
        state[3] ^= word;
        (0..C).for_each(|_| round(&mut state));
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    (0..D).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32).wrapping_add(*d);
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *d = d.rotate_left(21) ^ *a;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and input of the authors' test vectors: bytes 0, 1, 2, …
    fn counting(at: u64) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|byte| (at * 8) as u8 + byte as u8))
    }

    #[test]
    fn the_vectors_of_the_authors_come_out() {
        let key = (counting(0), counting(1));
        assert_eq!(sip::<2, 4>(key, &[]).to_le_bytes(), [0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72]);
        assert_eq!(sip::<2, 4>(key, &[counting(0)]).to_le_bytes(), [0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93]);
    }

    #[test]
    fn a_hash_is_that_of_the_standard_library() {
        use std::hash::Hasher;
        // Its default hasher is SipHash-1-3 with a key of zero; should that change, the vectors above still hold.
        let mut theirs = std::collections::hash_map::DefaultHasher::new();
        [7_u64, 4, 0x7f00_0001].iter().for_each(|word| theirs.write(&word.to_le_bytes()));
        assert_eq!(hash((0, 0), [7, 4, 0x7f00_0001]), theirs.finish());
    }
}
