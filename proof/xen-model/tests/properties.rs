//! The model under arbitrary hypercalls: it answers, never panics, and its counts add up.

use arbtest::arbitrary::{Result, Unstructured};
use hypercall::Pfn;
use xen_explain::{Explainer, XenVersion};
use xen_model::{BootMapping, DomainConfig, Mode, Model, Release, Role};

const RELEASES: [Release; 6] =
    [Release::V4_4, Release::V4_6, Release::V4_9, Release::V4_14, Release::V4_17, Release::V4_20];
/// Numbers of hypercalls, good ones and one that is none.
const NUMBERS: [u64; 14] = [1, 1, 1, 2, 10, 12, 13, 14, 17, 20, 22, 26, 26, 99];

/// A word that is often a frame, an entry or an address of the guest's.
fn word(model: &Model, bytes: &mut Unstructured<'_>) -> Result<u64> {
    let guest = model.guest();
    let page = u64::from(bytes.arbitrary::<u8>()?) % 64;
    let mfn = guest.built_mfn(Pfn::new(page)).map_or(0, |mfn| mfn.raw());
    let low = u64::from(bytes.arbitrary::<u16>()?) & 0xfff;
    Ok(match bytes.arbitrary::<u8>()? % 8 {
        0 => bytes.arbitrary()?,
        1 => low & 0x1f,
        2 => mfn,
        3 => mfn << 12 | low & !7,
        4 => mfn << 12 | low,
        5 => 0x7ff0 + (low & 3),
        _ => 0xffff_ffff_8000_0000 + (page << 12) + (low & !7),
    })
}

/// Calls and stores made from `bytes`, on a small guest that may hurt itself.
fn check(bytes: &mut Unstructured<'_>) -> Result<()> {
    let release = *bytes.choose(&RELEASES)?;
    let role = *bytes.choose(&[Role::DomU, Role::Dom0])?;
    let guest = DomainConfig {
        kernel_pages: 8,
        boot_mapping: BootMapping::AllPages,
        vcpus: 2,
        ..DomainConfig::new(role, 64)
    };
    let model = Model::builder().guest(guest).release(release).build().expect("a machine");
    model.preempt_every(bytes.int_in_range(0..=5)?);
    let guest = model.guest();
    while !bytes.is_empty() {
        if bytes.arbitrary()? {
            let (va, value) = (word(&model, bytes)?, word(&model, bytes)?);
            let length = usize::from(bytes.arbitrary::<u8>()? % 17);
            let _ =
                guest.store(va, &u128::from(value).to_le_bytes()[..length.min(16)], Mode::Kernel);
            let _ = guest.compare_exchange(va, 0, u128::from(value), length);
        } else {
            let number = *bytes.choose(&NUMBERS)?;
            let mut arguments = [0; 5];
            for argument in &mut arguments {
                *argument = word(&model, bytes)?;
            }
            // Long lists cost time and show nothing new.
            if matches!(number, 1 | 13 | 26) {
                arguments[1] &= 0x8000_001f;
            }
            let _ = guest.hypercall(number, arguments);
        }
    }
    if let Err(error) = model.audit() {
        panic!("{error}");
    }
    check_lines(&model.take_log(), release);
    Ok(())
}

/// Every line is one that `xen-explain` knows; of the releases that this project supports, in a
/// wording that the release has. (Of older ones the model has the old wordings of types, owners and
/// validation only.)
fn check_lines(log: &[String], release: Release) {
    let [.., minor] = release.version().to_be_bytes();
    let version = XenVersion::new(4, minor);
    let mut explainer = Explainer::new();
    for line in log {
        explainer.line(line.as_bytes());
    }
    let explanation = explainer.finish();
    assert_eq!(explanation.lines.known, explanation.lines.total, "{:?}", explanation.unknown);
    if release >= Release::V4_14 {
        let fits = |line: &&String| {
            let mut explainer = Explainer::new();
            explainer.line(line.as_bytes());
            explainer.finish().xen.is_some_and(|span| span.contains(version))
        };
        let all_fit = explanation.xen.is_some_and(|span| span.contains(version));
        let wrong: Vec<_> =
            if all_fit { Vec::new() } else { log.iter().filter(|line| !fits(line)).collect() };
        assert!(all_fit, "Xen {version} does not print {wrong:#?}");
    }
}

#[test]
fn arbitrary_calls_are_answered_and_counts_add_up() {
    arbtest::arbtest(check);
}
