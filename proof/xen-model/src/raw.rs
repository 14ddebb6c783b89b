//! Hypercalls as Xen sees them: a number, five words, and guest memory behind the words that are
//! addresses.
//!
//! Section 4 of the specification. Everything is read and written through the caller's page tables,
//! so that a list in Xen's range, an unmapped second entry or a read-only result page does here
//! what it does on real Xen.

use hypercall::{Errno, Mfn, MmuExtOp, MmuUpdate};

use crate::log::File;
use crate::mmu_update::BatchAnswer;
use crate::model::Vcpu;
use crate::release::Release;
use crate::state::{Answer, State};
use crate::tlb::Mode;
use crate::va_mapping::VaChange;
use crate::xen_slots::address_ok;

/// The numbers of the hypercalls modelled here (public/xen.h).
pub mod number {
    /// `mmu_update`
    pub const MMU_UPDATE: u64 = 1;
    /// `set_gdt`
    pub const SET_GDT: u64 = 2;
    /// `update_descriptor`
    pub const UPDATE_DESCRIPTOR: u64 = 10;
    /// `memory_op`
    pub const MEMORY_OP: u64 = 12;
    /// `multicall`
    pub const MULTICALL: u64 = 13;
    /// `update_va_mapping`
    pub const UPDATE_VA_MAPPING: u64 = 14;
    /// `xen_version`
    pub const XEN_VERSION: u64 = 17;
    /// `console_io`
    pub const CONSOLE_IO: u64 = 18;
    /// `grant_table_op`
    pub const GRANT_TABLE_OP: u64 = 20;
    /// `vm_assist`
    pub const VM_ASSIST: u64 = 21;
    /// `update_va_mapping_otherdomain`
    pub const UPDATE_VA_MAPPING_OTHERDOMAIN: u64 = 22;
    /// `mmuext_op`
    pub const MMUEXT_OP: u64 = 26;
    /// `sched_op`
    pub const SCHED_OP: u64 = 29;
}

/// What a debug build leaves in argument registers.
const CLOBBERED: u64 = 0xdead_beef_dead_f00d;
/// What a debug build leaves in multicall entries.
const CORRUPT: u8 = 0xaa;
/// Bytes of a multicall entry, and the offset of its result.
const ENTRY_BYTES: usize = 64;
const ENTRY: u64 = ENTRY_BYTES as u64;
const RESULT: u64 = 8;
/// Marks a continued batch (`MMU_UPDATE_PREEMPTED`).
const PREEMPTED: u32 = 1 << 31;

impl Vcpu<'_> {
    /// Makes a hypercall and answers what it leaves in `rax`.
    #[must_use]
    pub fn hypercall(&self, number: u64, arguments: [u64; 5]) -> i64 {
        let mut registers = arguments;
        self.hypercall_with(number, &mut registers)
    }

    /// Makes a hypercall; `registers` are rdi, rsi, rdx, r10 and r8, before it and after it.
    pub fn hypercall_with(&self, number: u64, registers: &mut [u64; 5]) -> i64 {
        let mut state = self.run();
        let result = state.dispatch(number, *registers);
        let kept = result == register(Err(Errno::ENOSYS)) && !state.release.before(Release::V4_17);
        if state.is_debug() && !kept {
            let arity = arity(number).unwrap_or(0);
            registers[..arity].fill(CLOBBERED);
        }
        result
    }
}

/// How many arguments a hypercall has.
const fn arity(number: u64) -> Option<usize> {
    Some(match number {
        number::MMU_UPDATE | number::MMUEXT_OP | number::UPDATE_VA_MAPPING_OTHERDOMAIN => 4,
        number::UPDATE_VA_MAPPING | number::CONSOLE_IO | number::GRANT_TABLE_OP => 3,
        number::SET_GDT
        | number::UPDATE_DESCRIPTOR
        | number::MEMORY_OP
        | number::MULTICALL
        | number::XEN_VERSION
        | number::VM_ASSIST
        | number::SCHED_OP => 2,
        _ => return None,
    })
}

/// An answer as it stands in `rax`.
pub(crate) fn register(answer: Answer<u64>) -> i64 {
    match answer {
        Ok(value) => value.cast_signed(),
        Err(errno) => -i64::from(errno.raw()),
    }
}

/// The low half of a register.
#[expect(clippy::cast_possible_truncation, reason = "the argument has 32 bits")]
pub(crate) const fn low(word: u64) -> u32 {
    word as u32
}

/// The low 16 bits of a register.
#[expect(clippy::cast_possible_truncation, reason = "the argument has 16 bits")]
pub(crate) const fn low16(word: u64) -> u16 {
    word as u16
}

impl State {
    /// Copies from guest memory (`copy_from_guest`).
    pub(crate) fn copy_in(&mut self, va: u64, into: &mut [u8]) -> Answer {
        if !address_ok(va) {
            return Err(Errno::EFAULT);
        }
        self.load(va, into, Mode::Kernel).map_err(|_| Errno::EFAULT)
    }

    /// Copies to guest memory (`copy_to_guest`).
    pub(crate) fn copy_out(&mut self, va: u64, from: &[u8]) -> Answer {
        if !address_ok(va) {
            return Err(Errno::EFAULT);
        }
        self.store(va, from, Mode::Kernel).map_err(|_| Errno::EFAULT)
    }

    /// Copies words from guest memory.
    pub(crate) fn words_in<const N: usize>(&mut self, va: u64) -> Answer<[u64; N]> {
        let mut words = [0; N];
        let mut bytes = vec![0; N * 8];
        self.copy_in(va, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(words)
    }

    /// Whether a list may lie at `va` at all (`guest_handle_okay`).
    pub(crate) const fn list_okay(va: u64, count: u64, size: u64) -> Answer {
        if count < u64::MAX / size && address_ok(va) { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Runs hypercall `number`.
    pub(crate) fn dispatch(&mut self, number: u64, arguments: [u64; 5]) -> i64 {
        let [a1, a2, a3, a4, _] = arguments;
        register(match number {
            number::MMU_UPDATE => self.raw_mmu_update(a1, low(a2), a3, low(a4)),
            number::MMUEXT_OP => self.raw_mmuext_op(a1, low(a2), a3, low(a4)),
            number::SET_GDT => self.raw_set_gdt(a1, u64::from(low(a2))),
            number::UPDATE_DESCRIPTOR => self.update_descriptor(a1, a2).map(|()| 0),
            number::MEMORY_OP => self.raw_memory_op(a1, a2),
            number::MULTICALL => self.multicall(a1, a2),
            number::UPDATE_VA_MAPPING => {
                let change = VaChange { va: a1, entry: a2, flush: a3 };
                let caller = self.caller();
                self.update_va_mapping(change, caller, &mut read_mask).map(|()| 0)
            }
            number::UPDATE_VA_MAPPING_OTHERDOMAIN => {
                let change = VaChange { va: a1, entry: a2, flush: a3 };
                self.update_va_mapping_of(change, low16(a4), &mut read_mask).map(|()| 0)
            }
            number::XEN_VERSION => self.xen_version(low(a1), a2),
            number::CONSOLE_IO => self.console_io(low(a1), a2, a3),
            number::GRANT_TABLE_OP => self.grant_table_op(low(a1), a2, low(a3)),
            number::VM_ASSIST => self.vm_assist(u64::from(low(a1)), u64::from(low(a2))).map(|()| 0),
            number::SCHED_OP => self.sched_op(low(a1), a2, a3),
            _ => Err(Errno::ENOSYS),
        })
    }

    fn report(&mut self, answer: BatchAnswer, done_at: u64, before: u32) -> Answer<u64> {
        if let (Some(done), true) = (answer.done, done_at != 0) {
            // Xen does not look whether this works.
            let _ = self.copy_out(done_at, &(before + done).to_le_bytes());
        }
        answer.result.map(|()| 0)
    }

    /// The length of a batch, and how many entries were done before if it is a continued one.
    fn batch_length(&mut self, count: u32, done_at: u64) -> (u32, u32) {
        if count & PREEMPTED == 0 {
            return (count, 0);
        }
        let mut before = [0; 4];
        if done_at != 0 {
            let _ = self.copy_in(done_at, &mut before);
        }
        (count & !PREEMPTED, u32::from_le_bytes(before))
    }

    fn raw_mmu_update(&mut self, list: u64, count: u32, done: u64, foreign: u32) -> Answer<u64> {
        if list == 0 && count == PREEMPTED {
            return Ok(i64::from(foreign.cast_signed()).cast_unsigned());
        }
        let (count, before) = self.batch_length(count, done);
        Self::list_okay(list, u64::from(count), 16)?;
        let answer = self.mmu_update(count as usize, foreign, |state, at| {
            let [target, value] = state.words_in(list.wrapping_add(at as u64 * 16))?;
            Ok(MmuUpdate::from_raw(target, value))
        });
        self.report(answer, done, before)
    }

    fn raw_mmuext_op(&mut self, list: u64, count: u32, done: u64, foreign: u32) -> Answer<u64> {
        if list == 0 && count == PREEMPTED {
            return Ok(i64::from(foreign.cast_signed()).cast_unsigned());
        }
        let (count, before) = self.batch_length(count, done);
        Self::list_okay(list, u64::from(count), 24)?;
        let read = |state: &mut Self, at: usize| {
            let [command, argument1, argument2] =
                state.words_in(list.wrapping_add(at as u64 * 24))?;
            Ok(MmuExtOp::from_raw(low(command), argument1, argument2))
        };
        let foreign = low16(u64::from(foreign));
        let answer = self.mmuext_op(count as usize, foreign, read, &mut read_mask);
        self.report(answer, done, before)
    }

    fn raw_set_gdt(&mut self, list: u64, entries: u64) -> Answer<u64> {
        // Too many are refused before the list is read.
        let frames = entries.div_ceil(512).min(15);
        let mut mfns = Vec::new();
        if frames <= 14 {
            for k in 0..frames {
                let [mfn] = self.words_in(list.wrapping_add(k * 8))?;
                mfns.push(Mfn::new(mfn));
            }
        }
        self.set_gdt(&mfns, entries).map(|()| 0)
    }

    /// `multicall` (13) (`do_multicall`).
    fn multicall(&mut self, list: u64, count: u64) -> Answer<u64> {
        if self.in_multicall {
            self.say_in(File::Multicall, format_args!("Multicall reentry is disallowed."));
            return Err(Errno::EINVAL);
        }
        let count = if self.release == Release::V4_20 { count } else { u64::from(low(count)) };
        Self::list_okay(list, count, ENTRY)?;
        self.in_multicall = true;
        let answer = (0..count).try_for_each(|k| {
            if k > 0 && self.preempt_check() {
                self.interrupted();
            }
            self.multicall_entry(list.wrapping_add(k * ENTRY))
        });
        self.in_multicall = false;
        answer.map(|()| 0)
    }

    fn multicall_entry(&mut self, entry: u64) -> Answer {
        let [op, _, a1, a2, a3, a4, a5, _] = self.words_in(entry)?;
        if self.is_debug() {
            let _ = self.copy_out(entry, &[CORRUPT; ENTRY_BYTES]);
        }
        let result = self.dispatch(op, [a1, a2, a3, a4, a5]);
        self.copy_out(entry.wrapping_add(RESULT), &result.to_le_bytes())
    }
}

/// Reads a vCPU mask: one word serves up to 64 vCPUs.
fn read_mask(state: &mut State, va: u64) -> Answer<u64> {
    state.words_in(va).map(|[word]| word)
}
