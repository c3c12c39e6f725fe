//! The command line: what can be said, and who answers.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    commands,
    output::{self, Screen},
    refusals, surroundings,
};

/// The exit code of a usage error, whatever the command.
pub(crate) const EXIT_USAGE: u8 = 2;

/// The exit code of a command other than `run` that failed.
pub(crate) const EXIT_FAILURE: u8 = 1;

#[derive(Debug, Parser)]
#[command(
    name = "microagent",
    version,
    about = "Run each command in a Linux microVM of its own.",
    after_help = "Examples:
  microagent run debian:12 uname -a
  microagent run -it debian:12 bash
  microagent images import --name debian:12 rootfs.tar.gz
  microagent doctor

`microagent COMMAND --help` says more.",
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command, on either side of its name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Print one JSON document; the same as --output json
    #[arg(long, global = true, conflicts_with = "output")]
    pub(crate) json: bool,
    /// The form of results and errors [default: text, or the value of MICROAGENT_OUTPUT]
    #[arg(long, global = true, value_name = "FORM")]
    pub(crate) output: Option<Form>,
    /// No progress and no notices
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// No colours; also when NO_COLOR is set
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Tell on standard error what is being done
    #[arg(long, global = true)]
    pub(crate) verbose: bool,
    /// Where images, kernels and workspaces are [default: $MICROAGENT_HOME, or ~/.microagent]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Globals {
    /// The form that was asked for: by flag, else by environment.
    pub(crate) fn form(&self) -> Form {
        if self.json {
            return Form::Json;
        }
        self.output
            .unwrap_or_else(|| match surroundings::output_variable().as_deref() {
                Some("json") => Form::Json,
                _ => Form::Text,
            })
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a microVM of its own
    Run(Box<commands::run::RunArgs>),
    /// Say what this host can run, and what would help
    Doctor(commands::doctor::DoctorArgs),
    /// Pull, import and remove images
    #[command(
        alias = "image",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    Images {
        #[command(subcommand)]
        command: commands::images::ImagesCommand,
    },
    /// Install and remove kernels
    #[command(
        alias = "kernels",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    Kernel {
        #[command(subcommand)]
        command: commands::kernel::KernelCommand,
    },
    /// Log in to a registry
    Login(commands::login::LoginArgs),
    /// Forget the login for a registry
    Logout(commands::logout::LogoutArgs),
    /// Say who you are to a registry
    Whoami(commands::whoami::WhoamiArgs),
    /// Print the version
    Version,
}

/// Parses the command line, runs the command, and gives its exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    let screen = Screen::new(&cli.globals);
    output::trace(&cli.globals);
    let globals = &cli.globals;
    let (code, outcome) = match cli.command {
        Command::Run(args) => return commands::run::run(*args, globals, &screen),
        Command::Doctor(args) => commands::doctor::run(&args, globals, &screen),
        Command::Images { command } => commands::images::run(command, globals, &screen),
        Command::Kernel { command } => commands::kernel::run(command, globals, &screen),
        Command::Login(args) => commands::login::run(&args, globals, &screen),
        Command::Logout(args) => commands::logout::run(&args, globals, &screen),
        Command::Whoami(args) => commands::whoami::run(&args, globals, &screen),
        Command::Version => commands::version::run(&screen),
    }
    .map_or_else(|error| (EXIT_FAILURE, Some(error)), |code| (code, None));
    if let Some(error) = outcome {
        screen.error(&error.report());
    }
    ExitCode::from(code)
}

/// Reads a command line.
fn parse<T: Into<std::ffi::OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Command::Run(args) = &mut cli.command {
        args.settle()?;
    }
    Ok(cli)
}

/// A usage error of `run`, in the form all usage errors have.
pub(crate) fn run_error(kind: ErrorKind, message: impl std::fmt::Display) -> clap::Error {
    let mut command = Cli::command();
    command.build();
    match command.find_subcommand_mut("run") {
        Some(run) => run.error(kind, message),
        None => command.error(kind, message),
    }
}

fn usage_error(error: &clap::Error) -> ExitCode {
    if let Some(guidance) = refusals::command(error, &Cli::command()) {
        output::to_stderr(&format!("error: {guidance}\n"));
        return ExitCode::from(EXIT_USAGE);
    }
    // Help and version are no errors; a closed pipe under them is none either.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn run_args(words: &[&str]) -> Result<commands::run::RunArgs, clap::Error> {
        let cli = parse(["microagent", "run"].iter().chain(words))?;
        match cli.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_on_either_side() {
        for words in [
            ["microagent", "--json", "--quiet", "version"],
            ["microagent", "version", "--json", "-q"],
            ["microagent", "--json", "version", "--quiet"],
        ] {
            let cli = parse(words).unwrap();
            assert!(
                cli.globals.form() == Form::Json && cli.globals.quiet,
                "{words:?}"
            );
        }
    }

    #[test]
    fn nothing_after_the_image_is_ours() {
        let args = run_args(&[
            "--memory",
            "1G",
            "debian:12",
            "ls",
            "--json",
            "-it",
            "--help",
            "--",
            "-v",
        ])
        .unwrap();
        assert_eq!(args.image(), "debian:12");
        assert_eq!(
            args.command(),
            ["ls", "--json", "-it", "--help", "--", "-v"]
        );
    }

    #[test]
    fn two_hyphens_may_stand_before_the_command() {
        let args = run_args(&["debian:12", "--", "sh", "-c", "x -- y"]).unwrap();
        assert_eq!(args.command(), ["sh", "-c", "x -- y"]);
        let args = run_args(&["debian:12", "--", "-x", "--", "y"]).unwrap();
        assert_eq!(args.command(), ["-x", "--", "y"]);
        let args = run_args(&["--", "debian:12", "ls", "-l"]).unwrap();
        assert_eq!(
            (args.image(), args.command()),
            ("debian:12", &["ls".to_owned(), "-l".to_owned()][..])
        );
    }

    #[test]
    fn the_image_may_be_given_by_name() {
        let args = run_args(&["--image", "debian:12", "--exec", "id; ls"]).unwrap();
        assert_eq!((args.image(), args.command().len()), ("debian:12", 0));
        let args = run_args(&["--image", "debian:12", "Ls", "-l"]).unwrap();
        assert_eq!(args.command(), ["Ls", "-l"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (words, named) in [
            (&["--memory", "lots", "busybox"][..], "lots"),
            (&["--cpus", "0", "busybox"], "0"),
            (&["-e", "=x", "busybox"], "=x"),
            (&["--name", "Bad_Name", "busybox"], "Bad_Name"),
            (&["UPPER/Case:tag"], "UPPER/Case"),
            (&[], "IMAGE"),
            (&["--memroy", "1G", "busybox"], "--memory"),
            (&["--timeout", "soon", "busybox"], "soon"),
            (&["--profile", "huge", "busybox"], "huge"),
            (&["--keep", "--rm", "busybox"], "--rm"),
            (&["--exec", "x", "busybox", "y"], "--exec"),
        ] {
            let error = run_args(words).unwrap_err();
            assert!(error.use_stderr(), "{words:?}");
            assert!(error.to_string().contains(named), "{words:?}: {error}");
        }
    }

    #[test]
    fn what_is_no_vm_boundary_is_refused_with_guidance() {
        for (words, hint) in [
            (&["--privileged"][..], "root in its own kernel"),
            (&["--cap-add", "NET_ADMIN"], "own kernel"),
            (&["--cap-drop=ALL"], "own kernel"),
            (&["--device", "/dev/fuse"], "device"),
            (&["--pid", "host"], "own kernel"),
            (&["--ipc=host"], "own kernel"),
            (&["--userns", "host"], "own kernel"),
            (&["--uts", "host"], "own kernel"),
            (&["--security-opt", "seccomp=unconfined"], "own kernel"),
            (&["--net", "host"], "--network user"),
            (&["--network", "bridge"], "--network user"),
            (&["--network=none"], "--network isolated"),
            (&["--network", "container:x"], "--network user"),
            (&["-v", "/tmp:/data"], "cp"),
            (&["--volume=/tmp:/data:ro"], "cp"),
            (&["--mount", "type=bind,src=/tmp,dst=/data"], "cp"),
            (&["--gpus", "all"], "device"),
            (&["-d"], "--keep"),
            (&["-p", "80:80"], "port"),
        ] {
            let words: Vec<_> = words.iter().copied().chain(["busybox", "true"]).collect();
            let error = run_args(&words).unwrap_err();
            assert!(error.use_stderr(), "{words:?}");
            assert!(error.to_string().contains(hint), "{words:?}: {error}");
        }
    }

    #[test]
    fn commands_of_container_engines_are_answered() {
        for (words, hint) in [
            (["microagent", "compose", "up"], "microagent run"),
            (["microagent", "pod", "up"], "microagent run"),
            (["microagent", "build", "."], "microagent images"),
            (["microagent", "pull", "debian"], "microagent images pull"),
        ] {
            let error = parse(words).unwrap_err();
            let guidance = refusals::command(&error, &Cli::command()).unwrap();
            assert!(
                guidance.contains(hint) && guidance.contains(words[1]),
                "{guidance}"
            );
        }
        let error = parse(["microagent", "rnu", "x"]).unwrap_err();
        let guidance = refusals::command(&error, &Cli::command()).unwrap();
        assert!(guidance.contains("microagent run"), "{guidance}");
        let error = parse(["microagent", "doctr"]).unwrap_err();
        assert!(refusals::command(&error, &Cli::command()).is_none());
        assert!(error.to_string().contains("doctor"), "{error}");
    }
}
