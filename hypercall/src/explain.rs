//! What a refusal means, in words: which frame, its old and its new use, the likely causes and what
//! to check.
//!
//! Two readers share these words. `xen-explain` has the log lines of a debug Xen, but no guest.
//! `pvmmu::explain` has the guest, but nothing from a release Xen except an errno.

use core::fmt;

use crate::frame::{Mfn, Pfn};
use crate::pte::Level;

/// What a frame is used as (`PGT_*` in Xen's `asm-x86/mm.h`). A frame has one use at a time, and
/// may get another only when nothing uses it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// Nothing yet (`PGT_none`).
    Nothing,
    /// A page table (`PGT_l1_page_table` to `PGT_l4_page_table`).
    Table(Level),
    /// Part of a GDT or LDT (`PGT_seg_desc_page`).
    Descriptors,
    /// Memory that someone may write (`PGT_writable_page`).
    Writable,
    /// A page that domains share copy-on-write (`PGT_shared_page`), never a PV guest's.
    Shared,
}

/// Names the use, with its article.
impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Table(level) => write!(f, "an {level} table"),
            Self::Descriptors => f.write_str("a page of segment descriptors"),
            Self::Writable => f.write_str("writable memory"),
            Self::Shared => f.write_str("a page shared copy-on-write"),
        }
    }
}

/// A frame that was to get a new use while it still had another: what Xen calls a bad type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conflict {
    /// The frame, in the machine's terms.
    pub mfn: Mfn,
    /// The frame, in the guest's terms, if known. In one of Xen's log lines it is what M2P said.
    pub pfn: Option<Pfn>,
    /// Its old use.
    pub had: Use,
    /// How many references keep that use, if known.
    pub uses: Option<u64>,
    /// Its new use.
    pub wanted: Use,
}

impl Conflict {
    /// Returns the likely causes of such a conflict, the likeliest first.
    ///
    /// ```
    /// use hypercall::Mfn;
    /// use hypercall::explain::{Conflict, Use};
    /// use hypercall::Level;
    ///
    /// let (had, wanted) = (Use::Writable, Use::Table(Level::L1));
    /// let conflict = Conflict { mfn: Mfn::new(0x8df82b), pfn: None, had, uses: Some(1), wanted };
    /// println!("{conflict}");
    /// for cause in conflict.causes() {
    ///     println!("{}: {}", cause.what(), cause.check());
    /// }
    /// ```
    #[must_use]
    pub const fn causes(self) -> &'static [Cause] {
        match (self.had, self.wanted) {
            (Use::Writable, _) => &[
                Cause::AliasLeft,
                Cause::EarlierRefusal,
                Cause::FreedWhileMapped,
                Cause::GrantedWritable,
                Cause::EarlyBuffer,
                Cause::MapsDisagree,
            ],
            (Use::Table(_), Use::Writable) => {
                &[Cause::TableNotReleased, Cause::MappedOverTables, Cause::MapsDisagree]
            }
            (Use::Table(_), Use::Table(_)) => &[Cause::WrongLevel, Cause::TableNotReleased],
            (Use::Descriptors, _) | (_, Use::Descriptors) => &[Cause::DescriptorsLoaded],
            _ => &[Cause::MapsDisagree],
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame mfn {}", self.mfn)?;
        if let Some(pfn) = self.pfn {
            write!(f, " (pfn {pfn})")?;
        }
        let times = |f: &mut fmt::Formatter<'_>| match self.uses {
            None => Ok(()),
            Some(1) => f.write_str(" once"),
            Some(2) => f.write_str(" twice"),
            Some(uses) => write!(f, " {uses} times"),
        };
        match self.had {
            Use::Writable => {
                f.write_str(" was mapped writable")?;
                times(f)?;
            }
            had => {
                write!(f, " was {had}, in use")?;
                times(f)?;
            }
        }
        match self.wanted {
            Use::Writable => f.write_str(" while it was to be mapped writable"),
            wanted => write!(f, " while it was to become {wanted}"),
        }
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident: $what:literal, $check:literal;)*) => {
        /// What a guest does that leads to a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[$doc])* $name,)*
        }

        impl Cause {
            /// All causes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns its name, for programs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Returns the sentence that says what happened, for people.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                }
            }

            /// Returns what to check, and how to fix it.
            #[must_use]
            pub const fn check(self) -> &'static str {
                match self {
                    $(Self::$name => $check,)*
                }
            }
        }

        impl fmt::Display for Cause {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.what())
            }
        }
    };
}

causes! {
    /// A second mapping.
    AliasLeft: "another mapping of the page is still writable: the direct mapping, a second kernel \
        mapping (vmap, kmap, ioremap), or a user mapping",
        "find every entry that maps the frame (pvmmu::audit::writable_mappings, or xen-mfndump in \
         dom0) and make it read-only in a request that goes out before the pin; in Linux, look for \
         a vunmap whose lazy flush is still to come";
    /// A refusal that was ignored.
    EarlierRefusal: "the request that was to make it read-only was refused itself, and the guest \
        went on as if it had worked",
        "look for the first refusal in this log, not the last: in Linux the first WARNING of \
         xen_mc_flush (the boot option xen_mc_debug=1 names the failed entry)";
    /// Use after free.
    FreedWhileMapped: "the page was freed and came back as a table while its former owner still \
        had it mapped: a driver's buffer, a module, a page shared with user space",
        "who had the pfn before (Linux: page_owner=on); neighbouring pfns in this log are one \
         buffer; leave out drivers and modules one by one, the newest first";
    /// Another domain holds it.
    GrantedWritable: "another domain has the page mapped writable through a grant",
        "xl debug-keys g, then xl dmesg, lists the active grants: is the mfn among them, and which \
         frontend or backend does it belong to? It must end its grant before the page is freed";
    /// The early buffer.
    EarlyBuffer: "it lies in the buffer for early page tables, and the direct mapping made that \
        part writable before the table was used",
        "if this happens while the guest boots: map the whole buffer [start, top) read-only until \
         the round is over, and only then the unused rest writable (crate early-pgt, \
         mark_rw_past_pgt)";
    /// P2M against M2P.
    MapsDisagree: "P2M and M2P disagree about the page, so that the guest protected or used \
        another frame than it meant",
        "compare P2M with M2P for every pfn (p2m::audit); a foreign or ballooned page that was \
         freed to the page allocator does this";
    /// A page that is still a table.
    TableNotReleased: "the page is still a table: pinned, linked in another table, or loaded by a \
        vCPU",
        "unlink it or unpin its root, look at the result, and load another root on every vCPU \
         before the page is used for anything else";
    /// A loop over all memory.
    MappedOverTables: "something maps a range of memory writable that has tables in it",
        "code that maps memory in bulk (direct mapping, hotplug, /dev/mem, kexec) must map frames \
         that serve as tables read-only";
    /// Two levels at once.
    WrongLevel: "the same frame is used at two levels, or pinned as another level than its own",
        "compare the level of the request (MMUEXT_PIN_L1_TABLE to L4) with the slot that leads to \
         the frame";
    /// GDT or LDT.
    DescriptorsLoaded: "the page holds segment descriptors that a vCPU uses, or is to hold some \
        while it is mapped writable",
        "make the page read-only before set_gdt or SET_LDT, and load another table, or none, \
         before it is used as memory again";
    /// The balloon, or a frame number kept too long.
    FrameGone: "the frame is not the guest's any more: given back to Xen by the balloon, \
        exchanged, or its number kept across a save and restore",
        "look the pfn up in P2M again instead of keeping an mfn; a ballooned pfn has none";
    /// A number of the wrong kind.
    NotConverted: "the number is no frame of the guest's: a pfn was used where an mfn belongs, or \
        the entry was built from an address",
        "every frame number that goes into an entry or a request comes from P2M";
    /// Another domain's frame.
    ForeignFrame: "the frame belongs to another domain, and the request does not say whose, or the \
        guest may not",
        "map it through a grant, or with the owner's domid as foreign domain if the guest is \
         privileged over it";
    /// A device's.
    NoIoPermission: "the frame is a device's or no memory at all, and the guest has no permission \
        for it",
        "dom0: is the address in the host's e820 as the guest believes? domU: iomem or pci in the \
         guest's configuration";
    /// Flags.
    FlagsRefused: "the entry has flags that Xen does not grant at this level: large pages at any, \
        cache bits without device access",
        "PV guests map 4 KiB pages only: no PSE, no GLOBAL above L1; PWT, PCD, PAT need a device";
    /// NX.
    NoExecuteMissing: "the entry has NO_EXECUTE (bit 63), which this CPU does not offer",
        "leave the bit out where the CPU lacks it (FrameAccess::offered); if it should not lack \
         it: the firmware may have turned it off";
    /// Xen's root slots.
    XenSlots: "the guest wrote to slots 256 to 271 of a root, which are Xen's",
        "copy only slots 0 to 255 and 272 to 511 from one root to another";
    /// Done twice.
    DoneTwice: "the guest pins what is pinned or unpins what is not: its own record does not match \
        Xen's, usually after a refusal it ignored",
        "change the record only after the request has succeeded";
    /// Grants.
    GrantMisused: "a grant is used in a way that does not match its entry: wrong domain, closed, \
        read-only, or its page-table entry was changed by other means",
        "who ended or changed the grant first; entries that map grants are changed by grant \
         operations only";
    /// No memory left.
    NoMemory: "the domain is at its limit, or Xen has no free memory of that kind",
        "xl list and xl info: maxmem of the guest, free memory of the host; contiguous extents \
         need free blocks";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_says_which_frame_what_it_was_and_what_it_was_to_become() {
        let conflict = Conflict {
            mfn: Mfn::new(0x8d_f82b),
            pfn: Some(Pfn::new(0x1a_99dd)),
            had: Use::Writable,
            uses: Some(1),
            wanted: Use::Table(Level::L1),
        };
        assert_eq!(
            conflict.to_string(),
            "frame mfn 8df82b (pfn 1a99dd) was mapped writable once while it was to become an L1 \
             table"
        );
        let reverse = Conflict { had: conflict.wanted, wanted: conflict.had, ..conflict };
        let twice = Conflict { uses: Some(2), pfn: None, ..reverse };
        assert_eq!(
            twice.to_string(),
            "frame mfn 8df82b was an L1 table, in use twice while it was to be mapped writable"
        );
        let often = Conflict { uses: Some(3), had: Use::Descriptors, ..conflict };
        assert!(often.to_string().contains("was a page of segment descriptors, in use 3 times"));
        let unknown = Conflict { uses: None, ..conflict };
        assert!(unknown.to_string().contains("was mapped writable while it was to become"));
    }

    #[test]
    fn every_conflict_has_a_cause_and_every_cause_a_sentence_and_a_check() {
        let tables = Level::TOP_DOWN.map(Use::Table);
        let others = [Use::Nothing, Use::Descriptors, Use::Writable, Use::Shared];
        let uses = || tables.iter().chain(&others);
        for (had, wanted) in uses().flat_map(|had| uses().map(move |wanted| (*had, *wanted))) {
            let mfn = Mfn::new(1);
            let causes = Conflict { mfn, pfn: None, had, uses: None, wanted }.causes();
            assert!(!causes.is_empty(), "{had} to {wanted}");
        }
        for cause in Cause::ALL {
            assert!(cause.to_string().len() > 20 && cause.check().len() > 20, "{}", cause.name());
        }
    }

    #[test]
    fn who_maps_it_comes_first_when_memory_was_to_become_a_table() {
        let conflict = Conflict {
            mfn: Mfn::new(1),
            pfn: None,
            had: Use::Writable,
            uses: Some(1),
            wanted: Use::Table(Level::L3),
        };
        assert_eq!(conflict.causes()[0], Cause::AliasLeft);
        let level = Conflict { had: Use::Table(Level::L4), ..conflict };
        assert_eq!(level.causes()[0], Cause::WrongLevel);
        let mapping = Conflict { had: Use::Table(Level::L1), wanted: Use::Writable, ..conflict };
        assert_eq!(mapping.causes()[0], Cause::TableNotReleased);
        let descriptors = Conflict { had: Use::Descriptors, ..conflict };
        assert_eq!(descriptors.causes(), [Cause::DescriptorsLoaded]);
    }
}
