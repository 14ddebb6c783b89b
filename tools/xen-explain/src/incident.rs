//! What the guest kernel noticed: a warning, the multicall entries that failed, and the call trace,
//! put together.

use crate::chain::apart;
use crate::messages::Role;
use crate::prefix::Stamp;
use crate::recognise::Line;

/// Lines of one incident are not further apart than this, in microseconds.
const GAP_MAX: u64 = 3_000_000;
/// Nor than this, in lines.
const LINES_MAX: u64 = 64;
/// Incidents that are kept.
const INCIDENTS_MAX: usize = 1024;
/// Lines and functions of one that are kept.
const PARTS_MAX: usize = 32;

/// Something the guest kernel noticed.
#[derive(Clone, Debug)]
pub(crate) struct Incident {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) stamp: Stamp,
    latest: Stamp,
    /// Its own words.
    pub(crate) says: Vec<String>,
    /// The call trace, innermost first.
    pub(crate) trace: Vec<String>,
}

/// All incidents of a log.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    pub(crate) all: Vec<Incident>,
    /// Beyond what is kept.
    pub(crate) more: u64,
    /// The last line that says that the kernel is starting.
    pub(crate) booting: Option<u64>,
}

impl Incidents {
    /// Adds a line of the guest kernel.
    pub(crate) fn push(&mut self, line: Line) {
        if line.message.role == Role::GuestBoot {
            self.booting = Some(line.number);
            return;
        }
        let goes_on = self.all.last().is_some_and(|open| {
            let near = line.number - open.last <= LINES_MAX;
            near && apart(open.latest, line.prefix.stamp).is_none_or(|gap| gap <= GAP_MAX)
        });
        if !goes_on {
            if self.all.len() >= INCIDENTS_MAX {
                self.more += 1;
                return;
            }
            self.all.push(Incident {
                first: line.number,
                last: line.number,
                stamp: line.prefix.stamp,
                latest: line.prefix.stamp,
                says: Vec::new(),
                trace: Vec::new(),
            });
        }
        let Some(open) = self.all.last_mut() else { return };
        open.last = line.number;
        open.latest = line.prefix.stamp;
        let parts = match line.message.role {
            Role::GuestFrame => &mut open.trace,
            _ => &mut open.says,
        };
        if parts.len() < PARTS_MAX && !parts.contains(&line.text) {
            parts.push(line.text);
        }
    }
}

/// Functions of Linux, what they are for, the most telling first.
const FUNCTIONS: [(&str, &str); 20] = [
    ("xen_dup_mmap", "it forked: it was pinning the child's new address space"),
    ("dup_mm", "it forked: it was making the child's address space"),
    ("dup_mmap", "it forked: it was making the child's address space"),
    ("copy_process", "it forked"),
    ("xen_exit_mmap", "a process ended: its address space was being unpinned"),
    ("xen_activate_mm", "a process got a new address space (exec)"),
    ("__xen_pgd_unpin", "it was unpinning an address space"),
    ("__xen_pgd_pin", "it was pinning an address space"),
    ("balloon_process", "the balloon was at work"),
    ("decrease_reservation", "the balloon was giving memory back"),
    ("increase_reservation", "the balloon was getting memory"),
    ("privcmd_ioctl", "the toolstack was mapping another domain's memory"),
    ("gnttab_map_refs", "it was mapping grants"),
    ("gnttab_unmap_refs", "it was unmapping grants"),
    ("set_foreign_p2m_mapping", "it was mapping grants"),
    ("xen_alloc_pte", "it was adding a page table to a live address space"),
    ("ioremap", "it was mapping a device"),
    ("vmap", "it was making a second mapping of pages"),
    ("load_module", "it was loading a module"),
    ("xen_start_kernel", "it was starting"),
];

impl Incident {
    /// Returns what the guest was doing, if the trace says.
    pub(crate) fn doing(&self) -> Option<&'static str> {
        let has = |name: &str| self.trace.iter().any(|function| function == name);
        FUNCTIONS.iter().find(|(name, _)| has(name)).map(|(_, doing)| *doing)
    }

    /// Returns whether it went through the batches of the paravirtualized MMU.
    pub(crate) fn is_multicall(&self) -> bool {
        let names = |text: &String| text.contains("multicall") || text.contains("xen_mc_");
        self.says.iter().chain(&self.trace).any(names)
    }
}
