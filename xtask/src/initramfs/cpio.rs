//! Writes the archive format that Linux unpacks as its first file system (cpio "newc", described in
//! Linux's Documentation/driver-api/early-userspace/buffer-format.rst). Archives may follow one
//! another in one file; a later one adds to an earlier one.

/// Every archive begins and ends at a multiple of this, so that archives can be joined.
const ARCHIVE_ALIGNMENT: usize = 512;
const MAGIC: &str = "070701";
const TYPE_FOLDER: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Paths are absolute; folders must be added before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

/// What an entry says of itself besides its name and content.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
}

impl Archive {
    /// Adds a folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, Kind { mode: TYPE_FOLDER | 0o755, ..Kind::default() }, &[]);
    }

    /// Adds a file that anyone may read.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, Kind { mode: TYPE_FILE | 0o644, ..Kind::default() }, content);
    }

    /// Adds a file that anyone may run.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, Kind { mode: TYPE_FILE | 0o755, ..Kind::default() }, content);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let kind = Kind { mode: TYPE_LINK | 0o777, ..Kind::default() };
        self.entry(path, kind, target.as_bytes());
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        let kind = Kind { mode: TYPE_CHARACTER_DEVICE | 0o600, device: (major, minor) };
        self.entry(path, kind, &[]);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", Kind::default(), &[]);
        self.pad(ARCHIVE_ALIGNMENT);
        self.bytes
    }

    fn entry(&mut self, path: &str, kind: Kind, content: &[u8]) {
        let name = path.trim_start_matches('/');
        let links = 1;
        let (user, group, time, checksum) = (0, 0, 0, 0);
        let on_device = (0, 0);
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in [
            self.inode,
            kind.mode,
            user,
            group,
            links,
            time,
            length_of(content),
            on_device.0,
            on_device.1,
            kind.device.0,
            kind.device.1,
            length_of(name.as_bytes()) + 1,
            checksum,
        ] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
        self.inode += 1;
    }

    fn pad(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }
}

/// The format has no room for 4 GiB; a longer file is cut and then fails to load, loudly.
fn length_of(content: &[u8]) -> u32 {
    u32::try_from(content.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_written_byte_for_byte_as_the_format_says() {
        let mut archive = Archive::default();
        archive.file("/etc/x", b"hello");
        let bytes = archive.finish();
        let fields = [
            "070701", "00000000", "000081a4", "00000000", "00000000", "00000001", "00000000",
            "00000005", "00000000", "00000000", "00000000", "00000000", "00000006", "00000000",
        ];
        let expected = fields.concat() + "etc/x\0hello\0\0\0" + "070701";
        assert_eq!(bytes.len() % ARCHIVE_ALIGNMENT, 0);
        assert!(bytes.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn another_program_reads_every_kind_of_entry() {
        let mut archive = Archive::default();
        archive.folder("/bin");
        archive.program("/bin/run", b"#!/bin/sh\n");
        archive.link("/bin/again", "run");
        archive.device("/console", 5, 1);
        let mut listing = String::new();
        let bytes = archive.finish();
        let mut at = 0;
        // The reader is a second, independent reading of the format's description.
        while let Some(header) = bytes.get(at..at + 110) {
            let field = |number: usize| {
                let digits = &header[6 + 8 * number..14 + 8 * number];
                usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            assert_eq!(&header[..6], b"070701");
            let name = &bytes[at + 110..at + 110 + field(11) - 1];
            let name = std::str::from_utf8(name).unwrap();
            let content = (at + 110 + field(11)).next_multiple_of(4);
            if name == "TRAILER!!!" {
                break;
            }
            let text = String::from_utf8_lossy(&bytes[content..content + field(6)]);
            let device = (field(9), field(10));
            listing += &format!("{name} {:o} {device:?} {text:?}\n", field(1));
            at = (content + field(6)).next_multiple_of(4);
        }
        let expected = "bin 40755 (0, 0) \"\"\n\
                        bin/run 100755 (0, 0) \"#!/bin/sh\\n\"\n\
                        bin/again 120777 (0, 0) \"run\"\n\
                        console 20600 (5, 1) \"\"\n";
        assert_eq!(listing, expected);
    }
}
