//! I-4 to I-7, I-18, I-19: an address space is changed by whoever owns it, through the guest that
//! it is of, and every TLB that knows it is flushed.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use hypercall::{Cpu, DomId, GuestVa, Machine, Mfn, Pfn, PteFlags};
use p2m::{Guest, P2m};
use pvmmu::flush::Reach;
use pvmmu::primitive::WriteMode;
use pvmmu::{FrameStack, LoadError, Loose, Pages, Pgd, Pinned, Running, Tools, Vcpus, load_root};

fn a_guest_is_described_by_unsafe_code_alone<'a, M>(
    machine: &'a M,
    p2m: &'a P2m<'a>,
) -> Guest<'a, M> {
    owed!(Guest::new(machine, p2m, Pfn::new(1))) //~ E0133
}

fn a_guest_gets_another_root_by_unsafe_code_alone<M>(guest: Guest<'_, M>) -> Guest<'_, M> {
    owed!(guest.with_kernel_root(Pfn::new(1))) //~ E0133
}

fn a_root_is_loaded_by_unsafe_code_alone(
    guest: &Guest<'_, impl Machine>,
    pgd: &Pgd<Pinned>,
) -> Result<(), LoadError> {
    owed!(load_root(guest, Pfn::new(1)))?; //~ E0133
    owed!(pgd.load(guest)) //~ E0133
}

fn whoever_runs_is_known_by_unsafe_code_alone(running: &[Running]) -> Vcpus<'_> {
    owed!(Vcpus::new(running)) //~ E0133
}

fn flushes_are_left_out_by_unsafe_code_alone<M, F>(tools: &mut Tools<'_, '_, M, F>) {
    owed!(tools.set_reach(Reach::Everywhere)); //~ E0133
}

fn an_address_is_changed_where_it_runs_by_unsafe_code_alone(
    guest: &Guest<'_, impl Machine + Cpu>,
    pgd: &mut Pgd<Pinned>,
    va: GuestVa,
    flags: PteFlags,
) {
    let _ = owed!(pgd.set_flags_here(guest, va, flags, WriteMode::Set, None)); //~ E0133
}

fn an_address_space_that_runs_ends_by_unsafe_code_alone(
    guest: &Guest<'_, impl Machine>,
    vcpus: Vcpus<'_>,
) {
    let _ = owed!(vcpus.leave(guest, 0)); //~ E0133
}

fn anothers_frame_in_a_loose_tree_is_mapped_by_unsafe_code_alone(
    tools: &mut Tools<'_, '_, impl Machine, FrameStack<'_>>,
    pgd: &mut Pgd<Loose>,
    pages: Pages,
) {
    let (flags, mfn) = (PteFlags::USER_RW, Mfn::new(1));
    let _ = owed!(pgd.map_foreign(tools, pages, flags, mfn, DomId::IO)); //~ E0133
}

hidden! {
    use hypercall::{Batch, Frame, Level};
    use pvmmu::{PooledTable, Shares, TablePool};

    fn another_root_is_not_the_kernels<M>(guest: &mut Guest<'_, M>) {
        guest.kernel_root = Pfn::new(1); //~ E0616
    }

    fn another_map_is_not_the_guests<'a, M>(guest: &mut Guest<'a, M>, other: &'a P2m<'a>) {
        guest.p2m = other; //~ E0616
    }

    fn nobodys_tlb_is_forgotten<M, F>(tools: &mut Tools<'_, '_, M, F>) {
        tools.reach = Reach::Everywhere; //~ E0616
    }

    fn the_counts_of_shares_do_not_fall(shares: &mut Shares<'_>) {
        shares.unshare(Pfn::new(1)); //~ E0624
    }

    fn the_counts_of_shares_do_not_rise(shares: &mut Shares<'_>) {
        shares.share(Pfn::new(1)); //~ E0624
    }

    fn the_counts_of_shares_are_not_written(shares: &mut Shares<'_>) {
        shares.counts[1] = 1; //~ E0616
    }

    fn other_counts_do_not_take_their_place<M, F>(tools: &mut Tools<'_, '_, M, F>) {
        tools.frames.shares = None; //~ E0616
    }

    fn a_pinned_tree_is_not_loose(pgd: Pgd<Pinned>) -> Pgd<Loose> {
        pgd //~ E0308
    }

    fn a_tree_that_is_pinned_is_no_loose_one_too(
        guest: &Guest<'_, impl Machine>,
        pgd: Pgd<Loose>,
        batch: &mut Batch<'_>,
    ) -> Pgd<Loose> {
        let _ = pgd.pin(guest, batch);
        pgd //~ E0382
    }

    fn a_loose_tree_is_not_loaded(guest: &Guest<'_, impl Machine>, pgd: &Pgd<Loose>) {
        pgd.load(guest); //~ E0599
    }

    fn a_tree_has_no_other_root<S>(pgd: &mut Pgd<S>, frame: Frame) {
        pgd.root = frame; //~ E0616
    }

    fn the_root_for_user_code_is_no_other<S>(pgd: &mut Pgd<S>, frame: Frame) {
        pgd.user_root = Some(frame); //~ E0616
    }

    fn a_table_of_a_pool_is_no_frame(place: &mut Option<PooledTable>) -> Option<Frame> {
        place.take() //~ E0308
    }

    fn a_table_of_a_pool_does_not_become_a_frame(table: PooledTable) -> Frame {
        table.into_frame() //~ E0624
    }

    fn a_frame_is_no_table_of_a_pool(frame: Frame) -> PooledTable {
        PooledTable::new(frame) //~ E0624
    }

    fn a_pool_takes_no_frame_unseen(pool: &mut TablePool<'_>, frame: Frame) {
        pool.stack(Level::L1).map(|stack| stack.push(frame)); //~ E0624
    }
}
