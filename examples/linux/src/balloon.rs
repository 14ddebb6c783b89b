//! The balloon of a domU: the kernel's own thread gives pages back to Xen and asks for them again,
//! as `xl mem-set` in dom0 says, which does what this program prints. What it took is the time for
//! which the thread had the CPU. Dom0 runs on the same one, and hardly has a share of it while the
//! guest wants it (`xtask/src/boot/dom0_guests.sh`): nothing of its work is in that.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::row::Rows;
use crate::trace::Trace;

/// Pages that go and come back.
const SIZES: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16_384];
/// The driver's files.
const DRIVER: &str = "/sys/devices/system/xen_memory/xen_memory0";
/// The name of its thread.
const THREAD: &str = "xen-balloon";
const KIB_PER_PAGE: u64 = 4;
/// Between two looks at the size, and the most of them: ten minutes of the emulated machine's.
const PAUSE: Duration = Duration::from_millis(20);
const LOOKS: u32 = 30_000;

/// The rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<()> {
    let thread = thread()?;
    let whole = number("info/current_kb")?;
    for pages in SIZES {
        let out = reach(thread, whole - pages * KIB_PER_PAGE)?;
        let back = reach(thread, whole)?;
        let size = usize::try_from(pages)?;
        rows.one("balloon out", "pages", size, out);
        rows.one("balloon in", "pages", size, back);
    }
    Ok(())
}

/// Asks for a size (`xtask/src/boot/dom0_guests.sh` reads the line), and waits until the thread has
/// got there and sleeps again. What it took.
fn reach(thread: u32, target_kib: u64) -> Result<u64> {
    let trace = Trace::switching(THREAD)?;
    println!("PVMMU-WANTS {target_kib} KiB");
    for _ in 0..LOOKS {
        std::thread::sleep(PAUSE);
        if number("info/current_kb")? == target_kib && sleeps(thread)? {
            return trace.had_cpu(THREAD);
        }
    }
    bail!("the balloon did not reach {target_kib} KiB")
}

fn number(file: &str) -> Result<u64> {
    let file = format!("{DRIVER}/{file}");
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    text.trim().parse().with_context(|| format!("{file}: {text}"))
}

/// The thread's number.
fn thread() -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse() else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.trim() == THREAD {
            return Ok(number);
        }
    }
    bail!("no thread is called {THREAD}")
}

/// Whether the thread waits for something to do.
fn sleeps(thread: u32) -> Result<bool> {
    let text = fs::read_to_string(format!("/proc/{thread}/stat")).context("stat")?;
    // The state follows the name, which is in parentheses.
    let (_, state) = text.rsplit_once(") ").with_context(|| format!("stat: {text}"))?;
    Ok(state.starts_with(['S', 'D', 'I']))
}
