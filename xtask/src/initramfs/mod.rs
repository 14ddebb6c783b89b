//! Makes the file system that a Linux dom0 starts with: archives in memory, no root needed.

pub(crate) mod cpio;
pub(crate) mod libraries;
