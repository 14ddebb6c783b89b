//! H: `memory_op`, the frames that come and go.

use alloc::vec::Vec;

use hypercall::Level::L1;
use hypercall::PAGE_SIZE;

use crate::check::Check;
use crate::env::{
    Env, Extents, KERNEL_RO, KERNEL_RW, NOBODY, NON_RAM, NOWHERE, Page, SELF, number, op,
};
use crate::errno::{EBUSY, EINVAL, EPERM};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            h079_a_frame_given_up_stays_while_it_is_mapped,
            h080_a_live_table_given_up_stays_a_table,
            h081_an_extent_may_be_given_up_in_part,
            h082_bad_arguments_of_extents_answer_how_many_were_done,
            h083_extents_have_a_greatest_order,
            h084_populate_stops_at_the_limit_of_the_guest,
            h085_populate_does_not_ask_what_is_there,
            h086_exchange_gives_the_pfn_another_frame,
            h087_exchange_stops_at_a_mapped_frame,
            h088_exchange_makes_one_piece_of_many,
            h089_exchange_checks_its_totals;
    ]
}

fn h079_a_frame_given_up_stays_while_it_is_mapped<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, page) = (env.bed()?, env.take()?);
    env.hide(page)?;
    want!(env.set(bed, 1, env.entry(page, KERNEL_RW)), 0);
    let (mfn, before) = (env.mfn(page), env.current_reservation(SELF));
    env.gone(page);
    for _ in 0..2 {
        want!(env.decrease(&[mfn]), 1);
        want!(env.current_reservation(SELF), before);
        want!(env.m2p(mfn), Some(env.pfn(page)));
    }
    want!(env.set(bed, 1, 0), 0);
    want!(env.current_reservation(SELF), before - 1);
    want!(env.m2p(mfn), None);
    want!(env.decrease(&[mfn]), 0);
    Ok(())
}

fn h080_a_live_table_given_up_stays_a_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let table = env.table(L1, &[])?;
    let before = env.current_reservation(SELF);
    want!(env.decrease(&[env.mfn(table)]), 1);
    want!(env.try_rw(table)?, EBUSY);
    want!(env.set(table, 3, 0x1230), 0);
    want!(env.current_reservation(SELF), before);
    env.hide(table)?;
    want!(env.unpin(table), 0);
    want!(env.current_reservation(SELF), before - 1);
    env.gone(table);
    Ok(())
}

/// Returns as many pages as an extent has, their frames in one piece; nothing maps them.
fn contiguous<M: Target>(env: &mut Env<'_, M>, order: u64) -> Check<Vec<Page>> {
    let mut pages = Vec::new();
    while pages.len() < 1 << order {
        let page = env.take()?;
        if pages.last().is_some_and(|last| env.pfn(*last) + 1 != env.pfn(page)) {
            pages.clear();
        }
        env.set_direct(page, 0)?;
        pages.push(page);
    }
    env.flush();
    let give: Vec<u64> = pages.iter().map(|page| env.mfn(*page)).collect();
    let take = [env.pfn(pages[0])];
    let (rax, exchanged, new) =
        env.exchanges(Extents::single(&give), Extents { list: &take, order });
    want!((rax, exchanged), (0, 1 << order));
    for (at, page) in (0..).zip(&pages) {
        env.adopt(*page, new[0] + at);
    }
    Ok(pages)
}

fn h081_an_extent_may_be_given_up_in_part<M: Target>(env: &mut Env<'_, M>) -> Check {
    let pages = contiguous(env, 1)?;
    let (first, second) = (env.mfn(pages[0]), env.mfn(pages[1]));
    let before = env.current_reservation(SELF);
    want!(env.decrease(&[second]), 1);
    env.gone(pages[1]);
    let (rax, _) = env.extents(op::DECREASE, Extents { list: &[first], order: 1 });
    want!(rax, 0);
    env.gone(pages[0]);
    want!(env.current_reservation(SELF), before - 2);
    want!(env.m2p(first), None);
    Ok(())
}

fn h082_bad_arguments_of_extents_answer_how_many_were_done<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let [edge, hidden] = env.take_neighbours()?;
    let page = env.take()?;
    env.hide(page)?;
    let mfn = env.mfn(page);
    let list = env.put(0, 0, &[mfn]);
    let mut domains = alloc::vec![NOBODY];
    domains.extend((!env.facts().boot.is_dom0).then_some(0));
    for op in [op::INCREASE, op::DECREASE, op::POPULATE] {
        want!(env.call(number::MEMORY_OP, [op, NOWHERE, 0, 0, 0]), 0, "op {op}, unreadable");
        want!(env.memory_op(op, &[list, 0, 0, SELF]), 0, "op {op}, no extent");
        want!(env.memory_op(op, &[list, 0x400_0000, 0, SELF]), 0, "op {op}, too many");
        want!(env.memory_op(op, &[list, 1, 1 << 32, SELF]), 0, "op {op}, address bits");
        for domain in &domains {
            want!(env.memory_op(op, &[list, 1, 0, *domain]), 0, "op {op} for {domain}");
        }
    }
    want!(env.memory_op(op::DECREASE, &[NOWHERE, 1, 0, SELF]), 0, "a list that is not there");
    want!(env.memory_op(op::POPULATE, &[NOWHERE, 1, 0, SELF]), 0, "a list that is not there");
    want!(env.decrease(&[NON_RAM]), 0);
    want!(env.decrease(&[u64::MAX]), 0);
    if let Some(foreign) = env.facts().foreign {
        want!(env.decrease(&[foreign]), 0);
    }
    // One's own number is as good as DOMID_SELF.
    let list = env.put(0, 0, &[mfn]);
    want!(env.memory_op(op::DECREASE, &[list, 1, 0, env.facts().domain]), 1);
    env.gone(page);
    // A list that ends too early.
    let list = env.va(edge) + PAGE_SIZE as u64 - 8;
    env.store(list, env.pfn(page))?;
    env.hide(hidden)?;
    want!(env.memory_op(op::POPULATE, &[list, 2, 0, SELF]), 1);
    env.adopt(page, env.load(list)?);
    Ok(())
}

fn h083_extents_have_a_greatest_order<M: Target>(env: &mut Env<'_, M>) -> Check {
    let pages = contiguous(env, 9)?;
    let (mfn, pfn) = (env.mfn(pages[0]), env.pfn(pages[0]));
    let before = env.current_reservation(SELF);
    let order = env.by_role(19, 10);
    for op in [op::INCREASE, op::DECREASE, op::POPULATE] {
        let (rax, _) = env.extents(op, Extents { list: &[mfn], order });
        want!(rax, 0, "op {op}");
    }
    want!(env.current_reservation(SELF), before);
    let (rax, _) = env.extents(op::DECREASE, Extents { list: &[mfn], order: 9 });
    want!(rax, 1);
    want!(env.current_reservation(SELF), before - 512);
    let (rax, list) = env.extents(op::POPULATE, Extents { list: &[pfn], order: 9 });
    want!(rax, 1);
    for (at, page) in (0..).zip(&pages) {
        env.adopt(*page, list[0] + at);
        want!(env.m2p(list[0] + at), Some(pfn + at));
    }
    Ok(())
}

fn h084_populate_stops_at_the_limit_of_the_guest<M: Target>(env: &mut Env<'_, M>) -> Check {
    // dom0 begins at its limit.
    for _ in 0..3 {
        let page = env.take()?;
        env.hide(page)?;
        want!(env.decrease(&[env.mfn(page)]), 1);
        env.gone(page);
    }
    let limit = env.memory_op(op::MAXIMUM_RESERVATION, &[SELF]);
    let room = limit - env.current_reservation(SELF);
    want!((1..500).contains(&room), true, "there is room for {room}");
    let pfns: Vec<u64> =
        (0..room.cast_unsigned() + 8).map(|at| env.facts().boot.pages + 0x1000 + at).collect();
    let (rax, list) = env.extents(op::POPULATE, Extents::single(&pfns));
    want!(rax, room);
    want!(env.current_reservation(SELF), limit);
    let count = usize::try_from(room).map_err(|error| alloc::format!("{error}"))?;
    for (pfn, mfn) in pfns.iter().zip(&list[..count]) {
        want!(env.m2p(*mfn), Some(*pfn));
    }
    want!(env.decrease(&list[..count]), room);
    Ok(())
}

fn h085_populate_does_not_ask_what_is_there<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (page, other) = (env.take()?, env.take()?);
    // Makes room: a guest may be as large as it is allowed to be.
    env.hide(other)?;
    want!(env.decrease(&[env.mfn(other)]), 1);
    env.gone(other);
    let (pfn, before) = (env.pfn(page), env.p2m(env.pfn(page)));
    let (rax, list) = env.extents(op::POPULATE, Extents::single(&[pfn]));
    want!(rax, 1);
    want!(list[0] == env.mfn(page), false);
    want!(env.m2p(list[0]), Some(pfn));
    want!(env.m2p(env.mfn(page)), Some(pfn));
    want!(env.p2m(pfn), before);
    want!(env.decrease(&list), 1);
    want!(env.m2p(env.mfn(page)), Some(pfn));
    Ok(())
}

fn h086_exchange_gives_the_pfn_another_frame<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    let (old, before) = (env.mfn(page), env.current_reservation(SELF));
    // Any pfn will do.
    let (rax, exchanged, new) = env.exchanges(Extents::single(&[old]), Extents::single(&[0x12345]));
    want!((rax, exchanged), (0, 1));
    env.adopt(page, new[0]);
    want!(env.m2p(old), None);
    want!(env.m2p(new[0]), Some(0x12345));
    want!(env.current_reservation(SELF), before);
    Ok(())
}

fn h087_exchange_stops_at_a_mapped_frame<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, free, mapped) = (env.bed()?, env.take()?, env.take()?);
    env.hide(free)?;
    env.hide(mapped)?;
    want!(env.set(bed, 1, env.entry(mapped, KERNEL_RO)), 0);
    let give = [env.mfn(free), env.mfn(mapped)];
    let take = [env.pfn(free), env.pfn(mapped)];
    let (rax, exchanged, new) = env.exchanges(Extents::single(&give), Extents::single(&take));
    want!((rax, exchanged), (EINVAL, 1));
    env.adopt(free, new[0]);
    want!(env.m2p(give[0]), None);
    want!(env.m2p(new[0]), Some(take[0]));
    want!(env.m2p(give[1]), Some(take[1]));
    want!(env.exchange(free)?, 0);
    Ok(())
}

fn h088_exchange_makes_one_piece_of_many<M: Target>(env: &mut Env<'_, M>) -> Check {
    let pages = contiguous(env, 9)?;
    let mfn = env.mfn(pages[0]);
    same!(mfn % 512, 0, "of mfn {mfn:#x}");
    for (at, page) in (0..).zip(&pages) {
        want!(env.m2p(mfn + at), Some(env.pfn(*page)));
    }
    Ok(())
}

fn h089_exchange_checks_its_totals<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    let (mfn, pfn) = (env.mfn(page), env.pfn(page));
    let (give, take) = (env.put(0, 0, &[mfn]), env.put(1, 0, &[pfn]));
    let asked = |env: &Env<'_, M>, changes: &[(usize, u64)]| {
        let mut words = [give, 1, 0, SELF, take, 1, 0, SELF, 0];
        for (at, word) in changes {
            words[*at] = *word;
        }
        env.memory_op(op::EXCHANGE, &words)
    };
    want!(asked(env, &[(5, 2)]), EINVAL, "two for one");
    want!(asked(env, &[(6, 1)]), EINVAL, "two for one, by order");
    want!(asked(env, &[(2, 20), (6, 20)]), EPERM, "too large an order");
    want!(asked(env, &[(7, NOBODY)]), EINVAL, "for two domains");
    want!(asked(env, &[(8, 2)]), EINVAL, "more done than asked");
    want!(asked(env, &[(8, 1)]), 0, "all done already");
    want!(env.m2p(mfn), Some(pfn), "and nothing happened");
    Ok(())
}
