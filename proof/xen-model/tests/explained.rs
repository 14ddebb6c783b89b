//! What the model prints is what `xen-explain` reads: two accounts of Xen's lines and words, each
//! written without the other.

use std::fs;
use std::path::Path;

use hypercall::explain::Use;
use xen_explain::{Era, Explainer};
use xen_model::{Layout, PageType, TypeInfo};

/// The texts that the model writes, with something plausible for each value.
fn texts_of_the_model() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).expect("sources") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).expect("text").replace("\\\n", " ");
        let says = source.split("self.say").skip(1).chain(source.split("let text = ").skip(1));
        for said in says {
            let Some((_, literal)) = said.split_once("format_args!(") else { continue };
            let Some(literal) = literal.trim_start().strip_prefix('"') else { continue };
            let literal = literal.split('"').next().unwrap_or_default();
            texts.push(literal.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    texts.sort();
    texts.dedup();
    texts
}

/// A text with something plausible for each value.
fn filled(text: &str) -> String {
    let mut line = String::new();
    let mut rest = text;
    while let Some((plain, hole)) = rest.split_once('{') {
        let (name, behind) = hole.split_once('}').expect("a hole has an end");
        line += plain;
        line += match name.split(':').next() {
            Some("subject" | "what") if behind.starts_with(" size") => "write",
            Some("subject" | "what") => "mfn",
            Some("level") if plain == "Bad " => "L1",
            // What the model says behind this is in another text.
            Some("text") => "could not get_page_from_l1e()",
            _ => "1",
        };
        rest = behind;
    }
    line + rest
}

#[test]
fn every_text_that_the_model_can_print_is_known() {
    let texts = texts_of_the_model();
    assert!(texts.len() > 50, "{} texts in the sources", texts.len());
    for text in texts {
        let line = format!("(XEN) arch/x86/mm.c:0:d1v0 {}", filled(&text));
        let mut explainer = Explainer::new();
        explainer.line(line.as_bytes());
        assert_eq!(explainer.finish().lines.known, 1, "not known: {line}");
    }
}

#[test]
fn the_model_and_the_decoder_agree_on_both_of_the_models_layouts() {
    for (layout, era) in [(Layout::Legacy4bit, Era::FourBits), (Layout::Modern3bit, Era::ThreeBits)]
    {
        for kind in PageType::ALL.into_iter().filter(|kind| *kind != PageType::None) {
            let info = TypeInfo::validated(kind, 3);
            let word = era.in_use(info.word(layout)).expect("in use");
            assert_eq!(word.count, 3);
            let flags = info.flags.iter_names().map(|(name, _)| name);
            assert!(word.flags.iter_names().map(|(name, _)| name).eq(flags), "{word}");
            assert_eq!(era.bare(kind.word(layout)), Some(word.used));
            let level = match word.used {
                Use::Table(level) => Some(level),
                _ => None,
            };
            assert_eq!(level, kind.level());
        }
    }
}
