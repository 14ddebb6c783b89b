//! Flags of entries, in words.

use hypercall::explain::Cause;
use hypercall::{Pte, PteFlags, RefusableFlag};

/// Returns the flags that Xen printed: in its own form of 24 bits, where bits 63:52 of the entry
/// stand above bits 11:0, or as a whole entry.
const fn flags(printed: u64) -> PteFlags {
    let word = match printed {
        0..=0xff_ffff => printed & 0xfff | printed >> 12 << 52,
        _ => printed,
    };
    Pte::from_raw(word).flags()
}

/// Returns which flags were refused, and who may not have them.
pub(super) fn refused(printed: u64) -> String {
    let has = |flag: &RefusableFlag| flags(printed).contains(flag.flag());
    let words = RefusableFlag::ALL.into_iter().filter(has).map(|flag| flag.to_string());
    let words: Vec<String> = words.collect();
    match words.as_slice() {
        [] => format!(" (flags {printed:#x})"),
        _ => format!(" (flags {printed:#x}: {})", words.join("; ")),
    }
}

/// Returns what leads to such flags being refused, likeliest first.
pub(super) fn causes(printed: u64) -> Vec<Cause> {
    let has_nx = flags(printed).contains(PteFlags::NO_EXECUTE);
    let nx = has_nx.then_some(Cause::NoExecuteMissing);
    let others = (flags(printed) != PteFlags::NO_EXECUTE).then_some(Cause::FlagsRefused);
    nx.into_iter().chain(others).collect()
}

/// Returns the entry, with the names of its flags.
pub(super) fn entry(pte: u64) -> String {
    let names: Vec<&str> = Pte::from_raw(pte).flags().iter_names().map(|(name, _)| name).collect();
    match names.as_slice() {
        [] => format!(" (entry {pte:016x})"),
        _ => format!(" (entry {pte:016x}: {})", names.join(", ")),
    }
}
