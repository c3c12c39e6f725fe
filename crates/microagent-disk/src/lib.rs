//! Disks whose blocks lie in several files: the list that names the files, and reading across them.
//!
//! Images share most of their content, so the content of a layer is in a file of its own, and a disk is a list of
//! runs of such files. Knows nothing of file systems, images or VMMs. A list is hostile until it was parsed.
#![forbid(unsafe_code)]

mod flat;
mod joined;
mod list;

pub use self::joined::JoinedFile;
pub use self::list::size_bytes;
pub use self::list::{DiskList, EXTENSION, ListedFile, MAX_LIST, Run, is_list};
