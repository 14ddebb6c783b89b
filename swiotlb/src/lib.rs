//! Machine-contiguous memory and bounce buffers for a Xen PV guest.
#![no_std]
