//! Where a tar stream goes.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use microagent_files::{Policy, land};
use microagent_protocol::{CopyIn, CopyReport, Landing, Shipment};

use super::{
    CopyOptions,
    disks::Disks,
    endpoint::{Ending, Endpoint},
    live::LiveTarget,
    source::Source,
};
use crate::{
    config::Config,
    error::{Error, Result},
    workspaces::Workspaces,
};

/// Something that takes a tar stream.
pub(crate) enum Target {
    /// A place on this host.
    Host {
        path: PathBuf,
        landing: Landing,
        policy: Policy,
    },
    /// A stream of the caller.
    Stream(Box<dyn Write + Send>),
    /// A place in a guest, by its agent.
    Live(LiveTarget),
    /// A place in a workspace, on its disk.
    Disks {
        disks: Box<Disks>,
        request: CopyIn,
        policy: Policy,
    },
}

impl Target {
    pub(super) fn open(
        config: &Config,
        to: &Endpoint,
        options: &CopyOptions,
        source: &Source,
        shipment: Shipment,
        output: Option<Box<dyn Write + Send>>,
    ) -> Result<Self> {
        // Between two workspaces nothing of this host is at stake.
        let trusting = options.archive || to.is_workspace();
        let policy = Policy {
            expected: source.expected(),
            max_bytes: source.room(),
            ..if trusting {
                Policy::trusting()
            } else {
                Policy::wary()
            }
        };
        let landing = |ending: Ending| options.landing(shipment, ending != Ending::Plain);
        match to {
            Endpoint::Stream => output
                .map(Self::Stream)
                .ok_or_else(|| Error::invalid("DST", "it is a stream, and none was given")),
            Endpoint::Host { path, ending } => Ok(Self::Host {
                path: path.clone(),
                landing: landing(*ending),
                policy,
            }),
            Endpoint::Workspace { name, path, ending } => {
                let workspace = Workspaces::new(config).open(name.as_str())?;
                let request = CopyIn {
                    path: path.clone(),
                    landing: landing(*ending),
                };
                Ok(match Disks::at_rest(&workspace)? {
                    Some(disks) => Self::Disks {
                        disks: Box::new(disks),
                        request,
                        policy,
                    },
                    None => Self::Live(LiveTarget::open(&workspace.connect()?, request)?),
                })
            }
        }
    }

    /// Takes the stream to its end.
    pub(super) fn consume(self, mut input: impl BufRead) -> Result<CopyReport> {
        match self {
            Self::Host {
                path,
                landing,
                policy,
            } => Ok(land(input, &path, &landing, &policy)?),
            Self::Stream(mut output) => {
                let copied = io::copy(&mut input, &mut output).and_then(|bytes| {
                    output.flush()?;
                    Ok(bytes)
                });
                let bytes = copied.map_err(|source| Error::Io {
                    doing: "write to",
                    path: "the stream".into(),
                    source,
                })?;
                Ok(CopyReport {
                    bytes,
                    ..CopyReport::default()
                })
            }
            Self::Live(target) => target.consume(input),
            Self::Disks {
                disks,
                request,
                policy,
            } => disks.land(input, &request, &policy),
        }
    }
}
