//! How fast `xen-explain` reads: `cargo bench -p xen-explain`. Wall-clock, for people; nothing is
//! judged by it.

use std::hint::black_box;
use std::time::Instant;

use xen_explain::{Colour, Explainer};

/// Bytes of each log.
const SIZE: usize = 100 << 20;

/// The lines of `text` again and again.
fn repeated(text: &str) -> Vec<u8> {
    let mut log = text.repeat(SIZE.div_ceil(text.len())).into_bytes();
    log.truncate(SIZE);
    log
}

fn main() {
    let crash = include_str!("../tests/data/host-crash-pinning.log");
    let noise = "Apr  6 02:50:04 localhost kernel: [ 3107.388125] eth0: link becomes ready, 1000 \
                 Mbps full duplex, flow control: none\n\
                 Apr  6 02:50:04 localhost systemd[1]: Started Session 17 of user root.\n\
                 (XEN) [ 3107.388125] CPU 3: no messages about memory in this line\n";
    let mixed = format!("{}{crash}", noise.repeat(40));
    // `cargo test --benches` calls this too: then one block is enough to see that it works.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    for (name, text) in [
        ("refusals only", crash),
        ("a busy host's log", &mixed),
        ("nothing of Xen's memory", noise),
    ] {
        let log = if is_bench { repeated(text) } else { text.as_bytes().to_vec() };
        let started = Instant::now();
        let mut explainer = Explainer::new();
        explainer.read(&log[..]).expect("memory can be read");
        let explanation = explainer.finish();
        black_box(explanation.text(Colour::Never));
        let seconds = started.elapsed().as_secs_f64();
        let (bytes, lines) = (log.len() as f64 / 1e6, explanation.lines.total);
        println!("{name:24} {:>6.0} MB/s, {bytes:.0} MB, {lines} lines", bytes / seconds);
    }
}
