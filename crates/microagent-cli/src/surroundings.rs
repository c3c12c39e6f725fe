//! The environment and the home directory, read here and nowhere else, as a [`Config`].

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use microagent::{Config, Error, SupervisorProgram};

use crate::cli::Globals;

/// The longest base for sockets that leaves room for their names.
const MAX_RUNTIME_BASE: usize = 60;

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The form of results by environment.
pub(crate) fn output_variable() -> Option<String> {
    variable("MICROAGENT_OUTPUT")?.into_string().ok()
}

/// Whether colours are unwanted by environment.
pub(crate) fn no_color() -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").is_some_and(|term| term == "dumb")
}

/// The library's settings for this user and these options.
pub(crate) fn config(globals: &Globals, insecure: &[String]) -> Result<Config, Error> {
    let home = variable("HOME").map(PathBuf::from);
    let state = state_dir(globals, home.as_deref())?;
    let supervisor = match variable("MICROAGENT_SUPERVISOR") {
        Some(path) => SupervisorProgram::At(absolute(Path::new(&path))?),
        None => SupervisorProgram::ThisProgram,
    };
    let runtime = runtime_dir(variable("XDG_RUNTIME_DIR").map(PathBuf::from).as_deref());
    let mut config = Config::new(&state, runtime, supervisor).auth_file(state.join("auth.json"));
    let docker = variable("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".docker")));
    if let Some(directory) = docker {
        config = config.auth_file(directory.join("config.json"));
    }
    for registry in insecure {
        config = config.insecure_registry(registry);
    }
    Ok(config)
}

/// Where this user's systemd units are.
pub(crate) fn systemd_dir() -> Result<PathBuf, Error> {
    let base = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config")));
    match base {
        Some(base) => Ok(base.join("systemd/user")),
        None => Err(Error::Invalid {
            option: "the directory of systemd units",
            reason: "neither XDG_CONFIG_HOME nor HOME is set".to_owned(),
        }),
    }
}

/// The program that steers systemd.
pub(crate) fn systemctl() -> PathBuf {
    PathBuf::from("systemctl")
}

/// This program, as a unit can start it.
pub(crate) fn this_program() -> Result<PathBuf, Error> {
    env::current_exe().map_err(|source| Error::Io {
        doing: "find",
        path: "the program that runs".into(),
        source,
    })
}

/// What a unit needs of this environment: where programs are, and which files of credentials and
/// which supervisor were meant.
pub(crate) fn unit_environment() -> Vec<(String, String)> {
    ["PATH", "MICROAGENT_SUPERVISOR", "DOCKER_CONFIG"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), variable(name)?.into_string().ok()?)))
        .collect()
}

fn state_dir(globals: &Globals, home: Option<&Path>) -> Result<PathBuf, Error> {
    let given = globals
        .state_dir
        .clone()
        .or_else(|| variable("MICROAGENT_HOME").map(PathBuf::from));
    match (given, home) {
        (Some(given), _) => absolute(&given),
        (None, Some(home)) => absolute(&home.join(".microagent")),
        (None, None) => Err(Error::Invalid {
            option: "the state directory",
            reason: "HOME is not set; give --state-dir or MICROAGENT_HOME".to_owned(),
        }),
    }
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::Io {
        doing: "find the absolute path of",
        path: path.to_owned(),
        source,
    })
}

/// Short, private and gone after a reboot: below the user's run-time directory where there is one.
fn runtime_dir(base: Option<&Path>) -> PathBuf {
    match base {
        Some(base)
            if base.is_absolute()
                && base.as_os_str().len() <= MAX_RUNTIME_BASE
                && base.is_dir() =>
        {
            base.join("microagent")
        }
        _ => PathBuf::from(format!(
            "/tmp/microagent-{}",
            rustix::process::geteuid().as_raw()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_where_their_paths_stay_short() {
        assert_eq!(
            runtime_dir(Some(Path::new("/tmp"))),
            Path::new("/tmp/microagent")
        );
        let fallback = runtime_dir(None);
        assert!(fallback.starts_with("/tmp") && fallback.to_str().unwrap().len() < 40);
        assert_eq!(runtime_dir(Some(Path::new("/no/such/directory"))), fallback);
        assert_eq!(runtime_dir(Some(Path::new("relative"))), fallback);
    }
}
