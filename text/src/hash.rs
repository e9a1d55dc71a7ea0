//! The hash of the flat tables: folded multiplication under a seed. It is kept in files, so it may
//! depend on nothing but seed and bytes: no word size, no instruction set, no crate version.
//! The seed is random for every table built: a model file cannot be made so that its texts collide.

use std::hash::{BuildHasher, Hasher, RandomState};

const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
const FINAL: u64 = 0xD6E8_FEB8_6659_FD93;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// At most eight bytes as a number; with the length it tells them apart.
fn word(bytes: &[u8]) -> u64 {
    let half = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        u64::from(four.map_or(0, u32::from_le_bytes))
    };
    match *bytes {
        [] => 0,
        [a] => u64::from(a),
        [a, b] => u64::from(a) | u64::from(b) << 8,
        [a, b, c] => u64::from(a) | u64::from(b) << 8 | u64::from(c) << 16,
        _ => half(0) | half(bytes.len() - 4) << 32,
    }
}

pub fn bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    for chunk in bytes.chunks(8) {
        hash = fold(hash ^ word(chunk), FACTOR);
    }
    fold(hash ^ seed, FINAL)
}

pub fn pair(seed: u64, left: u32, right: u32) -> u64 {
    fold(fold(seed ^ (u64::from(left) << 32 | u64::from(right)), FACTOR) ^ seed, FINAL)
}

/// Where a hash begins to look in a table of `n` slots (below 2^32).
pub fn place(hash: u64, n: usize) -> usize {
    ((hash >> 32) * n as u64 >> 32) as usize
}

/// What stands for a hash in a table's tags: one byte a slot, 0 if it is free. A look-up of what is
/// not there mostly ends in them, and they stay in the processor's cache.
pub fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files hold tables made with these: other values want another KRT_TABLES_VERSION.
    #[test]
    fn values_never_change() {
        let text = b"0123456789abcdefghijklm";
        let all =
            (0..=text.len()).fold(0, |sum: u64, n| sum.rotate_left(7) ^ bytes(77, &text[..n]));
        assert_eq!((all, pair(77, 3, 5)), (903998401098152378, 13013850041107757228));
    }

    #[test]
    fn lengths_and_places_differ() {
        let mut seen = std::collections::HashSet::new();
        for n in 0..64 {
            assert!(seen.insert(bytes(1, &vec![0; n])), "{n}");
        }
        assert!((0..1000).all(|i| place(bytes(9, &[i as u8, 1]), 7) < 7));
    }
}
