//! From an archive to a disk.

use std::{fs::File, path::Path};

use microagent_image::disk::{
    BuildOptions, Compression, Headroom, LayerSource, build, build_writable,
};

use super::Volume;
use crate::{
    error::{Error, IoContext, Result},
    event::RunEvent,
    io::EventSink,
};

/// What a guest may write to a bundle that is attached `rw`. It costs the host what is written.
const HEADROOM: Headroom = Headroom {
    bytes: 512 << 20,
    inodes: 32_768,
};

/// Makes the disk of a bundle at `path`.
pub(super) fn make(volume: &Volume, archive: &Path, path: &Path, events: &EventSink) -> Result<()> {
    events(RunEvent::Bundle {
        name: volume.name().to_string(),
    });
    let layer = LayerSource {
        label: format!("the archive {}", archive.display()),
        reader: Box::new(File::open(archive).context("open", archive)?),
        compression: Compression::Detect,
        diff_id: None,
    };
    let options = BuildOptions::default();
    let built = if volume.is_read_only() {
        build(vec![layer], path, &options, &mut |_| {}).map(drop)
    } else {
        build_writable(vec![layer], path, HEADROOM, &options, &mut |_| {})
    };
    built.map_err(|error| Error::Bundle {
        name: volume.name().to_string(),
        archive: archive.to_owned(),
        reason: error.to_string(),
    })
}
