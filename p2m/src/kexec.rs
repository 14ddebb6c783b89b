//! Whether another kernel may replace this one.
//!
//! The next kernel believes the memory map. Pages given back to Xen, pages that other domains may
//! still map and write, and addresses at which others' frames are mapped are plain RAM to it. Each
//! makes a kexec unsafe. The next kernel can undo none of them, and only this one knows them. So
//! the answer is derived from the map and the grants when it is asked, and names the obstacles.

use core::fmt;

use crate::entry::P2mEntry;
use crate::grants::{GrantMaps, Granted};
use crate::map::{P2m, Pfns};
use crate::runs::{Grain, Run};

/// What the answer is derived from.
#[derive(Clone, Copy, Debug)]
pub struct KexecState<'s> {
    /// The frame map.
    pub p2m: &'s P2m<'s>,
    /// The pfns that the memory map calls RAM, which the next kernel will use.
    pub ram: &'s [Pfns],
    /// What is granted to others, if there is a grant table.
    pub granted: Option<&'s Granted<'s>>,
    /// The grants of others that are mapped, if there are any.
    pub maps: Option<&'s GrantMaps<'s>>,
}

/// The obstacles to a kexec: each kind counted, and listed when printed.
#[derive(Clone, Copy, Debug)]
pub struct Hazards<'s> {
    state: KexecState<'s>,
    /// Pages of RAM in the memory map that were given back to Xen.
    pub ballooned: u64,
    /// Pages that are frames of other domains.
    pub foreign: u64,
    /// The guest's frames that others may map.
    pub granted: u64,
    /// Grants of others that are mapped, with handles that only this kernel knows.
    pub mapped: u64,
}

/// A permit to start another kernel. A loader demands it, so that nobody forgets to ask.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not used"]
pub struct KexecPermit(());

impl<'s> KexecState<'s> {
    /// Returns a permit if another kernel may be started.
    ///
    /// # Errors
    /// The obstacles.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use p2m::P2m;
    /// use p2m::kexec::KexecState;
    ///
    /// let list = [0x203, u64::MAX].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let ram = [p2m.all()]; // what the memory map calls RAM
    /// let state = KexecState { p2m: &p2m, ram: &ram, granted: None, maps: None };
    /// let hazards = state.kexec_is_safe().unwrap_err();
    /// assert_eq!(hazards.ballooned, 1); // the next kernel would use a page that is Xen's
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub fn kexec_is_safe(self) -> Result<KexecPermit, Hazards<'s>> {
        let count = |number: usize| number as u64;
        let hazards = Hazards {
            state: self,
            ballooned: self.ballooned().map(|run| run.pfns.count).sum(),
            foreign: self.p2m.foreign().map(|run| run.pfns.count).sum(),
            granted: count(self.granted.map_or(0, |granted| granted.outstanding().count())),
            mapped: count(self.maps.map_or(0, |maps| maps.iter().count())),
        };
        if hazards.total() == 0 { Ok(KexecPermit(())) } else { Err(hazards) }
    }

    /// Returns the runs of RAM that have no memory.
    pub fn ballooned(self) -> impl Iterator<Item = Run> + 's {
        let runs = self.ram.iter().flat_map(move |ram| self.p2m.runs(*ram, Grain::Kind));
        runs.filter(|run| run.first == P2mEntry::Absent)
    }
}

impl<'s> Hazards<'s> {
    /// Returns what the hazards were derived from, for listing them.
    #[must_use]
    pub const fn state(&self) -> KexecState<'s> {
        self.state
    }

    /// Returns the number of hazards.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.ballooned + self.foreign + self.granted + self.mapped
    }
}

impl fmt::Display for Hazards<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kexec is not safe:")?;
        if self.ballooned > 0 {
            write!(f, "\n  {} pages of RAM were given back to Xen:", self.ballooned)?;
            for run in self.state.ballooned() {
                write!(f, "\n    {run}")?;
            }
        }
        if self.foreign > 0 {
            write!(f, "\n  {} pages are frames of other domains:", self.foreign)?;
            for run in self.state.p2m.foreign() {
                write!(f, "\n    {run}")?;
            }
        }
        if self.granted > 0 {
            write!(f, "\n  {} frames are granted to other domains:", self.granted)?;
            for grant in self.state.granted.into_iter().flat_map(Granted::outstanding) {
                write!(f, "\n    {grant}")?;
            }
        }
        if self.mapped > 0 {
            write!(f, "\n  {} grants of other domains are mapped:", self.mapped)?;
            for mapped in self.state.maps.into_iter().flat_map(GrantMaps::iter) {
                let request = &mapped.request;
                write!(
                    f,
                    "\n    handle {}: grant {} of domain {} as pfn {}",
                    mapped.handle.0, request.reference.0, request.domain.0, request.pfn
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
#[path = "kexec/tests.rs"]
mod tests;
