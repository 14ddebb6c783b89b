//! `xen-explain`: the crash logs that this project began with, what else stands in logs, and what
//! does not belong there.

use std::fs;
use std::path::{Path, PathBuf};

use arbtest::arbtest;
use expect_test::expect_file;
use xen_explain::{Colour, Explainer, Explanation, Lines};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// What the logs `names`, read one after the other, mean.
fn explain_files(names: &[&str]) -> Explanation {
    let mut explainer = Explainer::new();
    for name in names {
        let file = fs::File::open(data(name)).expect("test data");
        explainer.read(file).expect("read");
    }
    explainer.finish()
}

fn explain(log: &[u8]) -> Explanation {
    let mut explainer = Explainer::new();
    explainer.read(log).expect("memory can be read");
    explainer.finish()
}

/// The counts of `lines` add up.
fn adds_up(lines: Lines) -> bool {
    lines.total == lines.known + lines.guest + lines.unknown + lines.other
}

#[test]
fn the_host_crash_is_explained() {
    let explanation = explain_files(&["host-crash-pinning.log", "multicall-warning.log"]);
    let problem = &explanation.problems[0];
    // What the frame was and was to become.
    assert_eq!(
        problem.what,
        ["frame mfn 8df82b (pfn 1a99dd) was mapped writable once while it was to become an L1 \
             table"]
    );
    // Pinning failed for that reason.
    let pin = "pinning mfn 8df82b as an L1 table (MMUEXT_PIN_L1_TABLE)";
    assert_eq!(problem.stopped[0].request, pin);
    // So did two tables above it, entry by entry.
    let chain = &problem.stopped[1];
    let tables: Vec<_> = chain.tables.iter().map(|table| (table.level, table.slot)).collect();
    assert_eq!(tables, [(Some(2), Some(390)), (Some(3), Some(295))]);
    assert_eq!(chain.lost, 40);
    // The lines about linear page tables follow from it.
    assert_eq!(problem.follow_ups, 3);
    assert!(explanation.problems.iter().all(|problem| problem.kind != "linear-writable"));
    // The guest noticed while it forked, and the frame comes again.
    let incident = &explanation.guest[problem.guest[0].incident];
    assert!(incident.multicall && incident.doing.is_some_and(|doing| doing.contains("forked")));
    assert_eq!(explanation.recurring[0].mfn, "8df82b");
    assert_eq!((problem.times, explanation.neighbours[0].count), (3, 2));
    // Such words are those of Xen 4.0 to 4.9; the wording and the prefix leave 4.5 and 4.6.
    assert_eq!(explanation.xen.map(|xen| xen.to_string()), Some("4.5 to 4.6".to_owned()));
    expect_file![data("host-crash-pinning.txt")].assert_eq(&explanation.text(Colour::Never));
}

#[test]
fn the_early_crash_is_explained_and_the_early_buffer_comes_first() {
    let explanation = explain_files(&["early-pagetable-crash.log"]);
    let problem = &explanation.problems[0];
    assert_eq!(problem.causes[0].name, "EarlyBuffer");
    assert_eq!(problem.ended.len(), 3, "the trap, and two lines about the end of the domain");
    expect_file![data("early-pagetable-crash.txt")].assert_eq(&explanation.text(Colour::Never));
}

#[test]
fn a_warning_without_the_lines_of_xen_says_what_is_missing() {
    let explanation = explain_files(&["multicall-warning.log"]);
    assert!(explanation.problems.is_empty());
    let text = explanation.text(Colour::Never);
    assert!(text.contains("it was pinning the child's new address space"), "{text}");
    assert!(text.contains("The lines of Xen that say why are not in this log"), "{text}");
    expect_file![data("multicall-warning.txt")].assert_eq(&text);
}

/// A root that could not be pinned, as a debug Xen 4.17 says it: an entry four tables down would
/// map the root itself writable.
fn chain_of(domain: u32, mfn: &str) -> Vec<String> {
    let found = format!("mfn {mfn} (pfn 00abc)");
    let mut lines = vec![
        format!("Bad type (saw 8000000000000001 != exp e000000000000000) for {found}"),
        "Could not get page type PGT_writable_page".to_owned(),
        format!(
            "Error getting {found} from L1 entry 00100000{mfn}067 for l1e_owner d{domain}, \
             pg_owner d{domain}"
        ),
    ];
    for (level, slot) in [(1_u64, 7), (2, 5), (3, 5), (4, 5)] {
        let table = match level {
            4 => found.clone(),
            _ => format!("mfn 0100{level} (pfn 0010{level})"),
        };
        let kind = level << 61;
        lines.push(format!("Failure -16 in promote_l{level}_table: slot {slot:#x}"));
        lines.push(format!(
            "Error while validating {table} for type {kind:016x}: caf=8000000000000003 \
             taf={:016x}",
            kind | 1
        ));
    }
    lines.push(format!("Error -16 while pinning mfn {mfn}"));
    lines.iter().map(|line| format!("(XEN) arch/x86/mm.c:1:d{domain}v0 {line}")).collect()
}

#[test]
fn a_whole_chain_is_one_refusal_with_its_address_and_errno() {
    let explanation = explain(chain_of(1, "12345").join("\n").as_bytes());
    assert_eq!(explanation.problems.len(), 1);
    let problem = &explanation.problems[0];
    assert!(problem.what[0].contains("was an L4 table, in use once"), "{:?}", problem.what);
    let stopped = &problem.stopped[0];
    assert_eq!((stopped.errno, stopped.tables.len()), (Some(16), 4));
    let start = 5_u64 << 39 | 5 << 30 | 5 << 21 | 7 << 12;
    let address = stopped.address.as_ref().expect("all four slots are known");
    assert!(address.starts_with(&format!("from {start:#018x}")), "{address}");
    assert_eq!(stopped.request, "pinning mfn 12345 as an L4 table (MMUEXT_PIN_L4_TABLE)");
}

#[test]
fn chains_of_several_guests_are_told_apart_however_they_are_mixed() {
    let (one, other) = (chain_of(1, "12345"), chain_of(2, "54321"));
    arbtest(|bytes| {
        let mut rest = [one.iter(), other.iter()];
        let mut log = String::new();
        while rest.iter().any(|lines| lines.len() > 0) {
            let at = usize::from(bytes.arbitrary::<bool>().unwrap_or_default());
            let Some(line) = rest[at].next().or_else(|| rest[1 - at].next()) else { break };
            log += &format!("[2026-01-02 03:04:05] {line}\nsomebody else's words\n");
        }
        let explanation = explain(log.as_bytes());
        let frames: Vec<_> = explanation.problems.iter().map(|it| it.mfn.clone()).collect();
        assert_eq!(frames.len(), 2, "{frames:?}");
        for problem in &explanation.problems {
            assert_eq!((problem.stopped.len(), problem.stopped[0].tables.len()), (1, 4));
        }
        Ok(())
    })
    .budget_ms(300);
}

#[test]
fn a_chain_with_any_line_lost_still_names_the_frame_and_never_another() {
    let whole = chain_of(1, "12345");
    for lost in 1..whole.len() {
        let mut lines = whole.clone();
        lines.remove(lost);
        let explanation = explain(lines.join("\n").as_bytes());
        let first = &explanation.problems[0];
        assert_eq!(first.mfn.as_deref(), Some("12345"), "without line {lost}");
        assert!(first.what[0].contains("was an L4 table"), "without line {lost}");
        assert!(adds_up(explanation.lines));
    }
}

#[test]
fn words_that_fit_two_layouts_are_ambiguous_until_a_line_says_which_xen() {
    // An L2 wanted as L4, or from 4.10 on an L1 wanted as L2.
    let line = "(XEN) Bad type (saw 2400000000000001 != exp 4000000000000000) for mfn 1 (pfn 1)\n";
    let readings = |log: &str| explain(log.as_bytes()).problems[0].what.len();
    assert_eq!(readings(line), 2);
    assert_eq!(readings(&format!("(XEN) Xen version 4.11.4 (Debian)\n{line}")), 1);
    assert_eq!(readings(&format!("{line}(XEN) Failure -22 in promote_l2_table: slot 0x1\n")), 1);
    let text = explain(line.as_bytes()).text(Colour::Never);
    assert!(text.contains("or: frame mfn 00001") && text.contains("ambiguous"), "{text}");
}

#[test]
fn unknown_lines_of_xen_are_counted_and_the_first_are_shown() {
    let log = "(XEN) never seen \x1b[2J before\nfoo\n(XEN) mm.c:1:d0 Mfn 12 not pinned\n";
    let explanation = explain(log.as_bytes());
    let Lines { total, known, unknown, other, .. } = explanation.lines;
    assert_eq!((total, known, unknown, other), (3, 1, 1, 1));
    assert!(!explanation.text(Colour::Never).contains('\x1b'));
    assert!(explanation.unknown[0].text.contains("never seen"));
}

#[test]
fn nothing_is_explained_as_nothing() {
    for log in [&b""[..], b"\n", b"\n\n\n", b"\0", b"hello"] {
        let explanation = explain(log);
        assert!(explanation.problems.is_empty() && adds_up(explanation.lines), "{log:?}");
        assert!(explanation.text(Colour::Never).contains("Nothing was refused"));
    }
    assert_eq!(explain(b"").lines.total, 0);
    assert_eq!(explain(b"no end of line").lines.total, 1);
}

/// What journals, consoles and terminals make of a line.
type Dress = fn(&str) -> String;

#[test]
fn the_same_refusal_in_every_dress_is_the_same_story() {
    let naked = chain_of(1, "12345");
    let story = explain(naked.join("\n").as_bytes()).problems[0].what.clone();
    let dresses: [(&str, Dress); 12] = [
        ("a serial line", |line| format!("{line}\r")),
        ("coloured", |line| format!("\x1b[1;31m{line}\x1b[0m")),
        ("a date by Xen", |line| line.replace("(XEN)", "(XEN) [2026-01-02 03:04:05]")),
        ("milliseconds", |line| line.replace("(XEN)", "(XEN) [2026-01-02 03:04:05.678]")),
        ("uptime", |line| line.replace("(XEN)", "(XEN) [   12.345678]")),
        ("raw ticks", |line| line.replace("(XEN)", "(XEN) [00000000deadbeef]")),
        ("a journal", |line| format!("Jan 02 03:04:05 host xl[812]: {line}")),
        ("a precise journal", |line| format!("Jan 02 03:04:05.678901 host xl[812]: {line}")),
        ("an ISO journal", |line| format!("2026-01-02T03:04:05+0100 host xl[812]: {line}")),
        ("a journal in JSON", |line| format!("{{\"_PID\":\"812\",\"MESSAGE\":\"{line}\"}}")),
        ("dmesg -T", |line| format!("[Fri Jan  2 03:04:05 2026] {line}")),
        ("a console server", |line| format!("<2026-01-02 03:04:05> ttyS0: {line}\t")),
    ];
    for (name, dress) in dresses {
        let log: Vec<String> = naked.iter().map(|line| dress(line)).collect();
        let explanation = explain(log.join("\n").as_bytes());
        assert_eq!(explanation.lines.known, naked.len() as u64, "{name}: {}", log[0]);
        assert_eq!(explanation.problems.len(), 1, "{name}");
        let problem = &explanation.problems[0];
        assert_eq!((&problem.what, problem.stopped[0].tables.len()), (&story, 4), "{name}");
        assert_eq!(problem.speakers.iter().map(|it| it.domain).collect::<Vec<_>>(), [Some(1)]);
    }
}

#[test]
fn a_line_of_a_megabyte_is_one_line_and_what_follows_is_read() {
    let mut log = vec![b'x'; 1 << 20];
    log.extend(b"\n(XEN) mm.c:1:d0 Mfn 12 not pinned\n");
    let explanation = explain(&log);
    let lines = explanation.lines;
    assert_eq!((lines.total, lines.cut, lines.known), (2, 1, 1));
    // A line that fills the block to the byte, and one byte more or less.
    for length in [(1 << 18) - 1, 1 << 18, (1 << 18) + 1] {
        let mut log = vec![b'x'; length];
        log.extend(b"\n(XEN) mm.c:1:d0 Mfn 12 not pinned\nend\n");
        let lines = explain(&log).lines;
        assert_eq!((lines.total, lines.known), (3, 1), "{length}");
    }
}

#[test]
fn garbage_between_and_within_known_lines_breaks_nothing() {
    let known: Vec<String> = chain_of(1, "12345");
    arbtest(|bytes| {
        let mut log = Vec::new();
        while !bytes.is_empty() {
            match bytes.arbitrary::<u8>()? % 4 {
                0 => log.extend(bytes.choose(&known)?.as_bytes()),
                1 => {
                    let line = bytes.choose(&known)?.as_bytes();
                    let cut = bytes.int_in_range(0..=line.len())?;
                    log.extend(&line[cut..]);
                }
                2 => log.push(b'\n'),
                _ => log.extend(bytes.arbitrary::<[u8; 9]>()?),
            }
        }
        let explanation = explain(&log);
        let lines = log.split(|byte| *byte == b'\n');
        let last_is_empty = log.is_empty() || log.ends_with(b"\n");
        assert_eq!(explanation.lines.total, (lines.count() - usize::from(last_is_empty)) as u64);
        assert!(adds_up(explanation.lines), "{:?}", explanation.lines);
        let text = explanation.text(Colour::Never);
        assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text}");
        Ok(())
    })
    .budget_ms(500);
}

#[test]
fn refused_flags_have_names_and_the_reason() {
    let nx = "NO_EXECUTE, which this CPU does not have";
    let devices = "which only L1 entries of guests with devices may have";
    for (line, words, causes) in [
        ("Bad L1 flags 800000", format!("(flags 0x800000: {nx})"), vec!["NoExecuteMissing"]),
        ("Bad L2 flags 8000000000000000", format!(": {nx})"), vec!["NoExecuteMissing"]),
        (
            "Bad L1 flags 0x18",
            format!("(flags 0x18: PWT, {devices}; PCD, {devices})"),
            vec!["FlagsRefused"],
        ),
        (
            "Bad L4 flags 800100",
            format!("(flags 0x800100: {nx}; GLOBAL, which only L1 entries may have)"),
            vec!["NoExecuteMissing", "FlagsRefused"],
        ),
        ("Bad L3 flags 4", "(flags 0x4)".to_owned(), vec!["FlagsRefused"]),
    ] {
        let explanation = explain(format!("(XEN) arch/x86/mm.c:1:d1v0 {line}\n").as_bytes());
        let problem = &explanation.problems[0];
        assert!(problem.what[0].ends_with(&words), "{line}: {:?}", problem.what);
        let names: Vec<_> = problem.causes.iter().map(|cause| cause.name).collect();
        assert_eq!(names, causes, "{line}");
    }
}

#[test]
fn the_flags_of_a_refused_entry_have_names() {
    let line = "Error getting mfn 12345 (pfn 00abc) from L1 entry 8010000012345063 for l1e_owner \
                d1, pg_owner d1";
    let explanation = explain(format!("(XEN) arch/x86/mm.c:1:d1v0 {line}\n").as_bytes());
    let what = &explanation.problems[0].what[0];
    let words = "(entry 8010000012345063: PRESENT, WRITABLE, ACCESSED, DIRTY, GUEST_KERNEL, \
                 NO_EXECUTE)";
    assert!(what.ends_with(words), "{what}");
}
