//! The size of a Xen PV guest: memory given back to Xen and taken again.
#![no_std]
