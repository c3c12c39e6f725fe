//! One volume: where its content comes from, and where it is mounted.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    str::FromStr,
};

use microagent_protocol::{GuestPath, ItemName};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};

/// Where the magic number of ext4 is, and what it is.
const MAGIC: (u64, [u8; 2]) = (1080, [0x53, 0xef]);

/// What a volume's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// An ext4 image, attached as it is.
    Disk(PathBuf),
    /// A tar, plain or compressed with gzip or zstd, made into a disk of the workspace's own.
    Bundle(PathBuf),
}

/// A disk that is mounted in the guest besides its root.
///
/// Without a word it is read-only, and the VMM holds to that. An image that is attached `rw` is
/// one machine's for as long as that lives; a bundle that is attached `rw` has 512 MiB of room
/// and changes only in the workspace, never in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    name: ItemName,
    source: VolumeSource,
    mountpoint: GuestPath,
    read_only: bool,
}

/// A text that is no volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a volume: {reason}; write {form}")]
pub struct InvalidVolume {
    input: String,
    reason: String,
    form: &'static str,
}

const VOLUME: &str = "SRC:DST[:ro|rw] (data.tar.gz:/data, cache.ext4:/var/cache:rw)";
const DISK: &str = "NAME=IMAGE:DST[:ro|rw] (cache=cache.ext4:/var/cache:rw)";
const BUNDLE: &str = "NAME=TAR:DST[:ro|rw] (data=data.tar.gz:/data)";

impl Volume {
    /// An ext4 image, read-only.
    #[must_use]
    pub fn disk(name: ItemName, image: impl Into<PathBuf>, mountpoint: GuestPath) -> Self {
        Self::new(name, VolumeSource::Disk(image.into()), mountpoint)
    }

    /// A tar that is made into a disk, read-only.
    #[must_use]
    pub fn bundle(name: ItemName, archive: impl Into<PathBuf>, mountpoint: GuestPath) -> Self {
        Self::new(name, VolumeSource::Bundle(archive.into()), mountpoint)
    }

    fn new(name: ItemName, source: VolumeSource, mountpoint: GuestPath) -> Self {
        Self {
            name,
            source,
            mountpoint,
            read_only: true,
        }
    }

    /// Whether the guest may write to it.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.read_only = !writable;
        self
    }

    /// Reads `NAME=IMAGE:DST[:ro|rw]`.
    ///
    /// # Errors
    /// [`InvalidVolume`], saying what is wrong.
    pub fn parse_disk(text: &str) -> Result<Self, InvalidVolume> {
        let (name, path, mountpoint, read_only) = named(text, DISK)?;
        Ok(Self::disk(name, path, mountpoint).writable(!read_only))
    }

    /// Reads `NAME=TAR:DST[:ro|rw]`.
    ///
    /// # Errors
    /// [`InvalidVolume`], saying what is wrong.
    pub fn parse_bundle(text: &str) -> Result<Self, InvalidVolume> {
        let (name, path, mountpoint, read_only) = named(text, BUNDLE)?;
        Ok(Self::bundle(name, path, mountpoint).writable(!read_only))
    }

    /// Its name, one of a kind in a workspace.
    #[must_use]
    pub fn name(&self) -> &ItemName {
        &self.name
    }

    /// What its content comes from.
    #[must_use]
    pub fn source(&self) -> &VolumeSource {
        &self.source
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &GuestPath {
        &self.mountpoint
    }

    /// Whether the VMM refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its file of the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.source {
            VolumeSource::Disk(path) | VolumeSource::Bundle(path) => path,
        }
    }

    /// The same with another file: a relative one has to be made absolute by whoever knows from where.
    #[must_use]
    pub fn with_path(mut self, new: PathBuf) -> Self {
        match &mut self.source {
            VolumeSource::Disk(path) | VolumeSource::Bundle(path) => *path = new,
        }
        self
    }

    /// Whether its file is there and what it should be.
    pub(crate) fn check(&self) -> Result<()> {
        let (path, shown) = (self.path(), self.path().display());
        let invalid = |reason: String| Err(Error::invalid("--volume", reason));
        if !path.is_absolute() {
            return invalid(format!("{shown} is not absolute"));
        }
        let meta = fs::metadata(path).context("look at", path)?;
        if meta.is_dir() {
            return invalid(format!("{shown} is a directory: {DIRECTORY}"));
        }
        if !meta.is_file() {
            return invalid(format!("{shown} is no regular file"));
        }
        if matches!(self.source, VolumeSource::Disk(_)) && !has_ext4(path)? {
            return invalid(format!("{shown} has no ext4 file system"));
        }
        Ok(())
    }
}

const DIRECTORY: &str = "a microVM shares no directory with the host. Pack it (tar -cf data.tar \
     -C DIR .) and attach the archive, or copy files with `microagent cp`";

fn has_ext4(path: &Path) -> Result<bool> {
    let mut magic = [0; 2];
    let mut file = File::open(path).context("open", path)?;
    file.seek(SeekFrom::Start(MAGIC.0)).context("read", path)?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == MAGIC.1),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).context("read", path),
    }
}

impl FromStr for Volume {
    type Err = InvalidVolume;

    /// Reads `SRC:DST[:ro|rw]`; what SRC is shows in its suffix. The name is made of DST.
    fn from_str(text: &str) -> Result<Self, InvalidVolume> {
        let (path, mountpoint, read_only) = placed(text, text, VOLUME)?;
        let invalid = |reason: &str| Err(wrong(text, VOLUME, reason));
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| path.ends_with(suffix));
        let source = if ends(&[".tar", ".tar.gz", ".tgz", ".tar.zst"]) {
            VolumeSource::Bundle(path.into())
        } else if ends(&[".ext4", ".img"]) {
            VolumeSource::Disk(path.into())
        } else if path.contains('/') || matches!(path, "." | "..") {
            return invalid(&format!(
                "{path} is neither a tar (.tar, .tar.gz, .tgz, .tar.zst) nor an ext4 image \
                 (.ext4, .img), and {DIRECTORY}"
            ));
        } else {
            return invalid(
                "there are no named volumes; SRC is a tar (.tar, .tar.gz, .tgz, .tar.zst) or an \
                 ext4 image (.ext4, .img). Files of kept workspaces are copied with `microagent cp`",
            );
        };
        let name = name_of(&mountpoint)
            .ok_or_else(|| wrong(text, VOLUME, "DST makes no name: use --disk or --bundle"))?;
        Ok(Self::new(name, source, mountpoint).writable(!read_only))
    }
}

/// A name made of a mount point: `/var/lib/data` is `var-lib-data`.
fn name_of(mountpoint: &GuestPath) -> Option<ItemName> {
    let name: String = mountpoint
        .as_str()
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => c,
            _ => '-',
        })
        .collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    // What is cut off is the front: the end tells more.
    let front = name.len().saturating_sub(63);
    let name = name[front..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    name.parse().ok()
}

fn wrong(input: &str, form: &'static str, reason: impl Into<String>) -> InvalidVolume {
    InvalidVolume {
        input: input.chars().take(200).collect(),
        reason: reason.into(),
        form,
    }
}

fn named<'t>(
    text: &'t str,
    form: &'static str,
) -> Result<(ItemName, &'t str, GuestPath, bool), InvalidVolume> {
    let (name, rest) = text
        .split_once('=')
        .ok_or_else(|| wrong(text, form, "it has no '='"))?;
    let name = name
        .parse()
        .map_err(|_| wrong(text, form, format!("{name:?} is no name")))?;
    let (path, mountpoint, read_only) = placed(text, rest, form)?;
    Ok((name, path, mountpoint, read_only))
}

/// The file, the mount point, and whether it is read-only. The file's name may have colons.
fn placed<'t>(
    whole: &str,
    text: &'t str,
    form: &'static str,
) -> Result<(&'t str, GuestPath, bool), InvalidVolume> {
    let invalid = |reason: &str| wrong(whole, form, reason);
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        Some((rest, mode)) if !mode.starts_with('/') && rest.contains(":/") => {
            return Err(invalid(&format!("{mode:?} is neither ro nor rw")));
        }
        _ => (text, true),
    };
    let (path, mountpoint) = rest
        .rsplit_once(':')
        .ok_or_else(|| invalid("it has no ':' between file and mount point"))?;
    if path.is_empty() {
        return Err(invalid("the file is missing"));
    }
    let mountpoint = mountpoint
        .parse()
        .map_err(|_| invalid("the mount point is no absolute path without . and .."))?;
    Ok((path, mountpoint, read_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_says_what_a_volume_is() {
        for (text, bundle, name, read_only) in [
            ("a.tar:/data", true, "data", true),
            ("./a.tar.gz:/data/x:ro", true, "data-x", true),
            ("/x/a.tgz:/data:rw", true, "data", false),
            ("/x:y/a.tar.zst:/srv/.hid", true, "srv-.hid", true),
            ("a.ext4:/data", false, "data", true),
            ("/a.img:/da ta:rw", false, "da-ta", false),
        ] {
            let volume: Volume = text.parse().unwrap();
            let is_bundle = matches!(volume.source(), VolumeSource::Bundle(_));
            assert_eq!(
                (is_bundle, volume.name().as_str()),
                (bundle, name),
                "{text}"
            );
            assert_eq!(volume.is_read_only(), read_only, "{text}");
        }
        let long = format!("a.tar:/{}/end", "x".repeat(80));
        let volume: Volume = long.parse().unwrap();
        assert!(volume.name().as_str().ends_with("-end"));
    }

    #[test]
    fn what_is_no_volume_is_refused_with_what_would_be() {
        for (text, words) in [
            ("/tmp:/data", "cp"),
            (".:/data:rw", "cp"),
            ("cache:/data", "no named volumes"),
            ("a.tar", "':'"),
            ("a.tar:data", "absolute"),
            ("a.tar:/", "absolute"),
            ("a.tar:/a/../b", "absolute"),
            ("a.tar:/data:rx", "neither ro nor rw"),
            (":/data", "missing"),
        ] {
            let error = text.parse::<Volume>().unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("SRC:DST"),
                "{error}"
            );
        }
    }

    #[test]
    fn names_may_be_given() {
        let volume = Volume::parse_disk("cache=/x/odd.name:/var/cache:rw").unwrap();
        assert_eq!(volume.source(), &VolumeSource::Disk("/x/odd.name".into()));
        assert!(volume.name().as_str() == "cache" && !volume.is_read_only());
        let volume = Volume::parse_bundle("b=/x/a=b:/b").unwrap();
        assert_eq!(volume.path(), Path::new("/x/a=b"));
        for text in ["/x.tar:/b", "=x:/b", "a/b=x:/b", "a=x", "a=x:b", "a=:/b"] {
            assert!(Volume::parse_bundle(text).is_err(), "{text}");
            assert!(Volume::parse_disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_looked_at_before_anything_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            let path = dir.path().join(name);
            let volume: Volume = format!("{}:/data", path.display()).parse().unwrap();
            volume.check()
        };
        assert!(matches!(check("missing.tar"), Err(Error::Io { .. })));
        std::fs::write(dir.path().join("small.ext4"), [0; 10]).unwrap();
        std::fs::write(dir.path().join("zeros.img"), [0; 4096]).unwrap();
        for name in ["small.ext4", "zeros.img"] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains("no ext4"), "{error}");
        }
        std::fs::create_dir(dir.path().join("dir.tar")).unwrap();
        let error = check("dir.tar").unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let disk = dir.path().join("good.ext4");
        microagent_image::disk::create_scratch(&disk, 16).unwrap();
        check("good.ext4").unwrap();
        let relative: Volume = "a.tar:/data".parse().unwrap();
        assert!(relative.check().is_err());
    }
}
