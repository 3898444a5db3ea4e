//! What the targets share: where to cut an input. Everything else is each target's own.

/// Longer inputs are cut at this many places, spread over them; shorter ones everywhere.
const MOST_CUTS: usize = 48;

/// Places to cut `len` bytes into two, none of them at an end.
pub fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let step = len.div_ceil(MOST_CUTS).max(1);
    (1..len).step_by(step)
}

/// Sizes of the pieces to read `len` bytes in: byte by byte, some sizes that are no power of two, and all at once.
pub fn piece_sizes(len: usize) -> impl Iterator<Item = usize> {
    [1, 3, 7, 61, len.max(1)].into_iter()
}
