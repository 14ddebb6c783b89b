//! Why frames were not exchanged, as a person reads it.
#![cfg(not(loom))]

use expect_test::expect;
use hypercall::Pfn;
use pv_tests::words::{read, refusal};
use swiotlb::region::ExchangeError;

#[test]
fn what_xen_refused_has_a_pfn() {
    let pfn = Pfn::new(0x12);
    let errors = [
        ExchangeError::InUse { pfn },
        ExchangeError::Refused { pfn, error: refusal() },
        ExchangeError::Call { pfn, error: refusal().error },
    ];
    read(
        &errors,
        &expect![[r#"
            a frame of the run from pfn 00012 on is in use elsewhere: mapped, pinned or granted
            the direct mapping from pfn 00012 on cannot be changed: mmu_update refused: EINVAL (-22)
            the frames from pfn 00012 on are not exchanged: mmu_update refused: EINVAL (-22)"#]],
    );
}
