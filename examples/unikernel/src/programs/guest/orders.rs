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
    fn a_key_is_a_key_and_nothing_is_nothing() {
        assert_eq!(Sysrq::parse(b"m"), Some(Sysrq::Memory));
        assert_eq!(Sysrq::parse(b"b"), Some(Sysrq::End(Way::Reboot)));
        assert_eq!(Sysrq::parse(b"?"), Some(Sysrq::Help));
        assert_eq!((Sysrq::parse(b""), Sysrq::parse(b"\0")), (None, None));
    }
}
