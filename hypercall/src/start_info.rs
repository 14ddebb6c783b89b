//! `start_info`: the page in which the domain builder tells a PV guest what it was given.
//!
//! [`StartInfo`] is the structure in memory. [`BootInfo::parse`] checks it once, so that everything
//! later works with values that make sense.

use core::fmt;

use crate::frame::{Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::va::{GuestVa, NotGuestVa, XEN_HOLE_END, XEN_HOLE_START};

/// `struct start_info` (public/xen.h), 1168 bytes.
#[derive(Clone, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of Xen's public/xen.h, under their own names")]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    /// domU: mfn of the console ring. dom0: offset and size of the VGA information.
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub cmd_line: [u8; 1024],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}

/// `SIF_PRIVILEGED`: may use privileged hypercalls.
const PRIVILEGED: u32 = 1;
/// `SIF_INITDOMAIN`: is dom0.
const INITDOMAIN: u32 = 2;
/// `SIF_MOD_START_PFN`: `mod_start` is a pfn.
const MOD_START_PFN: u32 = 8;

/// The beginning of every magic. Xen up to 4.17 appends a `p` for some dom0 kernels.
const MAGIC: &[u8] = b"xen-3.0-x86_64";

/// How the guest prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// dom0: `console_io`.
    Hypervisor,
    /// domU: a ring shared with dom0's xenconsoled.
    Ring {
        /// Frame of the ring.
        mfn: Mfn,
        /// Event channel that wakes the other side.
        port: u32,
    },
}

/// Where the module (initrd) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// There is none.
    None,
    /// Mapped at an address.
    Mapped {
        /// First byte.
        start: GuestVa,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// In frames that are not mapped.
    Unmapped {
        /// First frame.
        start: Pfn,
        /// Length in bytes.
        len_bytes: u64,
    },
}

/// What the builder gave the guest, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// Frames of RAM: pfns `0..pages` exist.
    pub pages: u64,
    /// The frame of `shared_info`, which belongs to Xen and has no pfn.
    pub shared_info: Mfn,
    /// Whether this is dom0.
    pub is_dom0: bool,
    /// Whether privileged hypercalls are allowed.
    pub is_privileged: bool,
    /// The xenstore ring and its event channel; none in dom0.
    pub store: Option<(Mfn, u32)>,
    /// How to print.
    pub console: Console,
    /// The running root table.
    pub root: GuestVa,
    /// Frames of the builder's page tables, which begin at `root`.
    pub table_frames: u64,
    /// The builder's P2M list, 8 bytes for each pfn; page-aligned.
    pub p2m_list: GuestVa,
    /// First pfn and count of the frames of the P2M list and its tables, if the list was placed
    /// outside the kernel mapping (ELF note `INIT_P2M`).
    pub p2m_frames: Option<(Pfn, u64)>,
    /// The module.
    pub module: Module,
}

/// Why a `start_info` cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// The page does not begin with Xen's magic.
    Magic([u8; 16]),
    /// The guest has no memory.
    NoPages,
    /// More pages than any machine has frames.
    TooManyPages(u64),
    /// A field that should hold a guest address does not.
    Address(&'static str, NotGuestVa),
    /// An address is not aligned as it must be.
    Unaligned(&'static str, u64),
    /// Something extends past the end of what the guest may use.
    TooLong {
        /// The field with the address, or the pfn.
        field: &'static str,
        /// The address or pfn.
        start: u64,
        /// Its stated length in bytes.
        len_bytes: u64,
    },
    /// There are no builder's tables, or more than the guest has frames.
    TableFrames(u64),
    /// The frames of a P2M list outside the kernel's mapping are too few for this guest's list, or
    /// pass the end of the number space.
    ListFrames {
        /// The first.
        first: Pfn,
        /// How many.
        count: u64,
    },
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(
                f,
                "start_info has the magic {:?}, not xen-3.0-x86_64: was the guest booted as PV?",
                core::str::from_utf8(magic).unwrap_or("(not text)")
            ),
            Self::NoPages => f.write_str("start_info says nr_pages = 0"),
            Self::TooManyPages(pages) => write!(f, "start_info says nr_pages = {pages:#x}"),
            Self::Address(field, reason) => write!(f, "start_info.{field}: {reason}"),
            Self::Unaligned(field, value) => {
                write!(f, "start_info.{field} = {value:#x} is not aligned")
            }
            Self::TooLong { field, start, len_bytes } => {
                write!(f, "start_info.{field} = {start:#x}: no room for {len_bytes:#x} bytes there")
            }
            Self::TableFrames(frames) => write!(f, "start_info says nr_pt_frames = {frames:#x}"),
            Self::ListFrames { first, count } => {
                write!(
                    f,
                    "start_info says that the P2M list has {count:#x} frames from pfn {first}"
                )
            }
        }
    }
}

impl core::error::Error for BootInfoError {}

impl BootInfo {
    /// Checks `start_info`.
    ///
    /// # Errors
    /// [`BootInfoError`] with the field and its value.
    ///
    /// ```
    /// use hypercall::start_info::BootInfo;
    ///
    /// let model = xen_model::Model::builder().pages(2048).build()?;
    /// let start_info = model.guest().start_info().ok_or("the builder leaves one")?;
    /// let boot = BootInfo::parse(&start_info)?;
    /// assert_eq!(boot.pages, 2048);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(info: &StartInfo) -> Result<Self, BootInfoError> {
        if !info.magic.starts_with(MAGIC) {
            let mut magic = [0; 16];
            magic.copy_from_slice(&info.magic[..16]);
            return Err(BootInfoError::Magic(magic));
        }
        if info.nr_pages == 0 {
            return Err(BootInfoError::NoPages);
        }
        if info.nr_pages > 1 << 40 {
            return Err(BootInfoError::TooManyPages(info.nr_pages));
        }
        if info.nr_pt_frames == 0 || info.nr_pt_frames > info.nr_pages {
            return Err(BootInfoError::TableFrames(info.nr_pt_frames));
        }
        let is_dom0 = info.flags & INITDOMAIN != 0;
        let shared_info = aligned("shared_info", info.shared_info, PAGE_SIZE)?;
        // The list's pages are read, moved and given away as pages, so it must begin on a page
        // boundary.
        let list_bytes = info.nr_pages * size_of::<u64>() as u64;
        Ok(Self {
            pages: info.nr_pages,
            shared_info: Mfn::new(shared_info >> PAGE_SHIFT),
            is_dom0,
            is_privileged: info.flags & PRIVILEGED != 0,
            store: (!is_dom0).then(|| (Mfn::new(info.store_mfn), info.store_evtchn)),
            console: if is_dom0 {
                Console::Hypervisor
            } else {
                Console::Ring { mfn: Mfn::new(info.console_mfn), port: info.console_evtchn }
            },
            root: pages("pt_base", info.pt_base, info.nr_pt_frames << PAGE_SHIFT)?,
            table_frames: info.nr_pt_frames,
            p2m_list: pages("mfn_list", info.mfn_list, list_bytes)?,
            p2m_frames: list_frames(info, list_bytes)?,
            module: module(info)?,
        })
    }
}

impl StartInfo {
    /// Returns the guest's command line, up to its first zero byte or the first byte that is not
    /// text.
    #[must_use]
    pub fn command_line(&self) -> &str {
        let end = self.cmd_line.iter().position(|byte| *byte == 0);
        let bytes = &self.cmd_line[..end.unwrap_or(self.cmd_line.len())];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

fn aligned(field: &'static str, value: u64, alignment: usize) -> Result<u64, BootInfoError> {
    if value.is_multiple_of(alignment as u64) {
        Ok(value)
    } else {
        Err(BootInfoError::Unaligned(field, value))
    }
}

/// Checks the address of something of `len_bytes` bytes that begins on a page boundary.
fn pages(field: &'static str, value: u64, len_bytes: u64) -> Result<GuestVa, BootInfoError> {
    bytes(field, aligned(field, value, PAGE_SIZE)?, len_bytes)
}

/// Checks the address of something of `len_bytes` bytes, all of which are the guest's.
fn bytes(field: &'static str, start: u64, len_bytes: u64) -> Result<GuestVa, BootInfoError> {
    let first = GuestVa::new(start).map_err(|reason| BootInfoError::Address(field, reason))?;
    let last = start.checked_add(len_bytes.saturating_sub(1));
    let last = last.filter(|last| {
        // No address in between is Xen's or non-canonical.
        let one_half = start >> 63 == last >> 63;
        let below_xen = start < XEN_HOLE_START && XEN_HOLE_END <= *last;
        GuestVa::new(*last).is_ok() && one_half && !below_xen
    });
    match last {
        Some(_) => Ok(first),
        None => Err(BootInfoError::TooLong { field, start, len_bytes }),
    }
}

fn list_frames(info: &StartInfo, list_bytes: u64) -> Result<Option<(Pfn, u64)>, BootInfoError> {
    let (first, count) = (Pfn::new(info.first_p2m_pfn), info.nr_p2m_frames);
    if count == 0 {
        return Ok(None);
    }
    // The tables that map the list are among them.
    if first.checked_add(count).is_none() || count < list_bytes.div_ceil(PAGE_SIZE as u64) {
        return Err(BootInfoError::ListFrames { first, count });
    }
    Ok(Some((first, count)))
}

/// Returns the module, which may begin and end anywhere in a page.
fn module(info: &StartInfo) -> Result<Module, BootInfoError> {
    let (field, start, len_bytes) = ("mod_start", info.mod_start, info.mod_len);
    if len_bytes == 0 {
        return Ok(Module::None);
    }
    if info.flags & MOD_START_PFN == 0 {
        return Ok(Module::Mapped { start: bytes(field, start, len_bytes)?, len_bytes });
    }
    let frames = len_bytes.div_ceil(PAGE_SIZE as u64);
    match Pfn::new(start).checked_add(frames) {
        Some(_) => Ok(Module::Unmapped { start: Pfn::new(start), len_bytes }),
        None => Err(BootInfoError::TooLong { field, start, len_bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A domU as xl makes it: 256 MiB.
    fn domu() -> StartInfo {
        let mut magic = [0; 32];
        magic[..MAGIC.len()].copy_from_slice(MAGIC);
        let mut cmd_line = [0; 1024];
        cmd_line[..9].copy_from_slice(b"demo fast");
        StartInfo {
            magic,
            nr_pages: 0x10000,
            shared_info: 0x7fe_1000,
            flags: 0,
            store_mfn: 0x700,
            store_evtchn: 1,
            console_mfn: 0x701,
            console_evtchn: 2,
            pt_base: 0xffff_ffff_8030_0000,
            nr_pt_frames: 7,
            mfn_list: 0xffff_ffff_8020_0000,
            mod_start: 0,
            mod_len: 0,
            cmd_line,
            first_p2m_pfn: 0,
            nr_p2m_frames: 0,
        }
    }

    #[test]
    fn a_domu_is_read_field_by_field() {
        let info = domu();
        let boot = BootInfo::parse(&info).expect("a good page");
        assert_eq!(boot.pages, 0x10000);
        assert_eq!(boot.shared_info, Mfn::new(0x7fe1));
        assert_eq!(boot.console, Console::Ring { mfn: Mfn::new(0x701), port: 2 });
        assert_eq!(boot.store, Some((Mfn::new(0x700), 1)));
        assert_eq!(boot.p2m_frames, None);
        assert_eq!(boot.module, Module::None);
        assert!(!boot.is_dom0 && !boot.is_privileged);
        assert_eq!(info.command_line(), "demo fast");
    }

    #[test]
    fn dom0_prints_through_xen_and_has_no_store() {
        let info = StartInfo { flags: 3, ..domu() };
        let boot = BootInfo::parse(&info).expect("a good page");
        assert_eq!(boot.console, Console::Hypervisor);
        assert_eq!(boot.store, None);
        assert!(boot.is_dom0 && boot.is_privileged);
    }

    #[test]
    fn each_impossible_field_is_named() {
        let refused = |change: fn(&mut StartInfo)| {
            let mut info = domu();
            change(&mut info);
            BootInfo::parse(&info).expect_err("must be refused").to_string()
        };
        assert!(refused(|info| info.magic[4] = b'4').contains("xen-4.0"));
        assert!(refused(|info| info.nr_pages = 0).contains("nr_pages = 0"));
        assert!(refused(|info| info.nr_pages = 1 << 41).contains("nr_pages"));
        assert!(refused(|info| info.nr_pt_frames = 0).contains("nr_pt_frames"));
        assert!(refused(|info| info.shared_info = 0x123).contains("shared_info"));
        assert!(refused(|info| info.pt_base = 0xffff_8000_0000_0000).contains("pt_base"));
        assert!(refused(|info| info.mfn_list = 4).contains("mfn_list"));
        assert!(
            refused(|info| (info.mod_start, info.mod_len) = (1 << 63, 1)).contains("mod_start")
        );
    }

    #[test]
    fn a_list_that_begins_within_a_page_is_refused_with_its_address() {
        for offset in [8, 0x7f8, 0xff8] {
            let mfn_list = domu().mfn_list + offset;
            let refused = BootInfo::parse(&StartInfo { mfn_list, ..domu() });
            assert_eq!(refused, Err(BootInfoError::Unaligned("mfn_list", mfn_list)));
        }
    }

    #[test]
    fn what_passes_the_end_of_the_guests_addresses_is_refused_with_its_address() {
        let refused = |change: fn(&mut StartInfo)| {
            let mut info = domu();
            change(&mut info);
            match BootInfo::parse(&info) {
                Err(BootInfoError::TooLong { field, start, len_bytes }) => {
                    (field, start, len_bytes)
                }
                other => panic!("{other:?}"),
            }
        };
        let last_page = 0xffff_ffff_ffff_f000;
        assert_eq!(
            refused(|info| info.mfn_list = 0xffff_ffff_ffff_f000),
            ("mfn_list", last_page, 0x8_0000)
        );
        assert_eq!(
            refused(|info| info.pt_base = 0xffff_ffff_ffff_f000),
            ("pt_base", last_page, 0x7000)
        );
        // To the end of the lower half, and a byte more; into Xen's range; over it; around.
        let module = |info: &mut StartInfo, start, len| {
            (info.mod_start, info.mod_len) = (start, len);
        };
        let mut info = domu();
        module(&mut info, 0x7fff_ffff_f801, 0x7ff);
        assert!(BootInfo::parse(&info).is_ok());
        module(&mut info, 0xffff_ffff_ffff_ffff, 1);
        assert!(BootInfo::parse(&info).is_ok());
        for (start, len) in [
            (0x7fff_ffff_f801, 0x800),
            (0x40_0000, 0xffff_9000_0000_0000 - 0x40_0000),
            (0x40_0000, u64::MAX),
            (0xffff_ffff_ffff_ffff, 2),
        ] {
            module(&mut info, start, len);
            let refused = BootInfo::parse(&info);
            let wanted = BootInfoError::TooLong { field: "mod_start", start, len_bytes: len };
            assert_eq!(refused, Err(wanted), "{start:#x} + {len:#x}");
        }
        info.flags = MOD_START_PFN;
        module(&mut info, u64::MAX, 0x1001);
        assert!(BootInfo::parse(&info).is_err());
        module(&mut info, 0x100, 0x1001);
        let module = Module::Unmapped { start: Pfn::new(0x100), len_bytes: 0x1001 };
        assert_eq!(BootInfo::parse(&info).map(|boot| boot.module), Ok(module));
    }

    #[test]
    fn frames_that_cannot_hold_the_list_are_refused() {
        let frames = |first_p2m_pfn, nr_p2m_frames| {
            let info = StartInfo { first_p2m_pfn, nr_p2m_frames, ..domu() };
            BootInfo::parse(&info).map(|boot| boot.p2m_frames)
        };
        // 0x10000 words are 0x80 pages.
        assert_eq!(frames(0x400, 0x80), Ok(Some((Pfn::new(0x400), 0x80))));
        for (first, count) in [(0x400, 0x7f), (u64::MAX - 0x7f, 0x81)] {
            let first_pfn = Pfn::new(first);
            let wanted = BootInfoError::ListFrames { first: first_pfn, count };
            assert_eq!(frames(first, count), Err(wanted));
        }
    }

    #[test]
    fn a_guest_may_be_as_large_as_can_be_and_be_all_tables() {
        let mfn_list = 0xffff_a000_0000_0000;
        let pages = |nr_pages, nr_pt_frames| {
            BootInfo::parse(&StartInfo { nr_pages, nr_pt_frames, mfn_list, ..domu() })
        };
        assert!(pages(1 << 40, 7).is_ok());
        assert_eq!(pages((1 << 40) + 1, 7), Err(BootInfoError::TooManyPages((1 << 40) + 1)));
        assert!(pages(7, 7).is_ok());
        assert_eq!(pages(7, 8), Err(BootInfoError::TableFrames(8)));
    }

    #[test]
    fn a_command_line_ends_at_its_first_bad_byte() {
        let mut info = domu();
        info.cmd_line[4] = 0xff;
        assert_eq!(info.command_line(), "demo");
        info.cmd_line = [b'x'; 1024];
        assert_eq!(info.command_line().len(), 1024);
    }
}
