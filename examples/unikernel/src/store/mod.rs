//! A client of xenstore, the small database through which a toolstack and its guests talk: reads,
//! writes, transactions and watches, over a ring that is shared with another domain.
//!
//! The client asks one thing at a time and waits for the answer; events of watches that come in
//! between are kept. Nothing that the other side does with the ring can make it panic or wait for
//! ever: a ring or a message that makes no sense ends the connection, with an error each time until
//! [`Store::reconnect`].

mod message;
pub(crate) mod ring;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use core::fmt;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use ring::BrokenRing;

use crate::life::{Life, Nanoseconds, Survives};
use message::{Assembler, Header, Message, TooLong, kind};

/// How long an answer may take: on a machine that does too much at once, a minute is not long.
const PATIENCE: Nanoseconds = Nanoseconds(300_000_000_000);
/// How long to wait before xenstored is told once more that there is something for it.
const REMINDER: Nanoseconds = Nanoseconds(2_000_000_000);
/// Events of watches that are kept; what comes beyond says nothing new.
const EVENTS_MAX: usize = 64;
/// How often a transaction that collided is tried.
const ATTEMPTS: u32 = 10;

/// Why xenstore did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// It refused, with this name of an errno.
    Refused(String),
    /// It did not answer in time.
    NoAnswer,
    /// The ring's counters make no sense.
    Ring(BrokenRing),
    /// A message claims to be this long.
    TooLong(u32),
    /// It answered something else: this kind of message.
    Unexpected(u32),
    /// What was to be asked does not fit into a message.
    Request(usize),
    /// An earlier error left the ring in the middle of a message.
    Disconnected,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "xenstore refuses: {errno}"),
            Self::NoAnswer => f.write_str("xenstore does not answer"),
            Self::Ring(ring) => ring.fmt(f),
            Self::TooLong(bytes) => write!(f, "xenstore announces a message of {bytes} bytes"),
            Self::Unexpected(kind) => write!(f, "xenstore answers with a message of kind {kind}"),
            Self::Request(bytes) => write!(f, "{bytes} bytes do not fit into a xenstore message"),
            Self::Disconnected => f.write_str("the connection to xenstore is broken"),
        }
    }
}

impl From<BrokenRing> for StoreError {
    fn from(ring: BrokenRing) -> Self {
        Self::Ring(ring)
    }
}

impl From<TooLong> for StoreError {
    fn from(TooLong(bytes): TooLong) -> Self {
        Self::TooLong(bytes)
    }
}

/// A client.
#[derive(Debug, Default)]
pub(crate) struct Store {
    assembler: Assembler,
    next: u32,
    /// Paths on which something happened.
    events: VecDeque<String>,
    broken: bool,
}

// Bytes and paths; what of them is not for the guest any more, `reconnect` drops.
impl Survives for Store {}

impl Store {
    /// Starts anew, after a restore or a broken connection: xenstored knows nothing of this guest's
    /// watches any more, and what is in the ring is not for us.
    pub(crate) fn reconnect(&mut self, life: &dyn Life) {
        life.ring().forget();
        *self = Self { next: self.next, ..Self::default() };
    }

    /// The value of `path`; `None` if there is no such path.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn read(
        &mut self,
        life: &dyn Life,
        path: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_in(life, 0, path)
    }

    /// Sets the value of `path`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn write(
        &mut self,
        life: &dyn Life,
        path: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.write_in(life, 0, path, value)
    }

    /// Reads `path` and makes it `after`, so that nobody's value in between is lost. `None` if
    /// there is no such path, or `after` is what it is already: then nothing is written.
    ///
    /// # Errors
    /// [`StoreError`]; `EAGAIN` if others write it all the time.
    pub(crate) fn take(
        &mut self,
        life: &dyn Life,
        path: &str,
        after: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        for _ in 0..ATTEMPTS {
            let started = self.request(life, kind::TRANSACTION_START, 0, &[b"\0"])?;
            let text = core::str::from_utf8(&started).unwrap_or_default();
            let Ok(transaction) = text.trim_end_matches('\0').parse() else {
                return Err(StoreError::Unexpected(kind::TRANSACTION_START));
            };
            let value = self.read_in(life, transaction, path);
            let value = value.map(|value| value.filter(|value| value != after));
            let done = match &value {
                Ok(Some(_)) => self.write_in(life, transaction, path, after),
                Ok(None) => Ok(()),
                Err(error) => Err(error.clone()),
            };
            let end: &[u8] = if done.is_ok() { b"T\0" } else { b"F\0" };
            match self.request(life, kind::TRANSACTION_END, transaction, &[end]) {
                Err(StoreError::Refused(errno)) if errno == "EAGAIN" => {}
                Err(error) => return Err(error),
                Ok(_) => return done.and(value),
            }
        }
        Err(StoreError::Refused("EAGAIN".into()))
    }

    /// Asks to be told when something happens at `path` or below. One event comes at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn watch(&mut self, life: &dyn Life, path: &str) -> Result<(), StoreError> {
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", path.as_bytes(), b"\0"];
        self.request(life, kind::WATCH, 0, &parts).map(drop)
    }

    /// The next path on which something happened.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn event(&mut self, life: &dyn Life) -> Result<Option<String>, StoreError> {
        while let Some(message) = self.receive(life)? {
            // An answer that nobody waits for any more is dropped.
            self.keep_event(&message);
        }
        Ok(self.events.pop_front())
    }

    fn read_in(
        &mut self,
        life: &dyn Life,
        transaction: u32,
        path: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match self.request(life, kind::READ, transaction, &[path.as_bytes(), b"\0"]) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Refused(errno)) if errno == "ENOENT" => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write_in(
        &mut self,
        life: &dyn Life,
        transaction: u32,
        path: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        let parts = [path.as_bytes(), b"\0", value];
        self.request(life, kind::WRITE, transaction, &parts).map(drop)
    }

    /// Asks one thing, and waits for the answer.
    fn request(
        &mut self,
        life: &dyn Life,
        kind: u32,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        if self.broken {
            return Err(StoreError::Disconnected);
        }
        self.next = self.next.wrapping_add(1);
        let header = Header { kind, request: self.next, transaction };
        let Some(bytes) = message::encode(header, parts) else {
            return Err(StoreError::Request(parts.iter().map(|part| part.len()).sum()));
        };
        let deadline = life.now() + PATIENCE;
        let mut sent = 0;
        while sent < bytes.len() {
            // What stays in the ring without its end would be the beginning of whatever is next.
            sent += self.checked(life.ring().send(&bytes[sent..]))?;
            life.notify_store();
            if sent < bytes.len() {
                self.wait(life, deadline)?;
            }
        }
        loop {
            while let Some(message) = self.receive(life)? {
                if !self.keep_event(&message) && message.header.request == header.request {
                    return answer(header, message);
                }
            }
            self.wait(life, deadline)?;
        }
    }

    /// Keeps an event of a watch; false if the message is none.
    fn keep_event(&mut self, message: &Message) -> bool {
        if message.header.kind != kind::WATCH_EVENT {
            return false;
        }
        let path = message.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = String::from_utf8_lossy(path).into_owned();
        // Whoever is told looks at the value, so once is enough.
        if self.events.len() < EVENTS_MAX && !self.events.contains(&path) {
            self.events.push_back(path);
        }
        true
    }

    /// The next whole message in the ring.
    fn receive(&mut self, life: &dyn Life) -> Result<Option<Message>, StoreError> {
        if self.broken {
            return Err(StoreError::Disconnected);
        }
        let mut bytes = [0; 256];
        loop {
            if let Some(message) = self.assembler.take() {
                return Ok(Some(message));
            }
            let missing = self.checked(self.assembler.missing())?.min(bytes.len());
            let count = self.checked(life.ring().receive(&mut bytes[..missing]))?;
            if count == 0 {
                return Ok(None);
            }
            self.assembler.add(&bytes[..count]);
            life.notify_store();
        }
    }

    fn wait(&mut self, life: &dyn Life, deadline: Nanoseconds) -> Result<(), StoreError> {
        if life.now() >= deadline {
            self.broken = true;
            return Err(StoreError::NoAnswer);
        }
        let reminder = life.now() + REMINDER;
        life.wait(reminder.min(deadline));
        if life.now() >= reminder {
            life.notify_store();
        }
        Ok(())
    }

    /// An error of the ring is the end of the connection.
    fn checked<T, E: Into<StoreError>>(&mut self, result: Result<T, E>) -> Result<T, StoreError> {
        result.map_err(|error| {
            self.broken = true;
            error.into()
        })
    }
}

/// What a message says to what was asked.
fn answer(asked: Header, message: Message) -> Result<Vec<u8>, StoreError> {
    match message.header.kind {
        kind::ERROR => {
            let errno = message.payload.split(|byte| *byte == 0).next().unwrap_or_default();
            Err(StoreError::Refused(String::from_utf8_lossy(errno).into_owned()))
        }
        kind if kind == asked.kind => Ok(message.payload),
        kind => Err(StoreError::Unexpected(kind)),
    }
}
