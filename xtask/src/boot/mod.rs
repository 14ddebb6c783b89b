//! Boots real Xen under QEMU, watches its console, judges what happened, and ends QEMU whatever
//! happened.
//!
//! | file | what it does |
//! |---|---|
//! | `machine` | describes the emulated machine, starts QEMU and ends it |
//! | `console` | turns QEMU's output into lines, keeps a log, watches the clock |
//! | `verdict` | the line by which a guest says that it passed or failed |
//! | `outcome` | everything that can come of a boot, as one clear paragraph each |
//! | `dom0` | boots our guest as dom0 and reads the console |
//! | `domu` | boots a Linux dom0 that creates our guest with xl, and reads the console |

pub(crate) mod console;
pub(crate) mod dom0;
pub(crate) mod domu;
pub(crate) mod machine;
pub(crate) mod outcome;
pub(crate) mod verdict;
