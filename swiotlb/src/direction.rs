//! The directions of data between a buffer and a device, as types: the CPU cannot fetch what a
//! device only reads.

use core::fmt;

use crate::segment::Purpose;

mod sealed {
    pub trait Sealed {}
}

/// The direction of a mapping: [`ToDevice`], [`FromDevice`] or [`Bidirectional`].
pub trait Direction: sealed::Sealed + fmt::Debug {
    /// The purpose of its slots.
    const PURPOSE: Purpose;
}

/// Directions in which the device reads.
pub trait DeviceReads: Direction {}

/// Directions in which the device writes.
pub trait DeviceWrites: Direction {}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident $(: $what:ident)+) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}

        impl sealed::Sealed for $name {}

        impl Direction for $name {
            const PURPOSE: Purpose = Purpose::$name;
        }

        $(impl $what for $name {})+
    };
}

direction! {
    /// The device reads the buffer.
    ToDevice: DeviceReads
}
direction! {
    /// The device writes the buffer.
    FromDevice: DeviceWrites
}
direction! {
    /// The device reads and writes the buffer.
    Bidirectional: DeviceReads : DeviceWrites
}
