//! A machine's disks as QEMU gets them: opened here, and known to it by the numbers of descriptor sets alone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use microagent_disk::JoinedFile;
use serde_json::{Value, json};

use crate::{DiskForm, DiskSpec, Error};

/// A disk whose files are open.
pub(super) struct OpenDisk {
    files: Vec<OwnedFd>,
    /// The number of the first file's descriptor set; the others follow.
    first_set: usize,
    joined: bool,
    read_only: bool,
}

/// Opens the disks. A disk of several files has one descriptor more: a VMDK descriptor that names the others.
pub(super) fn open(specs: &[DiskSpec]) -> Result<Vec<OpenDisk>, Error> {
    let mut sets = 0;
    specs
        .iter()
        .map(|spec| {
            let files = files(spec, sets).map_err(|source| Error::Io {
                context: format!("open the disk {}", spec.path.display()),
                source,
            })?;
            let disk = OpenDisk {
                first_set: sets,
                joined: spec.form == DiskForm::Joined,
                read_only: spec.read_only,
                files,
            };
            sets += disk.files.len();
            Ok(disk)
        })
        .collect()
}

fn files(spec: &DiskSpec, first_set: usize) -> io::Result<Vec<OwnedFd>> {
    match spec.form {
        DiskForm::Raw => {
            let file = OpenOptions::new()
                .read(true)
                .write(!spec.read_only)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
                .open(&spec.path)?;
            Ok(vec![file.into()])
        }
        DiskForm::Joined => {
            let disk = JoinedFile::open(&spec.path)?;
            let name = |file| format!("/dev/fdset/{}", first_set + file);
            let descriptor = in_memory(&disk.list().descriptor(name))?;
            let files = disk.into_files().into_iter().map(OwnedFd::from);
            Ok(files.chain([descriptor]).collect())
        }
    }
}

/// A file without a name, open for reading only: QEMU takes no descriptor that may do more than it asks for.
fn in_memory(text: &str) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(text.as_bytes())?;
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}

impl OpenDisk {
    /// Each descriptor with the number of its set.
    pub(super) fn sets(&self) -> impl Iterator<Item = (usize, RawFd)> {
        let first = self.first_set;
        let files = self.files.iter().enumerate();
        files.map(move |(at, file)| (first + at, file.as_raw_fd()))
    }

    pub(super) fn into_files(self) -> Vec<OwnedFd> {
        self.files
    }

    /// The value of `-blockdev`.
    pub(super) fn block_device(&self, name: &str) -> Value {
        let set = match self.joined {
            true => self.first_set + self.files.len().saturating_sub(1),
            false => self.first_set,
        };
        // Space the guest gives back is given back to the host.
        let discard = if self.read_only { "ignore" } else { "unmap" };
        json!({
            "driver": if self.joined { "vmdk" } else { "raw" },
            "node-name": name,
            "read-only": self.read_only,
            "discard": discard,
            "file": {
                "driver": "file",
                "filename": format!("/dev/fdset/{set}"),
                // Base disks are shared by machines: the host's page cache holds them once.
                // Scratch disks are written back; the guest's flushes are obeyed.
                "cache": {"direct": false, "no-flush": false},
                "aio": "threads",
                "read-only": self.read_only,
                "discard": discard,
            },
        })
    }
}
