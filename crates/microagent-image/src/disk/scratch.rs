//! The empty, journaled ext4 disk that holds what one workspace writes.

use std::io;
use std::path::Path;

use microagent_host::fs::Positioned;
use mkext4::{FsBuilder, Options, RegionSink};

use super::error::DiskError;
use super::output::Output;

/// Makes an empty ext4 file system with a journal at `path`, `mebibytes` MiB large, as a sparse file.
///
/// The file system's identity is fresh for every disk. The file gets mode 0600 and its name only once it is complete
/// and on stable storage; a crash leaves at most `.<name>.<random>.partial`.
///
/// # Errors
/// [`DiskError::ScratchSize`] for a size ext4 cannot have with a journal; [`DiskError::Output`] for host errors.
pub fn create_scratch(path: &Path, mebibytes: u64) -> Result<(), DiskError> {
    let size = mebibytes
        .checked_mul(1 << 20)
        .filter(|_| (16..=1 << 20).contains(&mebibytes))
        .ok_or(DiskError::ScratchSize { mebibytes })?;
    let output = Output::create(path)?;
    let file = output.file();
    file.set_len(size).map_err(output.error("size"))?;
    let mut uuid = [0u8; 16];
    getrandom::fill(&mut uuid)
        .map_err(|error| output.error("find randomness for")(error.into()))?;
    // RFC 9562: version 4, variant 1.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut options = Options::new(size, uuid, 0);
    options.label = Some("scratch".to_owned());
    options.reserved_percent = 0;
    let layout = |error: mkext4::Error| match error {
        mkext4::Error::Io(source) => DiskError::Output {
            action: "write",
            path: path.to_owned(),
            source,
        },
        other => DiskError::Layout(other.to_string()),
    };
    FsBuilder::new(options)
        .and_then(FsBuilder::seal)
        .and_then(|sealed| sealed.writer(Sparse(file))?.finish())
        .map_err(layout)?;
    output.publish(0o600)
}

/// Zeros are what a new file already has.
struct Sparse<'f>(&'f std::fs::File);

impl RegionSink for Sparse<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
