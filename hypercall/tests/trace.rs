//! What a traced machine writes down: every line, with names that another machine understands.
#![expect(unsafe_code, reason = "asking is unsafe; the machine of these tests has no memory")]

mod support;

use hypercall::memory::{Exchange, Extent, MemoryOp};
use hypercall::middleware::{FailNth, Refusal, TRACE_HEADER, Traced, trace_start, trace_sum};
use hypercall::{
    Assist, Call, DomId, Errno, FrameAccess as _, Hypercalls as _, Mfn, MmuExtOp, MmuUpdate, Pfn,
    Pte, PteFlags, Request,
};
use support::{Inside, list, mapping};
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

/// The published vectors of FNV-1a, 32 bits.
#[test]
fn the_checksum_of_a_trace_is_fnv_1a() {
    for (text, sum) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
        assert_eq!(trace_sum(trace_start(), text.as_bytes()), sum, "{text}");
    }
}

/// The lines of a trace without their checksums, which are right.
fn lines(trace: &str) -> Vec<&str> {
    let mut sum = trace_start();
    trace
        .lines()
        .map(|line| {
            let (text, written) = line.rsplit_once(" #").expect("a checksum");
            sum = trace_sum(sum, text.as_bytes());
            assert_eq!(written, format!("{sum:08x}"), "{line}");
            text
        })
        .collect()
}

/// An entry for a frame that M2P knows.
fn leaf() -> Pte {
    Pte::new(Mfn::new(0x30), PteFlags::KERNEL_RW)
}

#[test]
fn requests_name_frames_by_their_pages() {
    let machine = Traced::new(Inside::default(), String::new());
    let updates = [
        MmuUpdate::from_raw(0x20_008, leaf().raw()),
        MmuUpdate::from_raw(0x345_010, 0x77000),
        MmuUpdate::machphys(Mfn::new(0x21), Pfn::new(0x99)),
    ];
    let ops = [
        MmuExtOp::unpin(Mfn::new(0x22)),
        MmuExtOp::new_baseptr(Mfn::new(0x23)),
        MmuExtOp::new_user_baseptr(Some(Mfn::new(0x24))),
        MmuExtOp::new_user_baseptr(None),
        MmuExtOp::clear_page(Mfn::new(0x25)),
        MmuExtOp::copy_page(Mfn::new(0x26), Mfn::new(0x27)),
        MmuExtOp::invlpg_all(VirtAddr::new(0x5000)),
    ];
    let mut calls = [
        Call::new(Request::MmuUpdate(&updates, DomId::SELF)),
        Call::new(Request::MmuExt(&ops, DomId::SELF)),
        Call::new(Request::VaMapping(mapping())),
    ];
    // SAFETY: the machine inside does nothing.
    assert_eq!(unsafe { machine.issue(&mut calls) }, Ok(()));
    assert_eq!(
        lines(&machine.finish().expect("a string takes all")),
        [
            TRACE_HEADER,
            "issue 3",
            "mmu 7ff0 p10.8 p20|8000000000000063 m345.10 =77000 p11.1 =99",
            "ext 7ff0 4 p12 =0 5 p13 =0 f p14 =0 f =0 =0 10 p15 =0 11 p16 p17 b =5000 =0",
            "va 5000 p2|67 5",
            "-> ok",
            "-> ok",
            "-> ok",
            "end 8",
        ]
    );
}

#[test]
fn memory_ops_and_accesses_that_change_or_read_something_are_lines() {
    let machine = Traced::new(Inside::default(), String::new());
    let mut give = [Extent::from_mfn(Mfn::new(0x31))];
    let mut take = [Extent::from_pfn(Pfn::new(8))];
    let mut out = [Extent::from_mfn(Mfn::new(0x32)), Extent::from_mfn(Mfn::new(0x145))];
    let [mut more, mut new] = [[Extent::from_pfn(Pfn::new(0x32))]; 2];
    for (mut op, done) in [
        (MemoryOp::Exchange(Exchange { give: list(&mut give), take: list(&mut take) }), 1),
        (MemoryOp::Decrease(list(&mut out)), 2),
        (MemoryOp::Increase(list(&mut more)), 1),
        (MemoryOp::Populate(list(&mut new)), 1),
        // It changes nothing, and is no line.
        (MemoryOp::MaximumRamPage, 0),
    ] {
        // SAFETY: the machine inside does nothing.
        assert_eq!(unsafe { machine.memory_op(&mut op) }, Ok(done));
    }
    let zero = PageTableIndex::new(0);
    // SAFETY: as above.
    assert_eq!(unsafe { machine.write_entry(Pfn::new(7), zero, leaf()) }, Ok(()));
    // SAFETY: as above.
    assert_eq!(unsafe { machine.write_bytes(Pfn::new(7), 0x18, &[0x0a, 0xbc]) }, Ok(()));
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
    assert_eq!(machine.read_entry(Pfn::new(8), zero), Ok(Pte::ABSENT));
    assert!(machine.read_entry(Pfn::new(9), zero).is_err());
    assert_eq!(
        lines(&machine.finish().expect("a string takes all")),
        [
            TRACE_HEADER,
            "mem b 0 0 7ff0 p21 / 0 0 7ff0 =8",
            "-> ok 1",
            "mem 1 0 0 7ff0 p22 m145",
            "-> ok 2",
            "mem 0 0 0 7ff0 =32",
            "-> ok 1",
            "mem 6 0 0 7ff0 =32",
            "-> ok 1",
            "write 7 0 p20|8000000000000063",
            "bytes 7 18 0abc",
            "assist 20",
            "-> ok",
            "read 8 0 =0",
            "read 9 0 fault",
            "end 15",
        ]
    );
}

#[test]
fn what_changes_nothing_goes_through() {
    let machine = Traced::new(Inside::default(), String::new());
    assert_eq!(machine.machine_to_phys(Mfn::new(0x20)), Some(Pfn::new(0x10)));
    assert_eq!(machine.machine_to_phys(Mfn::new(0x200)), None);
    let mut byte = [0];
    assert_eq!(machine.read_bytes(Pfn::new(7), 1, &mut byte), Ok(()));
    assert_eq!((byte, machine.direct_map(Pfn::new(7)).is_err()), ([0x5a], true));
    assert_eq!(lines(&machine.finish().expect("a string takes all")), [TRACE_HEADER, "end 1"]);
}

#[test]
fn a_trace_tells_refusals() {
    for request in [0, 1] {
        let refusal = Refusal { request, errno: Errno::EBUSY, done: 1 };
        let machine = Traced::new(FailNth::new(Inside::default(), refusal), String::new());
        let mut calls = [Call::new(Request::MmuUpdate(&[MmuUpdate::EMPTY; 3], DomId::SELF))];
        // SAFETY: the machine inside does nothing.
        assert_eq!(unsafe { machine.issue(&mut calls) }, Ok(()));
        assert_eq!(machine.enable_assist(Assist::M2pStrict).is_err(), request == 1);
        let trace = machine.finish().expect("a string takes all");
        let words: Vec<_> =
            lines(&trace).into_iter().filter(|line| line.starts_with("->")).collect();
        let expected = [["-> 16 1", "-> ok"], ["-> ok", "-> 16 0"]];
        assert_eq!(words, expected[usize::from(request == 1)]);
    }
}

/// Takes some text, and no more.
struct Short(usize);

impl core::fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(core::fmt::Error)?;
        Ok(())
    }
}

#[test]
fn a_trace_that_does_not_fit_is_none_and_the_machine_goes_on() {
    for (room, fits) in [(21, false), (22, false), (1000, true)] {
        let machine = Traced::new(Inside::default(), Short(room));
        assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
        assert_eq!(machine.inner().take(), ["M2pStrict"]);
        assert_eq!(machine.finish().is_some(), fits, "{room}");
    }
}
