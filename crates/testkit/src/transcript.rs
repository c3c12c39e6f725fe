//! Terminal transcripts in documents, run as they stand.
//!
//! A fenced block marked `console` is a transcript. A line that begins with `$ ` is a command for
//! `sh`, lines that begin with `> ` go on with it, and what follows up to the next command is
//! what it prints, standard output before standard error. In expected text `…` stands for
//! anything on that line, and a line that is only `…` for any number of lines. All blocks of a
//! document run one after the other, in one directory.
//!
//! What is typed at a guest's prompt (`root@web:/# exit`, `# exit`), at a question (`… [y/N] y`), at one for a
//! password, or as `^C` on a line of its own, is typed there; `^C` and `^]` are what those keys send: such a command is on a terminal.
//!
//! A block marked `sh` is commands alone, which have to succeed. One that ends with `\`, `|` or `&&`
//! goes on in the next line.

mod session;

use std::{fmt::Write as _, path::Path};

pub use self::session::PASSWORD;
use self::session::Session;
use crate::Sandbox;

/// A fenced block of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of its first line within the fence, from 1.
    pub line: usize,
    /// What stands behind the opening fence.
    pub kind: String,
    /// Its lines.
    pub lines: Vec<String>,
}

/// Every fenced block of a document, in order.
#[must_use]
pub fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    for (at, line) in document.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(kind), None) => {
                open = Some(Block {
                    line: at + 2,
                    kind: kind.trim().to_owned(),
                    lines: Vec::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is never closed");
    blocks
}

/// One command of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of its line in the document, from 1.
    pub line: usize,
    /// What is given to `sh -c`.
    pub command: String,
    /// What it must print; of one that shows nothing, that it must succeed.
    pub expected: Option<String>,
}

/// Every step of a document, in order.
#[must_use]
pub fn steps(document: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in blocks(document) {
        match block.kind.as_str() {
            "console" => steps.extend(shown(&block)),
            "sh" => steps.extend(commands(&block)),
            _ => {}
        }
    }
    steps
}

fn shown(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (line, text) in (block.line..).zip(&block.lines) {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step {
                line,
                command: command.to_owned(),
                expected: Some(String::new()),
            });
            continue;
        }
        let step = steps
            .last_mut()
            .map(|step| (&mut step.command, &mut step.expected));
        let Some((command, Some(expected))) = step else {
            panic!("line {line}: a transcript begins with a command");
        };
        match text.strip_prefix("> ") {
            Some(more) if expected.is_empty() => {
                command.push('\n');
                command.push_str(more);
            }
            _ => {
                expected.push_str(text);
                expected.push('\n');
            }
        }
    }
    steps
}

fn commands(block: &Block) -> Vec<Step> {
    let (mut steps, mut goes_on) = (Vec::<Step>::new(), false);
    for (line, text) in (block.line..).zip(&block.lines) {
        match steps.last_mut() {
            Some(step) if goes_on => {
                step.command.push('\n');
                step.command.push_str(text);
            }
            _ if text.trim().is_empty() || text.starts_with('#') => continue,
            _ => steps.push(Step {
                line,
                command: text.clone(),
                expected: None,
            }),
        }
        goes_on = ["\\", "|", "&&"].iter().any(|end| text.ends_with(end));
    }
    steps
}

impl Step {
    /// Runs it in `directory`, with these variables set; gives its exit code.
    ///
    /// # Errors
    /// What differs from what the document shows.
    pub fn run(
        &self,
        sandbox: &Sandbox,
        directory: &Path,
        variables: &[(String, String)],
    ) -> Result<i32, String> {
        let shell = |script: &str| {
            let shell = sandbox.shell(script, directory);
            let set =
                |shell: crate::Invocation, (name, value): &(String, String)| shell.env(name, value);
            variables.iter().fold(shell, set)
        };
        if let Some(session) = self.expected.as_deref().and_then(Session::of) {
            return session.play(&self.command, shell);
        }
        let finished = shell(&self.command).run();
        match &self.expected {
            Some(expected) => compare(expected, &(finished.out() + &finished.err()))?,
            None if finished.code() != 0 => return Err(finished.to_string()),
            None => {}
        }
        Ok(finished.code())
    }
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
        let document = "text\n```console\n$ echo a \\\n> b\na b\n$ true\n```\n```\n$ no\n```\n";
        let steps = steps(document);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].command, "echo a \\\nb");
        assert_eq!(
            (steps[0].line, steps[0].expected.as_deref()),
            (3, Some("a b\n"))
        );
        assert_eq!(steps[1].expected.as_deref(), Some(""));
        assert_eq!(blocks(document)[1].lines, ["$ no"]);
    }

    #[test]
    fn commands_alone_have_to_succeed() {
        let steps = steps("```sh\n# why\na &&\n  b\n\nc | \\\nd # e\n```\n");
        let commands: Vec<_> = steps.iter().map(|step| step.command.as_str()).collect();
        assert_eq!(commands, ["a &&\n  b", "c | \\\nd # e"]);
        assert!(steps.iter().all(|step| step.expected.is_none()));
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
