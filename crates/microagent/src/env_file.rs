//! Environment files in the form container users know: one `NAME=VALUE` a line, nothing quoted.

use microagent_protocol::EnvVar;

/// Why an environment file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct EnvFileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads an environment file.
///
/// Empty lines and lines that start with `#` are skipped; a value is everything after the first
/// `=`, quotes and blanks included; a name alone takes its value from `lookup` and is left out
/// when there is none.
///
/// # Errors
/// [`EnvFileError`] for a name that is missing or has blanks, or a NUL byte.
///
/// ```
/// let text = "# comment\nA=1\nB=\"two words\"\nFROM_HOST\nUNSET\n";
/// let vars = microagent::env_file::parse(text, |name| {
///     (name == "FROM_HOST").then(|| "here".to_owned())
/// })?;
/// let vars: Vec<String> = vars.into_iter().map(String::from).collect();
/// assert_eq!(vars, ["A=1", "B=\"two words\"", "FROM_HOST=here"]);
/// # Ok::<(), microagent::env_file::EnvFileError>(())
/// ```
pub fn parse(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<EnvVar>, EnvFileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut vars = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let refuse = |reason: String| EnvFileError {
            line: index + 1,
            reason,
        };
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), lookup(line.trim_end())),
        };
        if name.is_empty() {
            return Err(refuse("the name before '=' is missing".into()));
        }
        if name.contains(char::is_whitespace) {
            return Err(refuse(format!("the name {name:?} has blanks in it")));
        }
        if let Some(value) = value {
            vars.push(EnvVar::new(name, value).map_err(|error| refuse(error.to_string()))?);
        }
    }
    Ok(vars)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, EnvFileError> {
        parse(text, |_| None).map(|vars| vars.into_iter().map(String::from).collect())
    }

    #[test]
    fn values_stand_as_they_are() {
        assert_eq!(
            read("\u{feff}A=b=c\r\n  B= x \nC='q'\nD=#no comment\n\nE=").unwrap(),
            ["A=b=c", "B= x ", "C='q'", "D=#no comment", "E="]
        );
    }

    #[test]
    fn faults_name_their_line() {
        for (text, line, words) in [
            ("A=1\n=x", 2, "missing"),
            ("A B=1", 1, "blanks"),
            ("export A=1", 1, "blanks"),
            ("\n\nA=\0", 3, "NUL"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(error.reason.contains(words), "{error}");
        }
    }

    #[test]
    fn a_name_alone_that_is_not_set_is_left_out() {
        assert!(read("NOT_SET\n").unwrap().is_empty());
    }
}
