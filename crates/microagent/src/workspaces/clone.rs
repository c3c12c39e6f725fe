//! A second workspace with the same content.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    time::SystemTime,
};

use microagent_host::fs::{Private, next_data, reflink};
use microagent_protocol::{ExtraDisk, WorkspaceName};

use super::{Workspace, launch};
use crate::{
    directories::{Directory, SCRATCH},
    error::{Error, IoContext, Result},
};

impl Workspace<'_> {
    /// Makes a workspace `name` of what this one is made of and has written. Only the scratch disk
    /// is copied, sparse as it is; history, result and identity are the new one's own.
    ///
    /// # Errors
    /// [`Error::State`] if this one is live, [`Error::NameTaken`] if there is one of that name.
    pub fn clone_as(&self, name: &str) -> Result<WorkspaceName> {
        let name: WorkspaceName =
            name.parse()
                .map_err(|error: microagent_protocol::name::InvalidName| {
                    Error::invalid("the new name", error.to_string())
                })?;
        let _held = self.hold()?;
        let _at_rest = self.at_rest("cloned")?;
        let directory = Directory::create(self.config, &name)?;
        copy_sparse(&self.directory.join(SCRATCH), &directory.scratch())?;
        if !launch::setup_is_due(&self.manifest, &self.directory) {
            launch::setup_is_done(directory.path())?;
        }
        let mut manifest = self.manifest.clone();
        if manifest.hostname == manifest.name.as_str() {
            manifest.hostname = name.to_string();
        }
        own_disks(&mut manifest.disks, &self.directory, directory.path())?;
        manifest.name = name.clone();
        manifest.created_at = SystemTime::now().into();
        manifest.write(directory.path())?;
        directory.keep();
        Ok(name)
    }
}

/// Copies the disks that were made of bundles in the directory `from`; those of others stay theirs.
fn own_disks(disks: &mut [ExtraDisk], from: &Path, to: &Path) -> Result<()> {
    for disk in disks {
        if let Ok(file) = disk.path.strip_prefix(from) {
            let copy = to.join(file);
            copy_sparse(&disk.path, &copy)?;
            disk.path = copy;
        }
    }
    Ok(())
}

/// Copies a file with its holes, sharing blocks where the file system can.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).context("open", from)?;
    let mut target = File::options()
        .create_new(true)
        .write(true)
        .private()
        .open(to)
        .context("create", to)?;
    if !reflink(&source, &target) {
        let length = source.metadata().context("look at", from)?.len();
        target.set_len(length).context("size", to)?;
        copy_data(&mut source, &mut target, length).context("copy to", to)?;
    }
    target.sync_all().context("sync", to)
}

fn copy_data(source: &mut File, target: &mut File, length: u64) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let Some((begin, end)) = next_data(source, at, length)? else {
            return Ok(()); // No data until the end.
        };
        source.seek(SeekFrom::Start(begin))?;
        target.seek(SeekFrom::Start(begin))?;
        copy_range(source, target, end - begin)?;
        at = end;
    }
    Ok(())
}

/// Copies `count` bytes, leaving out blocks of zeroes that take room all the same.
fn copy_range(source: &mut File, target: &mut File, count: u64) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    let mut rest = source.take(count);
    let mut block = vec![0; BLOCK];
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match rest.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if block[..filled].iter().all(|byte| *byte == 0) {
            target.seek(SeekFrom::Current(filled as i64))?;
        } else {
            target.write_all(&block[..filled])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_clone_has_bundles_of_its_own_and_shares_disks() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("bundle-x.ext4"), "content").unwrap();
        let disk = |path: &str| ExtraDisk {
            name: "x".parse().unwrap(),
            path: path.into(),
            mountpoint: "/x".parse().unwrap(),
            read_only: false,
        };
        let bundle = from.join("bundle-x.ext4");
        let mut disks = [disk(bundle.to_str().unwrap()), disk("/srv/d.ext4")];
        own_disks(&mut disks, &from, &to).unwrap();
        assert_eq!(disks[0].path, to.join("bundle-x.ext4"));
        assert_eq!(std::fs::read_to_string(&disks[0].path).unwrap(), "content");
        assert_eq!(disks[1].path, Path::new("/srv/d.ext4"));
    }

    #[test]
    fn holes_stay_holes_and_bytes_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        let mut file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 5 << 20, (64 << 20) - 3] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(b"abc").unwrap();
        }
        copy_sparse(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert!(copy_sparse(&from, &to).is_err(), "it is there already");
    }
}
