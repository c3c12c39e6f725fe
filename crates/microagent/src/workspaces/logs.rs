//! What a workspace's guest wrote to its console.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::Workspace;
use crate::error::{Error, IoContext, Result};

/// The console's log; a full one is renamed to the same with `.1`.
const LOG: &str = "console.log";

impl Workspace<'_> {
    /// The console's log: the older file and then the newer, as bytes of the guest.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn console(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for name in ["console.log.1", LOG] {
            read_into(&self.directory.join(name), &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Follows the console's log from its present end, or from its beginning.
    #[must_use]
    pub fn follow_console(&self, from_the_end: bool) -> ConsoleFollower {
        ConsoleFollower::new(self.directory.join(LOG), from_the_end)
    }
}

fn read_into(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_end(bytes).context("read", path)?;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            doing: "open",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads what is added to a console's log, through its rotations.
#[derive(Debug)]
pub struct ConsoleFollower {
    path: PathBuf,
    file: Option<File>,
    from_the_end: bool,
}

impl ConsoleFollower {
    fn new(path: PathBuf, from_the_end: bool) -> Self {
        Self {
            path,
            file: None,
            from_the_end,
        }
    }

    /// What was added since the last call; empty if nothing was.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_new(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes).context("read", &self.path)?;
        }
        // A full log was renamed: what is under its name now is another file.
        if self.was_replaced()? {
            match File::open(&self.path) {
                Ok(mut file) => {
                    if std::mem::take(&mut self.from_the_end) {
                        file.seek(SeekFrom::End(0)).context("read", &self.path)?;
                    }
                    file.read_to_end(&mut bytes).context("read", &self.path)?;
                    self.file = Some(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::Io {
                        doing: "open",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(bytes)
    }

    fn was_replaced(&self) -> Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let own = file.metadata().context("look at", &self.path)?;
        match std::fs::metadata(&self.path) {
            Ok(named) => Ok((named.dev(), named.ino()) != (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io {
                doing: "look at",
                path: self.path.clone(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_goes_through_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        let mut follower = ConsoleFollower::new(path.clone(), false);
        assert_eq!(follower.read_new().unwrap(), b"");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(follower.read_new().unwrap(), b"one\n");
        let mut old = File::options().append(true).open(&path).unwrap();
        io::Write::write_all(&mut old, b"two\n").unwrap();
        std::fs::rename(&path, path.with_added_extension("1")).unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(follower.read_new().unwrap(), b"two\nthree\n");
        let mut late = ConsoleFollower::new(path.clone(), true);
        assert_eq!(late.read_new().unwrap(), b"");
    }
}
