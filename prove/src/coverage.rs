//! How often each operation was answered how.

use core::fmt;

use hypercall::Errno;

use crate::op::{KINDS, Kind};

/// What an operation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It had nothing to act on.
    Skipped,
    /// It took effect.
    Done,
    /// It was refused.
    Refused(Errno),
    /// It raised a page fault.
    Faulted,
}

/// The errnos that have a column; all others share the last one.
const ERRNOS: [Errno; 8] = [
    Errno::EPERM,
    Errno::ESRCH,
    Errno::EACCES,
    Errno::EFAULT,
    Errno::EBUSY,
    Errno::EINVAL,
    Errno::ENOSYS,
    Errno::EOPNOTSUPP,
];
const COLUMNS: usize = ERRNOS.len() + 4;

impl Answer {
    fn column(self) -> usize {
        match self {
            Self::Skipped => 0,
            Self::Done => 1,
            Self::Faulted => 2,
            Self::Refused(errno) => {
                3 + ERRNOS.iter().position(|known| *known == errno).unwrap_or(ERRNOS.len())
            }
        }
    }

    /// A number that tells answers apart.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Skipped => 1 << 32,
            Self::Done => 0,
            Self::Faulted => 2 << 32,
            Self::Refused(errno) => errno.raw() as u64,
        }
    }
}

/// The counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage([[u32; COLUMNS]; KINDS.len()]);

impl Coverage {
    /// Nothing counted yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([[0; COLUMNS]; KINDS.len()])
    }

    /// Counts an answer.
    pub fn count(&mut self, kind: Kind, answer: Answer) {
        let cell = &mut self.0[kind as usize][answer.column()];
        *cell = cell.saturating_add(1);
    }

    /// How often `kind` was answered so.
    #[must_use]
    pub fn of(&self, kind: Kind, answer: Answer) -> u32 {
        self.0[kind as usize][answer.column()]
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<13}{:>8}{:>8}{:>8}", "operation", "skipped", "done", "fault")?;
        for errno in ERRNOS {
            write!(f, "{:>11}", errno.name().unwrap_or("?"))?;
        }
        writeln!(f, "{:>8}", "other")?;
        for (kind, row) in KINDS.iter().zip(&self.0) {
            write!(f, "{:<13}", kind.name())?;
            for (k, count) in row.iter().enumerate() {
                let width = if (3..3 + ERRNOS.len()).contains(&k) { 11 } else { 8 };
                write!(f, "{count:>width$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
