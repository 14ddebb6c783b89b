//! The client against a xenstored that does right, and against ones that do not.

use arbtest::arbtest;

use super::server::{Event, FakeLife};
use super::{PATIENCE, Store, StoreError};
use crate::life::{Life as _, Nanoseconds};

fn store() -> (FakeLife, Store) {
    (FakeLife::default(), Store::default())
}

#[test]
fn values_are_written_and_read_and_absent_ones_are_none() {
    let (life, mut store) = store();
    assert_eq!(store.read(&&life, "data/x"), Ok(None));
    assert_eq!(store.write(&&life, "data/x", b"hello"), Ok(()));
    assert_eq!(store.read(&&life, "data/x"), Ok(Some(b"hello".to_vec())));
}

#[test]
fn a_value_that_is_longer_than_the_ring_goes_both_ways() {
    let (life, mut store) = store();
    let long = vec![b'x'; 4000];
    assert_eq!(store.write(&&life, "long", &long), Ok(()));
    assert_eq!(store.read(&&life, "long"), Ok(Some(long)));
    let longer = vec![b'x'; 4096];
    assert_eq!(store.write(&&life, "long", &longer), Err(StoreError::Request(4096 + 5)));
    assert_eq!(store.write(&&life, "long", b"short"), Ok(()), "nothing was left in the ring");
}

#[test]
fn each_watch_tells_once_at_once_and_once_for_all_that_happens_together() {
    let (life, mut store) = store();
    for path in ["control/shutdown", "memory/target"] {
        assert_eq!(store.watch(&&life, path), Ok(()));
    }
    assert_eq!(store.watch(&&life, "memory/target"), Err(StoreError::Refused("EEXIST".into())));
    life.put("memory/target", b"1");
    life.put("memory/target", b"2");
    let mut told = Vec::new();
    while let Some(path) = store.event(&&life).unwrap() {
        told.push(path);
    }
    assert_eq!(told, ["control/shutdown", "memory/target"]);
    life.put("memory/target", b"3");
    assert_eq!(store.event(&&life), Ok(Some("memory/target".into())));
}

#[test]
fn a_flood_of_events_is_bounded_and_does_not_bury_an_answer() {
    let (life, mut store) = store();
    store.watch(&&life, "data").unwrap();
    for number in 0..10_000 {
        life.put(&format!("data/{number}"), b"x");
    }
    assert_eq!(store.read(&&life, "data/77"), Ok(Some(b"x".to_vec())));
    let mut told = 0;
    while store.event(&&life).unwrap().is_some() {
        told += 1;
    }
    assert_eq!(told, super::EVENTS_MAX);
}

#[test]
fn taking_a_value_empties_it_and_a_collision_is_tried_again() {
    let (life, mut store) = store();
    life.put("control/shutdown", b"suspend");
    life.collisions.set(3);
    assert_eq!(store.take(&&life, "control/shutdown", b""), Ok(Some(b"suspend".to_vec())));
    assert_eq!(life.get("control/shutdown"), Some(Vec::new()));
    assert_eq!(store.take(&&life, "control/shutdown", b""), Ok(None));
    assert_eq!(store.take(&&life, "control/nothing", b""), Ok(None));
    assert_eq!(life.get("control/nothing"), None);
    life.collisions.set(1000);
    let given_up = store.take(&&life, "control/shutdown", b"x");
    assert_eq!(given_up, Err(StoreError::Refused("EAGAIN".into())));
}

#[test]
fn a_xenstored_that_is_silent_is_given_up_and_found_again() {
    let (life, mut store) = store();
    life.deaf.set(true);
    let before = (&life).now();
    assert_eq!(store.read(&&life, "x"), Err(StoreError::NoAnswer));
    assert!((&life).now() <= before + PATIENCE + PATIENCE);
    assert_eq!(store.read(&&life, "x"), Err(StoreError::Disconnected));
    life.deaf.set(false);
    life.put("x", b"y");
    store.reconnect(&&life);
    assert_eq!(store.read(&&life, "x"), Ok(Some(b"y".to_vec())));
}

#[test]
fn an_answer_that_takes_a_minute_is_waited_for() {
    let (life, mut store) = store();
    life.put("x", b"y");
    life.deaf.set(true);
    let idle = (0..60).map(|_| -> Event { Box::new(|_| {}) });
    let wakes: Event = Box::new(|life| life.deaf.set(false));
    life.events.replace(idle.chain([wakes]).collect());
    assert_eq!(store.read(&&life, "x"), Ok(Some(b"y".to_vec())));
    assert!((&life).now() >= Nanoseconds(60_000_000_000), "{:?}", (&life).now());
}

#[test]
fn an_answer_to_something_else_is_not_taken_for_ours() {
    let (life, mut store) = store();
    // Kind 2 (read), request 99, no transaction, one byte.
    let words = [2u32, 99, 0, 1].map(u32::to_le_bytes).concat();
    life.put_bytes(&[&words[..], b"!"].concat());
    life.put("x", b"right");
    assert_eq!(store.read(&&life, "x"), Ok(Some(b"right".to_vec())));
    let kind = [12u32, 2, 0, 0].map(u32::to_le_bytes).concat();
    life.put_bytes(&kind);
    assert_eq!(store.read(&&life, "x"), Err(StoreError::Unexpected(12)));
}

#[test]
fn a_message_that_is_too_long_ends_the_connection() {
    let (life, mut store) = store();
    life.put_bytes(&[2u32, 1, 0, 4097].map(u32::to_le_bytes).concat());
    assert_eq!(store.read(&&life, "x"), Err(StoreError::TooLong(4097)));
    assert_eq!(store.event(&&life), Err(StoreError::Disconnected));
}

/// Whatever is in the page, each call comes back in bounded time, and a new connection works once
/// the other side does.
#[test]
fn no_ring_makes_the_client_panic_or_wait_for_ever() {
    arbtest(|u| {
        let (life, mut store) = store();
        for _ in 0..u.int_in_range(0..=6)? {
            match u.int_in_range(0..=3)? {
                0 => life.set_counters(u.arbitrary()?),
                1 => {
                    let [a, b] = u.arbitrary::<[u16; 2]>()?.map(u32::from);
                    life.set_counters([a, a.wrapping_add(b % 2048), b, b.wrapping_add(a % 2048)]);
                }
                2 => life.put_bytes(u.arbitrary::<[u8; 40]>()?.as_slice()),
                _ => life.deaf.set(u.arbitrary()?),
            }
            let before = (&life).now();
            let _ = store.read(&&life, "x");
            let _ = store.event(&&life);
            let _ = store.take(&&life, "y", b"");
            assert!((&life).now() <= before + PATIENCE + PATIENCE, "it waits for ever");
        }
        life.forget();
        life.set_counters([0; 4]);
        life.deaf.set(false);
        life.put("x", b"1");
        store.reconnect(&&life);
        assert_eq!(store.read(&&life, "x"), Ok(Some(b"1".to_vec())));
        Ok(())
    });
}
