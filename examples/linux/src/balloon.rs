//! The balloon: the kernel's own thread gives pages back to Xen and asks for them again. What it
//! took is what the scheduler says that the thread ran.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::row::Rows;

/// Pages that go and come back.
const SIZES: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16_384];
/// The driver's files.
const DRIVER: &str = "/sys/devices/system/xen_memory/xen_memory0";
/// The name of its thread.
const THREAD: &str = "xen-balloon";
const KIB_PER_PAGE: u64 = 4;

/// The rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<()> {
    let thread = thread()?;
    let whole = number("info/current_kb")?;
    for pages in SIZES {
        let before = ran(thread)?;
        reach(thread, whole - pages * KIB_PER_PAGE)?;
        let out = ran(thread)?;
        reach(thread, whole)?;
        let back = ran(thread)?;
        let size = usize::try_from(pages)?;
        rows.one("balloon out", "pages", size, out - before);
        rows.one("balloon in", "pages", size, back - out);
    }
    Ok(())
}

/// Sets the target, and waits until the thread has done it and sleeps again.
fn reach(thread: u32, target_kib: u64) -> Result<()> {
    fs::write(format!("{DRIVER}/target_kb"), target_kib.to_string()).context("target_kb")?;
    for _ in 0..1_000_000 {
        std::thread::yield_now();
        if number("info/current_kb")? == target_kib && sleeps(thread)? {
            return Ok(());
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

/// Nanoseconds that the thread ran so far: instructions, as the counter's clock has one for each.
fn ran(thread: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).context("schedstat")?;
    let first = text.split_whitespace().next().context("schedstat is empty")?;
    first.parse().with_context(|| format!("schedstat: {text}"))
}
