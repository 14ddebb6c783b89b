//! The whole guest on the model, under a toolstack that says what the test wants.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use hypercall::shared_info::ArchSharedInfo;
use hypercall::{Frames, GuestVa, Pfn};

use crate::host::run_under;
use crate::life::{Life, Return, SuspendError, Way};
use crate::program::{Platform, Ports};
use crate::store::server::{Event, FakeLife};

#[derive(Default)]
struct FakePlatform(FakeLife);

impl Platform for FakePlatform {
    fn shared_info(&self) -> Result<&ArchSharedInfo, String> {
        Err("ask the guest's life".into())
    }

    fn words(&self, _: GuestVa) -> Option<NonNull<AtomicU64>> {
        None
    }

    fn wait(&self) {}

    fn pfn_at(&self, _: usize) -> Option<Pfn> {
        None
    }

    fn ports(&self) -> Result<&dyn Ports, String> {
        Err("no program needs them here".into())
    }

    fn extend_heap(&self, frames: Frames) -> Result<(), Frames> {
        Err(frames)
    }

    fn shrink_heap(&self) -> Option<Frames> {
        None
    }

    unsafe fn direct_map_reaches(&self, _: u64) {}

    fn life(&self) -> Result<Box<dyn Life + '_>, String> {
        Ok(Box::new(&self.0))
    }
}

/// Somebody writes a value while the guest sleeps.
fn write(path: &'static str, value: &'static [u8]) -> Event {
    Box::new(move |life| life.put(path, value))
}

fn live(platform: &FakePlatform, events: Vec<Event>) -> (Result<String, String>, String) {
    platform.0.events.replace(events);
    run_under(platform, &["guest"])
}

#[test]
fn each_way_to_end_is_acknowledged_and_taken() {
    for (word, way) in [
        (&b"poweroff"[..], Way::Poweroff),
        (b"halt", Way::Poweroff),
        (b"reboot", Way::Reboot),
        (b"crash", Way::Crash),
    ] {
        let platform = FakePlatform::default();
        let event: Event = Box::new(move |life| life.put("control/shutdown", word));
        let (verdict, _) = live(&platform, vec![event]);
        assert!(verdict.is_ok(), "{verdict:?}");
        assert_eq!(platform.0.ended.get(), Some(way));
        assert_eq!(platform.0.get("control/shutdown"), Some(Vec::new()), "acknowledged");
    }
}

#[test]
fn a_suspend_is_survived_however_it_ends() {
    let platform = FakePlatform::default();
    let refused = SuspendError::NotSuspended("EPERM".into());
    let returns = vec![Ok(Return::Cancelled), Ok(Return::Restored), Err(refused)];
    platform.0.returns.replace(returns);
    let mut events: Vec<Event> = (0..3).map(|_| write("control/shutdown", b"suspend")).collect();
    events.push(write("data/ask", b"1"));
    events.push(write("control/shutdown", b"poweroff"));
    let (verdict, text) = live(&platform, events);
    assert!(verdict.is_ok(), "{verdict:?}\n{text}");
    assert_eq!(platform.0.suspends.get(), 3);
    let answer = String::from_utf8(platform.0.get("data/answer").expect("an answer")).unwrap();
    assert!(answer.starts_with("1 ok ") && answer.ends_with(" suspends=2"), "{answer}");
    for line in ["suspended in vain", "was restored", "not suspended: EPERM"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_second_vcpu_works_beside_before_a_suspend_and_behind_it() {
    let platform = FakePlatform::default();
    platform.0.returns.replace(vec![Ok(Return::Restored)]);
    let ask = |number| write("data/ask", number);
    let suspend = write("control/shutdown", b"suspend");
    let events = vec![ask(b"1"), suspend, ask(b"2"), write("control/shutdown", b"poweroff")];
    platform.0.events.replace(events);
    let (verdict, text) = run_under(&platform, &["--vcpus", "2", "guest"]);
    assert!(verdict.is_ok(), "{verdict:?}\n{text}");
    let beside = |number: &str| -> u64 {
        let answer = text.lines().find(|line| line.starts_with(&format!("PVMMU-ANSWER {number}")));
        let (_, rest) = answer.and_then(|line| line.split_once(" beside=")).expect("an answer");
        rest.split(' ').next().and_then(|digits| digits.parse().ok()).expect("a number")
    };
    assert!(0 < beside("1") && beside("1") < beside("2"), "{text}");
}

#[test]
fn a_guest_that_cannot_reach_xens_page_any_more_says_so_and_ends() {
    let platform = FakePlatform::default();
    platform.0.returns.replace(vec![Err(SuspendError::Lost("EINVAL".into()))]);
    let (verdict, _) = live(&platform, vec![write("control/shutdown", b"suspend")]);
    assert!(verdict.expect_err("it cannot go on").contains("EINVAL"));
}

#[test]
fn whatever_stands_in_xenstore_the_guest_lives() {
    let platform = FakePlatform::default();
    let garbage: [&'static [u8]; 7] =
        [b"", b"-1", b"12x", b"99999999999999999999999", b"\xff\xfe", b"\0", b"0x7"];
    let mut events = Vec::new();
    for value in garbage {
        for path in ["memory/target", "control/shutdown", "control/sysrq", "data/ask"] {
            // Orders would end it; what is no order must not.
            events.push(write(path, value));
        }
    }
    events.push(write("data/ask", b"last"));
    events.push(write("control/shutdown", b"poweroff"));
    let (verdict, text) = live(&platform, events);
    assert!(verdict.is_ok(), "{verdict:?}\n{text}");
    assert!(text.contains("PVMMU-ANSWER last ok "), "{text}");
    assert!(text.contains("control/shutdown says \"12x\""), "{text}");
}

#[test]
fn a_target_that_is_absent_or_huge_or_never_the_same_is_survived_and_the_last_one_reached() {
    let platform = FakePlatform::default();
    let target = |kib: u64| -> Event {
        Box::new(move |life| life.put("memory/target", kib.to_string().as_bytes()))
    };
    let mut events: Vec<Event> = vec![target(14_000)];
    events.push(Box::new(|life| life.remove("memory/target")));
    events.push(write("data/ask", b"absent"));
    events.push(target(40_000_000_000_000));
    events.push(write("data/ask", b"huge"));
    events.extend((0..200).map(|turn| target(16_384 - turn % 7 * 400)));
    events.push(target(12_288));
    events.push(write("data/ask", b"last"));
    events.push(write("control/shutdown", b"poweroff"));
    let (verdict, text) = live(&platform, events);
    assert!(verdict.is_ok(), "{verdict:?}\n{text}");
    for (asked, pages) in [("absent", 3500), ("huge", 4096), ("last", 3072)] {
        assert!(text.contains(&format!("PVMMU-ANSWER {asked} ok pages={pages} ")), "{text}");
    }
    assert!(text.contains("memory/target: the target is empty"), "{text}");
    assert!(text.contains("not 10000000000000:"), "{text}");
}

#[test]
fn keys_are_answered() {
    let platform = FakePlatform::default();
    let events = [&b"m"[..], b"h", b"b"]
        .map(|key| -> Event { Box::new(move |life: &FakeLife| life.put("control/sysrq", key)) });
    let (verdict, text) = live(&platform, events.into());
    assert!(verdict.is_ok(), "{verdict:?}");
    assert!(text.contains("sysrq m: pages=4096") && text.contains("sysrq: b reboot"), "{text}");
    assert_eq!(platform.0.ended.get(), Some(Way::Reboot));
    assert_eq!(platform.0.get("control/sysrq"), Some(vec![0]), "acknowledged");
}
