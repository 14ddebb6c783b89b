//! Instruction counts of the pure parts, under valgrind: `cargo xtask bench --host`. The list of a
//! guest of 64 MiB, 1 GiB, 64 GiB and 1 TiB; tables and batches in several sizes.
#![expect(missing_docs, unused_qualifications, reason = "in what the macros of gungraun make")]

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use gungraun::prelude::*;
use hypercall::{MmuUpdate, Pte};
use pv_tests::{List, list, table, updates};

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_adopt(list: List) -> List {
    let _ = black_box(pv_tests::adopt(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_look_up_1000(list: List) -> List {
    let _ = black_box(pv_tests::look_up(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::pfns(args = [16384, 262144, 16777216, 268435456], setup = list)]
fn p2m_replace_2000(list: List) -> List {
    let _ = black_box(pv_tests::replace(black_box::<&[AtomicU64]>(&list)));
    list
}

#[library_benchmark]
#[benches::updates(args = [1, 32, 512], setup = updates)]
fn batch_fill_and_invert(updates: Vec<(MmuUpdate, u64)>) -> usize {
    black_box(pv_tests::fill_batch(black_box(&updates)))
}

#[library_benchmark]
#[benches::entries(args = [1, 32, 512], setup = table)]
fn table_decode(table: Vec<Pte>) -> usize {
    black_box(pv_tests::decode(black_box(&table)))
}

#[library_benchmark]
#[benches::pages(args = [1, 32, 512])]
fn cost_choices(pages: u16) -> usize {
    black_box(pv_tests::choose(black_box(pages)))
}

library_benchmark_group!(
    name = frame_map;
    benchmarks = p2m_adopt, p2m_look_up_1000, p2m_replace_2000
);
library_benchmark_group!(
    name = tables;
    benchmarks = batch_fill_and_invert, table_decode, cost_choices
);
main!(library_benchmark_groups = frame_map, tables);
