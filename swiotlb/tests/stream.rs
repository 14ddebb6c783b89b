//! Streaming mappings on the model: what the device sees, what comes back, what is never shown.
#![expect(unsafe_code, reason = "ends mappings of buffers that exist only in the model")]

mod common;

use common::{ARENA, Guest, Places, gather_on, grow, with_pool};
use hypercall::middleware::Counting;
use hypercall::{PAGE_SIZE, Pfn, Refused};
use swiotlb::direction::{Bidirectional, FromDevice, ToDevice};
use swiotlb::{Bounce, Device, Dma, DmaError, DmaMapping, DmaMask, GuestBytes, Segment};
use xen_model::Model;

/// Bounces everything, so that a mapping's slots are looked at.
const BOUNCE: Device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::ALL) };

fn place(frame: u64, offset: usize, len_bytes: usize) -> GuestBytes {
    GuestBytes { pfn: Pfn::new(ARENA + frame), offset, len_bytes }
}

#[test]
fn a_buffer_that_lies_right_is_given_as_it_is() {
    with_pool(|guest, dma| {
        let frames = guest.frames(0, 64);
        let region = gather_on(guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
        let counting = Counting::new(&guest.model);
        let dma = Dma { guest: guest.on(&counting), pool: dma.pool, vcpu: 0 };
        let device = Device::new(DmaMask::ALL);
        let buffer = guest.buffer(0, 100, 10_000);
        let mapping = dma.map::<Bidirectional>(&device, buffer).expect("mapped");
        assert!(!mapping.is_bounced());
        let mfn = region.mfn(dma.guest.p2m(), 0).expect("memory");
        assert_eq!(mapping.bus(), swiotlb::BusAddr::new(mfn, 100));
        assert_eq!(dma.pool.counters().direct_now(), 1);
        dma.unmap(mapping).expect("unmapped");
        assert_eq!(counting.counts().hypercalls, 0, "no hypercall on the data path");
    });
}

#[test]
fn scattered_memory_is_bounced_and_so_is_memory_out_of_reach() {
    with_pool(|guest, dma| {
        let device = Device::new(DmaMask::ALL);
        let one = dma.map::<ToDevice>(&device, guest.buffer(0, 0, PAGE_SIZE)).expect("mapped");
        assert!(!one.is_bounced(), "one frame is always contiguous");
        let two = dma.map::<ToDevice>(&device, guest.buffer(1, 0, 2 * PAGE_SIZE)).expect("mapped");
        assert!(two.is_bounced());
        let far = Device::new(DmaMask::bits(13));
        let Refused { value: buffer, error } =
            dma.map::<ToDevice>(&far, guest.buffer(3, 0, 8)).expect_err("far");
        assert_eq!(error, DmaError::OutOfReach { mask: DmaMask::bits(13) });
        assert_eq!(buffer.place().pfn, Pfn::new(ARENA + 3));
        dma.unmap(one).expect("unmapped");
        dma.unmap(two).expect("unmapped");
        assert_eq!(dma.pool.counters().out_of_reach, 1);
    });
}

#[test]
fn bytes_around_a_mapping_are_zeroes_to_the_device_and_stale_ones_never_come_back() {
    with_pool(|guest, dma| {
        let device = Device { same_bits: 4095, ..BOUNCE };
        // Somebody else's secret lies in the slots first.
        guest.write(place(0, 0, 8192), &[0xaa; 8192]);
        let secret = dma.map::<ToDevice>(&device, guest.buffer(0, 0, 8192)).expect("mapped");
        let start = secret.bus();
        assert_eq!(guest.device_reads(start, 8192), [0xaa; 8192]);
        dma.unmap(secret).expect("unmapped");

        guest.write(place(4, 0, 4096), &[0x11; 4096]);
        let mapping = dma.map::<FromDevice>(&device, guest.buffer(4, 100, 50)).expect("mapped");
        assert_eq!(mapping.bus().raw() & 4095, 100, "the low bits are kept");
        let around = guest.device_reads(start, Segment::SLOT_BYTES);
        assert_eq!(around[..100], [0; 100]);
        assert_eq!(around[100..150], [0x11; 50], "what the buffer held, as if it were direct");
        assert_eq!(around[150..], [0; Segment::SLOT_BYTES - 150]);
        // The device writes less than it was given, and more than it was given.
        guest.device_writes(mapping.bus(), &[0x22; 20]);
        guest.device_writes(swiotlb::BusAddr::from_raw(start.raw() + 150), &[0x33; 99]);
        dma.unmap(mapping).expect("unmapped");
        let mut expected = [0x11; 4096];
        expected[100..120].fill(0x22);
        assert_eq!(guest.read(place(4, 0, 4096)), expected);
    });
}

#[test]
fn what_only_the_device_reads_is_not_copied_back() {
    with_pool(|guest, dma| {
        guest.write(place(0, 0, 100), &[1; 100]);
        let mapping = dma.map::<ToDevice>(&BOUNCE, guest.buffer(0, 0, 100)).expect("mapped");
        guest.device_writes(mapping.bus(), &[9; 100]);
        dma.unmap(mapping).expect("unmapped");
        assert_eq!(guest.read(place(0, 0, 100)), [1; 100]);
        let mapping = dma.map::<Bidirectional>(&BOUNCE, guest.buffer(0, 0, 100)).expect("mapped");
        guest.device_writes(mapping.bus(), &[9; 100]);
        dma.cancel(mapping).expect("cancelled");
        assert_eq!(guest.read(place(0, 0, 100)), [1; 100], "as if nothing had been transferred");
    });
}

#[test]
fn parts_of_a_mapping_are_shown_and_fetched_by_offset_and_length() {
    with_pool(|guest, dma| {
        guest.write(place(0, 4000, 200), &[1; 200]);
        let mut mapping =
            dma.map::<Bidirectional>(&BOUNCE, guest.buffer(0, 4000, 200)).expect("mapped");
        guest.write(place(0, 4000, 200), &[2; 200]);
        dma.sync_for_device(&mapping, 90..110).expect("shown");
        let seen = guest.device_reads(mapping.bus(), 200);
        assert_eq!((seen[89], seen[90], seen[109], seen[110]), (1, 2, 2, 1));
        guest.device_writes(mapping.bus(), &[3; 200]);
        dma.sync_for_cpu(&mut mapping, 199..200).expect("fetched");
        let has = guest.read(place(0, 4000, 200));
        assert_eq!((has[198], has[199]), (2, 3));
        for part in [200..201, 0..201, 199..usize::MAX] {
            let outside = dma.sync_for_cpu(&mut mapping, part).expect_err("outside");
            assert!(matches!(outside, DmaError::OutsideMapping { .. }), "{outside}");
        }
        dma.unmap(mapping).expect("unmapped");
        assert_eq!(guest.read(place(0, 4000, 200)), [3; 200]);
    });
}

#[test]
fn what_can_never_be_served_is_told_apart_from_what_is_only_full_now() {
    with_pool(|guest, dma| {
        let too_large = guest.buffer(0, 0, Segment::BYTES + 1);
        let error = dma.map::<ToDevice>(&BOUNCE, too_large).expect_err("too large").error;
        let max_bytes = Segment::BYTES;
        assert_eq!(error, DmaError::TooLarge { len_bytes: max_bytes + 1, head_bytes: 0 });
        // With its low bits kept it does not fit either.
        let aligned = Device { same_bits: 4095, ..BOUNCE };
        let error = dma
            .map::<ToDevice>(&aligned, guest.buffer(0, 8, Segment::BYTES))
            .expect_err("head")
            .error;
        assert!(matches!(error, DmaError::TooLarge { head_bytes: 8, .. }), "{error}");
        // Nor does a length with which the sum passes the end of all numbers.
        let endless = guest.buffer(0, 8, usize::MAX);
        let error = dma.map::<ToDevice>(&aligned, endless).expect_err("endless").error;
        assert_eq!(error, DmaError::TooLarge { len_bytes: usize::MAX, head_bytes: 8 });
        let error = dma.map::<ToDevice>(&BOUNCE, guest.buffer(0, 0, 0)).expect_err("empty").error;
        assert_eq!(error, DmaError::Empty);

        let whole = |frame| guest.buffer(frame, 0, Segment::BYTES);
        let one = dma.map::<ToDevice>(&BOUNCE, whole(0)).expect("the first segment");
        let two = dma.map::<ToDevice>(&BOUNCE, whole(64)).expect("the second segment");
        let Refused { value: buffer, error } =
            dma.map::<ToDevice>(&BOUNCE, whole(128)).expect_err("full");
        assert_eq!(error, DmaError::PoolFull { slots: 128, free: 0 });
        dma.unmap(one).expect("unmapped");
        let three = dma.map::<ToDevice>(&BOUNCE, buffer).expect("there is room again");
        dma.unmap(two).expect("unmapped");
        dma.unmap(three).expect("unmapped");
        let counters = dma.pool.counters();
        assert_eq!((counters.too_large, counters.full, counters.slots_used_most), (3, 1, 256));
    });
}

#[test]
fn every_dishonest_free_is_detected_when_it_happens() {
    with_pool(|guest, dma| {
        let at = place(0, 10, 500);
        let again = || guest.buffer(0, 10, 500);
        let mapping = dma.map::<FromDevice>(&BOUNCE, again()).expect("mapped");
        let bus = mapping.bus();
        // SAFETY: the buffer that was mapped.
        let free = |bus, place| unsafe { dma.unmap_at::<FromDevice>(bus, place) };
        let other = place(0, 10, 501);
        assert!(matches!(free(bus, other), Err(DmaError::TakenOtherwise { .. })), "another length");
        // SAFETY: as above.
        let read = unsafe { dma.unmap_at::<ToDevice>(bus, at) };
        assert!(matches!(read, Err(DmaError::TakenOtherwise { .. })), "another direction");
        // SAFETY: wrong on purpose, about memory that exists only in the model.
        let coherent = unsafe { dma.free_coherent_at(bus, 1) };
        assert!(matches!(coherent, Err(DmaError::TakenOtherwise { .. })), "another use");
        let inside = swiotlb::BusAddr::from_raw(bus.raw() + 1);
        assert_eq!(free(inside, at), Err(DmaError::NotTaken { address: inside }));
        assert_eq!(free(bus, at), Ok(()));
        assert_eq!(free(bus, at), Err(DmaError::NotTaken { address: bus }), "a double free");

        // The token of a mapping that was ended by its address is of no use.
        let Refused { value: mapping, error } = dma.unmap(mapping).expect_err("ended already");
        assert_eq!(error, DmaError::NotTaken { address: bus });
        let next = dma.map::<FromDevice>(&BOUNCE, guest.buffer(1, 10, 500)).expect("mapped");
        assert_eq!(next.bus(), bus, "the slot is somebody else's now");
        let mut mapping = mapping;
        let used = dma.sync_for_cpu(&mut mapping, 0..1).expect_err("use after unmap");
        assert_eq!(used, DmaError::Stale { address: bus });
        let error = dma.unmap(mapping).expect_err("stale").error;
        assert_eq!(error, DmaError::Stale { address: bus });

        // Another pool does not take it.
        let places = Places::new(1, 1);
        let stranger = places.pool();
        let wrong = Dma { pool: &stranger, ..dma };
        let Refused { value: next, error } = wrong.unmap(next).expect_err("the wrong pool");
        assert_eq!(error, DmaError::NotOfThisPool { address: bus });
        // SAFETY: as above.
        let by_address = unsafe { wrong.unmap_at::<FromDevice>(bus, at) };
        assert_eq!(by_address, Err(DmaError::NotOfThisPool { address: bus }));
        dma.unmap(next).expect("the right pool");
        assert_eq!(dma.pool.counters().misuse, 8);

        dishonest_ends_of_direct_mappings(guest, dma);
    });
}

/// Buffers that are given as they are have no slot to remember them.
fn dishonest_ends_of_direct_mappings(guest: &Guest, dma: Dma<'_, '_, Model>) {
    let misuse = dma.pool.counters().misuse;
    let device = Device::new(DmaMask::ALL);
    let (at, behind) = (place(0, 10, 500), place(1, 0, 64));
    // Another one is mapped all the time, so that the count of them never is 0.
    let other = guest.buffer(1, 0, 64);
    let other = dma.map_at::<FromDevice>(&device, other).expect("mapped");
    let bus = dma.map_at::<FromDevice>(&device, guest.buffer(0, 10, 500)).expect("mapped");
    assert_eq!(dma.pool.counters().slots_used, 0);
    // SAFETY: the buffers that were mapped, and no Rust reference to their bytes.
    let free = |bus, place| unsafe { dma.unmap_at::<FromDevice>(bus, place) };
    // SAFETY: as above.
    let read = unsafe { dma.unmap_at::<ToDevice>(bus, at) };
    assert!(matches!(read, Err(DmaError::TakenOtherwise { .. })), "another direction");
    let shorter = free(bus, place(0, 10, 499));
    assert!(matches!(shorter, Err(DmaError::TakenOtherwise { .. })), "another length");
    assert_eq!(free(bus, behind), Err(DmaError::NotOfThisPool { address: bus }), "another buffer");
    // Another vCPU may end it.
    let elsewhere = Dma { vcpu: 5, ..dma };
    // SAFETY: as above.
    assert_eq!(unsafe { elsewhere.unmap_at::<FromDevice>(bus, at) }, Ok(()));
    assert_eq!(free(bus, at), Err(DmaError::NotTaken { address: bus }), "a double free");
    let places = Places::new(1, 1);
    let stranger = places.pool();
    let wrong = Dma { pool: &stranger, ..dma };
    // SAFETY: as above.
    let by_address = unsafe { wrong.unmap_at::<FromDevice>(other, behind) };
    assert_eq!(by_address, Err(DmaError::NotTaken { address: other }), "another pool");
    assert_eq!(free(other, behind), Ok(()));
    // The same by the token.
    let mapping = dma.map::<ToDevice>(&device, guest.buffer(0, 10, 500)).expect("mapped");
    let Refused { value: mapping, error } = wrong.unmap(mapping).expect_err("the wrong pool");
    assert_eq!(error, DmaError::NotOfThisPool { address: bus });
    // SAFETY: as above.
    let by_address = unsafe { dma.unmap_at::<ToDevice>(bus, at) };
    assert_eq!(by_address, Err(DmaError::NotTaken { address: bus }), "it has a token");
    dma.unmap(mapping).expect("the right pool");
    assert_eq!(dma.pool.counters().misuse - misuse, 5);
    assert_eq!((stranger.counters().misuse, dma.pool.counters().direct_now()), (2, 0));
}

#[test]
fn a_buffer_without_a_record_is_bounced() {
    with_pool(|guest, dma| {
        let device = Device::new(DmaMask::ALL);
        let map = |at: usize| dma.map_at::<ToDevice>(&device, guest.buffer(0, at, 1));
        let first: Vec<_> = (0..64).map(|at| map(at).expect("mapped")).collect();
        assert_eq!(dma.pool.counters().direct_now(), 64);
        let bounced = map(64).expect("there are slots");
        assert_eq!((dma.pool.counters().direct_now(), dma.pool.counters().slots_used), (64, 1));
        for (at, bus) in first.into_iter().enumerate().chain([(64, bounced)]) {
            // SAFETY: the buffers that were mapped.
            unsafe { dma.unmap_at::<ToDevice>(bus, place(0, at, 1)) }.expect("mapped until now");
        }
        let counters = dma.pool.counters();
        assert_eq!((counters.direct_now(), counters.slots_used, counters.misuse), (0, 0, 0));
    });
}

#[test]
fn a_pool_that_ends_with_something_taken_says_so_and_lives() {
    let (guest, places) = (Guest::new(), Places::new(2, 1));
    let pool = places.pool();
    grow(&guest, &pool, 512, 2);
    let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 };
    let bounced = dma.map::<ToDevice>(&BOUNCE, guest.buffer(0, 0, 5000)).expect("mapped");
    let device = Device::new(DmaMask::ALL);
    let direct = dma.map::<ToDevice>(&device, guest.buffer(9, 0, 8)).expect("mapped");
    let mut came_back = 0;
    let Refused { value: pool, error } =
        pool.close(&mut |_| came_back += 1).expect_err("something is taken");
    assert_eq!(error, DmaError::StillTaken { slots: 3, direct: 1 });
    assert_eq!(came_back, 1, "the segment that nobody uses has left");
    let dma = Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 };
    dma.unmap(bounced).expect("unmapped");
    dma.unmap(direct).expect("unmapped");
    pool.close(&mut |_| came_back += 1).expect("nothing is taken");
    assert_eq!(came_back, 2);
}

#[test]
fn a_pool_grows_to_its_limit_and_shrinks() {
    let (guest, places) = (Guest::new(), Places::new(2, 1));
    let pool = places.pool();
    let frames = guest.frames(512, 192);
    let region = gather_on(&guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
    let Refused { value: rest, error } =
        pool.grow(guest.p2m, region).expect_err("there are two places");
    assert_eq!((error, rest.runs()), (DmaError::AtLimit { segments: 2 }, 1));
    assert_eq!((pool.segments(), pool.free()), (2, 256));
    let out = pool.shrink().expect("nothing is taken");
    assert_eq!((pool.segments(), out.runs(), out.order()), (1, 1, 6));
    pool.grow(guest.p2m, rest).expect("there is a place again");
    let short = gather_on(&guest, &guest.model, guest.frames(0, 32), 5, DmaMask::ALL);
    let error = pool.grow(guest.p2m, short.expect("made")).expect_err("too short").error;
    assert_eq!(error, DmaError::RunTooShort { order: 5 });
    assert_eq!(out.start(), Pfn::new(ARENA + 576));
}

#[test]
fn coherent_memory_is_whole_aligned_zeroed_and_reused() {
    with_pool(|guest, dma| {
        for pages in [1, 2, 3, 5, 16, 33, 64] {
            let memory = dma.coherent(pages, DmaMask::ALL).expect("there is room");
            let aligned = (pages.next_power_of_two() * PAGE_SIZE) as u64;
            assert!(memory.bus().raw().is_multiple_of(aligned), "{pages} pages");
            let all = place(memory.pfn().raw() - ARENA, 0, pages * PAGE_SIZE);
            assert_eq!(guest.read(all), vec![0; pages * PAGE_SIZE]);
            guest.device_writes(memory.bus(), &vec![0x55; pages * PAGE_SIZE]);
            assert_eq!(guest.read(all), vec![0x55; pages * PAGE_SIZE], "the same memory");
            dma.free_coherent(memory).expect("given back");
        }
        let error = dma.coherent(65, DmaMask::ALL).expect_err("more than a segment");
        assert!(matches!(error, DmaError::TooLarge { .. }), "{error}");
        let bus = dma.coherent(2, DmaMask::ALL).expect("there is room").into_bus();
        // SAFETY: the pages exist only in the model; nobody uses them.
        let free = |pages| unsafe { dma.free_coherent_at(bus, pages) };
        let wrong = free(1);
        assert!(matches!(wrong, Err(DmaError::TakenOtherwise { .. })), "another size");
        assert_eq!(free(2), Ok(()));
        assert_eq!(free(2), Err(DmaError::NotTaken { address: bus }));
    });
}

/// What a reference pool knows of a mapping.
struct Known {
    mapping: DmaMapping<Bidirectional>,
    frame: u64,
    offset: usize,
    bytes: Vec<u8>,
}

#[test]
fn property_random_mappings_agree_with_a_reference_pool() {
    arbtest::arbtest(|u| {
        with_pool(|guest, dma| {
            let mut known: Vec<Known> = Vec::new();
            let mut free: Vec<u64> = (0..8).collect();
            for _ in 0..u.int_in_range(1..=24).unwrap_or(1) {
                let draw = |u: &mut arbtest::arbitrary::Unstructured<'_>, max: usize| {
                    u.int_in_range(0..=max).unwrap_or(0)
                };
                if draw(u, 2) > 0 && !free.is_empty() {
                    let frame = free.swap_remove(draw(u, free.len() - 1));
                    let (offset, len) = (draw(u, 4095), 1 + draw(u, 3 * PAGE_SIZE));
                    let bytes: Vec<u8> =
                        (0..len).map(|at| (at as u64 ^ frame).to_le_bytes()[0]).collect();
                    guest.write(place(frame * 8, offset, len), &bytes);
                    let same_bits = [0, 2047, 4095][draw(u, 2)];
                    let device = Device { same_bits, ..BOUNCE };
                    let mapped =
                        dma.map::<Bidirectional>(&device, guest.buffer(frame * 8, offset, len));
                    let Ok(mapping) = mapped else { continue };
                    assert_eq!((mapping.bus().raw() ^ offset as u64) & same_bits as u64, 0);
                    assert_eq!(guest.device_reads(mapping.bus(), len), bytes);
                    known.push(Known { mapping, frame, offset, bytes });
                } else if !known.is_empty() {
                    let at = draw(u, known.len() - 1);
                    let Known { mapping, frame, offset, mut bytes } = known.swap_remove(at);
                    bytes.reverse();
                    guest.device_writes(mapping.bus(), &bytes);
                    dma.unmap(mapping).expect("unmapped");
                    assert_eq!(guest.read(place(frame * 8, offset, bytes.len())), bytes);
                    free.push(frame);
                }
                // No two mappings share a byte on the bus.
                let mut ranges: Vec<(u64, u64)> = known
                    .iter()
                    .map(|known| (known.mapping.bus().raw(), known.bytes.len() as u64))
                    .collect();
                ranges.sort_unstable();
                let apart = ranges.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0);
                assert!(apart, "{ranges:x?}");
                let slots = |known: &Known| {
                    let head = known.mapping.bus().raw() % Segment::SLOT_BYTES as u64;
                    (head + known.bytes.len() as u64).div_ceil(Segment::SLOT_BYTES as u64)
                };
                let at_least: u64 = known.iter().map(slots).sum();
                assert!(dma.pool.counters().slots_used >= at_least);
            }
            for Known { mapping, .. } in known {
                dma.unmap(mapping).expect("unmapped");
            }
        });
        Ok(())
    });
}
