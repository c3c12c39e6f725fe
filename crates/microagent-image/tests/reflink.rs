//! On a file system whose files can share blocks, what is imported from it takes no room twice.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use microagent_image::{ImageStore, ImportOptions};
use testkit::{
    Xfs,
    registry::{Layout, Packing, TinyImage, noise, tar_of},
};

const MIB: u64 = 1 << 20;

#[test]
fn what_the_host_can_share_takes_no_room_twice() {
    let Some(xfs) = Xfs::mount() else {
        return;
    };
    let store = ImageStore::open(xfs.path().join("images")).unwrap();
    let mut layout = Layout::create(&xfs.path().join("layout")).unwrap();
    let layers = (1..=2).map(|seed| tar_of(&[("a", 0o644, &noise(24 << 20, seed))]));
    let image = layers.fold(TinyImage::new("amd64"), |image, layer| {
        image.layer(layer, Packing::Plain)
    });
    layout.add("a:1", &[image]).unwrap();

    let before = xfs.used();
    let options = ImportOptions::new()
        .reference("a:1".parse().unwrap())
        .platform("linux/amd64".parse().unwrap())
        .build_disk(false);
    store.import(layout.path(), &options, &|_| {}).unwrap();
    let grown = xfs.used() - before;
    assert!(grown < 2 * MIB, "layers of 48 MiB took {grown} bytes more");

    // So is the tar of a root file system, read as it is copied.
    let tar = xfs.path().join("root.tar");
    fs::write(&tar, tar_of(&[("b", 0o644, &noise(24 << 20, 3))])).unwrap();
    let before = xfs.used();
    let options = options.reference("b:1".parse().unwrap());
    store.import(&tar, &options, &|_| {}).unwrap();
    let grown = xfs.used() - before;
    assert!(grown < 2 * MIB, "a tar of 24 MiB took {grown} bytes more");

    // What is shared is not the same: the layout may go, and the store is whole.
    fs::remove_dir_all(layout.path()).unwrap();
    fs::write(&tar, noise(1 << 20, 4)).unwrap();
    assert!(store.verify(&[], &|_| {}).unwrap().ok);
}
