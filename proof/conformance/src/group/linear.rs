//! D: tables that point to tables of their own level.

use alloc::vec::Vec;

use hypercall::Level::{self, L2, L3, L4};

use crate::check::Check;
use crate::env::{Env, TABLE, TABLE_RO};
use crate::errno::{EBUSY, EINVAL};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            d047_a_table_may_point_to_itself_read_only,
            d048_a_root_may_point_to_another_root,
            d049_linear_tables_form_no_chains,
            d050_clearing_a_linear_entry_gives_its_references_back;
    ]
}

const LEVELS: [Level; 3] = [L2, L3, L4];

fn d047_a_table_may_point_to_itself_read_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    for level in LEVELS {
        let table = env.table(level, &[])?;
        want!(env.set(table, 300, env.entry(table, TABLE)), EINVAL, "{level}, writable");
        want!(env.set(table, 300, env.entry(table, TABLE_RO)), 0, "{level}");
        // No count has changed: one unpin and the frame is free.
        want!(env.unpin(table), 0);
        want!(env.try_rw(table)?, 0, "{level}");
        want!(env.try_exchange(table)?, 0, "{level}");
    }
    Ok(())
}

fn d048_a_root_may_point_to_another_root<M: Target>(env: &mut Env<'_, M>) -> Check {
    for level in LEVELS {
        let (a, b) = (env.table(level, &[])?, env.table(level, &[])?);
        want!(env.set(b, 300, env.entry(a, TABLE)), EINVAL, "{level}, writable");
        want!(env.set(b, 300, env.entry(a, TABLE_RO)), 0, "{level}");
        want!(env.unpin(a), 0);
        want!(env.try_rw(a)?, EBUSY, "{level}: the entry keeps it a table");
        want!(env.try_exchange(a)?, EINVAL, "{level}: the entry holds it");
        want!(env.unpin(b), 0);
        want!(env.exchange(a)?, 0, "{level}: the entry went with its table");
    }
    Ok(())
}

fn d049_linear_tables_form_no_chains<M: Target>(env: &mut Env<'_, M>) -> Check {
    for level in LEVELS {
        let (a, b) = (env.table(level, &[])?, env.table(level, &[])?);
        let c = env.table(level, &[])?;
        want!(env.set(b, 300, env.entry(a, TABLE_RO)), 0, "{level}");
        want!(env.set(a, 300, env.entry(b, TABLE_RO)), EINVAL, "{level}");
        want!(env.set(c, 300, env.entry(b, TABLE_RO)), EINVAL, "{level}");
        // But a second one to the same is none.
        want!(env.set(c, 300, env.entry(a, TABLE_RO)), 0, "{level}");
        want!(env.set(b, 300, 0), 0);
        want!(env.set(c, 300, 0), 0);
    }
    Ok(())
}

fn d050_clearing_a_linear_entry_gives_its_references_back<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    for level in LEVELS {
        let (a, b) = (env.table(level, &[])?, env.table(level, &[])?);
        want!(env.set(b, 300, env.entry(a, TABLE_RO)), 0, "{level}");
        want!(env.set(b, 300, 0), 0, "{level}");
        // b may be used linearly now, and a may hold such entries.
        want!(env.set(a, 300, env.entry(b, TABLE_RO)), 0, "{level}");
        want!(env.set(a, 300, 0), 0, "{level}");
        want!(env.unpin(a), 0);
        want!(env.try_rw(a)?, 0, "{level}");
        want!(env.try_exchange(a)?, 0, "{level}");
    }
    Ok(())
}
