//! Holds SECURITY.md to its tests: each row of its table has some, and they are there.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

/// The rows of the table under this heading, as their cells.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text.split_once(heading).expect(heading);
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| {
        row.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect::<Vec<_>>()
    })
    .filter(|row| row[0].parse::<u32>().is_ok())
    .collect()
}

/// Whether a source file has a test of this name: a function, or an entry of a list of tests.
fn has_test(source: &str, name: &str) -> bool {
    let entry = format!("\"{name}\"");
    let function = format!("fn {name}(");
    let before = |at: usize| {
        source[..at]
            .lines()
            .rev()
            .take(4)
            .any(|line| line.contains("test]"))
    };
    source.contains(&entry) || source.match_indices(&function).any(|(at, _)| before(at))
}

#[test]
fn each_promise_of_the_table_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let numbers = |rows: &[Vec<String>]| {
        rows.iter()
            .map(|row| row[0].clone())
            .collect::<BTreeSet<_>>()
    };
    let promised = rows(&text, "\n## Who attacks whom");
    let held = rows(&text, "\n## What holds these promises");
    assert!(promised.len() >= 17, "{promised:?}");
    assert_eq!(numbers(&promised), numbers(&held));
    assert_eq!(
        numbers(&promised).len(),
        promised.len(),
        "a number is there twice"
    );
    for row in &held {
        for group in row[2].split("; ") {
            let (file, names) = group.split_once(": ").expect(group);
            let file = file.trim_matches('`');
            let source = fs::read_to_string(root.join(file))
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            for name in names.split(", ") {
                let name = name.trim_matches('`');
                assert!(
                    has_test(&source, name),
                    "SECURITY.md, row {}: {file} has no test {name}",
                    row[0]
                );
            }
        }
    }
}
