//! Repeating a trace of `hypercall::middleware::Traced` on the model, and comparing every answer.
//!
//! A trace made on real Xen says what Xen answered; if the model answers something else, one of the
//! two was misunderstood. The machine must have been built like the traced one: same role, pages
//! and kernel layout.

use core::fmt;
use std::collections::HashMap;

use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::middleware::{TRACE_HEADER, trace_start, trace_sum};
use hypercall::{DomId, Errno, Error, Mfn, MmuExtOp, MmuUpdate, PAGE_SHIFT, Pfn, PteFlags};

use crate::mmu_update::BatchAnswer;
use crate::model::Vcpu;
use crate::seam::memory_op;
use crate::state::{Answer, State};
use crate::tlb::Mode;
use crate::va_mapping::VaChange;

/// Why a trace could not be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: ReplayFault,
}

/// What can be wrong with a line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayFault {
    /// It is not the header of this version.
    Version(String),
    /// It has no checksum, or not the right one: it was changed, or a line before it lost.
    Checksum,
    /// It is none that a trace has.
    Syntax(&'static str),
    /// The trace ends here, without its last line.
    Truncated,
    /// The model answers something else.
    Answer {
        /// What the trace says.
        expected: String,
        /// What the model answers.
        found: String,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.fault {
            ReplayFault::Version(header) => {
                write!(f, "the header is {header:?}, and should be {TRACE_HEADER:?}")
            }
            ReplayFault::Checksum => {
                f.write_str("the checksum is wrong: this line was changed, or one before it lost")
            }
            ReplayFault::Syntax(wanted) => write!(f, "{wanted} is wanted"),
            ReplayFault::Truncated => f.write_str("the trace ends before its end line"),
            ReplayFault::Answer { expected, found } => {
                write!(f, "the trace says {expected:?}, the model {found:?}")
            }
        }
    }
}

impl core::error::Error for ReplayError {}

/// Repeats `trace` on a guest. Answers how many answers and entries were compared.
///
/// # Errors
/// [`ReplayError`] with the first line that is no trace's or is answered differently.
pub fn replay(guest: &Vcpu<'_>, trace: &str) -> Result<usize, ReplayError> {
    let mut lines = Lines { rest: trace.lines(), number: 0, sum: trace_start() };
    let header = lines.next()?;
    if header != TRACE_HEADER {
        return Err(lines.error(ReplayFault::Version(header.to_owned())));
    }
    let mut player = Player { guest, pages: HashMap::new(), compared: 0 };
    loop {
        let line = lines.next()?;
        if line.starts_with("end ") {
            return Ok(player.compared);
        }
        player.play(line, &mut lines).map_err(|fault| lines.error(fault))?;
    }
}

/// The lines of a trace, checked.
struct Lines<'t> {
    rest: std::str::Lines<'t>,
    number: usize,
    sum: u32,
}

impl<'t> Lines<'t> {
    const fn error(&self, fault: ReplayFault) -> ReplayError {
        ReplayError { line: self.number, fault }
    }

    fn next(&mut self) -> Result<&'t str, ReplayError> {
        self.number += 1;
        let line = self.rest.next().ok_or(self.error(ReplayFault::Truncated))?;
        if self.number == 1 && !line.starts_with(TRACE_HEADER) {
            return Err(self.error(ReplayFault::Version(line.to_owned())));
        }
        let checksum = || self.error(ReplayFault::Checksum);
        let (text, sum) = line.rsplit_once(" #").ok_or_else(checksum)?;
        let known = trace_sum(self.sum, text.as_bytes());
        if u32::from_str_radix(sum, 16) != Ok(known) {
            return Err(checksum());
        }
        self.sum = known;
        Ok(text)
    }
}

type Played<T = ()> = Result<T, ReplayFault>;
type Words<'w> = std::str::SplitAsciiWhitespace<'w>;

fn hex(word: Option<&str>) -> Played<u64> {
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .ok_or(ReplayFault::Syntax("a number in hexadecimal"))
}

fn small<T: TryFrom<u64>>(word: Option<&str>) -> Played<T> {
    T::try_from(hex(word)?).map_err(|_| ReplayFault::Syntax("a smaller number"))
}

/// Carries lines out.
struct Player<'p, 'm> {
    guest: &'p Vcpu<'m>,
    /// Frames that pages have got since the start.
    pages: HashMap<u64, Mfn>,
    compared: usize,
}

/// A request as a line holds it.
enum Asked {
    Updates(Vec<MmuUpdate>, u32),
    Ops(Vec<MmuExtOp>, u16),
    Va(VaChange),
}

impl Player<'_, '_> {
    fn compare(&mut self, expected: &str, found: &str) -> Played {
        self.compared += 1;
        if expected == found {
            return Ok(());
        }
        let (expected, found) = (expected.to_owned(), found.to_owned());
        Err(ReplayFault::Answer { expected, found })
    }

    fn play(&mut self, line: &str, lines: &mut Lines<'_>) -> Played {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("issue") => self.issue(words, lines),
            Some("mem") => self.memory(words, lines),
            Some("assist") => {
                let kind = hex(words.next())?;
                let answer = self.guest.run().vm_assist(0, kind);
                self.compare(next(lines)?, &shown(BatchAnswer { done: None, result: answer }))
            }
            Some("read") => self.read(words),
            Some("write") => {
                let (pfn, index) = (hex(words.next())?, hex(words.next())?);
                let value = self.entry(words.next())?;
                self.store(pfn, index * 8, &value.to_le_bytes())
            }
            Some("bytes") => {
                let (pfn, offset) = (hex(words.next())?, hex(words.next())?);
                let text = words.next().unwrap_or("");
                let pairs = text.as_bytes().chunks(2).map(|pair| {
                    std::str::from_utf8(pair)
                        .ok()
                        .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                });
                let bytes: Option<Vec<u8>> = pairs.collect();
                let bytes = bytes.ok_or(ReplayFault::Syntax("bytes in hexadecimal"))?;
                self.store(pfn, offset, &bytes)
            }
            _ => Err(ReplayFault::Syntax("a word that a trace knows")),
        }
    }

    fn store(&self, pfn: u64, offset: u64, bytes: &[u8]) -> Played {
        let fault = || ReplayFault::Syntax("a page that the model can write");
        let va = self.guest.direct_address(Pfn::new(pfn)).ok_or_else(fault)?;
        // What faulted on the real machine faults here, and neither changes anything.
        let _ = self.guest.store(va.wrapping_add(offset), bytes, Mode::Kernel);
        Ok(())
    }

    fn read(&mut self, mut words: Words<'_>) -> Played {
        let (pfn, index) = (hex(words.next())?, hex(words.next())?);
        let expected = words.next();
        let mut bytes = [0; 8];
        let va = self.guest.direct_address(Pfn::new(pfn));
        let va = va.map(|va| va.wrapping_add(index * 8));
        let loaded = va.is_some_and(|va| self.guest.load(va, &mut bytes, Mode::Kernel).is_ok());
        if !loaded || expected == Some("fault") {
            let found = if loaded { "an entry" } else { "fault" };
            return self.compare(expected.unwrap_or(""), found);
        }
        // Accessed and dirty bits depend on what the CPU did in between.
        let moving = PteFlags::ACCESSED.union(PteFlags::DIRTY).bits();
        let (expected, found) = (self.entry(expected)?, u64::from_le_bytes(bytes));
        let shown = |entry: u64| format!("{:016x}", entry & !moving);
        self.compare(&shown(expected), &shown(found))
    }

    fn issue(&mut self, mut words: Words<'_>, lines: &mut Lines<'_>) -> Played {
        let count = words.next().and_then(|word| word.parse().ok());
        let count: usize = count.ok_or(ReplayFault::Syntax("a number of requests"))?;
        let mut asked = Vec::new();
        for _ in 0..count {
            asked.push(self.request(next(lines)?)?);
        }
        for request in asked {
            let answer = self.ask(&request);
            let expected = next(lines)?;
            self.compare(expected, &shown(answer))?;
        }
        Ok(())
    }

    fn ask(&self, request: &Asked) -> BatchAnswer {
        let mut state = self.guest.run();
        let mut no_mask = |_: &mut State, _: u64| -> Answer<u64> { Err(Errno::EFAULT) };
        match request {
            Asked::Updates(updates, domains) => {
                state.mmu_update(updates.len(), *domains, |_, at| Ok(updates[at]))
            }
            Asked::Ops(ops, domain) => {
                state.mmuext_op(ops.len(), *domain, |_, at| Ok(ops[at]), &mut no_mask)
            }
            Asked::Va(change) => {
                let caller = state.caller();
                let result = state.update_va_mapping(*change, caller, &mut no_mask);
                BatchAnswer { done: None, result }
            }
        }
    }

    fn request(&self, line: &str) -> Played<Asked> {
        let mut words = line.split_ascii_whitespace().peekable();
        match words.next() {
            Some("mmu") => {
                let domains = small(words.next())?;
                let mut updates = Vec::new();
                while let Some(place) = words.next() {
                    let (frame, offset) = place
                        .split_once('.')
                        .ok_or(ReplayFault::Syntax("a frame and an offset"))?;
                    let target = self.frame(frame)?.raw() << PAGE_SHIFT | hex(Some(offset))?;
                    updates.push(MmuUpdate::from_raw(target, self.entry(words.next())?));
                }
                Ok(Asked::Updates(updates, domains))
            }
            Some("ext") => {
                let domain = small(words.next())?;
                let mut ops = Vec::new();
                while let Some(command) = words.next() {
                    let command = small(Some(command))?;
                    let (a, b) = (self.word(words.next())?, self.word(words.next())?);
                    ops.push(MmuExtOp::from_raw(command, a, b));
                }
                Ok(Asked::Ops(ops, domain))
            }
            Some("va") => {
                let (va, entry) = (hex(words.next())?, self.entry(words.next())?);
                Ok(Asked::Va(VaChange { va, entry, flush: hex(words.next())? }))
            }
            _ => Err(ReplayFault::Syntax("a request")),
        }
    }

    /// `p` and a page, or `m` and a frame.
    fn frame(&self, word: &str) -> Played<Mfn> {
        let number = |digits: &str| hex(Some(digits));
        if let Some(pfn) = word.strip_prefix('p') {
            let pfn = number(pfn)?;
            let built = || self.guest.built_mfn(Pfn::new(pfn));
            return Ok(self
                .pages
                .get(&pfn)
                .copied()
                .or_else(built)
                .unwrap_or(Mfn::new(u64::MAX >> 12)));
        }
        let mfn = word.strip_prefix('m').ok_or(ReplayFault::Syntax("p or m and a number"))?;
        number(mfn).map(Mfn::new)
    }

    /// A frame, or `=` and a number.
    fn word(&self, word: Option<&str>) -> Played<u64> {
        let word = word.ok_or(ReplayFault::Syntax("one more word"))?;
        match word.strip_prefix('=') {
            Some(number) => hex(Some(number)),
            None => self.frame(word).map(Mfn::raw),
        }
    }

    /// A frame and flags, or `=` and a number.
    fn entry(&self, word: Option<&str>) -> Played<u64> {
        match word.and_then(|word| word.split_once('|')) {
            Some((frame, flags)) => Ok(self.frame(frame)?.raw() << PAGE_SHIFT | hex(Some(flags))?),
            None => self.word(word),
        }
    }

    fn list(&self, words: &mut Words<'_>) -> Played<(u32, u32, u16, Vec<Extent>)> {
        let (order, flags) = (small(words.next())?, small(words.next())?);
        let domain = small(words.next())?;
        let mut extents = Vec::new();
        for word in words.by_ref().take_while(|word| *word != "/") {
            extents.push(Extent::from_mfn(Mfn::new(self.word(Some(word))?)));
        }
        Ok((order, flags, domain, extents))
    }

    fn memory(&mut self, mut words: Words<'_>, lines: &mut Lines<'_>) -> Played {
        let command = hex(words.next())?;
        let (order, flags, domain, mut extents) = self.list(&mut words)?;
        let wanted = extents.clone();
        let list = Reservation { extents: &mut extents, order, flags, domain: DomId(domain) };
        let (answer, wanted, got, order) = match command {
            0 => (self.op(MemoryOp::Increase(list)), vec![], extents, order),
            1 => (self.op(MemoryOp::Decrease(list)), vec![], extents, order),
            6 => (self.op(MemoryOp::Populate(list)), wanted, extents, order),
            11 => {
                let (order, flags, domain, mut taken) = self.list(&mut words)?;
                let wanted = taken.clone();
                let take = Reservation { extents: &mut taken, order, flags, domain: DomId(domain) };
                let answer = self.op(MemoryOp::Exchange(Exchange { give: list, take }));
                (answer, wanted, taken, order)
            }
            _ => return Err(ReplayFault::Syntax("an operation on extents")),
        };
        for (pfn, mfn) in wanted.iter().zip(&got).filter(|(pfn, mfn)| pfn != mfn) {
            for k in 0..1u64 << order.min(18) {
                self.pages.insert(pfn.raw() + k, Mfn::new(mfn.raw() + k));
            }
        }
        let found = match answer {
            Ok(done) => format!("-> ok {done}"),
            Err(error) => format!("-> {} {}", error.errno.raw(), error.done),
        };
        self.compare(next(lines)?, &found)
    }

    fn op(&self, mut op: MemoryOp<'_>) -> Result<u64, Error> {
        memory_op(self.guest, &mut op)
    }
}

fn next<'t>(lines: &mut Lines<'t>) -> Played<&'t str> {
    lines.next().map_err(|error| error.fault)
}

/// An answer as a trace shows it.
fn shown(answer: BatchAnswer) -> String {
    match answer.result {
        Ok(()) => "-> ok".to_owned(),
        Err(errno) => format!("-> {} {}", errno.raw(), answer.done.unwrap_or(0)),
    }
}
