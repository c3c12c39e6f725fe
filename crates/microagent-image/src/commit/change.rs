//! Changes of what an image says of itself, in the words of a Dockerfile.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::error::{ImageError, clip};

/// One change of an image's configuration.
///
/// ```
/// use microagent_image::ImageChange;
/// assert_eq!(
///     r#"CMD ["serve", "--all"]"#.parse::<ImageChange>()?,
///     ImageChange::Cmd(vec!["serve".into(), "--all".into()])
/// );
/// assert_eq!("ENV A=b c".parse::<ImageChange>()?, ImageChange::Env("A".into(), "b c".into()));
/// # Ok::<(), microagent_image::ImageError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageChange {
    /// The default command or arguments.
    Cmd(Vec<String>),
    /// What is always run.
    Entrypoint(Vec<String>),
    /// A variable of the environment.
    Env(String, String),
    /// A note.
    Label(String, String),
    /// The user, and maybe the group.
    User(String),
    /// The directory to run in.
    WorkingDir(String),
    /// The signal that asks the workload to end.
    StopSignal(String),
}

impl ImageChange {
    /// Changes the `config` object of a configuration.
    pub(super) fn apply(&self, run: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Value| {
            run.insert(key.to_owned(), value);
        };
        match self {
            Self::Cmd(words) => set("Cmd", json!(words)),
            Self::Entrypoint(words) => set("Entrypoint", json!(words)),
            Self::User(user) => set("User", json!(user)),
            Self::WorkingDir(path) => set("WorkingDir", json!(path)),
            Self::StopSignal(signal) => set("StopSignal", json!(signal)),
            Self::Label(name, value) => {
                let mut labels = match run.remove("Labels") {
                    Some(Value::Object(labels)) => labels,
                    _ => Map::new(),
                };
                labels.insert(name.clone(), json!(value));
                run.insert("Labels".to_owned(), Value::Object(labels));
            }
            Self::Env(name, value) => {
                let mut env = match run.remove("Env") {
                    Some(Value::Array(env)) => env,
                    _ => Vec::new(),
                };
                let is_same = |entry: &Value| {
                    let key = entry.as_str().and_then(|entry| entry.split_once('='));
                    key.is_some_and(|(key, _)| key == name)
                };
                let entry = json!(format!("{name}={value}"));
                match env.iter_mut().find(|entry| is_same(entry)) {
                    Some(old) => *old = entry,
                    None => env.push(entry),
                }
                run.insert("Env".to_owned(), Value::Array(env));
            }
        }
    }
}

impl FromStr for ImageChange {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let fault = |reason: &str| ImageError::BadChange {
            input: clip(text),
            reason: reason.to_owned(),
        };
        let (word, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(|| {
            fault("it has no value; write for example `CMD [\"serve\"]` or `ENV NAME=value`")
        })?;
        let rest = rest.trim();
        let words = || {
            if !rest.starts_with('[') {
                // As in a Dockerfile: a line for the shell.
                return Ok(["/bin/sh", "-c", rest].map(str::to_owned).to_vec());
            }
            serde_json::from_str::<Vec<String>>(rest).map_err(|_| {
                fault("its value is no list of strings, such as [\"serve\", \"--all\"]")
            })
        };
        let pair = || {
            let (name, value) = rest
                .split_once('=')
                .or_else(|| rest.split_once(char::is_whitespace))
                .ok_or_else(|| fault("it wants NAME=value"))?;
            let name = name.trim();
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(fault("its name is empty or has spaces in it"));
            }
            let value = value.trim();
            let unquoted = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value);
            Ok((name.to_owned(), unquoted.to_owned()))
        };
        match word.to_ascii_uppercase().as_str() {
            "CMD" => words().map(Self::Cmd),
            "ENTRYPOINT" => words().map(Self::Entrypoint),
            "ENV" => pair().map(|(name, value)| Self::Env(name, value)),
            "LABEL" => pair().map(|(name, value)| Self::Label(name, value)),
            "USER" => Ok(Self::User(rest.to_owned())),
            "WORKDIR" if rest.starts_with('/') => Ok(Self::WorkingDir(rest.to_owned())),
            "WORKDIR" => Err(fault("its directory is not absolute")),
            "STOPSIGNAL" => Ok(Self::StopSignal(rest.to_owned())),
            _ => Err(fault(
                "it begins with none of CMD, ENTRYPOINT, ENV, LABEL, STOPSIGNAL, USER and WORKDIR",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str], mut run: Value) -> Value {
        for change in changes {
            let change: ImageChange = change.parse().unwrap();
            change.apply(run.as_object_mut().unwrap());
        }
        run
    }

    #[test]
    fn each_word_changes_its_own() {
        let base = json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "X": [1]});
        let changes = [
            "cmd echo hi",
            "ENTRYPOINT [\"/init\"]",
            "ENV A=two words",
            "ENV B 3",
            "LABEL who=\"me\"",
            "USER 1000:1000",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ];
        assert_eq!(
            applied(&changes, base),
            json!({
                "Env": ["PATH=/bin", "A=two words", "B=3"],
                "Cmd": ["/bin/sh", "-c", "echo hi"],
                "Entrypoint": ["/init"],
                "Labels": {"who": "me"},
                "User": "1000:1000",
                "WorkingDir": "/srv",
                "StopSignal": "SIGINT",
                "X": [1],
            })
        );
        assert_eq!(applied(&["ENV A=1"], json!({})), json!({"Env": ["A=1"]}));
    }

    #[test]
    fn nonsense_is_named() {
        for bad in [
            "",
            "CMD",
            "CMD [1]",
            "CMD [\"a\"",
            "ENV lonely",
            "ENV =x",
            "WORKDIR srv",
            "VOLUME /x",
        ] {
            let error = bad.parse::<ImageChange>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}`")), "{error}");
        }
    }
}
