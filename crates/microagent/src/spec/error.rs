//! What is wrong with a spec, and where.

use std::{fmt, path::PathBuf};

/// The most faults that are told of one spec.
const MAX_FAULTS: usize = 50;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    /// The line it is in, counted from 1.
    pub line: usize,
    /// The character of the line it begins at, counted from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
    pub(super) class: FaultClass,
}

/// Who can find a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultClass {
    /// The JSON Schema finds it, too.
    Shape,
    /// Only we do: two values contradict each other, or a text follows a grammar of its own.
    Sense,
}

/// Why a spec was refused: everything that is wrong with it, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    file: PathBuf,
    faults: Vec<SpecFault>,
}

impl SpecError {
    pub(super) fn new(file: PathBuf, mut faults: Vec<SpecFault>) -> Self {
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults.truncate(MAX_FAULTS);
        Self { file, faults }
    }

    /// Everything that is wrong, in the order of the file; never empty.
    #[must_use]
    pub fn faults(&self) -> &[SpecFault] {
        &self.faults
    }

    /// One line for each fault: `FILE:LINE:COLUMN: what is wrong`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |fault: &SpecFault| {
            let (file, message) = (self.file.display(), &fault.message);
            format!("{file}:{}:{}: {message}", fault.line, fault.column)
        };
        self.faults.iter().map(line).collect()
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let (first, rest) = match lines.split_first() {
            Some((first, rest)) => (first.as_str(), rest.len()),
            None => ("the spec is wrong", 0),
        };
        match rest {
            0 => write!(f, "{first}."),
            1 => write!(f, "{first} (and 1 more)."),
            more => write!(f, "{first} (and {more} more)."),
        }
    }
}

impl std::error::Error for SpecError {}
