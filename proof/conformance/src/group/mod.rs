//! The assertions, a file for each group.

mod descriptors;
mod grants;
mod initial;
mod l1_entries;
mod linear;
mod mechanics;
mod memory_info;
mod memory_op;
mod mmuext;
mod multicall;
mod page_state;
mod ptwr;
mod upper_levels;

use alloc::vec::Vec;

use crate::{Assertion, Target};

/// All of them, in no order.
pub(crate) fn all<M: Target>() -> Vec<Assertion<M>> {
    let mut all = page_state::all();
    all.extend(l1_entries::all());
    all.extend(upper_levels::all());
    all.extend(linear::all());
    all.extend(mmuext::all());
    all.extend(mechanics::all());
    all.extend(multicall::all());
    all.extend(memory_op::all());
    all.extend(memory_info::all());
    all.extend(grants::all());
    all.extend(ptwr::all());
    all.extend(descriptors::all());
    all.extend(initial::all());
    all
}
