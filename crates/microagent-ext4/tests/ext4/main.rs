//! Our reading and changing of ext4 against the kernel's and e2fsprogs'. Needs root: it mounts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod oracle;
mod reading;
