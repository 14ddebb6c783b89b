//! A dump as text and as a picture, of a map with every kind of run.

use expect_test::expect;
use hypercall::{DomId, Mfn, Pfn};

use super::*;
use crate::map::tests::{list, map};

fn words() -> Vec<u64> {
    let foreign = |mfn, owner| {
        let (owner, mfn) = (DomId(owner), Mfn::new(mfn));
        P2mEntry::Foreign { owner, mfn }.encode().expect("a frame")
    };
    let mut words: Vec<u64> = (0x100..0x140).collect();
    words.extend([0x200, 0x300]);
    words.extend([u64::MAX; 30]);
    words.extend([1 << 62; 20]);
    words.extend([foreign(7, 1), foreign(8, 1), foreign(9, 2)]);
    words
}

#[test]
fn a_dump_has_a_line_for_each_run() {
    let words = list(&words());
    let p2m = map(&words);
    let mut text = String::new();
    p2m.dump(&mut text).expect("a string takes anything");
    expect![[r#"
        pfn 00000..00040  ram  mfn 00100..00140
        pfn 00040..00041  ram  mfn 00200..00201
        pfn 00041..00042  ram  mfn 00300..00301
        pfn 00042..00060  absent
        pfn 00060..00074  identity
        pfn 00074..00076  foreign  mfn 00007..00009 of domain 1
        pfn 00076..00077  foreign  mfn 00009..0000a of domain 2
        119 pfns: 66 ram, 30 absent, 20 identity, 3 foreign
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_picture_has_a_stretch_for_each_kind() {
    let words = list(&words());
    let p2m = map(&words);
    let mut text = String::new();
    p2m.svg(&mut text).expect("a string takes anything");
    let attribute = |line: &str, name: &str| {
        let value =
            line.split(&format!(" {name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        value.expect("an attribute").to_owned()
    };
    let strip: Vec<String> = text
        .lines()
        .filter(|line| line.contains("height=\"40\""))
        .map(|line| ["x", "width", "fill"].map(|name| attribute(line, name)).join(" "))
        .collect();
    assert_eq!(
        strip,
        [
            "0.000 554.621 #4c9f70",
            "554.621 252.101 #dddddd",
            "806.722 168.067 #e0a030",
            "974.789 16.807 #b0413e",
            "991.596 8.404 #b0413e",
        ]
    );
    assert!(text.contains("<title>66 pfns from 00000</title>"));
    assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
}

#[test]
fn runs_of_a_part_stay_in_it() {
    let words = list(&words());
    let p2m = map(&words);
    let part = Pfns::new(Pfn::new(0x50), 0x18);
    let runs: Vec<_> = p2m.runs(part, Grain::Kind).map(|run| run.pfns).collect();
    assert_eq!(runs, [Pfns::new(Pfn::new(0x50), 16), Pfns::new(Pfn::new(0x60), 8)]);
    assert_eq!(p2m.runs(Pfns::new(Pfn::new(1 << 50), 5), Grain::Kind).count(), 0);
}
