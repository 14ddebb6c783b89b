//! Messages of xenstore's protocol, to bytes and back (`struct xsd_sockmsg`, public/io/xs_wire.h).

use alloc::vec::Vec;

/// Bytes in front of each message: four words.
pub(super) const HEADER_BYTES: usize = 16;
/// What a message may hold besides.
pub(super) const PAYLOAD_MAX: usize = 4096;

/// What a message is about (`enum xsd_sockmsg_type`).
pub(super) mod kind {
    pub(crate) const READ: u32 = 2;
    pub(crate) const WATCH: u32 = 4;
    pub(crate) const TRANSACTION_START: u32 = 6;
    pub(crate) const TRANSACTION_END: u32 = 7;
    pub(crate) const WRITE: u32 = 11;
    pub(crate) const WATCH_EVENT: u32 = 15;
    pub(crate) const ERROR: u32 = 16;
}

/// The words in front of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) request: u32,
    pub(super) transaction: u32,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

/// Puts a message into bytes. `None` if the parts are longer than a message may be.
pub(super) fn encode(header: Header, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let words = [header.kind, header.request, header.transaction, u32::try_from(length).ok()?];
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    (length <= PAYLOAD_MAX).then_some(bytes)
}

/// A header that announces more than a message may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) u32);

/// Puts messages together from bytes as they come.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// How many bytes of the message at hand are missing: at least that many must come before
    /// there can be one.
    ///
    /// # Errors
    /// [`TooLong`]: from here on nothing that comes makes sense.
    pub(super) fn missing(&self) -> Result<usize, TooLong> {
        let Some(header) = self.bytes.get(..HEADER_BYTES) else {
            return Ok(HEADER_BYTES - self.bytes.len());
        };
        let length = word(header, 3);
        match length as usize {
            bytes @ ..=PAYLOAD_MAX => Ok(HEADER_BYTES + bytes - self.bytes.len()),
            _ => Err(TooLong(length)),
        }
    }

    /// Takes bytes, no more than are missing.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The message, if it is whole.
    pub(super) fn take(&mut self) -> Option<Message> {
        let header = self.bytes.get(..HEADER_BYTES)?;
        let end = HEADER_BYTES + word(header, 3) as usize;
        if self.bytes.len() != end {
            return None;
        }
        let header = Header {
            kind: word(header, 0),
            request: word(header, 1),
            transaction: word(header, 2),
        };
        let payload = self.bytes.split_off(HEADER_BYTES);
        self.bytes.clear();
        Some(Message { header, payload })
    }
}

fn word(bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[4 * index..4 * index + 4]);
    u32::from_le_bytes(word)
}
