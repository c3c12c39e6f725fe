//! What a failed test shows of its workspaces: what was recorded and said while nobody looked.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// What is shown of each, the newest last.
const FILES: [&str; 5] = [
    "machine.json",
    "result.json",
    "events.jsonl",
    "supervisor.log",
    "console.log",
];
/// The most of one file, from its end.
const MOST: usize = 4000;

/// The ends of the records and logs of the workspaces below `state` that are called one of `names`
/// or whose machine has its sockets below `runtime`.
pub(crate) fn collect(state: &Path, runtime: &Path, names: &[String]) -> String {
    let mut text = String::new();
    for workspace in workspaces(state) {
        let name = workspace.file_name().unwrap_or_default().to_string_lossy();
        let record = fs::read_to_string(workspace.join("machine.json")).unwrap_or_default();
        let is_ours = names.iter().any(|own| *own == name)
            || record.contains(&format!("{}/", runtime.display()));
        if !is_ours {
            continue;
        }
        for file in FILES {
            if let Ok(bytes) = fs::read(workspace.join(file)) {
                let end = &bytes[bytes.len().saturating_sub(MOST)..];
                let end = String::from_utf8_lossy(end);
                let _fits = writeln!(text, "-- {name}: {file}\n{}", end.trim_end());
            }
        }
    }
    text
}

fn workspaces(state: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(state.join("workspaces"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_own_workspaces_are_shown_from_their_ends_and_no_others() {
        let state = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            let directory = state.path().join("workspaces").join(name);
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in files {
                fs::write(directory.join(file), text).unwrap();
            }
        };
        let long = format!("{}the last word", "x".repeat(2 * MOST));
        make("named", &[("console.log", &long), ("scratch.ext4", "disk")]);
        make(
            "placed",
            &[("machine.json", r#"{"runtime_dir":"/run/t-1/ab"}"#)],
        );
        make(
            "foreign",
            &[("machine.json", r#"{"runtime_dir":"/run/t-11/ab"}"#)],
        );
        let shown = collect(state.path(), Path::new("/run/t-1"), &["named".to_owned()]);
        assert!(shown.contains("-- named: console.log") && shown.contains("the last word"));
        assert!(shown.contains("-- placed: machine.json"));
        assert!(!shown.contains("foreign") && !shown.contains("disk"));
        assert!(shown.len() < 2 * MOST, "{}", shown.len());
        let nothing = collect(&state.path().join("none"), Path::new("/run"), &[]);
        assert_eq!(nothing, "");
    }
}
