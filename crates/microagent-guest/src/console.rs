//! The console: where the agent speaks when nobody else can hear it.

use std::{
    fmt::Arguments,
    io::{Write, stderr},
};

/// Writes one line. Standard error is the console device the kernel opened for PID 1.
pub(crate) fn say(message: Arguments<'_>) {
    let line = format!("microagent: {message}\n");
    // The console is the last resort: nobody is left to tell that it failed.
    let _ = stderr().write_all(line.as_bytes());
}
