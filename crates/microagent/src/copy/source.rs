//! Where a tar stream comes from.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use microagent_files::pack;
use microagent_protocol::{CopyOut, CopyPath, CopyReport, CopyWhat, Shipment};

use super::{
    CopyOptions,
    disks::Disks,
    endpoint::{Ending, Endpoint},
    live::{Canceller, LiveSource},
    pack::pack_overlay,
};
use crate::{
    config::Config,
    error::{Error, Result},
    workspaces::Workspaces,
};

/// Something that writes a tar stream.
pub(crate) enum Source {
    /// Files of this host.
    Host { path: PathBuf, what: CopyWhat },
    /// A stream of the caller.
    Stream(Box<dyn Read + Send>),
    /// Files of a guest, by its agent.
    Live {
        source: LiveSource,
        path: CopyPath,
        what: CopyWhat,
        /// The most bytes of content its machine can have.
        room: u64,
    },
    /// Files of a workspace, from its disks.
    Disks {
        disks: Arc<Disks>,
        path: CopyPath,
        what: CopyWhat,
    },
}

impl Source {
    pub(super) fn open(
        config: &Config,
        from: &Endpoint,
        options: &CopyOptions,
        input: Option<Box<dyn Read + Send>>,
    ) -> Result<Self> {
        match from {
            Endpoint::Stream => input
                .map(Self::Stream)
                .ok_or_else(|| Error::invalid("SRC", "it is a stream, and none was given")),
            Endpoint::Host { path, ending } => {
                // A path that ends in no name of its own stands for what is in it.
                let contents = *ending == Ending::Contents || path.file_name().is_none();
                let what = options.what(contents);
                Ok(Self::Host {
                    path: path.clone(),
                    what: CopyWhat {
                        follow: what.follow || *ending == Ending::Slash,
                        ..what
                    },
                })
            }
            Endpoint::Workspace { name, path, ending } => {
                let what = options.what(*ending == Ending::Contents || path.name().is_none());
                let what = CopyWhat {
                    follow: what.follow || *ending == Ending::Slash,
                    ..what
                };
                Self::of_workspace(config, name.as_str(), path, what)
            }
        }
    }

    /// Through the agent where a machine runs, from the disks where none does.
    pub(crate) fn of_workspace(
        config: &Config,
        name: &str,
        path: &CopyPath,
        what: CopyWhat,
    ) -> Result<Self> {
        let workspace = Workspaces::new(config).open(name)?;
        match Disks::at_rest(&workspace)? {
            Some(disks) => Ok(Self::Disks {
                disks: Arc::new(disks),
                path: path.clone(),
                what,
            }),
            None => {
                let request = CopyOut {
                    path: path.clone(),
                    what,
                };
                Ok(Self::Live {
                    source: LiveSource::open(&workspace.connect()?, request)?,
                    path: path.clone(),
                    what,
                    room: workspace.capacity(),
                })
            }
        }
    }

    /// What the stream holds.
    pub(super) fn shipment(&self) -> Shipment {
        match self {
            Self::Stream(_) => Shipment::Archive,
            Self::Host { what, .. } | Self::Live { what, .. } | Self::Disks { what, .. } => {
                if what.contents {
                    Shipment::Contents
                } else {
                    Shipment::Named
                }
            }
        }
    }

    /// The one name at the top of the stream, where a guest is to be held to it.
    pub(super) fn expected(&self) -> Option<Vec<u8>> {
        match self {
            Self::Live { path, what, .. } if !what.contents => {
                path.name().map(|name| name.as_bytes().to_vec())
            }
            _ => None,
        }
    }

    /// The most bytes of content there can be, where a guest is to be held to it.
    pub(super) fn room(&self) -> u64 {
        match self {
            Self::Live { room, .. } => *room,
            _ => u64::MAX,
        }
    }

    /// Ends it from outside.
    pub(super) fn canceller(&self) -> Canceller {
        match self {
            Self::Live { source, .. } => source.canceller(),
            _ => Canceller::default(),
        }
    }

    /// Whether it ends once nobody takes what it writes.
    pub(super) fn ends_by_itself(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }

    /// Writes the stream; gives what was left out.
    pub(super) fn produce(self, mut output: impl Write) -> Result<CopyReport> {
        match self {
            Self::Host { path, what } => {
                let (_, report) = pack(&path, what, io::BufWriter::with_capacity(1 << 16, output))?;
                Ok(report)
            }
            Self::Stream(mut input) => {
                io::copy(&mut input, &mut output).map_err(|source| Error::Io {
                    doing: "pass on",
                    path: "the stream".into(),
                    source,
                })?;
                Ok(CopyReport::default())
            }
            Self::Live { source, .. } => source.produce(&mut output),
            Self::Disks { disks, path, what } => {
                let output = io::BufWriter::with_capacity(1 << 16, output);
                pack_overlay(&disks.view_of(&path)?, what, output)
            }
        }
    }
}
