//! Reading the console's last words of this boot.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use crate::{lifecycle::ConsoleVerdict, text::harmless};

/// How much of the console is looked at.
const TAIL: u64 = 16 * 1024;

/// How many lines and characters of it explain an end.
const LINES: usize = 20;
const CHARACTERS: usize = 4 * 1024;

/// One boot attempt's part of a console log.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    path: PathBuf,
    /// The file, and how long it was, before the attempt.
    before: Option<(u64, u64)>,
}

impl Console {
    /// The console from here on.
    pub(crate) fn from_now(path: PathBuf) -> Self {
        let before = std::fs::symlink_metadata(&path)
            .ok()
            .map(|file| (file.ino(), file.len()));
        Self { path, before }
    }

    /// Whether the kernel said why it died.
    pub(crate) fn verdict(&self) -> ConsoleVerdict {
        let tail = self.tail();
        let panicked = tail.contains("Kernel panic");
        ConsoleVerdict {
            panicked,
            out_of_memory: panicked
                && (tail.contains("Out of memory") || tail.contains("deadlocked on memory")),
        }
    }

    /// The last lines, harmless to show; nothing if there are none.
    pub(crate) fn last_lines(&self) -> Option<String> {
        let tail = self.tail();
        let lines: Vec<_> = tail
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        let excess = last.chars().count().saturating_sub(CHARACTERS);
        let last: String = last.chars().skip(excess).collect();
        (!last.is_empty()).then(|| harmless(&last, CHARACTERS))
    }

    fn tail(&self) -> String {
        match self.read_tail() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\r', ""),
            Err(error) => {
                tracing::debug!("cannot read {}: {error}", self.path.display());
                String::new()
            }
        }
    }

    fn read_tail(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let now = file.metadata()?;
        let from = match self.before {
            Some((file, length)) if file == now.ino() && length <= now.len() => length,
            _ => 0,
        };
        file.seek(SeekFrom::Start(from.max(now.len().saturating_sub(TAIL))))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_boots_words_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, "Kernel panic - not syncing\n").unwrap();
        let console = Console::from_now(path.clone());
        assert_eq!(console.verdict(), ConsoleVerdict::default());
        assert_eq!(console.last_lines(), None);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("a\r\n\u{1b}[1mKernel panic - not syncing: Out of memory\r\n");
        std::fs::write(&path, text).unwrap();
        assert!(console.verdict().panicked && console.verdict().out_of_memory);
        assert_eq!(
            console.last_lines().unwrap(),
            "a\n\u{fffd}[1mKernel panic - not syncing: Out of memory"
        );
    }

    #[test]
    fn the_last_words_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let console = Console::from_now(path.clone());
        std::fs::write(&path, "ä".repeat(1 << 20)).unwrap();
        assert!(console.last_lines().unwrap().chars().count() <= CHARACTERS);
    }
}
