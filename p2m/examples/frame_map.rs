//! The frame map: what the builder left, both directions, and why M2P alone is not to be believed.
//!
//! `cargo run -p p2m --example frame_map`: the same lines would run on real Xen.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use hypercall::middleware::Counting;
use hypercall::{DomId, FrameAccess as _, Mfn, Pfn};
use p2m::audit::Audit;
use p2m::{Guest, P2m, P2mError};
use xen_model::Model;

fn main() {
    let model = Model::builder().pages(1024).build().expect("a guest of 4 MiB");
    let machine = Counting::new(&model);
    // On real Xen the builder has put the list where start_info says.
    let list = model.guest().built_list();
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&list) }.expect("the list is not empty");

    let (pfn, mfn) = (Pfn::new(7), p2m.mfn(Pfn::new(7)).expect("RAM"));
    println!("pfn {pfn} is mfn {mfn}, and back");
    assert_eq!(p2m.pfn(&machine, mfn), Ok(pfn));

    // A frame given away: M2P still names the pfn, the map does not confirm it.
    // SAFETY: as above.
    assert_eq!(unsafe { p2m.depopulate(pfn) }, Ok(mfn));
    assert_eq!(machine.machine_to_phys(mfn), Some(pfn));
    let error = p2m.pfn(&machine, mfn).expect_err("the map does not confirm it");
    println!("M2P says pfn {pfn}, the map: {error}");
    assert_eq!(p2m.mfn(pfn), Err(P2mError::Absent(pfn)));

    // Another domain's frame in its place is never taken for memory.
    // SAFETY: as above.
    unsafe { p2m.set_foreign(pfn, DomId(1), Mfn::new(0x1234)) }.expect("the pfn is free");
    let error = p2m.mfn(pfn).expect_err("it is not the guest's");
    println!("as memory: {error}");
    // SAFETY: as above.
    assert_eq!(unsafe { p2m.clear_foreign(pfn) }, Ok((DomId(1), Mfn::new(0x1234))));
    // SAFETY: as above.
    unsafe { p2m.populate(pfn, mfn) }.expect("the pfn is free");

    let mut places = [None; 4];
    let mut audit = Audit::begin(&mut places);
    let root = model.guest().kernel_root().expect("it runs");
    let root = p2m.pfn(&machine, root).expect("the guest's own");
    // SAFETY: as above.
    audit.run(&unsafe { Guest::new(&machine, &p2m, root) });
    assert!(audit.report().is_clean());
    assert_eq!(machine.counts().hypercalls, 0, "nothing of this asks Xen");
    println!("audit of 1024 pfns: clean, {} hypercalls", machine.counts().hypercalls);
}

#[test]
fn it_runs() {
    main();
}
