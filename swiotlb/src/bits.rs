//! Finds runs of free slots in a word. A set bit is a slot that is taken.

/// Returns the lowest multiple of `stride`, a power of two, at which `count` bits, 1 to 64, are
/// clear.
#[inline]
pub(crate) const fn find(word: u64, count: u32, stride: u32) -> Option<u32> {
    // After each step, the bits of `starts` are the places at which `have` clear bits begin.
    let mut starts = !word;
    let mut have = 1;
    while have < count {
        let more = if have < count - have { have } else { count - have };
        starts &= starts >> more;
        have += more;
    }
    starts &= MULTIPLES[stride.trailing_zeros() as usize & 7];
    if starts == 0 { None } else { Some(starts.trailing_zeros()) }
}

/// Returns a word with the lowest `count` bits set, 1 to 64.
#[inline]
pub(crate) const fn low(count: u32) -> u64 {
    u64::MAX >> (64 - count)
}

/// Bits at multiples of 1, 2, 4 ... 64 and 128.
const MULTIPLES: [u64; 8] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
    1,
];

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn property_a_run_is_found_where_a_search_bit_by_bit_finds_it() {
        arbtest::arbtest(|u| {
            let word: u64 = u.arbitrary::<u64>()? & u.arbitrary::<u64>()?;
            let count = u.int_in_range(1..=64)?;
            let stride = 1 << u.int_in_range(0..=6)?;
            let is_free = |at: u32| at + count <= 64 && (word >> at) & low(count) == 0;
            let expected = (0..64).step_by(stride as usize).find(|at| is_free(*at));
            assert_eq!(find(word, count, stride), expected, "{word:#x}, {count} by {stride}");
            Ok(())
        });
    }

    #[test]
    fn a_whole_word_is_a_run_too() {
        assert_eq!(find(0, 64, 64), Some(0));
        assert_eq!(find(1, 64, 1), None);
        assert_eq!(find(u64::MAX, 1, 1), None);
    }
}
