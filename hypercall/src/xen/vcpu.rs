//! Further vCPUs: how one starts, and how it goes up and down (`vcpu_op`).

use super::platform::{KERNEL_CS, TrapInfo, ask};
use super::{Xen, number};
use crate::error::Error;
use crate::frame::Mfn;
use crate::va::GuestVa;

const VCPUOP_INITIALISE: u64 = 0;
const VCPUOP_UP: u64 = 1;
const VCPUOP_DOWN: u64 = 2;
const VCPUOP_IS_UP: u64 = 3;

/// Xen's flat data segment for ring 3 (`FLAT_KERNEL_SS`).
const KERNEL_SS: u64 = 0xe02b;
/// `VGCF_i387_valid` and `VGCF_in_kernel`.
const FLAGS: u64 = 1 << 0 | 1 << 2;
/// Bit 1 is always set; interrupts are, for Xen.
const RFLAGS: u64 = 1 << 1 | 1 << 9;

/// Places in `struct cpu_user_regs`, in words.
mod register {
    pub(super) const RDI: usize = 14;
    pub(super) const RIP: usize = 16;
    pub(super) const CS: usize = 17;
    pub(super) const RFLAGS: usize = 18;
    pub(super) const RSP: usize = 19;
    pub(super) const SS: usize = 20;
    pub(super) const COUNT: usize = 25;
}

/// The most exceptions that a vCPU has handlers for.
const VECTORS: usize = 256;
/// cr3 among the control registers.
const CR3: usize = 3;
/// The x87 control word and the SSE one, as after a reset, and where they stand among the FPU's
/// registers (`fxsave`).
const FCW: ([u8; 2], usize) = (0x037f_u16.to_le_bytes(), 0);
const MXCSR: ([u8; 4], usize) = (0x1f80_u32.to_le_bytes(), 24);

/// The initial state of a vCPU (`struct vcpu_guest_context`): Xen's flat segments, no GDT or LDT of
/// its own, no callbacks, events masked.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuContext {
    fpu: [u8; 512],
    flags: u64,
    registers: [u64; register::COUNT],
    traps: [TrapInfo; VECTORS],
    ldt_base: u64,
    ldt_entries: u64,
    gdt_frames: [u64; 16],
    gdt_entries: u64,
    kernel_ss: u64,
    kernel_sp: u64,
    control: [u64; 8],
    debug: [u64; 8],
    callbacks: [u64; 3],
    vm_assist: u64,
    fs_base: u64,
    gs_base_kernel: u64,
    gs_base_user: u64,
}

macro_rules! same_places {
    ($($ours:ident => $theirs:ident),* $(,)?) => {
        $(const _: () = assert!(
            core::mem::offset_of!(VcpuContext, $ours)
                == core::mem::offset_of!(xen_sys::vcpu_guest_context, $theirs)
        );)*
    };
}

const _: () = assert!(size_of::<VcpuContext>() == size_of::<xen_sys::vcpu_guest_context>());
const _: () = assert!(register::COUNT * 8 == size_of::<xen_sys::cpu_user_regs>());
const _: () = assert!(register::CS * 8 == core::mem::offset_of!(xen_sys::cpu_user_regs, cs));
const _: () = assert!(register::SS * 8 == core::mem::offset_of!(xen_sys::cpu_user_regs, ss));
same_places!(
    flags => flags, registers => user_regs, traps => trap_ctxt, gdt_entries => gdt_ents,
    kernel_sp => kernel_sp, control => ctrlreg, vm_assist => vm_assist,
    gs_base_kernel => gs_base_kernel,
);

/// Where a vCPU begins.
#[derive(Clone, Copy, Debug)]
pub struct VcpuStart {
    /// The function that it runs.
    pub entry: extern "C" fn(argument: u64) -> !,
    /// The argument of that function.
    pub argument: u64,
    /// The end of its stack, a multiple of 16.
    pub stack_top: GuestVa,
    /// The root it runs on: an L4 table, or one that can become one.
    pub root: Mfn,
    /// Base of its `gs` segment.
    pub gs_base: u64,
}

impl VcpuContext {
    /// Makes the initial state of a vCPU with these exception handlers. [`TrapInfo::END`] among
    /// them is left out.
    #[must_use]
    pub fn new(start: VcpuStart, traps: &[TrapInfo]) -> Self {
        let mut context = Self {
            fpu: [0; 512],
            flags: FLAGS,
            registers: [0; register::COUNT],
            traps: [TrapInfo::END; VECTORS],
            ldt_base: 0,
            ldt_entries: 0,
            gdt_frames: [0; 16],
            gdt_entries: 0,
            kernel_ss: KERNEL_SS,
            kernel_sp: start.stack_top.raw(),
            control: [0; 8],
            debug: [0; 8],
            callbacks: [0; 3],
            vm_assist: 0,
            fs_base: 0,
            gs_base_kernel: start.gs_base,
            gs_base_user: 0,
        };
        context.fpu[FCW.1..][..FCW.0.len()].copy_from_slice(&FCW.0);
        context.fpu[MXCSR.1..][..MXCSR.0.len()].copy_from_slice(&MXCSR.0);
        for trap in traps.iter().filter(|trap| !trap.is_end()) {
            context.traps[usize::from(trap.vector())] = *trap;
        }
        let registers = &mut context.registers;
        registers[register::RDI] = start.argument;
        registers[register::RIP] = start.entry as *const () as u64;
        registers[register::CS] = u64::from(KERNEL_CS);
        registers[register::RFLAGS] = RFLAGS;
        // As after a call: room for a return address.
        registers[register::RSP] = start.stack_top.raw() - 8;
        registers[register::SS] = KERNEL_SS;
        // `xen_pfn_to_cr3`: the bits that do not fit above bit 12 wrap round to the bottom.
        context.control[CR3] = start.root.raw().rotate_left(12);
        context
    }
}

impl Xen {
    /// Initialises vCPU `vcpu` (`VCPUOP_initialise`). It does not run yet.
    ///
    /// # Errors
    /// `ENOENT` if the guest has no such vCPU, `EEXIST` if it was initialised before; `EINVAL`, or
    /// what validation answers, if the root is not a valid one.
    ///
    /// # Hypercalls
    /// One `vcpu_op`.
    ///
    /// # Safety
    /// Nobody else uses the stack. The root maps it, the entry function and all that it uses. Each
    /// handler can take its exception as Xen delivers it.
    pub unsafe fn initialise_vcpu(vcpu: u32, context: &VcpuContext) -> Result<(), Error> {
        let arguments = [VCPUOP_INITIALISE, u64::from(vcpu), context as *const _ as u64, 0, 0];
        // SAFETY: Xen reads the context; the caller vouches for what is in it.
        unsafe { ask(number::VCPU_OP, "vcpu_op(initialise)", arguments) }.map(drop)
    }

    /// Lets vCPU `vcpu` run (`VCPUOP_up`), from its initial state or from where it went down.
    ///
    /// # Errors
    /// `ENOENT` if there is no such vCPU, `EINVAL` if it was never initialised.
    ///
    /// # Hypercalls
    /// One `vcpu_op`.
    pub fn vcpu_up(vcpu: u32) -> Result<(), Error> {
        vcpu_op(VCPUOP_UP, "vcpu_op(up)", vcpu).map(drop)
    }

    /// Stops vCPU `vcpu` (`VCPUOP_down`). A vCPU that stops itself continues after this call once
    /// it is up again.
    ///
    /// # Errors
    /// `ENOENT` if there is no such vCPU; `EINVAL` if no other one is up.
    ///
    /// # Hypercalls
    /// One `vcpu_op`.
    pub fn vcpu_down(vcpu: u32) -> Result<(), Error> {
        vcpu_op(VCPUOP_DOWN, "vcpu_op(down)", vcpu).map(drop)
    }

    /// Returns whether vCPU `vcpu` is up (`VCPUOP_is_up`).
    ///
    /// # Errors
    /// `ENOENT` if there is no such vCPU.
    ///
    /// # Hypercalls
    /// One `vcpu_op`.
    pub fn vcpu_is_up(vcpu: u32) -> Result<bool, Error> {
        vcpu_op(VCPUOP_IS_UP, "vcpu_op(is_up)", vcpu).map(|up| up != 0)
    }
}

fn vcpu_op(command: u64, name: &'static str, vcpu: u32) -> Result<u64, Error> {
    // SAFETY: these commands take no memory, and change only whether a vCPU runs.
    unsafe { ask(number::VCPU_OP, name, [command, u64::from(vcpu), 0, 0, 0]) }
}
