//! Images that leave: to files and registries and back, by us and by other tools, compared name by name with what
//! `umoci` unpacks as root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../disk/archive.rs"]
#[allow(dead_code, reason = "shared with the tests of disks")]
mod archive;
mod commit;
mod crash;
mod files;
#[path = "../disk/nasty.rs"]
mod nasty;
#[path = "../disk/oracle.rs"]
#[allow(dead_code, reason = "shared with the tests of disks")]
mod oracle;
mod push;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use microagent_image::{
    ExportFormat, ExportOptions, ExportTo, Exported, ImageError, ImageEvent, ImageRecord,
    ImageStore, ImportOptions, PushOptions, RegistryOptions,
};
use oracle::tool;
use testkit::registry::{Layout, Packing, TinyImage, run_tool, skopeo};

/// A store and room for files, on a real file system.
struct Bench {
    directory: tempfile::TempDir,
    store: ImageStore,
    events: Mutex<Vec<ImageEvent>>,
}

impl Bench {
    fn new() -> Self {
        let directory = oracle::directory();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self {
            directory,
            store,
            events: Mutex::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn hear(&self, event: ImageEvent) {
        self.events.lock().unwrap().push(event);
    }

    /// An image of these layers, imported.
    fn image(&self, name: &str, layers: &[Vec<u8>], packing: Packing) -> ImageRecord {
        let image = layers.iter().fold(TinyImage::new("amd64"), |image, layer| {
            image.layer(layer.clone(), packing)
        });
        self.tiny(name, image)
    }

    fn tiny(&self, name: &str, image: TinyImage) -> ImageRecord {
        let place = self.path(&format!("from-{}", name.replace(['/', ':'], "-")));
        let mut layout = Layout::create(&place).unwrap();
        layout.add(name, &[image]).unwrap();
        let options = ImportOptions::new()
            .reference(name.parse().unwrap())
            .platform("linux/amd64".parse().unwrap())
            .build_disk(false);
        self.store
            .import(&place, &options, &|event| self.hear(event))
            .unwrap()
    }

    fn export(
        &self,
        names: &[&str],
        format: ExportFormat,
        to: &Path,
    ) -> Result<Exported, ImageError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let options = ExportOptions::new(format);
        self.store
            .export(&names, &options, ExportTo::Path(to), &|event| {
                self.hear(event);
            })
    }

    /// The image as another store has it that got the file at `path`.
    fn imported(&self, path: &Path) -> Vec<ImageRecord> {
        let other = ImageStore::open(self.path("other")).unwrap();
        let options = ImportOptions::new()
            .platform("linux/amd64".parse().unwrap())
            .build_disk(false);
        other.load(path, &options, &|_| {}).unwrap()
    }
}

/// What `umoci` unpacks of an image in a layout.
fn unpacked(layout: &Path, name: &str, to: &Path) -> PathBuf {
    let image = format!("{}:{name}", layout.display());
    tool(
        "umoci",
        "umoci",
        &["unpack", "--image", &image, to.to_str().unwrap()],
    );
    to.join("rootfs")
}

/// What GNU tar makes of a root file system's tar.
fn untarred(tar: &Path, to: &Path) -> PathBuf {
    fs::create_dir(to).unwrap();
    tool(
        "tar",
        "tar",
        &[
            "--extract",
            "--file",
            tar.to_str().unwrap(),
            "--directory",
            to.to_str().unwrap(),
            "--same-owner",
            "--same-permissions",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
        ],
    );
    to.to_owned()
}

/// `skopeo copy`, into a layout where `to` is one.
fn skopeo_copy(from: &str, to: &str) {
    let mut command = skopeo();
    command.args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    command.args(["--preserve-digests", from, to]);
    run_tool("skopeo", &mut command).unwrap();
}

fn registry_options() -> RegistryOptions {
    let mut registry = RegistryOptions::default();
    registry.backoff = Duration::from_millis(20);
    registry.attempts = 3;
    registry
}

fn push_options() -> PushOptions {
    PushOptions::new().registry(registry_options())
}

/// Sets an extended attribute, of a link itself too.
fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
}
