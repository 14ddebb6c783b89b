//! The grants of this guest to others.
//!
//! A grant consumes the token of its frame until it has ended. So nobody gets memory that another
//! domain may still write.
#![expect(unsafe_code, reason = "a table that Xen reads, and that nobody else may write (I-17)")]

use hypercall::grants::{GrantAccess, GrantRef};
use hypercall::{DomId, Frame, Pfn, Refused};

use super::entry::{IN_USE, Outstanding, PERMIT_ACCESS, READONLY};
use super::error::GrantError;
use crate::map::P2m;
use crate::sync::{AtomicU64, Ordering};

/// The guest's grant table, in memory that it shares with Xen.
///
/// # Invariants
/// I-17: only the [`Grant`] owns a frame that an entry grants. The grant consumed the frame's
/// token, and returns it when the entry is empty. A grant ends only in the table that it was given
/// in: each table has a number, and so has each grant.
#[derive(Clone, Copy, Debug)]
pub struct Granted<'a> {
    entries: &'a [AtomicU64],
    /// The number of the guest's present table.
    tables: &'a AtomicU64,
    /// The number of this one.
    table: u64,
}

/// A frame that another domain may map until the grant [ends](Self::end). Its owner shares the
/// frame with that domain. Dropping it leaks both.
#[derive(Debug)]
#[must_use = "a grant that is dropped can never be ended, and its frame is lost to the guest"]
pub struct Grant<'a> {
    entry: &'a AtomicU64,
    /// The number of the guest's present table.
    tables: &'a AtomicU64,
    /// The number of the table that it was given in.
    table: u64,
    /// What was stored in the entry.
    word: u64,
    reference: GrantRef,
    frame: Frame,
}

impl<'a> Granted<'a> {
    /// Uses the guest's grant table, 512 entries in each of its frames. `tables` counts the tables
    /// that the guest has had: a grant of an earlier table can no longer be ended.
    ///
    /// # Safety
    /// Xen reads these entries as the domain's grant table. Only Xen and values of this type write
    /// them (I-17). After a restore, call this again with the same `tables` before anything is
    /// granted or ended.
    ///
    /// ```compile_fail,E0133
    /// # use core::sync::atomic::AtomicU64;
    /// # use p2m::grants::Granted;
    /// let table = [const { AtomicU64::new(0) }; 512];
    /// let tables = AtomicU64::new(0);
    /// // Whoever could store into it could grant any frame.
    /// let granted = Granted::new(&table, &tables);
    /// ```
    #[must_use]
    pub unsafe fn new(entries: &'a [AtomicU64], tables: &'a AtomicU64) -> Self {
        // Only the number matters: who grants or ends meanwhile breaks the promise.
        let table = tables.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Self { entries, tables, table }
    }

    /// Lets `domain` map `frame`, and consumes its token. The map gives its machine frame.
    ///
    /// # Errors
    /// The frame, with [`GrantError::P2m`], [`GrantError::Taken`], [`GrantError::NoSuchEntry`],
    /// [`GrantError::NoFrame`] or [`GrantError::OtherTable`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::{Frame, Pfn};
    /// use hypercall::grants::{GrantAccess, GrantRef};
    /// use hypercall::DomId;
    /// # use p2m::P2m;
    /// use p2m::grants::Granted;
    ///
    /// # let list = [AtomicU64::new(0x203)];
    /// # let p2m = unsafe { P2m::adopt(&list) }?;
    /// # let frame = unsafe { Frame::claim(Pfn::new(0)) };
    /// let table = [const { AtomicU64::new(0) }; 512]; // the guest's is shared with Xen
    /// let tables = AtomicU64::new(0); // kept over a restore
    /// let granted = unsafe { Granted::new(&table, &tables) };
    /// let to = DomId(0);
    /// let grant = granted.grant(&p2m, GrantRef(8), to, frame, GrantAccess::ReadOnly)?;
    /// assert_eq!(granted.outstanding().count(), 1);
    /// // Nobody has it mapped: the frame is the guest's alone again.
    /// let frame = grant.end().map_err(|refused| refused.error)?;
    /// # let _ = frame;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grant(
        &self,
        p2m: &P2m<'_>,
        reference: GrantRef,
        domain: DomId,
        frame: Frame,
        access: GrantAccess,
    ) -> Result<Grant<'a>, Refused<Frame, GrantError>> {
        match self.give(p2m, reference, domain, frame.pfn(), access) {
            Ok((entry, word)) => {
                let Self { tables, table, .. } = *self;
                Ok(Grant { entry, tables, table, word, reference, frame })
            }
            Err(error) => Err(Refused { value: frame, error }),
        }
    }

    /// Fills an entry and returns its word.
    fn give(
        &self,
        p2m: &P2m<'_>,
        reference: GrantRef,
        domain: DomId,
        pfn: Pfn,
        access: GrantAccess,
    ) -> Result<(&'a AtomicU64, u64), GrantError> {
        let mfn = p2m.mfn(pfn)?;
        let frame = u32::try_from(mfn.raw()).map_err(|_| GrantError::NoFrame(mfn))?;
        let readonly = match access {
            GrantAccess::ReadWrite => 0,
            GrantAccess::ReadOnly => READONLY,
        };
        let word = u64::from(frame) << 32 | u64::from(domain.0) << 16 | PERMIT_ACCESS | readonly;
        let entry = self.entry(reference)?;
        if is_gone(self.tables, self.table) {
            return Err(GrantError::OtherTable(reference));
        }
        // Who maps the frame sees what was stored in it before. Only the word of a taken entry is
        // read.
        match entry.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => Ok((entry, word)),
            Err(found) => Err(GrantError::Taken(Outstanding::decode(reference, found))),
        }
    }

    /// Returns the grants that have not ended.
    pub fn outstanding(&self) -> impl Iterator<Item = Outstanding> + 'a {
        (0..).map(GrantRef).zip(self.entries).filter_map(|(reference, entry)| {
            // Only the word is read, and it may change a moment later.
            let word = entry.load(Ordering::Relaxed);
            (word != 0).then(|| Outstanding::decode(reference, word))
        })
    }

    fn entry(&self, reference: GrantRef) -> Result<&'a AtomicU64, GrantError> {
        let index = usize::try_from(reference.0).ok();
        index.and_then(|index| self.entries.get(index)).ok_or(GrantError::NoSuchEntry(reference))
    }
}

impl<'a> Grant<'a> {
    /// Returns the entry's number, for the other domain.
    #[must_use]
    pub const fn reference(&self) -> GrantRef {
        self.reference
    }

    /// Returns the frame. The other domain may read it at any time, and write it if that was
    /// granted.
    #[must_use]
    pub const fn pfn(&self) -> Pfn {
        self.frame.pfn()
    }

    /// Ends the grant. The frame is the guest's alone again.
    ///
    /// # Errors
    /// The grant, with [`GrantError::StillMapped`] if the other domain has the frame mapped, which
    /// nothing can end by force; [`GrantError::NotGranted`]; or [`GrantError::OtherTable`].
    pub fn end(self) -> Result<Frame, Refused<Self, GrantError>> {
        let Self { entry, tables, table, word, reference, .. } = self;
        if is_gone(tables, table) {
            let error = GrantError::OtherTable(reference);
            return Err(Refused { value: self, error });
        }
        // The frame's next owner sees what the other domain stored. Only the word of a grant that
        // stays is read.
        let error = match entry.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Ok(self.frame),
            Err(found) if found & !IN_USE == word => {
                GrantError::StillMapped(Outstanding::decode(reference, found))
            }
            Err(_) => GrantError::NotGranted(reference),
        };
        Err(Refused { value: self, error })
    }

    /// Returns the frame's token without ending the grant.
    ///
    /// # Safety
    /// No domain has the frame mapped, and none can map it: the guest was restored since the grant
    /// was given, and the old table is gone ([`GrantError::OtherTable`]).
    pub unsafe fn vouch(self) -> Frame {
        self.frame
    }
}

/// Returns whether the guest has a table other than number `table`.
fn is_gone(tables: &AtomicU64, table: u64) -> bool {
    // Only the number matters: it changes while nobody grants or ends.
    tables.load(Ordering::Relaxed) != table
}

#[cfg(test)]
#[path = "granted/tests.rs"]
mod tests;
