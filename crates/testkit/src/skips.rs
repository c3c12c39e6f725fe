//! Tests that find out while they run that this host cannot show what they are about.

#![allow(clippy::print_stdout)] // Who runs one test sees why here.

use std::{fmt::Display, fs::OpenOptions, io::Write as _};

/// Names the file that collects what was not run. `cargo xtask test` sets it, counts and shows.
const LIST: &str = "MICROAGENT_TEST_SKIPS";

/// Says that this test stops here, having shown nothing: it is counted as skipped.
///
/// # Panics
/// If that cannot be written down: it would count as passed.
pub fn skip_test(why: impl Display) {
    note("test", why);
}

/// Says that `part` of this test was not run; the rest of it counts.
///
/// # Panics
/// If that cannot be written down: it would count as shown.
pub fn skip_part(part: &str, why: impl Display) {
    note("part", format_args!("{part}: {why}"));
}

fn note(kind: &str, why: impl Display) {
    println!("not run: {why}");
    let Some(list) = std::env::var_os(LIST) else {
        return;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let why = why.to_string().replace('\n', " ");
    // One write, so that tests that run at a time do not mix their lines.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&list)
        .and_then(|mut file| file.write_all(format!("{kind} {test}, {why}\n").as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", list.display()));
}
