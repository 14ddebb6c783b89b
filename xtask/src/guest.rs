//! The guest: builds the unikernel, and checks before a boot that Xen can load an ELF file at all.
//! Xen itself says too little about a bad image (as dom0 it panics, as domU xl prints an errno).

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail};
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use tempfile::NamedTempFile;

use crate::cargo;
use crate::paths;
use crate::process::run_captured;
use crate::progress::Step;
use crate::provision::rust_target::{self, TARGET};

/// Package and program name of the unikernel.
pub(crate) const UNIKERNEL: &str = "unikernel";

/// The unikernel's note INIT_P2M (type 15, 8 bytes) as it is built: of an owner that nobody knows.
const NOTE_TURNED_OFF: &[u8; 16] = b"\x04\0\0\0\x08\0\0\0\x0f\0\0\0off\0";
/// Owner of the notes that Xen reads.
const NOTE_OWNER: &[u8] = b"Xen";
/// `XEN_ELFNOTE_ENTRY`.
const NOTE_ENTRY: u32 = 1;
/// `XEN_ELFNOTE_XEN_VERSION`.
const NOTE_XEN_VERSION: u32 = 5;
/// `XEN_ELFNOTE_GUEST_OS`.
const NOTE_GUEST_OS: u32 = 6;
/// `XEN_ELFNOTE_LOADER`.
const NOTE_LOADER: u32 = 8;

/// Returns the kernel to boot: the given one, or the unikernel, built if need be. Xen can load it.
///
/// # Errors
///
/// The unikernel does not compile, or the file is no kernel for Xen.
pub(crate) fn kernel(given: Option<&Path>) -> Result<PathBuf> {
    let kernel = match given {
        Some(kernel) => kernel.to_path_buf(),
        None => build()?,
    };
    check(&kernel)?;
    Ok(kernel)
}

/// Builds the unikernel for Xen and says where its ELF file is.
fn build() -> Result<PathBuf> {
    rust_target::require()?;
    let step = Step::begin("building the unikernel");
    let target = paths::target()?;
    let mut cargo = cargo::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", UNIKERNEL]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&target);
    let (status, messages) = run_captured(&mut cargo, |_| {})?;
    step.vanish();
    if !status.success() {
        bail!("the unikernel does not build ({status}):\n{messages}");
    }
    if !messages.is_empty() {
        eprint!("{messages}");
    }
    Ok(target.join(TARGET).join("release").join(UNIKERNEL))
}

/// Returns a copy of the unikernel whose note INIT_P2M is Xen's: the builder maps the list
/// elsewhere.
///
/// # Errors
///
/// It is not the unikernel, or cannot be copied.
pub(crate) fn with_list_outside(kernel: &Path) -> Result<NamedTempFile> {
    let mut data = fs::read(kernel).with_context(|| format!("reading {}", kernel.display()))?;
    let owner = owner_of_spare(&data)
        .with_context(|| format!("{} has no spare INIT_P2M", kernel.display()))?;
    data[owner].copy_from_slice(NOTE_OWNER);
    let copy = NamedTempFile::new()?;
    fs::write(copy.path(), data)?;
    Ok(copy)
}

/// Returns where the note's owner stands; `None` if there is not exactly one such note.
fn owner_of_spare(data: &[u8]) -> Option<Range<usize>> {
    let windows = data.windows(NOTE_TURNED_OFF.len()).enumerate();
    let mut notes = windows.filter(|(_, bytes)| bytes == NOTE_TURNED_OFF).map(|(at, _)| at);
    let (Some(note), None) = (notes.next(), notes.next()) else { return None };
    let owner = note + NOTE_TURNED_OFF.len() - NOTE_OWNER.len() - 1;
    Some(owner..owner + NOTE_OWNER.len())
}

/// Checks that a file is an ELF that Xen's loaders take as a 64-bit PV kernel.
///
/// # Errors
///
/// It cannot be read, or it is not: the message says what it lacks.
pub(crate) fn check(file: &Path) -> Result<()> {
    let data = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    check_image(&data).with_context(|| {
        format!("Xen cannot boot {} as a PV guest, so it is not tried", file.display())
    })
}

fn check_image(data: &[u8]) -> Result<()> {
    let not_elf = |error| Error::msg(format!("it is not a 64-bit ELF file ({error})"));
    let header = FileHeader64::<LittleEndian>::parse(data).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
        bail!("it is not a statically linked x86-64 executable (ELF type EXEC)");
    }
    let mut found = Vec::new();
    for segment in header.program_headers(endian, data)? {
        let Some(mut notes) = segment.notes(endian, data)? else { continue };
        while let Some(note) = notes.next()? {
            if note.name() == NOTE_OWNER {
                found.push((note.n_type(endian), note.desc()));
            }
        }
    }
    let text = |kind: u32| {
        let (_, text) = found.iter().find(|(found, _)| *found == kind)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    };
    if found.is_empty() {
        bail!("it has no ELF notes of owner \"Xen\" in a PT_NOTE segment");
    }
    match text(NOTE_XEN_VERSION) {
        Some(version) if version.starts_with("xen-3.0") => {}
        version => bail!("its Xen note XEN_VERSION must begin with xen-3.0, it is {version:?}"),
    }
    let linux = text(NOTE_GUEST_OS).is_some_and(|system| system.starts_with("linux"));
    if !linux && !text(NOTE_LOADER).is_some_and(|loader| loader.starts_with("generic")) {
        bail!("it lacks the Xen note LOADER = \"generic\"");
    }
    if text(NOTE_ENTRY).is_none() {
        bail!("it lacks the Xen note ENTRY");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    const ELF_HEADER_BYTES: usize = 64;
    const PROGRAM_HEADER_BYTES: usize = 56;

    /// An executable with nothing in it but notes of owner "Xen".
    fn image(notes: &[(u32, &[u8])]) -> Vec<u8> {
        let mut data = vec![0; ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES];
        data[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        data[16] = 2; // ET_EXEC
        data[18] = 62; // EM_X86_64
        data[20] = 1;
        data[32] = 64; // program headers at
        data[52] = 64;
        data[54] = 56;
        data[56] = 1; // how many
        for (kind, text) in notes {
            data.extend(4_u32.to_le_bytes());
            data.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            data.extend(kind.to_le_bytes());
            data.extend(b"Xen\0");
            data.extend(*text);
            data.resize(data.len().next_multiple_of(4), 0);
        }
        let start = ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES;
        let length = data.len() - start;
        let header = &mut data[ELF_HEADER_BYTES..];
        header[0] = 4; // PT_NOTE
        header[8] = u8::try_from(start).unwrap();
        header[32] = u8::try_from(length).unwrap();
        header[48] = 4;
        data
    }

    fn refusal(image: &[u8]) -> String {
        check_image(image).unwrap_err().to_string()
    }

    #[test]
    fn an_image_with_the_needed_notes_is_taken() {
        let entry = 0xffff_ffff_8010_0000_u64.to_le_bytes();
        let notes: [(u32, &[u8]); 3] = [(5, b"xen-3.0\0"), (8, b"generic\0"), (1, &entry)];
        check_image(&image(&notes)).unwrap();
        for missing in 0..notes.len() {
            let mut rest = notes.to_vec();
            rest.remove(missing);
            assert!(check_image(&image(&rest)).is_err(), "without note {}", notes[missing].0);
        }
    }

    #[test]
    fn an_image_without_xen_notes_is_refused_and_the_reason_is_named() {
        let text = refusal(&image(&[]));
        assert!(text.contains("no ELF notes of owner \"Xen\""), "{text}");
    }

    #[test]
    fn an_image_for_another_interface_is_refused() {
        let text = refusal(&image(&[(5, b"xen-2.0\0")]));
        assert!(text.contains("XEN_VERSION") && text.contains("xen-2.0"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused() {
        assert!(refusal(b"#!/bin/sh\n").contains("not a 64-bit ELF file"));
        assert!(refusal(b"").contains("not a 64-bit ELF file"));
    }

    #[test]
    fn a_host_program_is_refused() {
        let file = env::current_exe().unwrap();
        let error = format!("{:#}", check(&file).unwrap_err());
        assert!(error.contains("as a PV guest"), "{error}");
    }
}
