//! The guard that no code holds a machine frame number across a suspend.
//!
//! After a restore every frame has another number. The toolstack rewrites those that it knows of,
//! in page tables and in the frame map; any other one is wrong, without a sign. illumos has a lock
//! that code takes for as long as it holds one. Here the compiler is asked.
//!
//! A guest that can be suspended works in *turns*: plain functions (`fn`, not closures) that get an
//! `Epoch`, which lends out everything from which frame numbers come, and a state. A turn returns,
//! and only between two turns there may be a suspend. So a number can outlive a turn in two ways:
//! in the state, or in what the turn returns. Both must be [`Survives`], which is implemented for
//! pfns, tokens of frames, addresses and plain data, and not for `Mfn`, `Pte`, a batch, a time, or
//! anything that borrows from an epoch. A plain function captures nothing, and no static of this
//! kernel but `kernel/boot.rs`'s holds a frame number; that one is read at boot only.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{Frame, Frames, GuestVa, Pfn};

/// A value that means the same before and after a suspend.
pub(crate) trait Survives {}

macro_rules! plain {
    ($($type:ty)*) => { $(impl Survives for $type {})* };
}

plain! { () bool u8 u16 u32 u64 usize String Pfn Frame Frames GuestVa }

// Its pages are frames of the guest, named by pfns; what is in them is stale after a restore, and
// written again.
impl Survives for p2m::FrameList<'_> {}
// Its tables, too; page tables the toolstack rewrites.
impl Survives for p2m::Window {}
impl<T: Survives> Survives for Option<T> {}
impl<T: Survives, E: Survives> Survives for Result<T, E> {}
impl<T: Survives> Survives for Vec<T> {}
impl<T: Survives> Survives for VecDeque<T> {}
impl<T: Survives + ?Sized> Survives for &mut T {}
impl<T: Survives> Survives for [T] {}
impl<T: Survives, const N: usize> Survives for [T; N] {}
impl<A: Survives, B: Survives> Survives for (A, B) {}

/// Declares a structure of which every field survives.
macro_rules! survives {
    (
        $(#[$attribute:meta])*
        $visible:vis struct $name:ident $(<$borrow:lifetime>)? {
            $($(#[$note:meta])* $shown:vis $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        $visible struct $name $(<$borrow>)? {
            $($(#[$note])* $shown $field: $type,)*
        }

        impl $(<$borrow>)? $crate::life::Survives for $name $(<$borrow>)?
        where
            $($type: $crate::life::Survives,)*
        {
        }
    };
}
pub(crate) use survives;

/// Does not compile if the type survives: then there are two functions of this name.
macro_rules! does_not_survive {
    ($($type:ty,)*) => {
        $(const _: fn() = || {
            trait Ambiguous<Marker> {
                fn either() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Survivor;
            impl<T: ?Sized + Survives> Ambiguous<Survivor> for T {}
            let _ = <$type as Ambiguous<_>>::either;
        };)*
    };
}

does_not_survive! {
    hypercall::Mfn,
    hypercall::Pte,
    hypercall::memory::Extent,
    hypercall::start_info::BootInfo,
    hypercall::start_info::StartInfo,
    hypercall::Batch<'static>,
    hypercall::MmuUpdate,
    hypercall::MmuExtOp,
    p2m::P2mEntry,
    p2m::Toolstack<'static>,
    p2m::toolstack::Published,
    swiotlb::BusAddr,
    swiotlb::scatter_list::BusRun,
    swiotlb::DmaMapping<swiotlb::direction::Bidirectional>,
    swiotlb::Coherent,
    swiotlb::region::Region,
    super::Nanoseconds,
    (u64, hypercall::Mfn),
    Option<hypercall::Pte>,
    &'static hypercall::shared_info::ArchSharedInfo,
}
