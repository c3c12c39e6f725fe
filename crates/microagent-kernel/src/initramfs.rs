//! The initramfs: the guest agent as `/init`, the kernel's modules in load order, and the few directories PID 1 needs
//! before it has a file system.
//!
//! Format: cpio "newc", Linux `Documentation/driver-api/early-userspace/buffer-format.rst`. The same input gives the
//! same bytes: no clock, no inode numbers of this host.

use std::fmt::Write as _;

/// Changes whenever the layout below does; part of the cache key.
pub(crate) const FORMAT: u32 = 1;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Mount points and such; `modules` is filled below.
const DIRECTORIES: [&str; 7] = ["dev", "mnt", "modules", "proc", "run", "sys", "tmp"];

/// The archive, uncompressed. `modules` are (name, content) in load order.
pub(crate) fn build(guest: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let size: usize = guest.len()
        + modules
            .iter()
            .map(|(_, bytes)| bytes.len() + 256)
            .sum::<usize>();
    let mut archive = Archive {
        bytes: Vec::with_capacity(size + 4096),
        inode: 0,
    };
    for directory in DIRECTORIES {
        archive.add(directory, DIRECTORY, (0, 0), &[]);
    }
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    archive.add("init", PROGRAM, (0, 0), guest);
    let mut order = String::new();
    for (index, (name, bytes)) in modules.iter().enumerate() {
        let file = format!("{index:03}-{name}.ko");
        archive.add(&format!("modules/{file}"), FILE, (0, 0), bytes);
        order.push_str(&file);
        order.push('\n');
    }
    archive.add("modules/order", FILE, (0, 0), order.as_bytes());
    archive.finish()
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Contents are bounded far below 4 GiB, and names by this module.
        let sizes =
            [content.len(), name.len() + 1].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        let fields = [
            self.inode, mode, 0, 0, links, 0, sizes[0], 0, 0, device.0, device.1, sizes[1], 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a string cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
