//! What every driver promises, on each driver that can run on this host.
//!
//! Written against the traits alone; what a driver declares in its [`Capabilities`] is proved, and
//! what it does not declare is refused. `cargo xtask conformance` runs it for one backend:
//!
//! - `MICROAGENT_CONFORMANCE_BACKEND` names it; without, all are tried.
//! - `MICROAGENT_CONFORMANCE_KERNEL` is a kernel with everything built in, for hosts whose KVM boots
//!   no ordinary one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod firecracker;
mod life;
mod refusals;
mod subject;

use std::{panic::catch_unwind, time::Instant};

use microagent_protocol::Backend;
use subject::Subject;

type Part = fn(&Subject);

/// The parts of the suite, each on a machine of its own.
const PARTS: &[(&str, Part)] = &[
    ("a_machine_lives_as_it_is_told", life::whole),
    ("a_guest_ends_its_machine", life::ended_by_guest),
    ("a_panic_ends_the_machine", life::panics),
    ("a_vmm_that_dies_is_seen_and_leaves_nothing", life::crashes),
    (
        "what_cannot_be_is_refused_and_leaves_nothing",
        refusals::all,
    ),
];

/// What Firecracker's own type has beyond the contract.
const FIRECRACKER_PARTS: &[(&str, Part)] = &[(
    "a_machine_is_squeezed_snapshotted_and_restored",
    firecracker::whole,
)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = std::env::var("MICROAGENT_CONFORMANCE_BACKEND").ok();
    if let Some(name) = &wanted {
        let known = Backend::ALL.map(Backend::as_str);
        assert!(
            known.contains(&name.as_str()),
            "{name} is none of {known:?}"
        );
    }
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for backend in Backend::ALL {
        if wanted
            .as_deref()
            .is_some_and(|name| name != backend.as_str())
        {
            continue;
        }
        let more: &[(&str, Part)] = match backend {
            Backend::Firecracker => FIRECRACKER_PARTS,
            _ => &[],
        };
        let parts = PARTS
            .iter()
            .chain(more)
            .map(|(part, test)| (format!("{backend}::{part}"), test));
        let parts: Vec<_> = parts
            .filter(|(name, _)| is_asked_for(&arguments, name))
            .collect();
        if parts.is_empty() || arguments.iter().any(|argument| argument == "--list") {
            parts.iter().for_each(|(name, _)| println!("{name}: test"));
            continue;
        }
        let subject = match Subject::find(backend) {
            Ok(subject) => subject,
            Err(why) => {
                let why: Vec<_> = why.split_whitespace().collect();
                let why = why.join(" ");
                println!("test {backend} ... ignored, not run here: {why}");
                ignored += 1;
                continue;
            }
        };
        for (name, test) in parts {
            let started = Instant::now();
            let subject = std::panic::AssertUnwindSafe(&subject);
            let (verdict, count) = match catch_unwind(|| test(&subject)) {
                Ok(()) => ("ok", &mut passed),
                Err(_) => ("FAILED", &mut failed),
            };
            *count += 1;
            let took = started.elapsed().as_millis();
            println!("test {name} ... {verdict} ({took} ms)");
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         0 filtered out"
    );
    std::process::exit(i32::from(failed > 0));
}

/// Whether the ordinary runner would run a test of this name.
fn is_asked_for(arguments: &[String], name: &str) -> bool {
    let mut names = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--test-threads" | "--skip" => drop(rest.next()),
            option if option.starts_with('-') => {}
            name => names.push(name),
        }
    }
    names.is_empty() || names.iter().any(|wanted| name.contains(wanted))
}
