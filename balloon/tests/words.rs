//! What keeps the balloon from its goal, as a person reads it.

use balloon::BalloonObstacle;
use expect_test::expect;
use hypercall::{Mfn, Pfn, Pte, PteFlags};
use pv_tests::words::{read, refusal};

#[test]
fn what_xen_refused_and_what_is_in_the_way_have_a_pfn() {
    let (pfn, pte) = (Pfn::new(0x12), Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RO));
    let obstacles = [
        BalloonObstacle::Held(pfn),
        BalloonObstacle::InUse { pfn, pte },
        BalloonObstacle::Occupied { pfn, pte },
        BalloonObstacle::Mapping { pfn, error: refusal() },
        BalloonObstacle::Refused { pfn, error: refusal().error },
    ];
    read(
        &obstacles,
        &expect![[r#"
        the balloon holds the allocator's frame 00012 already
        the allocator's frame 00012 is in use: its entry is 8000000000203021
        pfn 00012 cannot be mapped: its entry is 8000000000203021 already
        the direct mapping from pfn 00012 on is unchanged: mmu_update refused: EINVAL (-22)
        the memory of the pfns from 00012 on is unchanged: mmu_update refused: EINVAL (-22)"#]],
    );
}
