//! Whether a workspace still is what was recorded when it was made.
//!
//! Each part is hashed whole; the files of disks in chunks, on all processors, so that a change of them
//! is also found with its place. What was hashed once is not hashed again as long as its device,
//! inode, size, modification time and change time are the same: a write changes the change time,
//! which no call can set back, so only root, who could change microagent itself, or a clock that
//! was set back gets past it. A file that changed within the clock's own step of the hashing is
//! not trusted either. `Verify::Everything` hashes whatever was known.

use std::{
    fs::{self, File, Metadata},
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use microagent_disk::DiskList;
use microagent_image::{Digest, ImageStore, disk::ChunkSums};
use microagent_kernel::GUEST_SHA256;
use serde::{Deserialize, Serialize};

use super::manifest::{Hashed, Manifest, Part};
use crate::{
    config::Config,
    error::{Error, IoContext, Result},
    files::{self, Durability},
};

/// How long ago a file must have changed for its change time to tell it from a later change.
const RACY: Duration = Duration::from_secs(2);

/// How thoroughly a workspace is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Hash what may have changed since it was hashed last.
    #[default]
    Changed,
    /// Hash everything.
    Everything,
}

/// One difference between what was recorded and what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{artifact} has the {field} {actual}, and {expected} was recorded")]
pub struct Divergence {
    /// `kernel`, `initramfs`, `base_disk`, or what the image store says: `image manifest` and `record of
    /// the base_disk`; each with its path.
    pub artifact: String,
    /// What differs, such as `sha256`.
    pub field: String,
    /// What was recorded.
    pub expected: String,
    /// What is there.
    pub actual: String,
}

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Whether nothing differs.
    pub ok: bool,
    /// The digest of the image it is made of.
    pub image_digest: String,
    /// Each difference.
    pub divergence: Vec<Divergence>,
}

/// Compares everything `manifest` names with what is there.
pub(crate) fn verify(config: &Config, manifest: &Manifest, how: Verify) -> Verification {
    let parts = &manifest.parts;
    let mut named = vec![("kernel", &parts.kernel), ("base_disk", &parts.base_disk)];
    // Another agent is the new microagent's, not the workspace's; it is made from the kernel anew.
    if parts.guest_sha256 == GUEST_SHA256 {
        named.push(("initramfs", &parts.initramfs));
    }
    let parts = named
        .into_iter()
        .flat_map(|(artifact, part)| check(config, artifact, part, how));
    let divergence: Vec<Divergence> = parts.chain(records(config, manifest)).collect();
    Verification {
        ok: divergence.is_empty(),
        image_digest: manifest.image.digest.clone(),
        divergence,
    }
}

/// Where the image store says something else of the image than when the workspace was made.
fn records(config: &Config, manifest: &Manifest) -> Vec<Divergence> {
    let Ok(image) = manifest.image.digest.parse() else {
        return vec![Divergence {
            artifact: "image".to_owned(),
            field: "digest".to_owned(),
            expected: "a digest".to_owned(),
            actual: manifest.image.digest.clone(),
        }];
    };
    let disk = &manifest.parts.base_disk;
    let changed =
        ImageStore::record_divergence(&config.images_dir(), image, &disk.path, &disk.sha256);
    let divergence = changed.into_iter().map(|change| Divergence {
        artifact: format!("{} {}", change.artifact, change.path.display()),
        field: "digest".to_owned(),
        expected: change.expected,
        actual: change.actual,
    });
    divergence.collect()
}

/// What differs in a part, and in the files that it lists.
fn check(config: &Config, artifact: &str, part: &Part, how: Verify) -> Vec<Divergence> {
    if let Some(divergence) = check_file(config, artifact, part, how) {
        return vec![divergence];
    }
    if part.hashed != Hashed::List {
        return Vec::new();
    }
    let list = match DiskList::read(&part.path) {
        Ok(list) => list,
        Err(error) => {
            return vec![Divergence {
                artifact: format!("{artifact} {}", part.path.display()),
                field: "content".to_owned(),
                expected: part.sha256.clone(),
                actual: format!("an error ({error})"),
            }];
        }
    };
    let files = list.files().iter().map(|file| Part {
        path: part.path.with_file_name(&file.name),
        sha256: file.digest.clone(),
        hashed: Hashed::Chunks,
    });
    files
        .filter_map(|file| check_file(config, artifact, &file, how))
        .collect()
}

fn check_file(config: &Config, artifact: &str, part: &Part, how: Verify) -> Option<Divergence> {
    let differs = |field: &str, actual: String| {
        Some(Divergence {
            artifact: format!("{artifact} {}", part.path.display()),
            field: field.to_owned(),
            expected: part.sha256.clone(),
            actual,
        })
    };
    match sha256_of(config, part, how) {
        Ok(actual) if actual == part.sha256 => None,
        Ok(actual) => differs("sha256", actual + &place_of_change(part)),
        Err(Error::Io { source, .. }) => differs("content", format!("an error ({source})")),
        Err(error) => differs("content", format!("an error ({error})")),
    }
}

/// Where a disk was changed, as far as the sums beside it are those that were recorded.
fn place_of_change(part: &Part) -> String {
    if part.hashed != Hashed::Chunks {
        return String::new();
    }
    let recorded = ChunkSums::beside(&part.path).filter(|sums| sums.digest().hex() == part.sha256);
    let changed = recorded.and_then(|recorded| {
        let found = ChunkSums::by(recorded.hash(), &File::open(&part.path).ok()?).ok()?;
        recorded.first_difference(&found)
    });
    changed.map_or_else(String::new, |(from, to)| {
        format!(" (first changed between the bytes {from} and {to})")
    })
}

fn chunks_of(file: &File, part: &Part) -> io::Result<Digest> {
    let sums = match format!("sha256:{}", part.sha256).parse() {
        Ok(recorded) => ChunkSums::against(&recorded, file, &part.path)?,
        Err(_) => ChunkSums::of_file(file)?,
    };
    Ok(sums.digest())
}

/// A file's identity at the time it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Without a change time no stamp is ever settled: what was hashed is hashed again.
    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: 0,
            inode: 0,
            size: metadata.len(),
            modified: (0, 0),
            changed: (-1, 0),
        }
    }

    /// Whether a change from `now` on must show in it.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanos)) =
            (u64::try_from(self.changed.0), u32::try_from(self.changed.1))
        else {
            return false;
        };
        UNIX_EPOCH
            .checked_add(Duration::new(seconds, nanos))
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age > RACY)
    }
}

/// What is known of a file.
#[derive(Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    #[serde(default)]
    hashed: Hashed,
    sha256: String,
}

fn sha256_of(config: &Config, part: &Part, how: Verify) -> Result<String> {
    let path: &Path = &part.path;
    let file = File::open(path).context("open", path)?;
    let before = Stamp::of(&file.metadata().context("look at", path)?);
    let note = config.verified_dir().join(format!(
        "{}.json",
        files::sha256(path.as_os_str().as_encoded_bytes())
    ));
    if how == Verify::Changed
        && let Ok(bytes) = fs::read(&note)
        && let Ok(known) = serde_json::from_slice::<Known>(&bytes)
        && known.stamp == before
        && known.hashed == part.hashed
        // Chunks have more than one digest.
        && (part.hashed != Hashed::Chunks || known.sha256 == part.sha256)
    {
        return Ok(known.sha256);
    }
    let begun = SystemTime::now();
    let sha256 = match part.hashed {
        Hashed::Whole | Hashed::List => Digest::of_reader(&file),
        Hashed::Chunks => chunks_of(&file, part),
    }
    .context("read", path)?
    .hex();
    let after = Stamp::of(&file.metadata().context("look at", path)?);
    if before == after && before.is_settled(begun) {
        let known = Known {
            stamp: before,
            hashed: part.hashed,
            sha256: sha256.clone(),
        };
        // Without the note it is hashed again, which is only slower.
        let noted = files::private_dir(&config.verified_dir())
            .and_then(|()| files::write_json(&note, &known, Durability::Unsynced));
        if let Err(error) = noted {
            tracing::debug!("what was verified is not noted: {error}");
        }
    }
    Ok(sha256)
}

#[cfg(test)]
mod tests {
    use microagent_image::disk::ChunkHash;

    use super::*;
    use crate::config::SupervisorProgram;

    #[test]
    fn a_changed_byte_is_found_whatever_was_known() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::new(base.path(), base.path(), SupervisorProgram::ThisProgram);
        let path = base.path().join("part");
        fs::write(&path, "content").unwrap();
        let old = SystemTime::now() - Duration::from_secs(100);
        let part = Part {
            path: path.clone(),
            sha256: files::sha256(b"content"),
            hashed: Hashed::Whole,
        };
        assert_eq!(check(&config, "kernel", &part, Verify::Changed), []);
        // Same length and same modification time: the change time tells.
        let set = |text: &str| {
            fs::write(&path, text).unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(old)
                .unwrap();
        };
        set("content");
        assert_eq!(check(&config, "kernel", &part, Verify::Changed), []);
        set("c0ntent");
        let found = check(&config, "kernel", &part, Verify::Changed).remove(0);
        assert_eq!(
            (found.field.as_str(), found.expected),
            ("sha256", part.sha256.clone())
        );
        assert_eq!(found.actual, files::sha256(b"c0ntent"));
        fs::remove_file(&path).unwrap();
        let found = check(&config, "kernel", &part, Verify::Everything).remove(0);
        assert!(found.actual.contains("No such file"), "{found}");
    }

    #[test]
    fn what_was_hashed_is_known_until_it_changes() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::new(base.path(), base.path(), SupervisorProgram::ThisProgram);
        let path = base.path().join("part");
        fs::write(&path, "content").unwrap();
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        assert!(!stamp.is_settled(SystemTime::now()), "it changed just now");
        assert!(stamp.is_settled(SystemTime::now() + Duration::from_secs(10)));
        let known = Known {
            stamp,
            hashed: Hashed::Whole,
            sha256: "known".to_owned(),
        };
        let mut part = Part {
            path: path.clone(),
            sha256: String::new(),
            hashed: Hashed::Whole,
        };
        let note = files::sha256(path.as_os_str().as_encoded_bytes());
        fs::create_dir(config.verified_dir()).unwrap();
        fs::set_permissions(
            config.verified_dir(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let note = config.verified_dir().join(format!("{note}.json"));
        files::write_json(&note, &known, Durability::Unsynced).unwrap();
        assert_eq!(sha256_of(&config, &part, Verify::Changed).unwrap(), "known");
        let actual = sha256_of(&config, &part, Verify::Everything).unwrap();
        assert_eq!(actual, files::sha256(b"content"));
        part.hashed = Hashed::Chunks;
        for hash in [ChunkHash::Sha256, ChunkHash::Blake3] {
            let sums = ChunkSums::by(hash, &File::open(&path).unwrap()).unwrap();
            part.sha256 = sums.digest().hex();
            assert_eq!(check(&config, "disk", &part, Verify::Changed), []);
        }
        let chunks = sha256_of(&config, &part, Verify::Changed).unwrap();
        assert!(chunks != "known" && chunks != actual, "{chunks}");
    }

    #[test]
    fn a_change_of_a_disk_has_a_place() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::new(base.path(), base.path(), SupervisorProgram::ThisProgram);
        let path = base.path().join("disk.ext4");
        let mut content = vec![7; 9 << 20];
        fs::write(&path, &content).unwrap();
        let sums = ChunkSums::of_file(&File::open(&path).unwrap()).unwrap();
        fs::write(path.with_extension("sums"), sums.text()).unwrap();
        let part = Part {
            path: path.clone(),
            sha256: sums.digest().hex(),
            hashed: Hashed::Chunks,
        };
        assert_eq!(check(&config, "base_disk", &part, Verify::Changed), []);
        content[5 << 20] = 8;
        fs::write(&path, &content).unwrap();
        let found = check(&config, "base_disk", &part, Verify::Changed).remove(0);
        assert!(
            found
                .actual
                .ends_with(" (first changed between the bytes 4194304 and 8388608)"),
            "{found}"
        );
        // Sums that are not those recorded say nothing.
        fs::write(path.with_extension("sums"), "other").unwrap();
        let found = check(&config, "base_disk", &part, Verify::Changed).remove(0);
        assert_eq!(found.actual.len(), 64, "{found}");
    }
}
