//! The list: a VMDK descriptor of flat extents, so that other programs (`qemu-img convert`) read it too.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=fffffffe
//! parentCID=ffffffff
//! createType="twoGbMaxExtentFlat"
//! RW <sectors> FLAT "<file>" <first sector in the file>
//! …
//! # sums <digest of the file's sums> <file>
//! …
//! ```
//! Only this form, byte for byte, is read. Files lie beside the list. QEMU wants no empty line in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// What a list's name ends in. What a disk is, its name says, never its content: that may be a guest's.
pub const EXTENSION: &str = "vmdk";

/// The most bytes a list may have; QEMU reads no more.
pub const MAX_LIST: u64 = (1 << 20) - 1;

const HEADER: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                      createType=\"twoGbMaxExtentFlat\"\n";
const SECTOR: u64 = 512;
/// More than any disk of ours has; what counts sectors cannot overflow below it.
const MAX_BYTES: u64 = 1 << 50;

/// Whether this file is a list, by its name.
#[must_use]
pub fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == EXTENSION)
}

/// The size of the disk at `path`: a list, by its name, or one file.
///
/// # Errors
/// When it cannot be read, and `InvalidData` for a list that is none.
pub fn size_bytes(path: &Path) -> io::Result<u64> {
    if is_list(path) {
        return Ok(DiskList::read(path)?.size_bytes());
    }
    Ok(File::open(path)?.metadata()?.len())
}

/// A file that a disk has blocks in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name, beside the list.
    pub name: String,
    /// The digest that was recorded of it, in hexadecimal.
    pub digest: String,
}

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which of the files, from 0.
    pub file: usize,
    /// Its first byte there.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What a disk is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskList {
    files: Vec<ListedFile>,
    runs: Vec<Run>,
}

impl DiskList {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a run of a file behind what is there; an empty run adds nothing. `false`, and nothing added, where it
    /// cannot be listed: no whole sectors, a name that is no plain one, another digest for the same file.
    #[must_use]
    pub fn push(&mut self, name: &str, digest: &str, offset: u64, length: u64) -> bool {
        let sound = is_name(name)
            && is_digest(digest)
            && offset.is_multiple_of(SECTOR)
            && length.is_multiple_of(SECTOR)
            && offset <= MAX_BYTES
            && length <= MAX_BYTES - self.size_bytes().min(MAX_BYTES);
        if !sound {
            return false;
        }
        if length == 0 {
            return true;
        }
        let file = match self.files.iter().position(|file| file.name == name) {
            Some(at) if self.files[at].digest == digest => at,
            Some(_) => return false,
            None => {
                self.files.push(ListedFile {
                    name: name.to_owned(),
                    digest: digest.to_owned(),
                });
                self.files.len() - 1
            }
        };
        self.runs.push(Run {
            file,
            offset,
            length,
        });
        true
    }

    /// Reads the list at `path`.
    ///
    /// # Errors
    /// When it cannot be read, and `InvalidData` for what is no list.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        File::open(path)?
            .take(MAX_LIST + 1)
            .read_to_string(&mut text)?;
        Self::parse(&text).ok_or_else(|| {
            let what = format!("{} is no list of a disk", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    /// Reads a list; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() as u64 > MAX_LIST {
            return None;
        }
        let body = text.strip_prefix(HEADER)?;
        let digests: BTreeMap<&str, &str> = body
            .lines()
            .filter_map(|line| line.strip_prefix("# sums ")?.split_once(' '))
            .map(|(digest, name)| (name, digest))
            .collect();
        let mut list = Self::new();
        for line in body.lines().take_while(|line| line.starts_with("RW ")) {
            let (sectors, rest) = line.strip_prefix("RW ")?.split_once(" FLAT \"")?;
            let (name, first) = rest.split_once("\" ")?;
            let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(SECTOR);
            let digest = digests.get(name)?;
            if !list.push(name, digest, bytes(first)?, bytes(sectors)?) {
                return None;
            }
        }
        // There is one way to write each list.
        (list.text() == text).then_some(list)
    }

    /// The list as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.descriptor(|file| self.files[file].name.clone());
        for ListedFile { name, digest } in &self.files {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# sums {digest} {name}");
        }
        text
    }

    /// The list as a VMDK descriptor whose files have other names: those that `name` gives.
    #[must_use]
    pub fn descriptor(&self, name: impl Fn(usize) -> String) -> String {
        let mut text = HEADER.to_owned();
        for run in &self.runs {
            let (sectors, first) = (run.length / SECTOR, run.offset / SECTOR);
            // As above.
            let _ = writeln!(text, "RW {sectors} FLAT \"{}\" {first}", name(run.file));
        }
        text
    }

    /// The files, each once.
    #[must_use]
    pub fn files(&self) -> &[ListedFile] {
        &self.files
    }

    /// The runs, in the disk's order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The size of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.length).sum()
    }
}

/// Names of ours: nothing that leads elsewhere, and nothing that would end the quotes.
fn is_name(name: &str) -> bool {
    (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

fn is_digest(digest: &str) -> bool {
    digest.len() == 64
        && digest
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn digest(of: u8) -> String {
        char::from(b'a' + of % 6).to_string().repeat(64)
    }

    fn list(runs: &[(u8, u64, u64)]) -> DiskList {
        let mut list = DiskList::new();
        for (file, offset, length) in runs {
            let name = format!("{file}.piece");
            assert!(list.push(&name, &digest(*file), offset * SECTOR, length * SECTOR));
        }
        list
    }

    proptest! {
        #[test]
        fn a_list_is_read_back(runs in prop::collection::vec((0u8..4, 0u64..1 << 20, 0u64..1 << 30), 0..20)) {
            let list = list(&runs);
            prop_assert_eq!(DiskList::parse(&list.text()), Some(list));
        }

        #[test]
        fn nothing_else_is(text in "\\PC{0,200}", at in 0usize..300, with in any::<char>()) {
            prop_assert_eq!(DiskList::parse(&text), None);
            let sound = list(&[(0, 0, 8), (1, 8, 16), (0, 8, 8)]).text();
            let mut changed: Vec<char> = sound.chars().collect();
            let at = at % changed.len();
            changed[at] = with;
            let changed: String = changed.into_iter().collect();
            // Another number or name is another list, which is written as it was read.
            if let Some(other) = DiskList::parse(&changed) {
                prop_assert_eq!(other.text(), changed);
            }
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for name in ["../x", "a/b", ".x", "", "a\"b", "a\nb", "ä"] {
            assert!(!DiskList::new().push(name, &digest(0), 0, 512), "{name}");
        }
        let mut list = DiskList::new();
        for (offset, length) in [(1, 512), (0, 511), (u64::MAX - 511, 512), (0, 1 << 60)] {
            assert!(!list.push("a", &digest(0), offset, length));
        }
        assert!(list.push("a", &digest(0), 0, 512));
        assert!(!list.push("a", &digest(1), 0, 512), "another digest");
        assert!(!list.push("b", "xyz", 0, 512));
        assert_eq!(list.runs().len(), 1);
    }
}
