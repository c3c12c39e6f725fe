//! Files of the host that belong to a workspace from its beginning.

use std::path::Path;

use microagent_protocol::{CopyIn, CopyWhat, Landing, Owner, Shipment};

use super::{live::LiveTarget, pump, source::Source, target::Target};
use crate::{
    error::{Error, IoContext as _, Result},
    options::HostFile,
    supervisor::client::Control,
};

/// Checks that the file is there.
pub(crate) fn check(file: &HostFile) -> Result<()> {
    let metadata = std::fs::metadata(&file.src).context("look at", &file.src)?;
    if metadata.is_file() || metadata.is_dir() {
        return Ok(());
    }
    Err(Error::invalid(
        "files",
        format!("{} is neither a file nor a directory", file.src.display()),
    ))
}

/// Copies the file into the guest behind `control`, once that is ready. It belongs to root there;
/// directories above it are made.
pub(crate) fn inject(control: &Control, file: &HostFile) -> Result<()> {
    let path = file.dst.as_str().parse().map_err(
        |error: microagent_protocol::copy::InvalidCopyPath| {
            Error::invalid("files", error.to_string())
        },
    )?;
    let request = CopyIn {
        path,
        landing: Landing {
            parents: true,
            owner: Some(Owner { uid: 0, gid: 0 }),
            mode: file.mode,
            ..Landing::new(Shipment::Named)
        },
    };
    let source = Source::Host {
        path: Path::new(&file.src).to_owned(),
        // What it leads to, should it be a link: the link would mean nothing there.
        what: CopyWhat {
            follow: true,
            ..CopyWhat::default()
        },
    };
    pump(source, Target::Live(LiveTarget::open(control, request)?)).map(drop)
}
