//! The environment and the home directory, read here and nowhere else, as a [`Config`].

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use microagent::{Config, Error, LogFilter, ProxyOptions, SupervisorProgram};

use crate::{cli::Globals, options};

/// The longest base for sockets that leaves room for their names.
const MAX_RUNTIME_BASE: usize = 60;

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The form of results by environment.
pub(crate) fn output_variable() -> Option<String> {
    variable("MICROAGENT_OUTPUT")?.into_string().ok()
}

/// Which messages are to be told, by environment.
pub(crate) fn log_filter() -> Result<Option<LogFilter>, Error> {
    let Some(text) = variable("MICROAGENT_LOG") else {
        return Ok(None);
    };
    let filter = text.to_string_lossy().parse();
    filter
        .map(Some)
        .map_err(|error: microagent::InvalidLogFilter| Error::Invalid {
            option: "MICROAGENT_LOG",
            reason: error.to_string(),
        })
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
    let mut config = Config::new(&state, runtime, supervisor).proxy(proxy(&variable));
    let user = microagent_host::process::User::current().number();
    for file in credential_files(&variable, home.as_deref(), user) {
        config = config.auth_file(absolute(&file)?);
    }
    if let Some(path) = variable("PATH") {
        config = config.helper_path(path);
    }
    if let Some(file) = registries_file(&state)? {
        config = config.registries_file(file);
    }
    if let Some(mode) = variable("MICROAGENT_CONFINEMENT") {
        let mode = mode.to_string_lossy().parse().map_err(
            |error: microagent::InvalidConfinementMode| Error::Invalid {
                option: "MICROAGENT_CONFINEMENT",
                reason: error.to_string(),
            },
        )?;
        config = config.confinement(mode);
    }
    if let Some(text) = variable("MICROAGENT_BOOT_TIMEOUT") {
        let limit =
            options::duration(&text.to_string_lossy()).map_err(|reason| Error::Invalid {
                option: "MICROAGENT_BOOT_TIMEOUT",
                reason,
            })?;
        config = config.boot_timeout(limit);
    }
    if let Some(filter) = log_filter()? {
        config = config.log(filter);
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

/// What a unit needs of this environment: where programs are, which files of credentials and which
/// supervisor were meant, how its machines are run, and what is to be told.
pub(crate) fn unit_environment() -> Vec<(String, String)> {
    [
        "PATH",
        "MICROAGENT_SUPERVISOR",
        "MICROAGENT_FIRECRACKER",
        "MICROAGENT_JAILER",
        "MICROAGENT_CONFINEMENT",
        "MICROAGENT_BOOT_TIMEOUT",
        "MICROAGENT_LOG",
        "DOCKER_CONFIG",
    ]
    .into_iter()
    .filter_map(|name| Some((name.to_owned(), variable(name)?.into_string().ok()?)))
    .collect()
}

/// Where other programs keep registry credentials: Docker, then the containers tools. The variables that
/// name such a place name it instead of the usual one, as they do for those programs.
fn credential_files(
    variable: &dyn Fn(&str) -> Option<OsString>,
    home: Option<&Path>,
    user: Option<u32>,
) -> Vec<PathBuf> {
    let directory = |name: &str| variable(name).map(PathBuf::from);
    let below_home = |path: &str| home.map(|home| home.join(path));
    let docker = directory("DOCKER_CONFIG").or_else(|| below_home(".docker"));
    let containers = match directory("REGISTRY_AUTH_FILE") {
        Some(file) => vec![file],
        None => {
            // Where there is no session, as for root and in containers, these tools have another place.
            let runtime = directory("XDG_RUNTIME_DIR")
                .map(|directory| directory.join("containers/auth.json"))
                .or_else(|| user.map(|user| format!("/run/containers/{user}/auth.json").into()));
            let config = directory("XDG_CONFIG_HOME")
                .or_else(|| below_home(".config"))
                .map(|directory| directory.join("containers/auth.json"));
            runtime.into_iter().chain(config).collect()
        }
    };
    docker
        .map(|directory| directory.join("config.json"))
        .into_iter()
        .chain(containers)
        .collect()
}

/// The proxies, by the variables most programs know, in both cases.
fn proxy(variable: &dyn Fn(&str) -> Option<OsString>) -> ProxyOptions {
    let either = |name: &str| {
        variable(name)
            .or_else(|| variable(&name.to_ascii_lowercase()))?
            .into_string()
            .ok()
    };
    ProxyOptions::new(
        either("HTTP_PROXY"),
        either("HTTPS_PROXY"),
        &either("NO_PROXY").unwrap_or_default(),
    )
}

/// What is particular to some registries: by variable, of this user, or of this host.
fn registries_file(state: &Path) -> Result<Option<PathBuf>, Error> {
    if let Some(file) = variable("MICROAGENT_REGISTRIES") {
        return absolute(Path::new(&file)).map(Some);
    }
    let usual = [
        state.join("registries.toml"),
        PathBuf::from("/etc/microagent/registries.toml"),
    ];
    Ok(usual.into_iter().find(|file| file.exists()))
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
        _ => match microagent_host::process::User::current().number() {
            Some(user) => PathBuf::from(format!("/tmp/microagent-{user}")),
            None => env::temp_dir().join("microagent"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(variables: &[(&str, &str)], home: Option<&str>) -> Vec<String> {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(value))
        };
        credential_files(&variable, home.map(Path::new), Some(7))
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn credentials_are_where_other_programs_keep_them() {
        assert_eq!(
            files(&[("XDG_RUNTIME_DIR", "/run/user/7")], Some("/home/me")),
            [
                "/home/me/.docker/config.json",
                "/run/user/7/containers/auth.json",
                "/home/me/.config/containers/auth.json"
            ]
        );
        let named = [
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ];
        assert_eq!(
            files(&named, Some("/home/me")),
            ["/d/config.json", "/r.json"]
        );
        assert_eq!(
            files(&[("XDG_CONFIG_HOME", "/c")], None),
            ["/run/containers/7/auth.json", "/c/containers/auth.json"]
        );
    }

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
