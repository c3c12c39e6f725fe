//! What the framework is asked for, decided without it: a pure function of the specification, of what the host
//! allows, and of what the files look like.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use microagent_protocol::{ConfinementMode, NetworkMode, guest::GUEST_CID};

use super::{Refusal, kernel};
use crate::{DiskForm, MachineSpec};

/// The guest kernel's command line. Like the other drivers', it holds nothing of a workspace.
///
/// The console is the virtio one, the only one there is. What the words mean is told where QEMU's line is made.
pub const COMMAND_LINE: &str = "console=hvc0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on";

/// The places on a PCI bus, less the one of its bridge. Apple names no limit of its own; the framework judges
/// what is fewer when it validates a configuration.
pub const MOST_DEVICES: usize = 31;

/// The devices of each machine besides its disks: vsock, console, random numbers. There is no memory balloon,
/// as nothing here would move it.
const OTHER_DEVICES: usize = 3;

const MEBIBYTE: u64 = 1024 * 1024;

/// What the framework allows on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// vCPUs.
    pub vcpus: RangeInclusive<u64>,
    /// Bytes of memory.
    pub memory: RangeInclusive<u64>,
}

/// What was seen of a machine's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The kernel's first bytes, [`kernel::HEAD`] or all there are.
    pub kernel: Vec<u8>,
    /// How long each disk is, in bytes.
    pub disks: Vec<u64>,
}

/// A raw disk.
///
/// The host caches it, always: without, guests have seen old blocks or zeroes where a sparse file was just
/// written. What a writer flushes is on the medium when the flush is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its file.
    pub path: String,
    /// What the guest reads as its serial.
    pub identifier: String,
    /// Whether the framework refuses writes.
    pub read_only: bool,
}

/// Everything the framework is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kernel, a flat arm64 `Image`.
    pub kernel: String,
    /// The initramfs.
    pub initramfs: String,
    /// The kernel's command line.
    pub command_line: &'static str,
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of memory, whole mebibytes.
    pub memory: u64,
    /// Disks, in the order the guest is to see them.
    pub disks: Vec<Disk>,
}

impl Plan {
    /// The plan for `spec`, whose disks are in one file each.
    ///
    /// # Errors
    /// What the framework cannot do, or this driver does not.
    pub fn of(spec: &MachineSpec, limits: &Limits, seen: &Seen) -> Result<Self, Refusal> {
        if spec.network == NetworkMode::User {
            return Err(Refusal::UserNetwork);
        }
        if spec.confinement == ConfinementMode::Required {
            return Err(Refusal::Confinement);
        }
        if spec.vsock.cid != GUEST_CID {
            return Err(Refusal::ContextId {
                asked: spec.vsock.cid,
            });
        }
        let devices = spec.disks.len() + OTHER_DEVICES;
        if devices > MOST_DEVICES {
            return Err(Refusal::Devices {
                asked: devices,
                most: MOST_DEVICES,
            });
        }
        kernel::check(&spec.kernel, &seen.kernel)?;
        Ok(Self {
            kernel: text(&spec.kernel)?,
            initramfs: text(&spec.initramfs)?,
            command_line: COMMAND_LINE,
            vcpus: vcpus(spec, limits)?,
            memory: memory(spec, limits)?,
            disks: disks(spec, seen)?,
        })
    }
}

fn vcpus(spec: &MachineSpec, limits: &Limits) -> Result<usize, Refusal> {
    let asked = u64::from(spec.vcpus.get());
    if limits.vcpus.contains(&asked) {
        return Ok(usize::from(spec.vcpus.get()));
    }
    Err(Refusal::Vcpus {
        asked,
        least: *limits.vcpus.start(),
        most: *limits.vcpus.end(),
    })
}

fn memory(spec: &MachineSpec, limits: &Limits) -> Result<u64, Refusal> {
    let bytes = u64::from(spec.memory.0).checked_mul(MEBIBYTE);
    match bytes.filter(|bytes| limits.memory.contains(bytes)) {
        Some(bytes) => Ok(bytes),
        None => Err(Refusal::Memory {
            asked: u64::from(spec.memory.0),
            least: limits.memory.start().div_ceil(MEBIBYTE),
            most: limits.memory.end() / MEBIBYTE,
        }),
    }
}

fn disks(spec: &MachineSpec, seen: &Seen) -> Result<Vec<Disk>, Refusal> {
    let mut serials = BTreeSet::new();
    let mut disks = Vec::with_capacity(spec.disks.len());
    for (at, disk) in spec.disks.iter().enumerate() {
        let path = || disk.path.clone();
        if disk.form == DiskForm::Joined {
            return Err(Refusal::JoinedDisk { path: path() });
        }
        let bytes = seen.disks.get(at).copied().unwrap_or(0);
        if bytes == 0 || !bytes.is_multiple_of(512) {
            return Err(Refusal::DiskSize {
                path: path(),
                bytes,
            });
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=20).contains(&disk.serial.len()) || !disk.serial.bytes().all(plain) {
            return Err(Refusal::Serial {
                path: path(),
                serial: disk.serial.clone(),
            });
        }
        if !serials.insert(&disk.serial) {
            return Err(Refusal::SameSerial {
                serial: disk.serial.clone(),
            });
        }
        disks.push(Disk {
            path: text(&disk.path)?,
            identifier: disk.serial.clone(),
            read_only: disk.read_only,
        });
    }
    Ok(disks)
}

fn text(path: &Path) -> Result<String, Refusal> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Refusal::PathNotUtf8 {
            path: PathBuf::from(path),
        }),
    }
}

#[cfg(test)]
mod tests;
