//! The Firecracker driver against a program that implements Firecracker's API from its published
//! document. The processes, sockets and confinement are real; there is no guest. The test program
//! is the tests and that program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod confined;
mod driven;
mod escape;
mod fake;
mod jailer;
mod limits;
mod openapi;
mod place;
mod proved;
mod refusals;

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let name = Path::new(&arguments[0])
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    // The test program itself is called `firecracker-` and a hash of 16 digits.
    if name == "firecracker" || name.starts_with("firecracker-1.") {
        fake::main(&name, &arguments[1..]);
    }
    if name == "jailer" {
        jailer::main(&arguments[1..]);
    }
    if arguments.get(1).is_some_and(|word| word == "in-a-guest") {
        limits::inside();
        return;
    }
    let tests: &[testkit::harness::Test] = &[
        ("a_machine_is_told_all_of_it_in_order", driven::told),
        ("a_running_machine_is_controlled", driven::controlled),
        ("its_settings_reach_firecracker", driven::tuned),
        ("snapshots_are_written_and_loaded", driven::snapshots),
        (
            "every_documented_refusal_reaches_the_user",
            refusals::refusals,
        ),
        (
            "a_firecracker_that_fails_is_told_apart_and_leaves_nothing",
            refusals::failures,
        ),
        (
            "a_monitor_that_was_taken_over_gets_nowhere",
            confined::escapes,
        ),
        (
            "a_network_card_is_a_tap_in_its_namespaces",
            confined::networked,
        ),
        ("a_jailer_gives_it_a_user_of_its_own", confined::jailed),
        (
            "confinement_that_is_required_is_there_or_nothing_runs",
            confined::required,
        ),
        ("a_monitor_takes_no_more_than_its_share", limits::limited),
        ("only_a_firecracker_that_fits_is_taken", refusals::binaries),
        (
            "what_it_cannot_do_is_refused_before_it_starts",
            refusals::unsupported,
        ),
        ("a_slow_host_is_proved_by_who_gives_it_time", proved::proved),
        ("the_published_document_is_enforced", refusals::document),
    ];
    testkit::harness::run(tests);
}
