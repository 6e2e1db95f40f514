//! Writes an initramfs: the "newc" cpio archive that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written; parents of every path are added by themselves.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    known: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Archive<W> {
        Archive { out, inode: 0, known: BTreeSet::new() }
    }

    /// Adds a directory, unless it is there.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn directory(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        if path.is_empty() || self.known.contains(path) {
            return Ok(());
        }
        self.entry(path, DIRECTORY | permissions, (0, 0), &[])
    }

    /// Adds a regular file; the first one of a path wins.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | permissions, (0, 0), data)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn device(&mut self, path: &str, permissions: u32, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | permissions, number, &[])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755)?;
        }
        if !self.known.insert(path.to_owned()) {
            return Ok(());
        }
        self.inode += 1;
        self.write(path, mode, device, data)
    }

    fn write(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let fields =
            [self.inode, mode, 0, 0, links, 0, data.len() as u32, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.padded(&[header.as_bytes(), path.as_bytes(), &[0]].concat())?;
        self.padded(data)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        const ZEROS: [u8; 3] = [0; 3];
        self.out.write_all(bytes)?;
        self.out.write_all(ZEROS.get(..bytes.len().wrapping_neg() % 4).unwrap_or(&[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once_and_everything_is_aligned() {
        let mut archive = Archive::new(Vec::new());
        archive.file("usr/bin/a", 0o755, b"hello").unwrap();
        archive.file("usr/bin/a", 0o755, b"other").unwrap();
        archive.link("usr/lib/b", "../bin/a").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let order: Vec<usize> = ["usr\0", "usr/bin\0", "usr/bin/a\0", "hello", "usr/lib\0", "../bin/a", "TRAILER!!!"]
            .iter()
            .map(|what| text.find(what).unwrap())
            .collect();
        assert!(order.is_sorted());
        assert!(!text.contains("other"));
    }
}
