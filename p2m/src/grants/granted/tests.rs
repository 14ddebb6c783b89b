//! Grants given, mapped by a neighbour, and ended; in every order, too.

use super::*;

#[cfg(not(loom))]
mod on_numbers {
    use hypercall::Mfn;

    use super::*;
    use crate::error::P2mError;
    use crate::map::tests::{list, map};

    const DOMAIN: DomId = DomId(3);
    const WRITE: GrantAccess = GrantAccess::ReadWrite;

    /// A table that no Xen reads, and how many the guest has had.
    #[derive(Default)]
    struct Table {
        entries: [AtomicU64; 4],
        tables: AtomicU64,
    }

    impl Table {
        /// Returns the guest's table.
        fn taken(&self) -> Granted<'_> {
            // SAFETY: no Xen reads it.
            unsafe { Granted::new(&self.entries, &self.tables) }
        }
    }

    fn frame(pfn: u64) -> Frame {
        // SAFETY: no memory is behind the number, and each test claims it once.
        unsafe { Frame::claim(Pfn::new(pfn)) }
    }

    #[test]
    fn a_grant_takes_the_frames_token_and_ending_it_gives_it_back_once() {
        let (words, table) = (list(&[0x777]), Table::default());
        let (p2m, granted) = (map(&words), table.taken());
        let grant = granted.grant(&p2m, GrantRef(2), DOMAIN, frame(0), WRITE).expect("free");
        let (reference, mfn) = (GrantRef(2), Mfn::new(0x777));
        let listed = Outstanding { reference, domain: DOMAIN, mfn, is_mapped: false };
        assert_eq!(granted.outstanding().collect::<Vec<_>>(), [listed]);
        assert_eq!((grant.reference(), grant.pfn()), (reference, Pfn::new(0)));
        assert_eq!(grant.end().expect("nobody has it mapped"), frame(0));
        assert_eq!(granted.outstanding().count(), 0);
    }

    #[test]
    fn a_frame_that_is_mapped_elsewhere_is_not_handed_out() {
        let (words, table) = (list(&[7]), Table::default());
        let (p2m, granted) = (map(&words), table.taken());
        let read = GrantAccess::ReadOnly;
        let grant = granted.grant(&p2m, GrantRef(1), DOMAIN, frame(0), read).expect("free");
        table.entries[1].fetch_or(8, Ordering::Relaxed);
        let Refused { value: grant, error } = grant.end().expect_err("mapped");
        assert_eq!(
            error.to_string(),
            "grant 1: mfn 00007 to domain 3, which has it mapped: it cannot be ended"
        );
        assert_eq!(granted.outstanding().count(), 1, "it stays granted");
        table.entries[1].fetch_and(!8, Ordering::Relaxed);
        assert_eq!(grant.end().expect("nobody has it mapped"), frame(0));
    }

    #[test]
    fn what_cannot_be_granted_comes_back_with_the_reason() {
        let (words, table) = (list(&[7, u64::MAX, 1 << 32, 8]), Table::default());
        let (p2m, granted) = (map(&words), table.taken());
        let give = |reference, pfn| {
            let given = granted.grant(&p2m, GrantRef(reference), DOMAIN, frame(pfn), WRITE);
            let Refused { value: back, error } = given.expect_err("refused");
            assert_eq!(back, frame(pfn));
            error
        };
        assert_eq!(give(0, 1), GrantError::P2m(P2mError::Absent(Pfn::new(1))));
        assert_eq!(give(0, 2), GrantError::NoFrame(Mfn::new(1 << 32)));
        assert_eq!(give(4, 0), GrantError::NoSuchEntry(GrantRef(4)));
        assert_eq!(granted.outstanding().count(), 0);
        let grant = granted.grant(&p2m, GrantRef(3), DOMAIN, frame(0), WRITE).expect("free");
        let taken = granted.outstanding().next().expect("granted");
        assert_eq!(give(3, 3), GrantError::Taken(taken));
        assert_eq!(grant.end().expect("still granted"), frame(0));
    }

    #[test]
    fn a_grant_of_a_table_that_was_lost_is_not_ended_by_another_of_the_new_one() {
        let (words, table) = (list(&[7, 8]), Table::default());
        let (p2m, granted) = (map(&words), table.taken());
        let old = granted.grant(&p2m, GrantRef(1), DOMAIN, frame(0), WRITE).expect("free");
        table.entries[1].store(0, Ordering::Relaxed); // a restore: the table is another
        let new = granted.grant(&p2m, GrantRef(1), DOMAIN, frame(1), WRITE).expect("free");
        let Refused { value: old, error } = old.end().expect_err("it holds another");
        assert_eq!(error, GrantError::NotGranted(GrantRef(1)));
        assert_eq!(granted.outstanding().map(|grant| grant.mfn.raw()).collect::<Vec<_>>(), [8]);
        assert_eq!(new.end().expect("nobody has it mapped"), frame(1));
        // SAFETY: the table of before is gone.
        assert_eq!(unsafe { old.vouch() }, frame(0));
    }

    #[test]
    fn a_grant_of_before_a_restore_ends_no_grant_of_after_it() {
        let (words, table) = (list(&[0x777, 0x778]), Table::default());
        let (p2m, before) = (map(&words), table.taken());
        let old = before.grant(&p2m, GrantRef(1), DOMAIN, frame(0), WRITE).expect("free");
        // A restore: other frames, an empty table, and the same entry for the same frame number.
        words[0].store(0x555, Ordering::Relaxed);
        words[1].store(0x777, Ordering::Relaxed);
        table.entries[1].store(0, Ordering::Relaxed);
        let granted = table.taken();
        let new = granted.grant(&p2m, GrantRef(1), DOMAIN, frame(1), WRITE).expect("free");
        let Refused { value: old, error } = old.end().expect_err("of the table of before");
        assert_eq!(error, GrantError::OtherTable(GrantRef(1)));
        assert_eq!(error.to_string(), "the table in which entry 1 held the grant is gone");
        assert_eq!(granted.outstanding().count(), 1, "the new grant is given");
        assert_eq!(new.end().expect("nobody has it mapped"), frame(1));
        // SAFETY: the table of before is gone.
        let again = before.grant(&p2m, GrantRef(1), DOMAIN, unsafe { old.vouch() }, WRITE);
        let Refused { value: back, error } = again.expect_err("of the table of before");
        assert_eq!((back, error), (frame(0), GrantError::OtherTable(GrantRef(1))));
        assert_eq!(granted.outstanding().count(), 0);
    }

    #[test]
    fn an_entry_has_the_layout_of_the_header() {
        let (words, table) = (list(&[0x4567]), Table::default());
        let (p2m, granted) = (map(&words), table.taken());
        let (to, read) = (DomId(0x123), GrantAccess::ReadOnly);
        let grant = granted.grant(&p2m, GrantRef(0), to, frame(0), read).expect("free");
        let bytes = table.entries[0].load(Ordering::Relaxed).to_le_bytes();
        assert_eq!(bytes, [5, 0, 0x23, 0x01, 0x67, 0x45, 0, 0]);
        assert_eq!(grant.end().expect("nobody has it mapped"), frame(0));
    }
}

#[cfg(loom)]
mod in_every_order {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;

    use super::*;

    /// `GTF_writing`.
    const WRITING: u64 = 16;

    /// A frame of the guest's, its map and its grant table.
    struct Shared {
        entries: Vec<AtomicU64>,
        tables: AtomicU64,
        words: Vec<AtomicU64>,
        page: UnsafeCell<u32>,
    }

    #[test]
    fn what_one_side_stores_is_there_when_the_other_gets_the_frame() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                entries: vec![AtomicU64::new(0)],
                tables: AtomicU64::new(0),
                words: vec![AtomicU64::new(7)],
                page: UnsafeCell::new(0),
            });
            // Another domain maps the frame if it is granted, changes it, and lets it go, as Xen
            // does it: marks in the entry's own word.
            let neighbour = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let entry = &shared.entries[0];
                    let word = entry.load(Ordering::Relaxed);
                    let mapped = word != 0
                        && entry
                            .compare_exchange(
                                word,
                                word | WRITING,
                                Ordering::Acquire,
                                Ordering::Relaxed,
                            )
                            .is_ok();
                    if mapped {
                        shared.page.with_mut(|page| {
                            // SAFETY: loom sees to it that nobody else is here.
                            unsafe { *page += 1 };
                        });
                        entry.fetch_and(!WRITING, Ordering::Release);
                    }
                    mapped
                }
            });
            shared.page.with_mut(|page| {
                // SAFETY: as above.
                unsafe { *page = 5 };
            });
            // SAFETY: no machine has this list.
            let p2m = unsafe { P2m::adopt(&shared.words) }.expect("not empty");
            // SAFETY: no Xen reads it.
            let granted = unsafe { Granted::new(&shared.entries, &shared.tables) };
            // SAFETY: no memory is behind the number but the cell.
            let frame = unsafe { Frame::claim(Pfn::new(0)) };
            let given = granted.grant(&p2m, GrantRef(0), DomId(3), frame, GrantAccess::ReadWrite);
            let mut grant = given.expect("free");
            while let Err(Refused { value: same, error }) = grant.end() {
                assert!(matches!(error, GrantError::StillMapped(_)), "{error}");
                grant = same;
                loom::thread::yield_now();
            }
            let page = shared.page.with_mut(|page| {
                // SAFETY: as above; the grant has ended.
                unsafe { *page }
            });
            let mapped = neighbour.join().expect("no race");
            assert_eq!(page, 5 + u32::from(mapped));
        });
    }
}
