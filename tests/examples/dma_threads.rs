//! What two threads map in the time of one, in an area each and in one area:
//! `cargo run --release -p pv-tests --example dma_threads`. For people: it is counted in time.

use std::hint::black_box;

use pv_tests::dma::{Nothing, Ready, maps, ready};
use swiotlb::{Bounce, Dma};

fn main() {
    // Cargo's tests run this as well: then a few are enough to see that it works.
    let words: Vec<String> = std::env::args().skip(1).collect();
    let times = words.first().and_then(|word| word.parse().ok()).unwrap_or(10_000);
    let Ready { dma, times } = ready(times);
    threads(dma, times);
}

/// What two threads do in the time of one: in an area each, and in one area. It is counted in time
/// on a CPU, so that others on this machine do not count.
fn threads(dma: Dma<'static, 'static, Nothing>, times: u64) {
    // Mappings in a second on a CPU, summed over the threads.
    let rate = |vcpus: &[usize]| -> f64 {
        std::thread::scope(|scope| {
            let run = |vcpu| scope.spawn(move || one_thread(Dma { vcpu, ..dma }, times));
            let threads: Vec<_> = vcpus.iter().copied().map(run).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        })
    };
    let one = rate(&[0]);
    let ratio = |two: f64| two / one;
    println!("one thread: {:.1} million mappings in a second", one / 1e6);
    println!("two threads, an area each: {:.2} times as many", ratio(rate(&[0, 1])));
    println!("two threads in one area:   {:.2} times as many", ratio(rate(&[0, 2])));
}

/// Mappings in a second that this thread was on a CPU.
fn one_thread(dma: Dma<'static, 'static, Nothing>, times: u64) -> f64 {
    let before = on_cpu();
    black_box(maps(&Ready { dma, times }, Bounce::Always));
    let microseconds = u32::try_from(((on_cpu() - before) / 1000).max(1)).unwrap_or(u32::MAX);
    f64::from(u32::try_from(times).unwrap_or(u32::MAX)) * 1e6 / f64::from(microseconds)
}

/// Nanoseconds that this thread was on a CPU (Linux).
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
