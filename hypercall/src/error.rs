//! What Xen answers when it refuses: which hypercall, which errno, and how much took effect before.

use core::fmt;

macro_rules! errnos {
    ($($name:ident = $value:literal, $meaning:literal;)*) => {
        /// Xen's error number, positive. The enum is open: it can hold every value, and the known
        /// ones have names.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct Errno(u32);

        impl Errno {
            $(#[doc = $meaning] pub const $name: Self = Self($value);)*

            /// Returns the C name, if the number is one of Xen's.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Not permitted.";
    ENOENT = 2, "No such entry.";
    ESRCH = 3, "No such domain.";
    EINTR = 4, "Interrupted.";
    ENXIO = 6, "No such device or address.";
    E2BIG = 7, "Argument list too long.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "Bad guest address.";
    EBUSY = 16, "The frame is in use in a way that excludes this one.";
    EEXIST = 17, "Exists already.";
    EINVAL = 22, "Invalid argument, or a frame of the wrong type or owner.";
    EDOM = 33, "Argument out of domain.";
    ERANGE = 34, "Result not representable.";
    ENOSYS = 38, "No such hypercall or command.";
    EOVERFLOW = 75, "Value too large.";
    EILSEQ = 84, "Illegal byte sequence.";
    ERESTART = 85, "To be restarted.";
    EOPNOTSUPP = 95, "Not supported.";
    ENOBUFS = 105, "No buffer space.";
}

impl Errno {
    /// Makes the errno with this number, known or not.
    ///
    /// ```
    /// use hypercall::Errno;
    ///
    /// assert_eq!(Errno::from_raw(16), Errno::EBUSY);
    /// assert_eq!(Errno::EBUSY.name(), Some("EBUSY"));
    /// assert_eq!(Errno::from_raw(999).name(), None); // what nobody knows keeps its number
    /// ```
    #[must_use]
    pub const fn from_raw(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Splits what a hypercall left in `rax` into a value or, if negative, the errno that it stands
    /// for.
    ///
    /// # Errors
    /// The errno, if `rax` is negative.
    ///
    /// ```
    /// use hypercall::Errno;
    ///
    /// assert_eq!(Errno::check(3), Ok(3));
    /// assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
    /// ```
    pub fn check(rax: i64) -> Result<u64, Self> {
        // Xen's errnos are small. Anything else is not one, and stays recognisable.
        u64::try_from(rax).map_err(|_| Self(u32::try_from(rax.unsigned_abs()).unwrap_or(u32::MAX)))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} (-{})", self.0),
            None => write!(f, "errno -{}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hypercalls this crate issues, by Xen's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hypercall {
    /// `HYPERVISOR_mmu_update` (1).
    MmuUpdate,
    /// `HYPERVISOR_mmuext_op` (26).
    MmuExtOp,
    /// `HYPERVISOR_update_va_mapping` (14).
    UpdateVaMapping,
    /// `HYPERVISOR_multicall` (13).
    Multicall,
    /// `HYPERVISOR_memory_op` (12), with the name of the sub-operation.
    MemoryOp(&'static str),
    /// `HYPERVISOR_grant_table_op` (20), with the name of the sub-operation.
    GrantTableOp(&'static str),
    /// `HYPERVISOR_vm_assist` (21).
    VmAssist,
    /// Any other, by its name and that of the sub-operation.
    Other(&'static str),
}

impl fmt::Display for Hypercall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MmuUpdate => f.write_str("mmu_update"),
            Self::MmuExtOp => f.write_str("mmuext_op"),
            Self::UpdateVaMapping => f.write_str("update_va_mapping"),
            Self::Multicall => f.write_str("multicall"),
            Self::MemoryOp(operation) => write!(f, "memory_op({operation})"),
            Self::GrantTableOp(operation) => write!(f, "grant_table_op({operation})"),
            Self::VmAssist => f.write_str("vm_assist"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A refused hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which hypercall.
    pub hypercall: Hypercall,
    /// Why, in Xen's terms.
    pub errno: Errno,
    /// How many of its elements took effect before the refused one, and remain in effect.
    pub done: u32,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refused: {}", self.hypercall, self.errno)?;
        if self.done > 0 {
            write!(f, " after {} done", self.done)?;
        }
        Ok(())
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_a_value_or_an_errno() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(512), Ok(512));
        assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
        assert_eq!(Errno::check(-4095), Err(Errno::from_raw(4095)));
        assert_eq!((Errno::EBUSY.raw(), Errno::from_raw(4095).raw()), (16, 4095));
        assert_eq!(format!("{:?}", Errno::EBUSY), "EBUSY (-16)");
        assert_eq!(Errno::check(i64::MIN), Err(Errno::from_raw(u32::MAX)));
    }

    #[test]
    fn an_error_says_what_was_refused_why_and_what_remains() {
        let error = Error { hypercall: Hypercall::MmuUpdate, errno: Errno::EBUSY, done: 3 };
        assert_eq!(error.to_string(), "mmu_update refused: EBUSY (-16) after 3 done");
        let hypercall = Hypercall::Other("vcpu_op(initialise)");
        let error = Error { hypercall, errno: Errno::from_raw(200), done: 0 };
        assert_eq!(error.to_string(), "vcpu_op(initialise) refused: errno -200");
    }
}
