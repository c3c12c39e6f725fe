//! What differs between the systems a host may run, under one name.
//!
//! Linux is where machines run today; macOS and Windows are what the house is built to fit. A
//! crate above this one names no system in its files and processes: it calls what is here. What a
//! system lacks is an [`std::io::Error`] of the kind [`Unsupported`](std::io::ErrorKind::Unsupported)
//! that says what is missing where, never a compile error and never a panic.
//!
//! * [`fs`]: private files, reading at an offset, what a file takes on the disk.
//! * [`lock`]: locks on files, which are let go when they are.
//! * [`process`]: a handle on another process, groups of processes, who we are.
//! * [`socket`]: streams between processes of one host.
//! * [`stdio`]: the standard streams as files.
#![forbid(unsafe_code)]

pub mod fs;
pub mod lock;
pub mod process;
pub mod socket;
pub mod stdio;

use std::io;

/// The error for what this system lacks, or what nobody has written for it yet.
#[must_use]
pub fn unsupported(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{what} is not supported on {} yet", std::env::consts::OS),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_missing_names_itself_and_the_system() {
        let error = super::unsupported("flying");
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains("flying") && text.contains(std::env::consts::OS),
            "{text}"
        );
    }
}
