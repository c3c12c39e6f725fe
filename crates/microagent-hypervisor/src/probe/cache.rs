//! What was proved stays proved until the host reboots, or QEMU or the probe
//! guest changes. A cache that cannot be read or written is no cache.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_host::process::boot_id;
use microagent_protocol::supervisor::{HostCheck, ProbeGuest, Verdict};
use serde::{Deserialize, Serialize};

use crate::{program::Version, qemu::QemuBinary};

const FILE_NAME: &str = "host-probe.json";
/// Changes whenever a verdict could come out differently, or its form does.
const VERSION: u32 = 2;
/// The most that is read.
const SIZE_LIMIT: u64 = 64 * 1024;

/// A verdict worth keeping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub verdict: Verdict,
    pub detail: String,
    pub remedy: Option<String>,
    /// Where it was time that ran out: how much there was. Who has more may look again.
    #[serde(default)]
    pub limit_ms: Option<u64>,
}

impl Kept {
    pub(super) const fn ready(detail: String) -> Self {
        Self {
            verdict: Verdict::Ready,
            detail,
            remedy: None,
            limit_ms: None,
        }
    }

    pub(super) fn into_check(self, name: &str, since: Instant) -> HostCheck {
        HostCheck {
            remedy: self.remedy,
            ..super::check(name, since, self.verdict, self.detail)
        }
    }
}

/// A file as it is now; content that changes in place changes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileStamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    version: u32,
    boot_id: String,
    #[serde(default)]
    tsc_khz: Option<u64>,
    #[serde(default)]
    qemu: Option<(FileStamp, Version)>,
    /// The Firecracker its verdict was proved with, and the jailer.
    #[serde(default)]
    firecracker: Option<(FileStamp, Option<FileStamp>)>,
    /// The passt that answered.
    #[serde(default)]
    passt: Option<FileStamp>,
    /// The probe guest the verdicts were proved with: kernel, initramfs.
    #[serde(default)]
    guest: Option<(FileStamp, FileStamp)>,
    #[serde(default)]
    verdicts: BTreeMap<String, Kept>,
}

/// What is kept, if anything may be.
pub(super) struct Cache {
    path: Option<PathBuf>,
    found: Contents,
    now: Contents,
}

impl Cache {
    /// Reads what was kept and still holds.
    pub(super) fn open(dir: Option<&Path>, guest: Option<&ProbeGuest>, fresh: bool) -> Self {
        let path = dir.map(|dir| dir.join(FILE_NAME));
        let boot_id = boot_id().unwrap_or_default();
        let guest = guest
            .and_then(|guest| FileStamp::of(&guest.kernel).zip(FileStamp::of(&guest.initramfs)));
        let found = path
            .as_deref()
            .filter(|_| !fresh && !boot_id.is_empty())
            .and_then(|path| match read(path) {
                Ok(found) => Some(found),
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "no kept verdicts");
                    None
                }
            })
            .filter(|found| found.version == VERSION && found.boot_id == boot_id)
            .unwrap_or_default();
        let mut now = found.clone();
        now.version = VERSION;
        now.boot_id = boot_id;
        // Without a guest nothing new is proved, and what was stays.
        if guest.is_some() && now.guest != guest {
            now.verdicts.clear();
            now.guest = guest;
        }
        Self { path, found, now }
    }

    pub(super) fn tsc_khz(&self) -> Option<u64> {
        self.now.tsc_khz
    }

    pub(super) fn keep_tsc_khz(&mut self, khz: u64) {
        self.now.tsc_khz = Some(khz);
    }

    /// The QEMU at `path`, if it is the one that told its version.
    pub(super) fn binary(&self, path: &Path) -> Option<QemuBinary> {
        let (stamp, version) = self.now.qemu.as_ref()?;
        (FileStamp::of(path).as_ref() == Some(stamp)).then(|| QemuBinary::known(path, *version))
    }

    pub(super) fn keep_binary(&mut self, binary: &QemuBinary) {
        let stamp = FileStamp::of(binary.path()).map(|stamp| (stamp, binary.version()));
        if self.now.qemu != stamp {
            self.now.verdicts.clear();
            self.now.qemu = stamp;
        }
    }

    /// Takes note of the Firecracker that is there; a verdict on another one holds no more.
    pub(super) fn keep_firecracker(&mut self, path: &Path, jailer: Option<&Path>) {
        let stamp = FileStamp::of(path).map(|stamp| (stamp, jailer.and_then(FileStamp::of)));
        if self.now.firecracker != stamp {
            self.now.verdicts.remove(super::CHECK_FIRECRACKER);
            self.now.firecracker = stamp;
        }
    }

    /// The same of passt.
    pub(super) fn keep_passt(&mut self, path: &Path) {
        let stamp = FileStamp::of(path);
        if self.now.passt != stamp {
            self.now.verdicts.remove(super::CHECK_NETWORK);
            self.now.passt = stamp;
        }
    }

    /// What was found before, by somebody who had at least this much time for it.
    pub(super) fn verdict(&self, name: &str, limit: Duration) -> Option<Kept> {
        let kept = self.now.verdicts.get(name);
        let enough = |kept: &&Kept| kept.limit_ms.is_none_or(|had| had >= super::millis(limit));
        kept.filter(enough).cloned()
    }

    pub(super) fn keep_verdict(&mut self, name: &str, kept: &Kept) {
        self.now.verdicts.insert(name.to_owned(), kept.clone());
    }

    /// Writes what is new. Failing to only costs the next probe its time.
    pub(super) fn save(&self) {
        let Some(path) = &self.path else { return };
        if self.now == self.found || self.now.boot_id.is_empty() {
            return;
        }
        if let Err(error) = write(path, &self.now) {
            tracing::debug!(path = %path.display(), %error, "verdicts are not kept");
        }
    }
}

fn read(path: &Path) -> io::Result<Contents> {
    let mut text = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)?
        .take(SIZE_LIMIT)
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write(path: &Path, contents: &Contents) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = dir.join(format!("{FILE_NAME}.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(contents)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // It may not even have been made; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: Duration = Duration::from_secs(1);

    fn guest(dir: &Path) -> ProbeGuest {
        let guest = ProbeGuest {
            kernel: dir.join("kernel"),
            initramfs: dir.join("initramfs"),
        };
        fs::write(&guest.kernel, "k").unwrap();
        fs::write(&guest.initramfs, "i").unwrap();
        guest
    }

    #[test]
    fn a_verdict_lasts_until_the_guest_changes() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(dir.path());
        let open = |fresh| Cache::open(Some(dir.path()), Some(&guest), fresh);
        let kept = Kept::ready("it did".to_owned());
        let mut cache = open(false);
        assert_eq!(cache.verdict("kvm", ONE), None);
        cache.keep_verdict("kvm", &kept);
        cache.save();
        let file = dir.path().join(FILE_NAME);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(open(false).verdict("kvm", ONE), Some(kept));
        assert_eq!(open(true).verdict("kvm", ONE), None);
        fs::write(&guest.kernel, "another").unwrap();
        assert_eq!(open(false).verdict("kvm", ONE), None);
    }

    #[test]
    fn who_has_more_time_looks_again_where_it_ran_out() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(dir.path());
        let mut cache = Cache::open(Some(dir.path()), Some(&guest), false);
        let kept = Kept {
            verdict: Verdict::Unusable,
            limit_ms: Some(1000),
            ..Kept::ready("it was late".to_owned())
        };
        cache.keep_verdict("kvm", &kept);
        cache.save();
        let cache = Cache::open(Some(dir.path()), Some(&guest), false);
        assert_eq!(cache.verdict("kvm", ONE / 2), Some(kept.clone()));
        assert_eq!(cache.verdict("kvm", ONE), Some(kept));
        assert_eq!(cache.verdict("kvm", ONE * 2), None);
    }

    #[test]
    fn another_boot_and_a_broken_file_hold_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(dir.path());
        let file = dir.path().join(FILE_NAME);
        let mut cache = Cache::open(Some(dir.path()), Some(&guest), false);
        cache.keep_verdict("kvm", &Kept::ready(String::new()));
        cache.now.boot_id = "another".to_owned();
        cache.save();
        let open = || Cache::open(Some(dir.path()), Some(&guest), false);
        assert_eq!(open().verdict("kvm", ONE), None);
        for broken in ["", "{", "[]", "{\"version\":1}", "\u{0}"] {
            fs::write(&file, broken).unwrap();
            assert_eq!(open().verdict("kvm", ONE), None, "{broken:?}");
        }
        fs::write(&file, vec![b' '; 200_000]).unwrap();
        assert_eq!(open().verdict("kvm", ONE), None);
    }
}
