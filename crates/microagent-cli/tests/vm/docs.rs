//! What the documents show happens as they show it: every transcript in them is run.

use std::path::Path;

use testkit::{Sandbox, transcript};

/// Runs the transcripts of one document, in order, in a state directory of its own.
fn holds(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(document);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {error}"));
    let steps = transcript::steps(&text);
    assert!(!steps.is_empty(), "{document} shows nothing");

    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let directory = tempfile::tempdir().unwrap();
    for step in steps {
        let finished = sandbox.shell(&step.command, directory.path()).run();
        let printed = finished.out() + &finished.err();
        if let Err(report) = transcript::compare(&step.expected, &printed) {
            panic!("{document}:{}: $ {}\n{report}", step.line, step.command);
        }
    }
    sandbox.leftovers().none(&[]);
}

#[test]
fn getting_started() {
    holds("docs/getting-started.md");
}

#[test]
fn concepts() {
    holds("docs/concepts.md");
}
