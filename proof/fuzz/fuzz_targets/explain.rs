//! Any bytes as a log: every line is counted once, and what is shown moves no terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_explain::{Colour, Explainer};

fuzz_target!(|bytes: &[u8]| {
    let mut explainer = Explainer::new();
    if explainer.read(bytes).is_err() {
        return;
    }
    let explanation = explainer.finish();
    let lines = explanation.lines;
    assert_eq!(lines.total, lines.known + lines.guest + lines.unknown + lines.other);
    let text = explanation.text(Colour::Never);
    assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'));
});
