//! What a toolstack writes into xenstore for a guest, read with suspicion: it may be absent, no
//! number, huge, or change while it is read.

use core::fmt;

use alloc::string::String;

use crate::life::{Survives, Way};

/// `control/shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// End, in this way.
    End(Way),
    /// Let yourself be saved.
    Suspend,
}

impl Survives for Order {}

/// An order that this guest does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnknownOrder(String);

impl fmt::Display for UnknownOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "control/shutdown says {:?}: there are poweroff, halt, reboot, suspend and crash",
            self.0
        )
    }
}

impl Order {
    /// Reads the value.
    pub(super) fn parse(value: &[u8]) -> Result<Self, UnknownOrder> {
        match value {
            b"poweroff" | b"halt" => Ok(Self::End(Way::Poweroff)),
            b"reboot" => Ok(Self::End(Way::Reboot)),
            b"crash" => Ok(Self::End(Way::Crash)),
            b"suspend" => Ok(Self::Suspend),
            _ => Err(UnknownOrder(excerpt(value))),
        }
    }
}

/// `control/sysrq`: a key, as on Linux's keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sysrq {
    /// `b`, `o` and `c`: end at once.
    End(Way),
    /// `m`: say what memory there is.
    Memory,
    /// `h` and all others: say what there is.
    Help,
}

impl Sysrq {
    /// Reads the value; `None` if no key was pressed.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        Some(match value.first()? {
            0 => return None,
            b'b' => Self::End(Way::Reboot),
            b'o' => Self::End(Way::Poweroff),
            b'c' => Self::End(Way::Crash),
            b'm' => Self::Memory,
            _ => Self::Help,
        })
    }
}

/// Why `memory/target` is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadTarget {
    /// There is none.
    Absent,
    /// It is no number of KiB.
    NoNumber(String),
}

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("memory/target is not there"),
            Self::NoNumber(text) => write!(f, "memory/target = {text:?} is no number of KiB"),
        }
    }
}

/// The pages that `memory/target` (KiB) asks for. Any number is one: what is too small or too large
/// is for the balloon to refuse.
pub(super) fn target(value: Option<&[u8]>) -> Result<u64, BadTarget> {
    const KIB_PER_PAGE: u64 = 4;
    let value = value.ok_or(BadTarget::Absent)?;
    let digits = value.trim_ascii();
    let text = core::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
    let number: Option<u64> = text.and_then(|text| text.parse().ok());
    number.map(|kib| kib / KIB_PER_PAGE).ok_or_else(|| BadTarget::NoNumber(excerpt(value)))
}

/// The beginning of a value, to be printed.
fn excerpt(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_by_their_exact_names() {
        assert_eq!(Order::parse(b"poweroff"), Ok(Order::End(Way::Poweroff)));
        assert_eq!(Order::parse(b"halt"), Ok(Order::End(Way::Poweroff)));
        assert_eq!(Order::parse(b"reboot"), Ok(Order::End(Way::Reboot)));
        assert_eq!(Order::parse(b"suspend"), Ok(Order::Suspend));
        for value in [&b""[..], b"Suspend", b"suspend ", b"\xff\0", &[b'x'; 4096]] {
            let words = Order::parse(value).expect_err("no order").to_string();
            assert!(words.len() < 200 && words.contains("poweroff"), "{words}");
        }
    }

    #[test]
    fn a_target_is_kib_and_comes_out_in_pages() {
        assert_eq!(target(Some(b"65536")), Ok(16384));
        assert_eq!(target(Some(b" 65537\n")), Ok(16384));
        assert_eq!(target(Some(b"0")), Ok(0));
        assert_eq!(target(Some(b"18446744073709551615")), Ok(u64::MAX / 4));
    }

    #[test]
    fn what_is_no_number_is_named_and_not_followed() {
        assert_eq!(target(None), Err(BadTarget::Absent));
        let bad: [&[u8]; 8] =
            [b"", b"-1", b"+1", b"1.5", b"64M", b"0x10", b"18446744073709551616", b"\xff\xfe"];
        for value in bad {
            assert!(matches!(target(Some(value)), Err(BadTarget::NoNumber(_))), "{value:?}");
        }
    }

    #[test]
    fn a_key_is_a_key_and_nothing_is_nothing() {
        assert_eq!(Sysrq::parse(b"m"), Some(Sysrq::Memory));
        assert_eq!(Sysrq::parse(b"b"), Some(Sysrq::End(Way::Reboot)));
        assert_eq!(Sysrq::parse(b"?"), Some(Sysrq::Help));
        assert_eq!((Sysrq::parse(b""), Sysrq::parse(b"\0")), (None, None));
    }
}
