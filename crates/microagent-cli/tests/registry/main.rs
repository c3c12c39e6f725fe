//! The executable and real registries, seen from outside. No machine is started.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clouds;
mod completion;
mod keep;
mod login;
mod mistakes;
mod pulls;

use std::path::{Path, PathBuf};

use serde_json::json;
use testkit::{
    Sandbox,
    registry::{Layout, Packing, Registry, Setup, TinyImage, tar_of},
};

/// An empty store for the executable under test.
fn sandbox() -> Sandbox {
    Sandbox::empty(env!("CARGO_BIN_EXE_microagent"))
}

/// The platform of this host, as images name it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// An image small enough to read.
fn tiny() -> TinyImage {
    TinyImage::new(ARCHITECTURE)
        .layer(
            tar_of(&[("etc/os-release", 0o644, b"ID=tiny\n")]),
            Packing::Gzip,
        )
        .config(json!({ "Cmd": ["/bin/true"] }))
}

/// The one user and password of a registry.
fn guarded() -> Setup {
    Setup {
        login: Some(("alice".into(), "s3cret-pass".into())),
        ..Setup::default()
    }
}

/// A layout in `directory` with an image under each of these names.
fn layout(directory: &Path, names: &[&str]) -> Layout {
    let mut layout = Layout::create(&directory.join("layout")).unwrap();
    for name in names {
        layout.add(name, &[tiny()]).unwrap();
    }
    layout
}

/// A registry as `setup` says, with the tiny image under each of these names.
fn registry(setup: Setup, names: &[&str]) -> Registry {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), names);
    // Filled without TLS and tokens, which the pushing tool knows nothing of.
    let plain = Setup {
        login: setup.login.clone(),
        ..Setup::default()
    };
    let mut registry = Registry::start_with(plain).unwrap();
    for name in names {
        registry.push(layout.path(), name).unwrap();
    }
    registry.reconfigure(setup).unwrap();
    registry
}

/// Writes a file below `directory`, with the directories above it.
fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}
