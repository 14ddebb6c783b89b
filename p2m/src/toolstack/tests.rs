//! What toolstacks find: the generation odd while the mapping changes, and no word before what it
//! leads to.

use super::*;

#[cfg(not(loom))]
mod one_by_one {
    use arbtest::arbtest;

    use super::*;

    fn generation(toolstack: &Toolstack<'_>) -> u64 {
        toolstack.read().generation
    }

    #[test]
    fn the_generation_is_odd_while_any_change_goes_on_and_another_after_each() {
        arbtest(|u| {
            let arch = ArchSharedInfo::default();
            let toolstack = Toolstack::new(&arch);
            // What a kernel of before left, whose last change may not have ended.
            toolstack.words.p2m_generation.store(u.int_in_range(0..=9)?, Ordering::Relaxed);
            let mut under_way = Vec::new();
            let mut seen = vec![generation(&toolstack)];
            for _ in 0..u.int_in_range(0..=20)? {
                if under_way.is_empty() || u.arbitrary()? {
                    under_way.push(toolstack.changing());
                } else {
                    let at = u.choose_index(under_way.len())?;
                    drop(under_way.swap_remove(at));
                }
                let now = generation(&toolstack);
                assert_eq!(now.is_multiple_of(2), under_way.is_empty(), "{now:#x}");
                assert!(!now.is_multiple_of(2) || !seen.contains(&now), "{now:#x} comes again");
                seen.push(now);
            }
            Ok(())
        });
    }

    #[test]
    fn changes_that_never_end_leave_the_generation_odd_for_ever() {
        let arch = ArchSharedInfo::default();
        let toolstack = Toolstack::new(&arch);
        (0..=UNDER_WAY_MAX + 1).for_each(|_| core::mem::forget(toolstack.changing()));
        drop(toolstack.changing());
        assert!(!generation(&toolstack).is_multiple_of(2));
        toolstack.words.p2m_generation.store(NUMBER - 1, Ordering::Relaxed);
        drop(toolstack.changing());
        assert_eq!(generation(&toolstack), 0, "the last number is followed by the first");
    }
}

#[cfg(loom)]
#[expect(unsafe_code, reason = "maps over numbers, with no memory behind them")]
mod in_every_order {
    use std::ptr::NonNull;
    use std::sync::Arc;

    use super::*;
    use crate::list::List;

    /// A mapping in two words, which are equal but while it changes.
    #[derive(Default)]
    struct Mapping([AtomicU64; 2]);

    impl Mapping {
        fn change(&self) {
            // Stores that nothing orders: what stands for them are hypercalls.
            self.0.iter().for_each(|word| word.store(1, Ordering::Relaxed));
        }

        fn is_whole(&self) -> bool {
            let [first, second] = &self.0;
            first.load(Ordering::Relaxed) == second.load(Ordering::Relaxed)
        }
    }

    #[derive(Default)]
    struct Shared {
        arch: ArchSharedInfo,
        mappings: [Mapping; 2],
    }

    impl Shared {
        fn change(&self, which: usize) {
            let _change = Toolstack::new(&self.arch).changing();
            self.mappings[which].change();
        }

        /// Reads as a toolstack does: once more if the generation is odd, or another behind it.
        fn read(&self) {
            let generation = &Toolstack::new(&self.arch).words.p2m_generation;
            let before = generation.load(Ordering::Acquire);
            let whole = self.mappings.iter().all(Mapping::is_whole);
            fence(Ordering::Acquire);
            let after = generation.load(Ordering::Relaxed);
            let believed = before.is_multiple_of(2) && before == after;
            assert!(whole || !believed, "read in the middle of a change: {before:#x}");
        }
    }

    #[test]
    fn a_toolstack_never_believes_what_it_reads_in_the_middle_of_a_change() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let reader = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.read()
            });
            shared.change(0);
            reader.join().expect("the reader's assertions hold");
        });
    }

    #[test]
    fn nor_in_the_middle_of_one_of_two() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared = Arc::new(Shared::default());
            let other = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.change(1)
            });
            let reader = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.read()
            });
            shared.change(0);
            other.join().expect("it changed");
            reader.join().expect("the reader's assertions hold");
        });
    }

    /// A list of one word that grows to two, and what is published of it.
    struct Growing {
        arch: ArchSharedInfo,
        words: Vec<AtomicU64>,
    }

    impl Growing {
        fn new() -> Arc<Self> {
            let words = [16, 0xbad].map(AtomicU64::new).into();
            Arc::new(Self { arch: ArchSharedInfo::default(), words })
        }

        fn map(&self) -> P2m<'_> {
            // SAFETY: one word is there and holds what it should.
            P2m { list: unsafe { List::growing(NonNull::from(&*self.words).cast(), 1, 2) } }
        }

        fn toolstack(&self) -> Toolstack<'_> {
            Toolstack::new(&self.arch)
        }
    }

    #[test]
    fn a_toolstack_finds_no_word_before_what_it_leads_to() {
        loom::model(|| {
            let shared = Growing::new();
            let reader = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (words, told) = (&shared.words, shared.toolstack().words);
                    if told.max_pfn.load(Ordering::Acquire) == 2 {
                        assert_eq!(words[1].load(Ordering::Relaxed), 17, "the map has grown");
                    }
                    if told.p2m_cr3.load(Ordering::Acquire) != 0 {
                        let list = told.p2m_vaddr.load(Ordering::Relaxed);
                        let max_pfn = told.max_pfn.load(Ordering::Relaxed);
                        assert!(list != 0 && max_pfn > 0, "the list is published");
                    }
                    if told.frame_list_list.load(Ordering::Acquire) != 0 {
                        assert!(told.max_pfn.load(Ordering::Relaxed) > 0, "so is its length");
                    }
                }
            });
            let (p2m, toolstack) = (shared.map(), shared.toolstack());
            let at = GuestVa::new(1 << 46).expect("a guest address");
            // SAFETY: no toolstack reads it.
            unsafe { toolstack.publish_list(&p2m, at, Mfn::new(1)) }.expect("aligned");
            // SAFETY: no toolstack reads it.
            unsafe { toolstack.publish_frame_list(&p2m, Some(Mfn::new(2))) };
            shared.words[1].store(17, Ordering::Relaxed);
            // SAFETY: the word holds what it should.
            unsafe { p2m.list.raise(2) };
            toolstack.raise_max_pfn(&p2m);
            reader.join().expect("the reader's assertions hold");
        });
    }

    #[test]
    fn where_the_list_is_withdrawn_the_frame_list_is_found() {
        loom::model(|| {
            let shared = Growing::new();
            let (p2m, toolstack) = (shared.map(), shared.toolstack());
            let at = GuestVa::new(1 << 46).expect("a guest address");
            // SAFETY: no toolstack reads it.
            unsafe { toolstack.publish_list(&p2m, at, Mfn::new(1)) }.expect("aligned");
            let reader = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let told = shared.toolstack().words;
                    let list = told.p2m_cr3.load(Ordering::Acquire);
                    let frame_list = told.frame_list_list.load(Ordering::Relaxed);
                    assert!(list != 0 || frame_list != 0, "neither is published");
                }
            });
            // SAFETY: no toolstack reads it.
            unsafe { toolstack.publish_frame_list(&p2m, Some(Mfn::new(2))) };
            toolstack.withdraw_list();
            reader.join().expect("the reader's assertions hold");
        });
    }
}
