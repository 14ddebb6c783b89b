//! The boot mapping of a Xen PV guest: from the builder's few megabytes to a direct map of all RAM.
#![no_std]
