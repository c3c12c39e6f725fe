//! Terminal transcripts in documents, run as they stand.
//!
//! A fenced block marked `console` is a transcript. A line that begins with `$ ` is a command for
//! `sh`, lines that begin with `> ` go on with it, and what follows up to the next command is
//! what it prints, standard output before standard error. In expected text `…` stands for
//! anything on that line, and a line that is only `…` for any number of lines. All blocks of a
//! document run one after the other, in one directory.

use std::fmt::Write as _;

/// One command of a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of its line in the document, from 1.
    pub line: usize,
    /// What is given to `sh -c`.
    pub command: String,
    /// What it must print.
    pub expected: String,
}

/// Every step of a document, in order.
#[must_use]
pub fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = None;
    for (at, line) in document.lines().enumerate() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            inside = match inside {
                None => Some(info.trim() == "console"),
                Some(_) => None,
            };
            continue;
        }
        if inside != Some(true) {
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                line: at + 1,
                command: command.to_owned(),
                expected: String::new(),
            });
        } else if let Some(step) = steps.last_mut() {
            match line.strip_prefix("> ") {
                Some(more) if step.expected.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                _ => {
                    step.expected.push_str(line);
                    step.expected.push('\n');
                }
            }
        } else {
            panic!("line {}: a transcript begins with a command", at + 1);
        }
    }
    assert!(inside.is_none(), "a fence is never closed");
    steps
}

/// Whether `printed` is what `expected` says; the reason if it is not.
///
/// # Errors
/// The first line that differs, with both texts.
pub fn compare(expected: &str, printed: &str) -> Result<(), String> {
    let wanted: Vec<&str> = expected.lines().map(str::trim_end).collect();
    let got: Vec<&str> = printed.lines().map(str::trim_end).collect();
    if lines_match(&wanted, &got) {
        return Ok(());
    }
    let mut report = String::new();
    writeln!(report, "expected:\n{expected}\nprinted:\n{printed}").expect("a string takes it");
    Err(report)
}

fn lines_match(wanted: &[&str], got: &[&str]) -> bool {
    match wanted.split_first() {
        None => got.is_empty(),
        Some((&"…", rest)) => (0..=got.len()).any(|skip| lines_match(rest, &got[skip..])),
        Some((first, rest)) => got
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others)),
    }
}

fn line_matches(wanted: &str, got: &str) -> bool {
    let Some((head, tail)) = wanted.split_once('…') else {
        return wanted == got;
    };
    got.strip_prefix(head).is_some_and(|rest| {
        (0..=rest.len())
            .filter(|at| rest.is_char_boundary(*at))
            .any(|at| line_matches(tail, &rest[at..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_what_they_print_are_told_apart() {
        let document = "text\n```console\n$ echo a \\\n> b\na b\n$ true\n```\n```sh\n$ no\n```\n";
        let steps = steps(document);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].command, "echo a \\\nb");
        assert_eq!((steps[0].line, steps[0].expected.as_str()), (3, "a b\n"));
        assert_eq!(steps[1].expected, "");
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        for (wanted, printed) in [
            ("a … c\n", "a b c\n"),
            ("…\nend\n", "1\n2\nend\n"),
            ("…\n", ""),
            ("x…\n", "x\n"),
            ("a … b … c\n", "a 1 b 2 c"),
        ] {
            assert!(compare(wanted, printed).is_ok(), "{wanted:?} {printed:?}");
        }
        for (wanted, printed) in [
            ("a\n", "b\n"),
            ("a\n", "a\nb\n"),
            ("", "a\n"),
            ("a … c\n", "a b d\n"),
            ("…\nend\n", "1\n2\n"),
        ] {
            assert!(compare(wanted, printed).is_err(), "{wanted:?} {printed:?}");
        }
    }
}
