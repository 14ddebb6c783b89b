//! Pools that end and are made again, and memory that has other frames than it was gathered with.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{ARENA, Guest, Places, gather_on, grow};
use hypercall::{Frames, PAGE_SIZE, Pfn, Refused};
use swiotlb::direction::Bidirectional;
use swiotlb::{Area, Bounce, Device, Dma, DmaError, DmaMask, Pool, Segment};

const BOUNCE: Device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::ALL) };

/// Gives `count` pfns of the arena other frames, with nothing in them, as a restore gives every pfn
/// another one: none of them lie together. The pool that has them is not asked.
fn move_frames(guest: &Guest, first: u64, count: u64) {
    let mfns = || (0..count).map(|at| guest.p2m.mfn(Pfn::new(ARENA + first + at)).expect("memory"));
    let before: Vec<_> = mfns().collect();
    // SAFETY: the frames exist only in the model. The pool has them, as it would at a restore.
    let frames = unsafe { Frames::claim(Pfn::new(ARENA + first), count) };
    let moved = gather_on(guest, &guest.model, frames, 0, DmaMask::ALL).expect("exchanged");
    assert_eq!(moved.frames(), count);
    assert!(mfns().zip(before).all(|(now, before)| now != before), "each is another");
}

#[test]
fn a_pool_tells_devices_where_its_memory_is_now_and_not_where_it_was() {
    let (guest, places) = (Guest::new(), Places::new(2, 1));
    let pool = places.pool();
    grow(&guest, &pool, 512, 2);
    let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 };
    move_frames(&guest, 512, 128);

    // All that is there, a page or less at a time.
    for slot in 0..2 * Segment::SLOTS {
        let (frame, bytes) = (slot as u64 % 64, [slot.to_le_bytes()[0]; 9]);
        let place = swiotlb::GuestBytes { pfn: Pfn::new(ARENA + frame), offset: 7, len_bytes: 9 };
        guest.write(place, &bytes);
        let mapping = dma.map::<Bidirectional>(&BOUNCE, guest.buffer(frame, 7, 9)).expect("mapped");
        assert_eq!(guest.device_reads(mapping.bus(), 9), bytes, "slot {slot}");
        guest.device_writes(mapping.bus(), &[!bytes[0]; 9]);
        let all = dma.unmap(mapping).expect("unmapped");
        assert_eq!(guest.read(all.place()), [!bytes[0]; 9], "slot {slot}");
    }
    let pages: Vec<_> = (0..128)
        .map(|at| {
            let page = dma.coherent(1, DmaMask::ALL).expect("a page lies together");
            guest.device_writes(page.bus(), &[at; PAGE_SIZE]);
            page
        })
        .collect();
    for (at, page) in (0..).zip(pages) {
        let place = swiotlb::GuestBytes { pfn: page.pfn(), offset: 0, len_bytes: PAGE_SIZE };
        assert_eq!(guest.read(place), [at; PAGE_SIZE], "page {at}");
        dma.free_coherent(page).expect("given back");
    }

    // What would not lie together is not given.
    let mapped = dma.map::<Bidirectional>(&BOUNCE, guest.buffer(0, 0, 2 * PAGE_SIZE));
    let scattered = DmaError::Scattered { pfn: Pfn::new(ARENA + 512) };
    assert_eq!(mapped.expect_err("scattered").error, scattered);
    assert_eq!(dma.coherent(2, DmaMask::ALL).expect_err("scattered"), scattered);
    assert_eq!(pool.counters().slots_used, 0);

    // Gathered again, it is as good as new.
    let mut frames = Vec::new();
    pool.close(&mut |region| frames.push(region.into_frames())).expect("nothing is taken");
    let pool = places.pool();
    for frames in frames {
        let region = gather_on(&guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
        pool.grow(guest.p2m, region).expect("there are places");
    }
    let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 };
    let memory = dma.coherent(64, DmaMask::ALL).expect("it lies together");
    guest.device_writes(memory.bus(), &vec![0x55; Segment::BYTES]);
    let place = swiotlb::GuestBytes { pfn: memory.pfn(), offset: 0, len_bytes: Segment::BYTES };
    assert_eq!(guest.read(place), vec![0x55; Segment::BYTES]);
    dma.free_coherent(memory).expect("given back");
    guest.check();
}

#[test]
fn what_was_mapped_when_the_frames_moved_ends_in_the_slots_that_it_has() {
    let (guest, places) = (Guest::new(), Places::new(1, 1));
    let pool = places.pool();
    grow(&guest, &pool, 512, 1);
    let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 };
    let buffer = guest.buffer(0, 0, 100);
    let mapping = dma.map::<Bidirectional>(&BOUNCE, buffer).expect("mapped");
    let (old, memory) = (mapping.bus(), dma.coherent(1, DmaMask::ALL).expect("there is room"));
    move_frames(&guest, 512, 64);
    // What the toolstack brought along, and what somebody else has where the slots were.
    let slots = swiotlb::GuestBytes { pfn: Pfn::new(ARENA + 512), offset: 0, len_bytes: 100 };
    guest.write(slots, &[4; 100]);
    guest.device_writes(old, &[9; 100]);
    let buffer = dma.unmap(mapping).expect("unmapped");
    assert_eq!(guest.read(buffer.place()), [4; 100]);
    dma.free_coherent(memory).expect("given back");
    assert_eq!((pool.counters().slots_used, pool.counters().misuse), (0, 0));
    guest.check();
}

#[test]
fn a_region_that_does_not_lie_together_any_more_does_not_get_into_a_pool() {
    let (guest, places) = (Guest::new(), Places::new(2, 1));
    let pool = places.pool();
    let frames = guest.frames(512, 128);
    let region = gather_on(&guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
    move_frames(&guest, 512 + 64, 64);
    let Refused { value: rest, error } =
        pool.grow(guest.p2m, region).expect_err("the second run is scattered");
    assert_eq!(error, DmaError::Scattered { pfn: Pfn::new(ARENA + 576) });
    assert_eq!((pool.segments(), rest.start()), (1, Pfn::new(ARENA + 576)));
    guest.check();
}

/// What a pool over `areas` says when it is asked for a page, on a thread of its own; nothing if it
/// does not answer.
fn ask(segments: &'static [Segment], areas: &'static [Area], vcpu: usize) -> Option<bool> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let guest = Guest::new();
        let pool = Pool::new(segments, areas).expect("it has places");
        let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu };
        let nothing = dma.coherent(1, DmaMask::ALL).is_err();
        grow(&guest, &pool, 512, 1);
        // Wherever the segment went, each vCPU finds it.
        let found = dma.coherent(64, DmaMask::ALL).map(|pages| dma.free_coherent(pages).is_ok());
        let closed = pool.close(&mut |_| {}).is_ok();
        // Nobody listens if it took too long.
        let _ = send.send(nothing && found == Ok(true) && closed);
    });
    receive.recv_timeout(Duration::from_secs(60)).ok()
}

#[test]
fn a_search_ends_whatever_pool_had_the_areas_before_and_with_how_many() {
    for (before, after) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 2), (4, 3), (3, 5), (5, 3)] {
        let segments: &'static [Segment] = Vec::leak((0..4).map(|_| Segment::new()).collect());
        let areas: &'static [Area] = Vec::leak((0..5).map(|_| Area::new()).collect());
        let guest = Guest::new();
        let pool = Pool::new(segments, &areas[..before]).expect("it has places");
        grow(&guest, &pool, 512, 4);
        // Each vCPU takes segments until there are none: the hints end at the last ones.
        for vcpu in 0..before {
            let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu };
            let all: Vec<_> = (0..4).map_while(|_| dma.coherent(64, DmaMask::ALL).ok()).collect();
            assert_eq!(all.len(), 4);
            for pages in all {
                dma.free_coherent(pages).expect("given back");
            }
        }
        pool.close(&mut |_| {}).expect("nothing is taken");
        for vcpu in 0..after {
            let answer = ask(segments, &areas[..after], vcpu);
            assert_eq!(answer, Some(true), "{before} areas, then {after}, vCPU {vcpu}");
        }
    }
}
