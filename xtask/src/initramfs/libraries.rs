//! Finds the shared libraries that programs need, all the way down, in a folder of unpacked
//! packages. So the file system of a dom0 holds these and not the hundred megabytes around them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use object::LittleEndian;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _};

/// The loader of every dynamically linked program, at the place that the ABI gives it.
pub(crate) const LOADER: &str = "ld-linux-x86-64.so.2";

/// Loaded by the C library when a thread ends, named by no one.
const UNNAMED: &str = "libgcc_s.so.1";

/// Where Debian's packages put libraries, before and after /lib became a link to /usr/lib.
const FOLDERS: [&str; 4] =
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64"];

/// Returns the libraries that these programs need, by name, the loader among them.
///
/// # Errors
///
/// A program or library cannot be found or is no ELF file.
pub(crate) fn closure(root: &Path, programs: &[Vec<u8>]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut libraries = BTreeMap::new();
    let mut wanted = vec![LOADER.to_owned(), UNNAMED.to_owned()];
    for program in programs {
        wanted.extend(needed(program)?);
    }
    while let Some(name) = wanted.pop() {
        if let Entry::Vacant(place) = libraries.entry(name) {
            let library = find(root, place.key())?;
            wanted.extend(needed(&library).with_context(|| place.key().clone())?);
            place.insert(library);
        }
    }
    Ok(libraries)
}

fn find(root: &Path, name: &str) -> Result<Vec<u8>> {
    // Reading follows links; one that leads out of the root is just not the right place.
    let found = FOLDERS.iter().find_map(|folder| fs::read(root.join(folder).join(name)).ok());
    match found {
        Some(library) => Ok(library),
        None => bail!("the library {name} is in none of the packages"),
    }
}

/// Names in the `DT_NEEDED` entries of an ELF file.
fn needed(file: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<LittleEndian>::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let Some((entries, strings)) = sections.dynamic(endian, file)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, file, strings)?;
    let names = entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED);
    names
        .map(|entry| {
            let name = entry.string(endian, strings)?;
            Ok(String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_this_machine_needs_the_c_library() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&program).unwrap().contains(&"libc.so.6".to_owned()));
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let error = closure(empty.path(), &[program]).unwrap_err().to_string();
        assert!(error.contains(".so"), "{error}");
    }
}
