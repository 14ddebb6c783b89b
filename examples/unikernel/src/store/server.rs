//! A xenstored and a clock for tests: it answers what is in the ring whenever it is told of it, and
//! does wrong on request.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hypercall::shared_info::ArchSharedInfo;

use super::message::{Header, Message, encode, kind};
use super::ring::{RING_BYTES, StoreRing};
use crate::life::{Away, Life, Nanoseconds, Return, SuspendError, Way};

/// What a sleep without an event takes.
const TICK: u64 = 1_000_000_000;

/// Something that happens to the guest while it sleeps.
pub(crate) type Event = Box<dyn FnMut(&FakeLife)>;

/// The other side of a guest, all of it.
#[derive(Default)]
pub(crate) struct FakeLife {
    ring: StoreRing,
    shared_info: ArchSharedInfo,
    now: Cell<u64>,
    values: RefCell<BTreeMap<String, Vec<u8>>>,
    /// What was there when the transaction began.
    before: RefCell<BTreeMap<String, Vec<u8>>>,
    watches: RefCell<Vec<String>>,
    /// Requests half read, and answers half written.
    incoming: RefCell<Vec<u8>>,
    outgoing: RefCell<Vec<u8>>,
    /// Transactions that are still to be refused as collided.
    pub(crate) collisions: Cell<u32>,
    /// Whether anyone reads the ring.
    pub(crate) deaf: Cell<bool>,
    /// What happens in each sleep, first one first.
    pub(crate) events: RefCell<Vec<Event>>,
    /// What comes of each suspend, first one first.
    pub(crate) returns: RefCell<Vec<Result<Return, SuspendError>>>,
    pub(crate) suspends: Cell<u32>,
    pub(crate) ended: Cell<Option<Way>>,
}

impl FakeLife {
    /// Someone else writes a value.
    pub(crate) fn put(&self, path: &str, value: &[u8]) {
        self.values.borrow_mut().insert(path.into(), value.into());
        let watched = self.watches.borrow().iter().any(|watch| path.starts_with(watch.as_str()));
        if watched {
            self.tell(path);
        }
    }

    /// Someone else removes a value.
    pub(crate) fn remove(&self, path: &str) {
        self.values.borrow_mut().remove(path);
        self.tell(path);
    }

    /// What is there.
    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.values.borrow().get(path).cloned()
    }

    /// Puts bytes into the ring as they are, whatever they are.
    pub(crate) fn put_bytes(&self, bytes: &[u8]) {
        self.outgoing.borrow_mut().extend_from_slice(bytes);
        self.flush();
    }

    /// Sets the counters of both rings.
    pub(crate) fn set_counters(&self, [a, b, c, d]: [u32; 4]) {
        self.ring.request_cons.store(a, Ordering::SeqCst);
        self.ring.request_prod.store(b, Ordering::SeqCst);
        self.ring.response_cons.store(c, Ordering::SeqCst);
        self.ring.response_prod.store(d, Ordering::SeqCst);
    }

    /// Everything but the guest forgets the guest.
    pub(crate) fn forget(&self) {
        self.watches.borrow_mut().clear();
        self.incoming.borrow_mut().clear();
        self.outgoing.borrow_mut().clear();
    }

    fn tell(&self, path: &str) {
        let header = Header { kind: kind::WATCH_EVENT, request: 0, transaction: 0 };
        let parts = [path.as_bytes(), b"\0", path.as_bytes(), b"\0"];
        self.put_bytes(&encode(header, &parts).expect("a short message"));
    }

    /// Reads requests and answers them.
    fn serve(&self) {
        if self.deaf.get() {
            return;
        }
        let (cons, prod) = (&self.ring.request_cons, &self.ring.request_prod);
        while cons.load(Ordering::SeqCst) != prod.load(Ordering::SeqCst) {
            let at = cons.fetch_add(1, Ordering::SeqCst);
            let byte = self.ring.requests[at as usize % RING_BYTES].load(Ordering::SeqCst);
            self.incoming.borrow_mut().push(byte);
            if let Some(request) = self.whole_request() {
                self.answer(&request);
            }
        }
        self.flush();
    }

    fn whole_request(&self) -> Option<Message> {
        let mut assembler = super::message::Assembler::default();
        assembler.add(&self.incoming.borrow());
        let message = assembler.take()?;
        self.incoming.borrow_mut().clear();
        Some(message)
    }

    fn answer(&self, request: &Message) {
        let payload = String::from_utf8(request.payload.clone()).expect("tests write text");
        let mut parts = payload.splitn(2, '\0');
        let (path, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut event = None;
        let answer: Result<Vec<u8>, &str> = match request.header.kind {
            kind::READ => self.get(path).ok_or("ENOENT"),
            kind::WRITE => {
                self.values.borrow_mut().insert(path.into(), rest.as_bytes().into());
                Ok(b"OK\0".to_vec())
            }
            kind::WATCH if self.watches.borrow().iter().any(|watch| watch == path) => Err("EEXIST"),
            kind::WATCH => {
                self.watches.borrow_mut().push(path.into());
                event = Some(path);
                Ok(b"OK\0".to_vec())
            }
            kind::TRANSACTION_START => {
                self.before.replace(self.values.borrow().clone());
                Ok(b"7\0".to_vec())
            }
            kind::TRANSACTION_END if self.collisions.get() > 0 => {
                self.collisions.set(self.collisions.get() - 1);
                self.values.replace(self.before.take());
                Err("EAGAIN")
            }
            kind::TRANSACTION_END => Ok(b"OK\0".to_vec()),
            _ => Err("ENOSYS"),
        };
        let (kind, payload) = match answer {
            Ok(payload) => (request.header.kind, payload),
            Err(errno) => (kind::ERROR, format!("{errno}\0").into_bytes()),
        };
        let header = Header { kind, ..request.header };
        self.put_bytes(&encode(header, &[&payload]).expect("a short message"));
        if let Some(path) = event {
            self.tell(path);
        }
    }

    fn flush(&self) {
        let mut outgoing = self.outgoing.borrow_mut();
        let (cons, prod) = (&self.ring.response_cons, &self.ring.response_prod);
        while !outgoing.is_empty() {
            let at = prod.load(Ordering::SeqCst);
            if at.wrapping_sub(cons.load(Ordering::SeqCst)) as usize >= RING_BYTES {
                break;
            }
            let byte = outgoing.remove(0);
            self.ring.responses[at as usize % RING_BYTES].store(byte, Ordering::SeqCst);
            prod.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Life for &FakeLife {
    fn shared_info(&self) -> &ArchSharedInfo {
        &self.shared_info
    }

    fn ring(&self) -> &StoreRing {
        &self.ring
    }

    fn notify_store(&self) {
        self.serve();
    }

    fn now(&self) -> Nanoseconds {
        Nanoseconds(self.now.get())
    }

    fn wait(&self, _: Nanoseconds) {
        self.now.set(self.now.get() + TICK);
        let event = {
            let mut events = self.events.borrow_mut();
            (!events.is_empty()).then(|| events.remove(0))
        };
        if let Some(mut event) = event {
            event(self);
        }
        self.serve();
    }

    fn suspend(&mut self) -> Result<Return, SuspendError> {
        self.suspends.set(self.suspends.get() + 1);
        let mut returns = self.returns.borrow_mut();
        let outcome = if returns.is_empty() { Ok(Return::Cancelled) } else { returns.remove(0) };
        if outcome == Ok(Return::Restored) {
            self.forget();
        }
        outcome
    }

    fn away(&self) -> Away {
        Away::default()
    }

    fn end(&self, way: Way) {
        self.ended.set(Some(way));
    }
}
