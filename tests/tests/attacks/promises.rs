//! I-1 to I-4, I-20: a trait whose lies would forge ownership, or have a page overwritten, is
//! implemented with a promise.

use hypercall::grants::{GrantMap, GrantUnmap, Grants};
use hypercall::memory::MemoryOp;
use hypercall::{
    AccessError, Assist, Call, Cpu, Error, Fault, FrameAccess, GuestVa, Hypercalls, Mfn, Pfn, Pte,
};
use p2m::{Guest, Leaves, P2mError};
use x86_64::structures::paging::PageTableIndex;

/// A machine that says what it likes.
struct Liar;

#[cfg(not(any(attack, liar)))]
#[test]
fn a_promise_is_all_that_is_missing() {
    fn is_a_machine(_: &(impl hypercall::Machine + Cpu + Grants + Leaves)) {}
    is_a_machine(&Liar);
}

promised! {
    impl Hypercalls for Liar { //~ E0200
        unsafe fn issue(&self, _: &mut [Call<'_>]) -> Result<(), Error> {
            Ok(())
        }

        unsafe fn memory_op(&self, _: &mut MemoryOp<'_>) -> Result<u64, Error> {
            Ok(0)
        }

        fn enable_assist(&self, _: Assist) -> Result<(), Error> {
            Ok(())
        }
    }
}

promised! {
    impl FrameAccess for Liar { //~ E0200
        fn read_entry(&self, _: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
            Ok(Pte::ABSENT)
        }

        unsafe fn write_entry(
            &self,
            _: Pfn,
            _: PageTableIndex,
            _: Pte,
        ) -> Result<(), AccessError> {
            Ok(())
        }

        fn read_bytes(&self, _: Pfn, _: usize, _: &mut [u8]) -> Result<(), AccessError> {
            Ok(())
        }

        unsafe fn write_bytes(&self, _: Pfn, _: usize, _: &[u8]) -> Result<(), AccessError> {
            Ok(())
        }

        fn machine_to_phys(&self, _: Mfn) -> Option<Pfn> {
            None
        }

        fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
            Err(AccessError::Unmapped(pfn))
        }
    }
}

promised! {
    impl Cpu for Liar { //~ E0200
        fn load(&self, _: GuestVa) -> Result<u64, Fault> {
            Ok(0)
        }

        unsafe fn store(&self, _: GuestVa, _: u64) -> Result<(), Fault> {
            Ok(())
        }

        unsafe fn compare_exchange(&self, _: GuestVa, old: u64, _: u64) -> Result<u64, Fault> {
            Ok(old)
        }

        fn ticks(&self) -> u64 {
            0
        }
    }
}

promised! {
    impl Grants for Liar { //~ E0200
        unsafe fn grant_map(&self, _: &mut [GrantMap]) -> Result<(), Error> {
            Ok(())
        }

        unsafe fn grant_unmap(&self, _: &mut [GrantUnmap]) -> Result<(), Error> {
            Ok(())
        }

        fn grant_table(&self, _: &mut [Mfn]) -> Result<(), Error> {
            Ok(())
        }
    }
}

promised! {
    impl Leaves for Liar { //~ E0200
        fn leaf<M: FrameAccess>(&self, _: &Guest<'_, M>, _: u64) -> Result<Mfn, P2mError> {
            Ok(Mfn::new(1))
        }
    }
}
