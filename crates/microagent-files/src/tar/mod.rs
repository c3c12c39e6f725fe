//! Tar streams: a reader for hostile ones and a writer for our own.

mod fault;
mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use self::fault::{EntryFault, TarFault};
pub use self::reader::{Content, Entry, EntryKind, TarLimits, TarReader};
pub use self::writer::{Segment, TarWriter};
