//! Devices of the emulated machine, beside those that every machine has.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// A device on PCI.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Device {
    /// QEMU's teaching device: a DMA engine with 28 address bits.
    Edu,
    /// A virtio disk, with the file that it is an image of. The guest may write to it.
    Disk(PathBuf),
    /// A virtio network card in a network of QEMU's own, which reaches nobody.
    Net,
}

impl Device {
    /// Returns what QEMU is told. Files are named in full: QEMU runs in a folder of its own.
    ///
    /// # Errors
    ///
    /// The disk's file is not there, or has a name that QEMU cannot be told.
    pub(crate) fn arguments(&self) -> Result<Vec<String>> {
        let words = match self {
            Self::Edu => ["-device", "edu"].map(str::to_owned).to_vec(),
            Self::Disk(file) => {
                let file = file.canonicalize();
                let file = file.with_context(|| format!("finding the disk {self:?}"))?;
                let name = file.to_str().context("the disk's name is not Unicode")?;
                let name = name.replace(',', ",,");
                vec![
                    "-drive".to_owned(),
                    format!("file={name},format=raw,if=none,id=disk"),
                    "-device".to_owned(),
                    "virtio-blk-pci,drive=disk,disable-legacy=on".to_owned(),
                ]
            }
            Self::Net => [
                "-netdev",
                "user,id=net,restrict=on",
                "-device",
                "virtio-net-pci,netdev=net,disable-legacy=on,romfile=",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_a_comma_in_its_name_is_named_so_that_qemu_reads_one_word() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a,b");
        std::fs::write(&file, "x").unwrap();
        let words = Device::Disk(file).arguments().unwrap();
        assert!(words[1].contains("a,,b,format=raw"), "{words:?}");
    }

    #[test]
    fn a_disk_that_is_not_there_is_an_error() {
        assert!(Device::Disk("/nowhere/at/all".into()).arguments().is_err());
    }
}
