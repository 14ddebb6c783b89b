//! What the builders leave behind is consistent, for every kind of domain.

use hypercall::start_info::BootInfo;
use hypercall::{Level, Mfn, Pfn};
use xen_model::{BootMapping, BuildError, DomainConfig, Flavour, Model, Release, Role};

/// Every page of the boot mapping leads to its frame, through tables that are found at `pt_base`.
fn check(config: DomainConfig, seed: u64) {
    let model = Model::builder().guest(config.clone()).seed(seed).build().expect("a machine");
    model.audit().expect("counts add up");
    let guest = model.guest();
    let info = guest.start_info().expect("start_info");
    let boot = BootInfo::parse(&info).expect("a good start_info");
    let base = config.virt_base;
    let first_table = (boot.root.raw() - base) >> 12;
    let tables = first_table..first_table + boot.table_frames;
    let mut mapped = 0;
    while let Some((_, entry)) = guest.l1_slot(base + (mapped << 12)) {
        if !entry.is_present() {
            break;
        }
        assert_eq!(Some(entry.mfn()), guest.built_mfn(Pfn::new(mapped)), "page {mapped}");
        let read_only = tables.contains(&mapped);
        assert_eq!(entry.is_writable(), !read_only, "page {mapped}");
        let frame = model.frame(entry.mfn()).expect("RAM");
        assert_eq!(frame.m2p, mapped);
        assert_eq!(frame.kind.live_level().is_some(), read_only, "page {mapped}: {frame:?}");
        mapped += 1;
        if base + (mapped << 12) == 0 || base.wrapping_add(mapped << 12) < base {
            break;
        }
    }
    assert!(mapped >= tables.end);
    let root = guest.built_mfn(Pfn::new(first_table)).expect("root");
    assert_eq!(guest.kernel_root(), Some(root));
    assert_eq!(model.frame(root).expect("RAM").kind.live_level(), Some(Level::L4));
}

#[test]
fn every_kind_of_domain_boots_consistent() {
    for role in [Role::DomU, Role::Dom0] {
        for pages in [2048, 4096, 65536] {
            check(DomainConfig::new(role, pages), pages);
            let all = DomainConfig {
                boot_mapping: BootMapping::AllPages,
                kernel_pages: 3,
                ..DomainConfig::new(role, pages + 77)
            };
            check(all.clone(), 3);
            check(DomainConfig { virt_base: 0xffff_8880_0000_0000, ..all.clone() }, 4);
            check(DomainConfig { virt_base: 0x4000_0000 - 0x3000, ..all }, 5);
        }
    }
}

#[test]
fn a_p2m_list_outside_the_kernel_mapping_is_consistent() {
    let config = DomainConfig {
        init_p2m: Some(0xffff_8900_0000_0000),
        ..DomainConfig::new(Role::DomU, 0x30000)
    };
    check(config.clone(), 9);
    let model = Model::builder().guest(config).build().expect("a machine");
    let info = model.guest().start_info().expect("start_info");
    let (slot, entry) = model.guest().l1_slot(info.mfn_list).expect("mapped");
    assert_eq!(model.guest().built_mfn(Pfn::new(info.first_p2m_pfn)), Some(entry.mfn()));
    assert_eq!(model.word(entry.mfn(), 5), model.guest().built_mfn(Pfn::new(5)).map(Mfn::raw));
    // The tables of that mapping are mapped nowhere.
    let words = model.frame(slot.table).expect("RAM").words(Release::V4_17);
    assert_eq!(words, (0x8000_0000_0000_0002, 0x2400_0000_0000_0001));
}

#[test]
fn a_terabyte_costs_nothing_until_it_is_touched() {
    let config = DomainConfig {
        init_p2m: Some(0xffff_8900_0000_0000),
        ..DomainConfig::new(Role::DomU, 1 << 28)
    };
    let model = Model::builder().guest(config).spare_pages(1 << 20).build().expect("a machine");
    let last = model.guest().built_mfn(Pfn::new((1 << 28) - 1)).expect("its last page");
    assert_eq!(model.frame(last).expect("RAM").m2p, (1 << 28) - 1);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let error = Model::builder().pages(64).build().expect_err("too small");
    assert_eq!(error, BuildError::TooSmall { pages: 64, needed: 1024 });
    assert!(error.to_string().contains("1024 are needed"));
    let error = Model::builder().virt_base(0xffff_8000_0000_0000).build().expect_err("Xen's");
    assert_eq!(error, BuildError::VirtBase(0xffff_8000_0000_0000));
    let error = Model::builder().vcpus(0).build().expect_err("none");
    assert_eq!(error, BuildError::Vcpus(0));
}

#[test]
fn small_guests_can_have_everything_mapped() {
    let config = DomainConfig {
        kernel_pages: 4,
        boot_mapping: BootMapping::AllPages,
        ..DomainConfig::new(Role::DomU, 32)
    };
    check(config, 1);
    let model = Model::builder()
        .pages(512)
        .boot_mapping(BootMapping::AllPages)
        .flavour(Flavour::Release)
        .build()
        .expect("a machine");
    model.audit().expect("counts add up");
}
