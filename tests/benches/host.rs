//! Instruction counts of the pure parts, under valgrind: `cargo xtask bench --host`. The list of a
//! guest of 64 MiB, 1 GiB, 64 GiB and 1 TiB; tables and batches in several sizes.
#![expect(missing_docs, unused_qualifications, reason = "in what the macros of gungraun make")]

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use gungraun::prelude::*;
use hypercall::{MmuUpdate, Pte};
use pv_tests::boot_map::{Numbers, memory};
use pv_tests::dma::{Ready, ready};
use pv_tests::frame_map::{List, identity, list};
use pv_tests::logs::log;
use pv_tests::tables::{table, updates};
use pv_tests::{boot_map, dma, frame_map, logs, tables};
use swiotlb::Bounce;

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_adopt(list: List) -> List {
    let _ = black_box(frame_map::adopt(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn slice_index_1000(list: List) -> List {
    let _ = black_box(frame_map::index(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_look_up_1000(list: List) -> List {
    let _ = black_box(frame_map::look_up(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_replace_2000(list: List) -> List {
    let _ = black_box(frame_map::replace(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 4194304], setup = identity)]
fn p2m_audit(list: List) -> List {
    let _ = black_box(frame_map::audit(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pages(args = [16384, 262144, 16777216, 268435456], setup = memory)]
fn boot_map_plan(memory: Numbers) -> u64 {
    black_box(boot_map::plan(black_box(&memory)).unwrap_or(0))
}

#[library_benchmark]
#[benches::pages(args = [16384, 262144, 16777216, 268435456], setup = memory)]
fn boot_map_plan_and_steps(memory: Numbers) -> u64 {
    black_box(boot_map::steps(black_box(&memory)).unwrap_or(0))
}

#[library_benchmark]
#[benches::mappings(args = [1, 1000], setup = ready)]
fn dma_map_and_unmap_as_it_is(ready: Ready) -> u64 {
    black_box(dma::maps(black_box(&ready), Bounce::IfNeeded))
}

#[library_benchmark]
#[benches::mappings(args = [1, 1000], setup = ready)]
fn dma_map_and_unmap_bounced(ready: Ready) -> u64 {
    black_box(dma::maps(black_box(&ready), Bounce::Always))
}

#[library_benchmark]
#[benches::bytes(args = [10000, 100000, 1000000], setup = log)]
fn explain_a_log(log: Vec<u8>) -> usize {
    black_box(logs::explain(black_box(&log)))
}

#[library_benchmark]
#[benches::updates(args = [1, 32, 512], setup = updates)]
fn batch_fill_and_invert(updates: Vec<(MmuUpdate, u64)>) -> usize {
    black_box(tables::fill_batch(black_box(&updates)))
}

#[library_benchmark]
#[benches::entries(args = [1, 32, 512], setup = table)]
fn table_decode(table: Vec<Pte>) -> usize {
    black_box(tables::decode(black_box(&table)))
}

#[library_benchmark]
#[benches::pages(args = [1, 32, 512])]
fn cost_choices(pages: u16) -> usize {
    black_box(tables::choose(black_box(pages)))
}

library_benchmark_group!(
    name = frame_map_group;
    benchmarks = p2m_adopt, slice_index_1000, p2m_look_up_1000, p2m_replace_2000, p2m_audit
);
library_benchmark_group!(
    name = boot;
    benchmarks = boot_map_plan, boot_map_plan_and_steps
);
library_benchmark_group!(
    name = devices;
    benchmarks = dma_map_and_unmap_as_it_is, dma_map_and_unmap_bounced
);
library_benchmark_group!(
    name = words;
    benchmarks = explain_a_log
);
library_benchmark_group!(
    name = table_group;
    benchmarks = batch_fill_and_invert, table_decode, cost_choices
);
main!(library_benchmark_groups = frame_map_group, boot, devices, words, table_group);
