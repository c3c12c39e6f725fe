//! Which messages of a program are written down.

use serde::{Deserialize, Serialize};

/// How much a message matters, from not at all wanted to the least of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing is told.
    Off,
    /// What failed.
    Error,
    /// What is not as it should be.
    Warn,
    /// What happened.
    Info,
    /// What is done, for whoever looks for a cause.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Off, "off"),
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
        (Self::Trace, "trace"),
    ];

    fn named(name: &str) -> Option<Self> {
        let found = Self::ALL
            .iter()
            .find(|(_, known)| known.eq_ignore_ascii_case(name));
        found.map(|(level, _)| *level)
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::ALL.iter().find(|(level, _)| level == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// Which messages are wanted: `debug`, or `warn,microagent_image=trace`.
///
/// A directive with a target holds for every target that begins with it, and the longest one that fits
/// decides. What no directive names is told from the level that stands alone, or else from `warn` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter {
    other: LogLevel,
    /// Longest first.
    targets: Vec<(String, LogLevel)>,
}

impl LogFilter {
    /// The most directives.
    const MOST: usize = 64;

    /// The longest text, in bytes.
    const LONGEST: usize = 4096;

    /// Everything from `level` on.
    #[must_use]
    pub const fn all(level: LogLevel) -> Self {
        Self {
            other: level,
            targets: Vec::new(),
        }
    }

    /// Whether a message of `level` from `target` is wanted.
    #[must_use]
    pub fn wants(&self, target: &str, level: LogLevel) -> bool {
        let found = self
            .targets
            .iter()
            .find(|(begin, _)| target.starts_with(begin.as_str()));
        level <= found.map_or(self.other, |(_, most)| *most)
    }

    /// The least important level that is wanted of any target.
    #[must_use]
    pub fn most(&self) -> LogLevel {
        let targets = self.targets.iter().map(|(_, level)| *level);
        targets.fold(self.other, Ord::max)
    }
}

/// Not a filter of messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is no filter of messages: {reason}; use a level (off, error, warn, info, debug or trace), \
     or directives such as warn,microagent_image=debug"
)]
pub struct InvalidLogFilter {
    input: String,
    reason: String,
}

impl std::str::FromStr for LogFilter {
    type Err = InvalidLogFilter;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: String| InvalidLogFilter {
            input: input.chars().take(80).collect(),
            reason,
        };
        if input.len() > Self::LONGEST {
            return Err(refuse(format!("it is longer than {} bytes", Self::LONGEST)));
        }
        let mut filter = Self::all(LogLevel::Warn);
        let words = input.split(',').map(str::trim);
        for word in words.filter(|word| !word.is_empty()) {
            let (target, level) = match word.split_once('=') {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None => (None, word),
            };
            let level = LogLevel::named(level)
                .ok_or_else(|| refuse(format!("{level:?} is not a level")))?;
            match target {
                None => filter.other = level,
                Some("") => return Err(refuse(format!("{word:?} names no target"))),
                Some(target) => filter.targets.push((target.to_owned(), level)),
            }
        }
        if filter.targets.len() > Self::MOST {
            return Err(refuse(format!("it has more than {} targets", Self::MOST)));
        }
        // Of two for the same target the later one is meant.
        filter.targets.reverse();
        filter
            .targets
            .sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(filter)
    }
}

impl std::fmt::Display for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.other.fmt(f)?;
        for (target, level) in self.targets.iter().rev() {
            write!(f, ",{target}={level}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = InvalidLogFilter;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        input.parse()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> LogFilter {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_target_that_fits_decides() {
        let it = filter(" info, microagent=debug,microagent_image = TRACE,microagent::run=off");
        for (target, level, wanted) in [
            ("rustls", LogLevel::Info, true),
            ("rustls", LogLevel::Debug, false),
            ("microagent_kernel::store", LogLevel::Debug, true),
            ("microagent_image::pull", LogLevel::Trace, true),
            ("microagent::run::drive", LogLevel::Error, false),
        ] {
            assert_eq!(it.wants(target, level), wanted, "{target} {level}");
        }
        assert_eq!(it.most(), LogLevel::Trace);
        let alone = filter("microagent=debug");
        assert!(alone.wants("other", LogLevel::Warn) && !alone.wants("other", LogLevel::Info));
        let twice = filter("a=debug,a=error");
        assert!(!twice.wants("a", LogLevel::Warn));
        assert!(!filter("off").wants("any", LogLevel::Error));
    }

    #[test]
    fn what_is_no_filter_is_named() {
        let targets = "x=info,".repeat(LogFilter::MOST + 1);
        let long = "x".repeat(LogFilter::LONGEST + 1);
        for (text, word) in [
            ("loud", "\"loud\" is not a level"),
            ("a=", "\"\" is not a level"),
            ("=info", "names no target"),
            (&targets, "targets"),
            (&long, "longer"),
        ] {
            let error = text.parse::<LogFilter>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_filter_is_the_same_after_the_wire(text in "[a-z]{1,3}=(off|error|debug)(,[a-z]{1,3}=(warn|trace)){0,4}(,info)?") {
            let it = filter(&text);
            let json = serde_json::to_string(&it).unwrap();
            let back: LogFilter = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&back, &it);
            for target in ["a", "ab", "abc", "z", "zz"] {
                prop_assert_eq!(back.wants(target, LogLevel::Warn), it.wants(target, LogLevel::Warn));
            }
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,200}") {
            let _ = text.parse::<LogFilter>();
        }
    }
}
