//! Comparing what was seen with what was to be seen.

use alloc::string::String;

/// What a check gives, or a sentence on what was seen instead.
pub type Check<T = ()> = Result<T, String>;

/// Leaves the assertion unless a request was answered so. Words behind the two say in which case.
macro_rules! want {
    ($asked:expr, $answer:expr) => {
        want!($asked, $answer, "")
    };
    ($asked:expr, $answer:expr, $($case:tt)+) => {{
        let (seen, wanted) = ($asked, $answer);
        if seen != wanted {
            let (asked, case) = (stringify!($asked), alloc::format!($($case)+));
            return Err(alloc::format!("{asked} gave {seen:?}, not {wanted:?} {case}"));
        }
    }};
}

/// As `want!`, for words that are read in hexadecimal.
macro_rules! same {
    ($asked:expr, $answer:expr) => {
        same!($asked, $answer, "")
    };
    ($asked:expr, $answer:expr, $($case:tt)+) => {{
        let (seen, wanted): (u64, u64) = ($asked, $answer);
        if seen != wanted {
            let (asked, case) = (stringify!($asked), alloc::format!($($case)+));
            return Err(alloc::format!("{asked} is {seen:#x}, not {wanted:#x} {case}"));
        }
    }};
}
