//! What other programs say about the same layers: umoci as root, e2fsck, and the kernel's own ext4.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use microagent_disk::JoinedFile;
use microagent_image::disk::{
    BuildOptions, BuiltDisk, Compression, DiskError, LayerSource, build, convert, join,
};
use sha2::{Digest, Sha256};
pub(crate) use testkit::tool;

/// A directory of this test's own on a real file system.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn source(
    label: &str,
    bytes: Vec<u8>,
    compression: Compression,
    diff_id: Option<[u8; 32]>,
) -> LayerSource {
    LayerSource {
        label: label.to_owned(),
        reader: Box::new(std::io::Cursor::new(bytes)),
        compression,
        diff_id,
    }
}

pub(crate) fn build_plain(layers: &[Vec<u8>], output: &Path) -> Result<BuiltDisk, DiskError> {
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            source(
                &format!("layer-{index}"),
                bytes.clone(),
                Compression::Detect,
                None,
            )
        })
        .collect();
    build(layers, output, &BuildOptions::default(), &mut |_| {})
}

/// The same layers as pieces, joined, in one file again.
pub(crate) fn build_joined(layers: &[Vec<u8>], output: &Path) -> Result<(), DiskError> {
    let work = directory();
    let options = BuildOptions::default();
    let mut pieces = Vec::new();
    for (index, bytes) in layers.iter().enumerate() {
        let label = format!("layer-{index}");
        let layer = source(&label, bytes.clone(), Compression::Detect, None);
        let at = |what: &str| work.path().join(format!("{index}.{what}"));
        let (piece, sums) = convert(layer, &at("piece"), &at("index"), &options, &mut |_| {})?;
        assert_eq!(piece.sums, sums.digest());
        pieces.push((label, piece));
    }
    let joined = join(&pieces, &work.path().join("front"), &options)?;
    let list = work.path().join("disk.vmdk");
    fs::write(&list, joined.list.text()).unwrap();
    let flat = JoinedFile::open(&list).unwrap().flat(&list).unwrap();
    assert_eq!(fs::metadata(&flat).unwrap().len(), joined.list.size_bytes());
    fs::copy(&flat, output).unwrap();
    Ok(())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn e2fsck(disk: &Path) {
    tool("e2fsprogs", "e2fsck", &["-fn", disk.to_str().unwrap()]);
}

/// A disk mounted, for as long as the value lives.
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    pub(crate) fn new(disk: &Path) -> Self {
        Self::with(disk, "loop,ro")
    }

    pub(crate) fn writable(disk: &Path) -> Self {
        Self::with(disk, "loop,rw")
    }

    fn with(disk: &Path, options: &str) -> Self {
        let at = directory();
        tool(
            "mount",
            "mount",
            &[
                "-o",
                options,
                disk.to_str().unwrap(),
                at.path().to_str().unwrap(),
            ],
        );
        Mounted(at)
    }
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        testkit::unmount(self.0.path());
    }
}

/// Writes an OCI layout with gzip layers and unpacks it with umoci; returns its rootfs.
pub(crate) fn umoci(layers: &[Vec<u8>], under: &Path) -> PathBuf {
    unpacked(layers, under).unwrap()
}

/// Like [`umoci`]; what it says when it refuses.
pub(crate) fn unpacked(layers: &[Vec<u8>], under: &Path) -> Result<PathBuf, String> {
    let layout = layout(layers, under);
    unpacked_layout(&layout, "test", under)
}

/// Writes an OCI layout with gzip layers, whose one image is `test`.
fn layout(layers: &[Vec<u8>], under: &Path) -> PathBuf {
    let layout = under.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let store = |bytes: &[u8]| {
        let digest = hex(&Sha256::digest(bytes));
        fs::write(layout.join("blobs/sha256").join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        diff_ids.push(format!("sha256:{}", hex(&Sha256::digest(layer))));
        let (digest, size) = store(&gzip(layer));
        descriptors.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}));
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let (config, config_size) = store(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": descriptors});
    let (manifest, manifest_size) = store(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": "test"}}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layout
}

/// Unpacks an image of a layout with umoci; returns its rootfs, or what umoci says when it refuses.
pub(crate) fn unpacked_layout(layout: &Path, name: &str, under: &Path) -> Result<PathBuf, String> {
    let bundle = under.join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:{name}", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap_or_else(|error| panic!("cannot run umoci: {error}; install the package umoci"));
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(bundle.join("rootfs"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Everything that must agree about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file.
    pub(crate) same_as: PathBuf,
}

pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let described = if kind.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| relative.join(entry.unwrap().file_name())),
            );
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("symlink to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {} {:x}", kind.is_block_device(), metadata.rdev())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            "file".to_owned()
        };
        let directory = kind.is_dir();
        found.insert(
            relative.clone(),
            (
                (metadata.dev(), metadata.ino()),
                Facts {
                    kind: described,
                    mode: metadata.mode() & 0o7777,
                    owner: (metadata.uid(), metadata.gid()),
                    links: if directory { 0 } else { metadata.nlink() },
                    size: if directory { 0 } else { metadata.size() },
                    mtime: (metadata.mtime(), metadata.mtime_nsec()),
                    xattrs: xattrs(&path),
                    same_as: relative,
                },
            ),
        );
    }
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    found
        .into_iter()
        .map(|(path, (inode, mut facts))| {
            facts
                .same_as
                .clone_from(first.entry(inode).or_insert_with(|| path.clone()));
            (path, facts)
        })
        .collect()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let length =
                rustix::fs::lgetxattr(path, OsString::from_vec_of(name), &mut value).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

trait FromBytes {
    fn from_vec_of(bytes: &[u8]) -> OsString;
}

impl FromBytes for OsString {
    fn from_vec_of(bytes: &[u8]) -> OsString {
        std::ffi::OsStr::from_bytes(bytes).to_owned()
    }
}

/// Compares two trees name by name, metadata and content; returns how many names there are.
pub(crate) fn assert_same(ours: &Path, theirs: &Path) -> usize {
    let (a, b) = (facts(ours), facts(theirs));
    let mut differences = Vec::new();
    for path in a.keys().chain(b.keys()) {
        if a.get(path) != b.get(path) {
            differences.push(format!(
                "{path:?}\n  ours   {:?}\n  theirs {:?}",
                a.get(path),
                b.get(path)
            ));
        }
    }
    differences.dedup();
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
    for (path, fact) in &a {
        if fact.kind == "file" && fact.same_as == *path {
            assert!(
                same_content(&ours.join(path), &theirs.join(path)),
                "content of {path:?}"
            );
        }
    }
    a.len()
}

/// What is different between our tree and the one umoci unpacked after `begun`, and how many names ours has. umoci
/// leaves the time of unpacking on directories that no entry described and on those it emptied, and the former have
/// the group of a parent with the set-group-ID bit: that is passed over.
pub(crate) fn differences(
    ours: &Path,
    theirs: &Path,
    begun: SystemTime,
) -> (BTreeMap<PathBuf, String>, usize) {
    let begun = begun
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64 - 1);
    let (a, b) = (facts(ours), facts(theirs));
    let mut differences = BTreeMap::new();
    for path in a.keys().chain(b.keys()).cloned().collect::<BTreeSet<_>>() {
        let (a, b) = (a.get(&path), b.get(&path));
        let same = match (a, b) {
            (Some(a), Some(b)) => {
                let mut b = b.clone();
                if b.kind == "directory" && b.mtime.0 >= begun {
                    b.mtime = a.mtime;
                    if (a.mode, a.owner, a.mtime) == (0o755, (0, 0), (0, 0)) {
                        (b.mode, b.owner.1) = (b.mode & !0o2000, 0);
                    }
                }
                let is_content = a.kind == "file" && a.same_as == path;
                *a == b && (!is_content || same_content(&ours.join(&path), &theirs.join(&path)))
            }
            _ => false,
        };
        if !same {
            let text = format!("{path:?}\n  ours   {a:?}\n  theirs {b:?}");
            differences.insert(path, text);
        }
    }
    (differences, a.len())
}

fn same_content(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut x, mut y) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    loop {
        let count = a.read(&mut x).unwrap();
        if b.read_exact(&mut y[..count]).is_err() || x[..count] != y[..count] {
            return false;
        }
        if count == 0 {
            return b.read(&mut y).unwrap() == 0;
        }
    }
}
