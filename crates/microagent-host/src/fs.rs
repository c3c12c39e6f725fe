//! Files: private ones, reading and writing at an offset, and what they take on the disk.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, Metadata, OpenOptions, Permissions},
    io,
    path::Path,
};

/// Makes a file or directory that nobody else may use.
pub trait Private {
    /// What is made gets the mode 0600 (a file) or 0700 (a directory). On Windows it gets the
    /// access list of the directory it is in, which in a user's profile is that user alone.
    fn private(&mut self) -> &mut Self;
}

impl Private for OpenOptions {
    fn private(&mut self) -> &mut Self {
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(self, 0o600);
        self
    }
}

impl Private for DirBuilder {
    fn private(&mut self) -> &mut Self {
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(self, 0o700);
        self
    }
}

/// Reading and writing at an offset, whatever the file's own position is.
pub trait Positioned {
    /// Reads some bytes at `offset` (bytes from the file's start); 0 at its end.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes some bytes at `offset`.
    ///
    /// # Errors
    /// The system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, or the system's.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` from `offset`.
    ///
    /// # Errors
    /// The system's.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Positioned for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        {
            std::os::unix::fs::FileExt::read_at(self, buffer, offset)
        }
        #[cfg(windows)]
        {
            std::os::windows::fs::FileExt::seek_read(self, buffer, offset)
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        {
            std::os::unix::fs::FileExt::write_at(self, bytes, offset)
        }
        #[cfg(windows)]
        {
            std::os::windows::fs::FileExt::seek_write(self, bytes, offset)
        }
    }
}

/// What a file takes on the disk, in bytes: less than its length if it has holes. Its length where
/// the system does not say.
#[must_use]
pub fn allocated_bytes(metadata: &Metadata) -> u64 {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::blocks(metadata) * 512
    }
    #[cfg(not(unix))]
    {
        metadata.len()
    }
}

/// Which file it is, by whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The file system's number.
    pub device: u64,
    /// The file's number in it.
    pub inode: u64,
}

/// Which file it is; `None` where the system does not say.
#[must_use]
pub fn file_id(metadata: &Metadata) -> Option<FileId> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// How many names a file has; 1 where the system does not say.
#[must_use]
pub fn names(metadata: &Metadata) -> u64 {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::nlink(metadata)
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        1
    }
}

/// Permissions of this mode, such as `0o444`. Where there are no modes only the owner's right to
/// write is kept.
#[must_use]
pub fn permissions(mode: u32, current: &Permissions) -> Permissions {
    let mut permissions = current.clone();
    #[cfg(unix)]
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, mode);
    #[cfg(not(unix))]
    permissions.set_readonly(mode & 0o200 == 0);
    permissions
}

/// Gives an open file this mode, such as `0o444`.
///
/// # Errors
/// The system's.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    let current = file.metadata()?.permissions();
    file.set_permissions(permissions(mode, &current))
}

/// Whether the file at `path` can be run by this user.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    #[cfg(unix)]
    {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    }
    #[cfg(not(unix))]
    {
        path.is_file()
    }
}

/// Whether somebody else may write to a file or directory; false where the system does not say.
#[must_use]
pub fn others_may_write(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::mode(metadata) & 0o022 != 0
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        false
    }
}

/// The first run of data of a file at or behind `from`, as its first byte and the one behind its
/// last; `None` if nothing but a hole comes until `length`. All of it where the system does not
/// say where holes are.
///
/// # Errors
/// The system's.
pub fn next_data(file: &File, from: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    #[cfg(unix)]
    {
        use rustix::fs::{SeekFrom, seek};
        let start = match seek(file, SeekFrom::Data(from)) {
            Ok(start) if start < length => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(length);
        Ok(Some((start, end)))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Ok((from < length).then_some((from, length)))
    }
}

/// A name that a guest or an archive gave, as this system writes names; where these are no bytes,
/// what is no UTF-8 is replaced.
#[must_use]
pub fn name_of(bytes: &[u8]) -> OsString {
    #[cfg(unix)]
    {
        std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
    }
    #[cfg(not(unix))]
    {
        String::from_utf8_lossy(bytes).into_owned().into()
    }
}

/// Bytes an unprivileged user may still write to the file system of `path`.
///
/// # Errors
/// The system's; [`io::ErrorKind::Unsupported`] where it is not asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    #[cfg(unix)]
    {
        let told = rustix::fs::statvfs(path)?;
        Ok(told.f_bavail.saturating_mul(told.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Err(crate::unsupported("asking for free space"))
    }
}

/// Makes names that were just given or taken in `directory` last. Nothing to do on Windows, where
/// a directory cannot be synced and NTFS keeps a journal of names.
///
/// # Errors
/// The system's.
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        File::open(directory)?.sync_all()
    }
    #[cfg(not(unix))]
    {
        let _ = directory;
        Ok(())
    }
}

/// Makes `to` share all blocks of `from` until either is written to; false where the file system
/// or the system cannot.
#[must_use]
pub fn reflink(from: &File, to: &File) -> bool {
    #[cfg(target_os = "linux")]
    {
        rustix::fs::ioctl_ficlone(to, from).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (from, to);
        false
    }
}

/// Says that these bytes of a file are not needed in memory: what of them was not yet written to the disk is on its
/// way there, and what was is dropped. Never waits; nothing where the system has no such thing.
pub fn let_go(file: &File, offset: u64, length: u64) {
    #[cfg(target_os = "linux")]
    if let Some(length) = std::num::NonZeroU64::new(length) {
        // An advice: whether it is taken changes no content.
        let _ = rustix::fs::fadvise(file, offset, Some(length), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}

/// The same file for writing past the page cache: bytes, offset and length are to be whole pages.
///
/// # Errors
/// The system's; `Unsupported` where it has no such thing.
pub fn reopen_direct(file: &File) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _};
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
        OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn private_things_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, path) = (dir.path().join("d"), dir.path().join("f"));
        DirBuilder::new().private().create(&inner).unwrap();
        let file = File::options()
            .create(true)
            .write(true)
            .private()
            .open(&path)
            .unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&path)), (0o700, 0o600));
        set_mode(&file, 0o444).unwrap();
        assert_eq!(mode(&path), 0o444);
        sync_dir(&inner).unwrap();
        assert!(free_bytes(&inner).unwrap() > 0);
    }

    #[test]
    fn offsets_are_reached_and_ends_are_told() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdef", 3).unwrap();
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 4).unwrap();
        assert_eq!(&read, b"bcde");
        let past = file.read_exact_at(&mut read, 7).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn holes_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let (start, end) = next_data(&file, 0, 4 << 20).unwrap().unwrap();
        assert!(start <= 1 << 20 && end >= (1 << 20) + 4096);
        if start > 0 {
            assert_eq!(next_data(&file, end, 4 << 20).unwrap(), None);
        }
    }

    #[test]
    fn a_file_is_the_same_by_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        fs::write(&one, vec![0; 9000]).unwrap();
        fs::hard_link(&one, &two).unwrap();
        let look = |path| fs::metadata(path).unwrap();
        assert_eq!(file_id(&look(&one)), file_id(&look(&two)));
        let folder = dir.path().to_owned();
        assert_ne!(file_id(&look(&one)), file_id(&look(&folder)));
        assert_eq!(names(&look(&one)), 2);
        assert!(allocated_bytes(&look(&one)) >= 9000);
    }
}
