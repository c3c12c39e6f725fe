//! What it costs to turn layers into a disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    bench::{Bench, Figure, median, seconds},
    debian, process,
};

/// `images import` of a Debian against unpacking it and making a file system
/// of that, and against only inflating its layer.
pub(crate) fn import(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = oci_layout(bench)?;
    let state = bench.dir().join("import-state");
    let bundle = bench.dir().join("bundle");
    let disk = bench.dir().join("mke2fs.ext4");
    let inflate = inflate_program()?;
    let layer = largest_blob(&layout)?;

    let (mut ours, mut unpack, mut mke2fs, mut floor) = (vec![], vec![], vec![], vec![]);
    for _ in bench.rounds() {
        clear(&state)?;
        ours.push(seconds(
            bench
                .microagent_on(&state)
                .args(["images", "import", "--name", "debian:12"])
                .arg(&layout),
        )?);
        floor.push(seconds(Command::new(&inflate).arg(&layer))?);
        clear(&bundle)?;
        let image = format!("{}:12", layout.display());
        unpack.push(seconds(
            Command::new("umoci")
                .args(["unpack", "--image", &image])
                .arg(&bundle),
        )?);
        clear(&disk)?;
        mke2fs.push(seconds(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(bundle.join("rootfs"))
                .arg(&disk)
                .arg("2G"),
        )?);
    }
    for path in [&state, &bundle, &disk] {
        clear(path)?;
    }
    let pair: Vec<f64> = unpack
        .iter()
        .zip(&mke2fs)
        .map(|(unpack, mke2fs)| unpack + mke2fs)
        .collect();
    let (ours, pair, floor) = (median(ours), median(pair), median(floor));
    Ok(vec![
        Figure::new(
            "umoci unpack, Debian 12 minbase, median",
            median(unpack),
            "s",
        ),
        Figure::new("mke2fs -d of that, median", median(mke2fs), "s"),
        Figure::new("one inflate of the layer (zlib-rs), median", floor, "s"),
        Figure::new("microagent images import, median", ours, "s"),
        Figure::new("import / (unpack + mke2fs)", ours / pair, "×").at_most(1.0 / 6.0),
        Figure::new("import / one inflate", ours / floor, "×").at_most(1.5),
    ])
}

/// The Debian of the tests as an OCI layout with one gzip layer.
pub(crate) fn oci_layout(bench: &Bench) -> anyhow::Result<PathBuf> {
    let layout = bench.dir().join("debian-layout");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    clear(&layout)?;
    let image = format!("{}:12", layout.display());
    let bundle = bench.dir().join("layout-bundle");
    clear(&bundle)?;
    let umoci =
        |arguments: &[&str]| process::output(Command::new("umoci").args(arguments)).map(drop);
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image])?;
    umoci(&["unpack", "--image", &image, &bundle.display().to_string()])?;
    process::output(
        Command::new("tar")
            .arg("-C")
            .arg(bundle.join("rootfs"))
            .arg("-xpf")
            .arg(debian::rootfs_tar()?),
    )?;
    umoci(&["repack", "--image", &image, &bundle.display().to_string()])?;
    clear(&bundle)?;
    Ok(layout)
}

fn largest_blob(layout: &Path) -> anyhow::Result<PathBuf> {
    let mut largest = (0, PathBuf::new());
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        let entry = entry?;
        largest = largest.max((entry.metadata()?.len(), entry.path()));
    }
    Ok(largest.1)
}

pub(crate) fn inflate_program() -> anyhow::Result<PathBuf> {
    example("inflate")
}

/// An example of the image crate, built.
pub(crate) fn example(name: &str) -> anyhow::Result<PathBuf> {
    process::run(process::cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "microagent-image",
        "--example",
        name,
    ]))?;
    Ok(process::target_dir().join("release/examples").join(name))
}

pub(crate) fn clear(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}
