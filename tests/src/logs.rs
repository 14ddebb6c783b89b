//! Lines of a log, explained.

use xen_explain::{Colour, Explainer};

/// Lines that a host writes between those of Xen that matter here.
const OTHERS: &str = "Apr  6 02:50:04 localhost kernel: [ 3107.388125] eth0: link becomes ready, \
                      1000 Mbps full duplex, flow control: none\n\
                      Apr  6 02:50:04 localhost systemd[1]: Started Session 17 of user root.\n\
                      (XEN) [ 3107.388125] CPU 3: no messages about memory in this line\n";

/// Returns the log of a host whose guest was refused a root again and again, of so many bytes.
#[must_use]
pub fn log(bytes: usize) -> Vec<u8> {
    let crash = include_str!("../../tools/xen-explain/tests/data/host-crash-pinning.log");
    let once = format!("{}{crash}", OTHERS.repeat(40));
    let mut log = once.repeat(bytes.div_ceil(once.len())).into_bytes();
    log.truncate(bytes);
    log
}

/// Reads it, and explains it in words. How long the words are.
#[must_use]
pub fn explain(log: &[u8]) -> usize {
    let mut explainer = Explainer::new();
    // Memory can always be read.
    let _ = explainer.read(log);
    explainer.finish().text(Colour::Never).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained() {
        assert_eq!(log(1000).len(), 1000);
        assert!(explain(&log(100_000)) > 100);
    }
}
