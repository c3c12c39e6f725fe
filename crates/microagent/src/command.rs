//! The rules that make one process out of an image's configuration and what the caller asked
//! for. Pure: no file, no process.

use microagent_image::ImageConfig;
use microagent_protocol::{EnvVar, ExecRequest, ExecRole};

use crate::{
    error::{Error, Result},
    options::{EnvChange, RunOptions},
    signal,
};

/// The shell of `--exec` and `--setup`.
pub(crate) const SHELL: &str = "/bin/sh";

/// Checks that only one source of the command was given.
///
/// # Errors
/// [`Error::Invalid`] naming the two that contradict each other.
pub(crate) fn check(options: &RunOptions) -> Result<()> {
    if options.shell.is_some() && !options.command.is_empty() {
        return Err(Error::invalid(
            "--exec",
            "a command stands after the image as well; give one of the two",
        ));
    }
    if options.shell.is_some() && options.entrypoint.is_some() {
        return Err(Error::invalid(
            "--exec",
            "it runs in the image's shell, so --entrypoint cannot apply; give one of the two",
        ));
    }
    let nul = |text: &String| text.contains('\0');
    let argv = options
        .command
        .iter()
        .chain(options.entrypoint.iter().flatten());
    if argv.chain(&options.shell).chain(&options.setup).any(nul) {
        return Err(Error::invalid("the command", "it has a NUL byte"));
    }
    if let Some(workdir) = &options.workdir {
        check_workdir(workdir)?;
    }
    if let Some(user) = &options.user {
        check_user(user)?;
    }
    for change in &options.env {
        if let EnvChange::Set(name, value) = change {
            env_var(name, value)?;
        }
    }
    Ok(())
}

/// Whether a text is `NAME`, `UID`, `NAME:GROUP` or `UID:GID`.
pub(crate) fn is_user(user: &str) -> bool {
    let parts = !user.is_empty() && user.matches(':').count() <= 1 && !user.starts_with(':');
    parts && !user.contains(['\0', '\n'])
}

pub(crate) fn check_workdir(workdir: &str) -> Result<()> {
    if workdir.starts_with('/') && !workdir.contains('\0') {
        return Ok(());
    }
    Err(Error::invalid(
        "--workdir",
        format!("{workdir:?} is not an absolute path in the guest"),
    ))
}

pub(crate) fn check_user(user: &str) -> Result<()> {
    if is_user(user) {
        return Ok(());
    }
    Err(Error::invalid(
        "--user",
        format!("{user:?} is not NAME, UID, NAME:GROUP or UID:GID"),
    ))
}

fn env_var(name: &str, value: &str) -> Result<EnvVar> {
    EnvVar::new(name, value).map_err(|error| Error::invalid("--env", error.to_string()))
}

/// The workload as the guest is asked to run it.
///
/// # Errors
/// [`Error::NoCommand`] if neither side names one; [`Error::Invalid`] for a stop signal or a
/// variable of the image that makes no sense.
pub(crate) fn workload(
    options: &RunOptions,
    config: &ImageConfig,
    stdin: bool,
) -> Result<ExecRequest> {
    Ok(ExecRequest {
        role: ExecRole::Workload,
        argv: argv(options, config)?,
        tty: options.tty,
        stdin,
        ..surroundings(options, config)?
    })
}

/// One setup command as the guest is asked to run it: like the workload, without its streams.
///
/// # Errors
/// As [`workload`].
pub(crate) fn setup(
    options: &RunOptions,
    config: &ImageConfig,
    script: &str,
) -> Result<ExecRequest> {
    Ok(ExecRequest {
        role: ExecRole::Setup,
        argv: shell(script),
        ..surroundings(options, config)?
    })
}

/// What every process of a workspace is given; it has no `argv` of its own.
///
/// # Errors
/// As [`workload`].
pub(crate) fn surroundings(options: &RunOptions, config: &ImageConfig) -> Result<ExecRequest> {
    let stop_signal = match config.stop_signal.as_deref() {
        None => None,
        Some(text) => Some(signal::parse(text).ok_or_else(|| {
            Error::invalid(
                "the image's StopSignal",
                format!("{text:?} is not a signal"),
            )
        })?),
    };
    let cwd = options.workdir.clone().or_else(|| {
        // Docker takes a relative WorkingDir as one from the root.
        config.working_dir.as_ref().map(|path| {
            if path.starts_with('/') {
                path.clone()
            } else {
                format!("/{path}")
            }
        })
    });
    Ok(ExecRequest {
        role: ExecRole::Command,
        argv: Vec::new(),
        env: env(options, config)?,
        cwd,
        user: options.user.clone().or_else(|| config.user.clone()),
        tty: None,
        stdin: false,
        stop_signal,
    })
}

pub(crate) fn shell(script: &str) -> Vec<String> {
    vec![SHELL.to_owned(), "-c".to_owned(), script.to_owned()]
}

fn argv(options: &RunOptions, config: &ImageConfig) -> Result<Vec<String>> {
    if let Some(script) = &options.shell {
        return Ok(shell(script));
    }
    let entrypoint = options.entrypoint.as_ref().unwrap_or(&config.entrypoint);
    let command = match (&options.entrypoint, &options.command[..]) {
        (Some(_), []) => &[],
        (None, []) => &config.cmd[..],
        (_, given) => given,
    };
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    // An entrypoint of [""] is how images undo one they inherited.
    if argv.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand {
            image: options.image.clone(),
        });
    }
    Ok(argv)
}

/// The image's variables in their order, each replaced in place or removed, new ones at the end.
fn env(options: &RunOptions, config: &ImageConfig) -> Result<Vec<EnvVar>> {
    let mut vars = Vec::new();
    for entry in &config.env {
        match entry.parse::<EnvVar>() {
            Ok(var) => set(&mut vars, var),
            // Engines pass such entries over too; a program cannot see them anyway.
            Err(error) => tracing::warn!("the image's environment: {error}"),
        }
    }
    change_env(&mut vars, &options.env)?;
    Ok(vars)
}

/// Changes variables in place; new ones come at the end.
pub(crate) fn change_env(vars: &mut Vec<EnvVar>, changes: &[EnvChange]) -> Result<()> {
    for change in changes {
        match change {
            EnvChange::Set(name, value) => set(vars, env_var(name, value)?),
            EnvChange::Remove(name) => vars.retain(|var| var.name() != name),
        }
    }
    Ok(())
}

fn set(vars: &mut Vec<EnvVar>, var: EnvVar) {
    match vars.iter_mut().find(|known| known.name() == var.name()) {
        Some(known) => *known = var,
        None => vars.push(var),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        ImageConfig {
            entrypoint: own(entrypoint),
            cmd: own(cmd),
            ..ImageConfig::default()
        }
    }

    fn argv_of(options: &RunOptions, config: &ImageConfig) -> Vec<String> {
        check(options).unwrap();
        workload(options, config, false).unwrap().argv
    }

    #[test]
    fn entrypoint_and_cmd_follow_the_rules_of_container_engines() {
        let image = config(&["/entry", "-x"], &["serve"]);
        let run = || RunOptions::new("a");
        assert_eq!(argv_of(&run(), &image), ["/entry", "-x", "serve"]);
        assert_eq!(
            argv_of(&run().command(["a", "b"]), &image),
            ["/entry", "-x", "a", "b"]
        );
        assert_eq!(argv_of(&run().entrypoint(["/other"]), &image), ["/other"]);
        assert_eq!(
            argv_of(&run().entrypoint(["/other"]).command(["y"]), &image),
            ["/other", "y"]
        );
        let none: [&str; 0] = [];
        assert_eq!(
            argv_of(&run().entrypoint(none).command(["y"]), &image),
            ["y"]
        );
        assert_eq!(
            argv_of(&run().shell("a | b"), &image),
            ["/bin/sh", "-c", "a | b"]
        );
        assert_eq!(argv_of(&run(), &config(&[], &["bash"])), ["bash"]);
    }

    #[test]
    fn nothing_to_run_is_an_error_that_names_the_image() {
        for image in [config(&[], &[]), config(&[""], &[])] {
            let error = workload(&RunOptions::new("scratchy"), &image, false).unwrap_err();
            assert!(error.to_string().contains("scratchy"), "{error}");
        }
    }

    #[test]
    fn contradictions_and_bad_values_are_refused_before_anything_is_done() {
        let run = || RunOptions::new("a");
        for (options, words) in [
            (run().shell("x").command(["y"]), "after the image"),
            (run().shell("x").entrypoint(["y"]), "--entrypoint"),
            (run().workdir("relative"), "absolute"),
            (run().user(":x"), "UID"),
            (run().user("a:b:c"), "UID"),
            (run().user(""), "UID"),
            (run().env("", "x"), "NAME=VALUE"),
            (run().env("A=B", "x"), "NAME=VALUE"),
            (run().command(["a\0b"]), "NUL"),
        ] {
            let error = check(&options).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_environment_is_the_images_with_changes() {
        let image = ImageConfig {
            env: ["PATH=/bin", "A=1", "B=2", "broken"]
                .map(str::to_owned)
                .into(),
            ..ImageConfig::default()
        };
        let options = RunOptions::new("a")
            .command(["x"])
            .env("A", "3")
            .env("C", "")
            .env_remove("B")
            .env("C", "4");
        let env: Vec<String> = workload(&options, &image, false)
            .unwrap()
            .env
            .into_iter()
            .map(String::from)
            .collect();
        assert_eq!(env, ["PATH=/bin", "A=3", "C=4"]);
    }

    #[test]
    fn user_directory_and_stop_signal_come_from_the_image_unless_given() {
        let image = ImageConfig {
            user: Some("www-data".into()),
            working_dir: Some("srv".into()),
            stop_signal: Some("SIGQUIT".into()),
            cmd: vec!["x".into()],
            ..ImageConfig::default()
        };
        let plain = workload(&RunOptions::new("a"), &image, true).unwrap();
        assert_eq!(plain.user.as_deref(), Some("www-data"));
        assert_eq!(plain.cwd.as_deref(), Some("/srv"));
        assert_eq!(plain.stop_signal, Some(3));
        assert!(plain.stdin);
        let given = RunOptions::new("a").user("0:0").workdir("/tmp");
        let given = workload(&given, &image, false).unwrap();
        assert_eq!(
            (given.user.as_deref(), given.cwd.as_deref()),
            (Some("0:0"), Some("/tmp"))
        );

        let odd = ImageConfig {
            stop_signal: Some("SIGNOPE".into()),
            ..image
        };
        let error = workload(&RunOptions::new("a"), &odd, false).unwrap_err();
        assert!(error.to_string().contains("SIGNOPE"), "{error}");
    }

    #[test]
    fn setup_runs_in_the_shell_without_input() {
        let image = config(&["/entry"], &[]);
        let options = RunOptions::new("a").user("1000");
        let request = setup(&options, &image, "apt-get update").unwrap();
        assert_eq!(request.argv, ["/bin/sh", "-c", "apt-get update"]);
        assert_eq!(
            (request.role, request.stdin, request.tty),
            (ExecRole::Setup, false, None)
        );
        assert_eq!(request.user.as_deref(), Some("1000"));
    }
}
