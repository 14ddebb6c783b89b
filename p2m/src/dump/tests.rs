use expect_test::expect;
use hypercall::{DomId, Mfn, Pfn};

use super::*;
use crate::map::tests::list;

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
    let p2m = P2m::adopt(&words).expect("not empty");
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
    let mut owners = [(DomId(0), 0); 4];
    let owners = p2m.count_foreign(&mut owners);
    assert_eq!(owners, Ok(&[(DomId(1), 2), (DomId(2), 1)][..]));
    assert_eq!(p2m.count_foreign(&mut [(DomId(0), 0)]), Err(1), "one has no place");
}

#[test]
fn a_picture_has_a_stretch_for_each_kind() {
    let words = list(&words());
    let p2m = P2m::adopt(&words).expect("not empty");
    let mut text = String::new();
    p2m.svg(&mut text).expect("a string takes anything");
    let strip: Vec<&str> = text.lines().filter(|line| line.contains("height=\"40\"")).collect();
    expect![[r##"
        [
            "<rect x=\"0.000\" y=\"10\" width=\"554.621\" height=\"40\" fill=\"#4c9f70\"><title>66 pfns from 00000</title></rect>",
            "<rect x=\"554.621\" y=\"10\" width=\"252.101\" height=\"40\" fill=\"#dddddd\"><title>30 pfns from 00042</title></rect>",
            "<rect x=\"806.722\" y=\"10\" width=\"168.067\" height=\"40\" fill=\"#e0a030\"><title>20 pfns from 00060</title></rect>",
            "<rect x=\"974.789\" y=\"10\" width=\"16.807\" height=\"40\" fill=\"#b0413e\"><title>2 pfns from 00074</title></rect>",
            "<rect x=\"991.596\" y=\"10\" width=\"8.404\" height=\"40\" fill=\"#b0413e\"><title>1 pfns from 00076</title></rect>",
        ]
    "##]]
    .assert_debug_eq(&strip);
    assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
}

#[test]
fn runs_of_a_part_stay_in_it() {
    let words = list(&words());
    let p2m = P2m::adopt(&words).expect("not empty");
    let part = Pfns::new(Pfn::new(0x50), 0x18);
    let runs: Vec<_> = p2m.runs(part, Grain::Kind).map(|run| run.pfns).collect();
    assert_eq!(runs, [Pfns::new(Pfn::new(0x50), 16), Pfns::new(Pfn::new(0x60), 8)]);
    assert_eq!(p2m.runs(Pfns::new(Pfn::new(1 << 50), 5), Grain::Kind).count(), 0);
}
