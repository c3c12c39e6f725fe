//! Copying files between this host and workspaces, running or not.
//!
//! Every copy is one tar stream from a [source] to a [target], which know nothing
//! of each other: the host's files, a guest's through its agent, a workspace's disks where no
//! machine runs, or a stream of the caller's.

mod disks;
mod endpoint;
mod inject;
mod land;
mod live;
mod overlay;
mod pack;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, BufReader, PipeReader, Read, Write},
    thread,
};

use microagent_files::CopyError;
use microagent_protocol::{CopyReport, CopyWhat, FileMode, Landing, Owner, Shipment};

pub use self::endpoint::{Endpoint, InvalidEndpoint};
use self::target::Target;
pub(crate) use self::{
    disks::Disks,
    inject::{check as check_file, inject},
    overlay::UPPER,
    source::Source,
};
use crate::{
    config::Config,
    error::{Error, Result},
};

/// How much of the stream is read ahead.
const BUFFER: usize = 256 * 1024;

/// How files are copied.
///
/// Without further ado owners, modes, times, links, holes and attributes are kept as far as the
/// receiving side can have them.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CopyOptions {
    follow: bool,
    parents: bool,
    archive: bool,
    owner: Option<Owner>,
    mode: Option<FileMode>,
}

impl CopyOptions {
    /// As it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a symbolic link at the end of the source leads to, instead of the link.
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Makes directories above the destination that are missing.
    pub fn parents(mut self, parents: bool) -> Self {
        self.parents = parents;
        self
    }

    /// Takes from a guest also what gives rights on this host: set-user-ID and set-group-ID bits,
    /// file capabilities, devices and pipes.
    pub fn archive(mut self, archive: bool) -> Self {
        self.archive = archive;
        self
    }

    /// Gives everything to this owner.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Gives every file this mode, and directories search permission besides.
    pub fn mode(mut self, mode: FileMode) -> Self {
        self.mode = Some(mode);
        self
    }

    fn what(&self, contents: bool) -> CopyWhat {
        CopyWhat {
            contents,
            follow: self.follow,
        }
    }

    fn landing(&self, shipment: Shipment, into_directory: bool) -> Landing {
        Landing {
            shipment,
            into_directory,
            parents: self.parents,
            owner: self.owner,
            mode: self.mode,
        }
    }
}

/// The streams of the caller that a copy may come from and go to.
#[derive(Default)]
#[must_use]
pub struct CopyIo {
    input: Option<Box<dyn Read + Send>>,
    output: Option<Box<dyn Write + Send>>,
}

impl CopyIo {
    /// No streams.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads [`Endpoint::Stream`] from this.
    pub fn input(mut self, input: impl Read + Send + 'static) -> Self {
        self.input = Some(Box::new(input));
        self
    }

    /// Writes [`Endpoint::Stream`] to this.
    pub fn output(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Some(Box::new(output));
        self
    }
}

impl fmt::Debug for CopyIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIo").finish_non_exhaustive()
    }
}

/// Copies from one endpoint to another.
pub(crate) fn copy(
    config: &Config,
    from: &Endpoint,
    to: &Endpoint,
    options: &CopyOptions,
    io: CopyIo,
) -> Result<CopyReport> {
    if !from.is_workspace() && !to.is_workspace() {
        return Err(Error::invalid(
            "the pair of SRC and DST",
            "neither is in a workspace; write NAME:/PATH for the one that is",
        ));
    }
    let source = Source::open(config, from, options, io.input)?;
    let shipment = source.shipment();
    let target = Target::open(config, to, options, &source, shipment, io.output)?;
    pump(source, target)
}

fn pump(source: Source, target: Target) -> Result<CopyReport> {
    let (mut report, left_out) = through(source, |stream| target.consume(stream))?;
    report.absorb_skipped(left_out);
    Ok(report)
}

/// Lets the source fill a pipe that `consume` empties; gives what comes of that, and what the source
/// left out.
pub(crate) fn through<T>(
    source: Source,
    consume: impl FnOnce(BufReader<PipeReader>) -> Result<T>,
) -> Result<(T, CopyReport)> {
    let pipe = |error| Error::Io {
        doing: "make",
        path: "a pipe".into(),
        source: error,
    };
    let (reader, writer) = io::pipe().map_err(pipe)?;
    let canceller = source.canceller();
    let waits = source.ends_by_itself();
    let producer = thread::Builder::new()
        .name("copy-source".to_owned())
        .spawn(move || source.produce(writer))
        .map_err(pipe)?;
    let landed = consume(BufReader::with_capacity(BUFFER, reader));
    let cancelled = landed.is_err() && !producer.is_finished();
    if landed.is_err() {
        canceller.cancel();
        if !waits && !producer.is_finished() {
            // Nobody can make the caller's stream end; its thread goes with it.
            return landed.map(|landed| (landed, CopyReport::default()));
        }
    }
    let produced = producer.join().unwrap_or_else(|_| {
        Err(Error::invalid(
            "the source",
            "the thread that read it panicked",
        ))
    });
    match (produced, landed) {
        (Ok(packed), Ok(landed)) => Ok((landed, packed)),
        // A source that was let down by the target only saw the pipe break, or its machine's
        // connection, which was cut by our own hand.
        (Err(error), Err(landing)) if broke(&error) || cancelled && was_cut(&error) => Err(landing),
        // Otherwise what was wrong at the beginning is what is wrong.
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn was_cut(error: &Error) -> bool {
    matches!(error, Error::CopyLost { .. })
}

fn broke(error: &Error) -> bool {
    matches!(error, Error::Copy(error) if matches!(**error, CopyError::Output(_)))
}

impl From<overlay::DiskError> for Error {
    fn from(error: overlay::DiskError) -> Self {
        match error {
            overlay::DiskError::Disk { path, error } => Self::Disk {
                path,
                source: error,
            },
            overlay::DiskError::Copy(error) => error.into(),
        }
    }
}
