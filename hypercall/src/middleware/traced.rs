//! A machine that writes a trace of what passes through it.
//!
//! A trace is text, one line for each request or access. It uses the guest's own page numbers as
//! far as M2P knows them, so that a model with other frames can repeat it (`xen_model::replay`).
//! Each line ends with a checksum over all lines so far, which shows at once if a line was changed,
//! lost or added.

use core::cell::{Cell, RefCell};
use core::fmt::{self, Write};

use x86_64::structures::paging::PageTableIndex;

use crate::call::{Call, Outcome, Request};
use crate::commands::{ext, mmu};
use crate::error::Error;
use crate::frame::{Mfn, Pfn};
use crate::machine::{AccessError, Assist, FrameAccess, Hypercalls};
use crate::memory::{Extent, MemoryOp, Reservation};
use crate::op::{MmuExtOp, MmuUpdate};
use crate::pte::{Pte, PteFlags};
use crate::va::GuestVa;

/// The first line of a trace.
pub const TRACE_HEADER: &str = "xen-trace 1";

/// The checksum of nothing.
const SUM_START: u32 = 0x811c_9dc5;

/// Adds text to a checksum (FNV-1a).
#[must_use]
pub const fn trace_sum(sum: u32, text: &[u8]) -> u32 {
    let (mut sum, mut k) = (sum, 0);
    while k < text.len() {
        sum = (sum ^ text[k] as u32).wrapping_mul(0x0100_0193);
        k += 1;
    }
    sum
}

/// Returns the checksum that a trace begins with.
#[must_use]
pub const fn trace_start() -> u32 {
    SUM_START
}

/// Wraps a machine and writes a trace to `W`.
#[derive(Debug)]
pub struct Traced<M, W> {
    machine: M,
    sink: RefCell<W>,
    sum: Cell<u32>,
    lines: Cell<u64>,
    failed: Cell<bool>,
}

/// A sink with a running checksum.
struct Summed<'s, W> {
    sink: &'s mut W,
    sum: u32,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.sum = trace_sum(self.sum, text.as_bytes());
        self.sink.write_str(text)
    }
}

/// A frame, printed as its page if M2P knows one, else by its number.
struct Name<'m, M>(&'m M, Mfn);

impl<M: FrameAccess> fmt::Display for Name<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.machine_to_phys(self.1) {
            Some(pfn) => write!(f, "p{:x}", pfn.raw()),
            None => write!(f, "m{:x}", self.1.raw()),
        }
    }
}

impl<M: Hypercalls + FrameAccess, W: Write> Traced<M, W> {
    /// Starts a trace with its header.
    ///
    /// ```
    /// use hypercall::middleware::Traced;
    /// use hypercall::{BatchStorage, MmuExtOp};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let machine = Traced::new(&model, String::new());
    /// let mut storage = BatchStorage::<0, 1>::new();
    /// let mut batch = storage.batch();
    /// batch.op(MmuExtOp::tlb_flush_all())?;
    /// unsafe { batch.submit(&machine) }?;
    /// let trace = machine.finish().ok_or("the sink took all of it")?;
    /// assert!(trace.starts_with(hypercall::middleware::TRACE_HEADER));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(machine: M, sink: W) -> Self {
        let traced = Self {
            machine,
            sink: RefCell::new(sink),
            sum: Cell::new(SUM_START),
            lines: Cell::new(0),
            failed: Cell::new(false),
        };
        traced.line(|out| out.write_str(TRACE_HEADER));
        traced
    }

    /// Returns the machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }

    /// Ends the trace and returns the sink, or `None` if it could not take all of it.
    pub fn finish(self) -> Option<W> {
        let lines = self.lines.get();
        self.line(|out| write!(out, "end {lines}"));
        (!self.failed.get()).then(|| self.sink.into_inner())
    }

    /// Writes a line and its checksum. The machine goes on if its trace cannot.
    fn line(&self, write: impl FnOnce(&mut dyn Write) -> fmt::Result) {
        let Ok(mut sink) = self.sink.try_borrow_mut() else {
            self.failed.set(true);
            return;
        };
        let mut summed = Summed { sink: &mut *sink, sum: self.sum.get() };
        let written = write(&mut summed);
        let sum = summed.sum;
        self.sum.set(sum);
        self.lines.set(self.lines.get() + 1);
        if written.is_err() || writeln!(sink, " #{sum:08x}").is_err() {
            self.failed.set(true);
        }
    }

    const fn name(&self, mfn: Mfn) -> Name<'_, M> {
        Name(&self.machine, mfn)
    }

    /// Writes an entry: its flags, and its frame if it is present.
    fn entry(&self, out: &mut dyn Write, pte: Pte) -> fmt::Result {
        if pte.is_present() {
            write!(out, " {}|{:x}", self.name(pte.mfn()), pte.flags().bits())
        } else {
            write!(out, " ={:x}", pte.raw())
        }
    }

    fn update(&self, out: &mut dyn Write, update: MmuUpdate) -> fmt::Result {
        write!(out, " {}.{:x}", self.name(update.frame()), update.target() & 0xfff)?;
        if update.target() & mmu::MASK == mmu::MACHPHYS {
            write!(out, " ={:x}", update.value())
        } else {
            self.entry(out, Pte::from_raw(update.value()))
        }
    }

    fn op(&self, out: &mut dyn Write, op: MmuExtOp) -> fmt::Result {
        write!(out, " {:x}", op.command())?;
        let frame = matches!(
            op.command(),
            ext::PIN_L1_TABLE..=ext::NEW_BASEPTR | ext::CLEAR_PAGE | ext::COPY_PAGE
        ) || op.command() == ext::NEW_USER_BASEPTR && op.argument1() != 0;
        if frame {
            write!(out, " {}", self.name(Mfn::new(op.argument1())))?;
        } else {
            write!(out, " ={:x}", op.argument1())?;
        }
        if op.command() == ext::COPY_PAGE {
            write!(out, " {}", self.name(Mfn::new(op.argument2())))
        } else {
            write!(out, " ={:x}", op.argument2())
        }
    }

    /// Writes what is asked, before it is: names are those of that moment.
    fn ask(&self, request: &Request<'_>) {
        self.line(|out| match *request {
            Request::MmuUpdate(updates, domain) => {
                write!(out, "mmu {:x}", domain.0)?;
                updates.iter().try_for_each(|update| self.update(out, *update))
            }
            Request::MmuExt(ops, domain) => {
                write!(out, "ext {:x}", domain.0)?;
                ops.iter().try_for_each(|op| self.op(out, *op))
            }
            Request::VaMapping(mapping) => {
                write!(out, "va {:x}", mapping.va.as_u64())?;
                self.entry(out, mapping.pte)?;
                write!(out, " {:x}", mapping.flush.raw())
            }
        });
    }

    fn answer(&self, outcome: Outcome) {
        self.line(|out| match outcome {
            Outcome::NotIssued => out.write_str("-> none"),
            Outcome::Done => out.write_str("-> ok"),
            Outcome::Refused { errno, done } => write!(out, "-> {} {done}", errno.raw()),
        });
    }

    fn list(&self, out: &mut dyn Write, list: &Reservation<'_>, words: Words) -> fmt::Result {
        write!(out, " {:x} {:x} {:x}", list.order, list.flags, list.domain.0)?;
        self.words(out, list.extents, words)
    }

    fn words(&self, out: &mut dyn Write, extents: &[Extent], words: Words) -> fmt::Result {
        extents.iter().try_for_each(|extent| match words {
            Words::Frames => write!(out, " {}", self.name(extent.mfn())),
            Words::Pages => write!(out, " ={:x}", extent.raw()),
        })
    }

    /// Writes what is asked. Returns whether the operation changes anything: the others are not
    /// traced, since they report what belongs to this machine.
    fn ask_memory(&self, op: &MemoryOp<'_>) -> bool {
        match op {
            MemoryOp::Increase(list) | MemoryOp::Populate(list) => self.line(|out| {
                write!(out, "mem {:x}", op.number())?;
                self.list(out, list, Words::Pages)
            }),
            MemoryOp::Decrease(list) => self.line(|out| {
                write!(out, "mem {:x}", op.number())?;
                self.list(out, list, Words::Frames)
            }),
            MemoryOp::Exchange(exchange) => self.line(|out| {
                write!(out, "mem {:x}", op.number())?;
                self.list(out, &exchange.give, Words::Frames)?;
                write!(out, " /")?;
                self.list(out, &exchange.take, Words::Pages)
            }),
            _ => return false,
        }
        true
    }
}

/// What the words of a list are.
#[derive(Clone, Copy)]
enum Words {
    Frames,
    Pages,
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls + FrameAccess, W: Write> Hypercalls for Traced<M, W> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        self.line(|out| write!(out, "issue {}", calls.len()));
        for call in calls.iter() {
            self.ask(&call.request);
        }
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.issue(calls) };
        for call in calls.iter() {
            self.answer(call.outcome);
        }
        result
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        let traced = self.ask_memory(op);
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.memory_op(op) };
        if traced {
            self.line(|out| match &result {
                Ok(done) => write!(out, "-> ok {done}"),
                Err(error) => write!(out, "-> {} {}", error.errno.raw(), error.done),
            });
        }
        result
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.line(|out| write!(out, "assist {:x}", assist as u64));
        let result = self.machine.enable_assist(assist);
        self.answer(match result {
            Ok(()) => Outcome::Done,
            Err(Error { errno, done, hypercall: _ }) => Outcome::Refused { errno, done },
        });
        result
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls + FrameAccess, W: Write> FrameAccess for Traced<M, W> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        let result = self.machine.read_entry(table, index);
        self.line(|out| {
            write!(out, "read {:x} {:x}", table.raw(), u16::from(index))?;
            match result {
                Ok(pte) => self.entry(out, pte),
                Err(_) => out.write_str(" fault"),
            }
        });
        result
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        self.line(|out| {
            write!(out, "write {:x} {:x}", table.raw(), u16::from(index))?;
            self.entry(out, pte)
        });
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_entry(table, index, pte) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.machine.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        self.line(|out| {
            write!(out, "bytes {:x} {offset:x} ", pfn.raw())?;
            from.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
        });
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_bytes(pfn, offset, from) }
    }

    fn missing_flags(&self) -> PteFlags {
        self.machine.missing_flags()
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.machine.machine_to_phys(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.machine.direct_map(pfn)
    }
}
