//! The command line: what can be said, and who answers.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    commands, completion, help,
    observe::Observer,
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
  microagent create agent-1 debian:12
  microagent start agent-1
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

/// What `--output` is called among the options. A command with an option of this name has an
/// `--output` of its own.
pub(crate) const FORM: &str = "form";

/// Options of every command, on either side of its name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Print one JSON document; the same as --output json
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The form of results and errors: text or json [default: text, or the value of
    /// MICROAGENT_OUTPUT]
    #[arg(
        id = FORM,
        long = "output",
        global = true,
        value_name = "FORM",
        hide_possible_values = true,
        conflicts_with = "json"
    )]
    pub(crate) output: Option<Form>,
    /// No progress and no notices; of lists, only the names
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// No colours; also when NO_COLOR is set
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Tell on standard error what is being done; MICROAGENT_LOG says of what and how much
    #[arg(long, global = true)]
    pub(crate) verbose: bool,
    /// Write where the time went here, to be opened in a trace viewer (Chrome's trace events)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) trace_out: Option<PathBuf>,
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
    /// Make a workspace that stays
    Create(Box<commands::create::CreateArgs>),
    /// Boot workspaces
    Start(commands::start::StartArgs),
    /// Shut workspaces down cleanly
    Halt(commands::halt::HaltArgs),
    /// Shut workspaces down, by force if need be
    Stop(commands::stop::StopArgs),
    /// End workspaces at once
    Kill(commands::kill::KillArgs),
    /// Freeze workspaces in place
    Pause(commands::pause::PauseArgs),
    /// Thaw paused workspaces
    Resume(commands::resume::ResumeArgs),
    /// Freeze workspaces, cut every connection, keep the evidence
    Quarantine(commands::quarantine::QuarantineArgs),
    /// Remove workspaces with everything they wrote
    #[command(visible_alias = "rm")]
    Delete(commands::delete::DeleteArgs),
    /// Change what a workspace is, where that takes no new one
    Apply(commands::apply::ApplyArgs),
    /// Make a second workspace of what one has written
    Clone(commands::clone::CloneArgs),
    /// Make an image of what a workspace has written
    Commit(commands::commit::CommitArgs),
    /// Say everything there is to know of workspaces
    Status(commands::status::StatusArgs),
    /// The same as status, in JSON
    Inspect(commands::status::StatusArgs),
    /// List every workspace
    #[command(visible_alias = "ls")]
    List(commands::list::ListArgs),
    /// List the workspaces that are live
    Ps(commands::list::ListArgs),
    /// Show what a workspace's guest wrote to its console
    Logs(commands::logs::LogsArgs),
    /// Show what happened to a workspace
    ///
    /// A history past 1 MiB loses its middle: its first event, the beginning of the boot that runs and
    /// the newest 512 KiB stay.
    Events(commands::events::EventsArgs),
    /// Show how a workspace's workload ended
    Result(commands::result::ResultArgs),
    /// Wait until workspaces have ended
    Wait(commands::wait::WaitArgs),
    /// Show what live workspaces cost
    Stats(commands::stats::StatsArgs),
    /// Print what workspaces cost, as Prometheus reads it
    Metrics(commands::metrics::MetricsArgs),
    /// Measure boots, commands and memory on this host
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Perf {
        #[command(subcommand)]
        command: commands::perf::PerfCommand,
    },
    /// Show how workspaces are connected
    Network(commands::network::NetworkArgs),
    /// List the sizes of machines that have a name
    Profiles,
    /// Remove what killed programs left behind
    Gc(commands::gc::GcArgs),
    /// Take away what nobody needs: what gc and images prune do
    Prune(commands::prune::PruneArgs),
    /// Show what images, kernels, workspaces and caches take
    Df,
    /// Run a command in a running workspace
    Exec(Box<commands::exec::ExecArgs>),
    /// Open a shell, send it a line, or watch the serial console
    Connect(commands::connect::ConnectArgs),
    /// Say what this host can run, and what would help
    Doctor(commands::doctor::DoctorArgs),
    /// Pull, import, look after, export, push and remove images
    #[command(
        alias = "image",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    Images {
        #[command(subcommand)]
        command: commands::images::ImagesCommand,
    },
    /// Write root file systems as disks
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Rootfs {
        #[command(subcommand)]
        command: commands::rootfs::RootfsCommand,
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
    /// List and take out the artifacts of a workspace
    #[command(
        alias = "artifact",
        subcommand_required = true,
        arg_required_else_help = true
    )]
    Artifacts {
        #[command(subcommand)]
        command: commands::artifacts::ArtifactsCommand,
    },
    /// Copy files between this host and a workspace
    #[command(visible_alias = "copy")]
    Cp(commands::cp::CpArgs),
    /// Keep a workspace up: start it, watch it, start it again
    Supervise(commands::supervise::SuperviseArgs),
    /// Check a microagent.yaml, and print its JSON Schema
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Spec {
        #[command(subcommand)]
        command: commands::spec::SpecCommand,
    },
    /// Say what fits the words that are being typed, for completion scripts
    #[command(name = "__complete", hide = true)]
    Complete(completion::CompleteArgs),
    /// Print a shell's completion script
    Completions(commands::completions::CompletionsArgs),
    /// Write the manual pages
    Man(commands::man::ManArgs),
    /// Say what this host has to run machines with
    Host(commands::host::HostArgs),
    /// Print what programs may rely on
    Contract,
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
    let failure = ExitCode::from(cli.command.failure());
    let ended = Observer::begin(&cli.globals).and_then(|observer| {
        let code = answer(cli.command, &cli.globals, &screen);
        observer.end()?;
        Ok(code)
    });
    ended.unwrap_or_else(|error| {
        screen.error(&error.report());
        failure
    })
}

/// Runs a command, and gives its exit code.
fn answer(command: Command, globals: &Globals, screen: &Screen) -> ExitCode {
    let (code, outcome) = match command {
        Command::Run(args) => return commands::run::run(*args, globals, screen),
        Command::Exec(args) => return commands::exec::run(&args, globals, screen),
        Command::Connect(args) => return commands::connect::run(&args, globals, screen),
        Command::Create(args) => commands::create::run(*args, globals, screen),
        Command::Start(args) => commands::start::run(&args, globals, screen),
        Command::Halt(args) => commands::halt::run(&args, globals, screen),
        Command::Stop(args) => commands::stop::run(&args, globals, screen),
        Command::Kill(args) => commands::kill::run(&args, globals, screen),
        Command::Pause(args) => commands::pause::run(&args, globals, screen),
        Command::Resume(args) => commands::resume::run(&args, globals, screen),
        Command::Quarantine(args) => commands::quarantine::run(&args, globals, screen),
        Command::Delete(args) => commands::delete::run(&args, globals, screen),
        Command::Apply(args) => commands::apply::run(&args, globals, screen),
        Command::Clone(args) => commands::clone::run(&args, globals, screen),
        Command::Commit(args) => commands::commit::run(args, globals, screen),
        Command::Status(args) => commands::status::run(&args, globals, screen),
        Command::Inspect(args) => commands::status::inspect(&args, globals, screen),
        Command::List(args) => commands::list::run(&args, globals, screen),
        Command::Ps(args) => commands::list::ps(&args, globals, screen),
        Command::Logs(args) => commands::logs::run(&args, globals, screen),
        Command::Events(args) => commands::events::run(&args, globals, screen),
        Command::Result(args) => commands::result::run(&args, globals, screen),
        Command::Wait(args) => commands::wait::run(&args, globals, screen),
        Command::Stats(args) => commands::stats::run(&args, globals, screen),
        Command::Metrics(args) => commands::metrics::run(&args, globals, screen),
        Command::Perf { command } => commands::perf::run(&command, globals, screen),
        Command::Network(args) => commands::network::run(&args, globals, screen),
        Command::Profiles => commands::profiles::run(screen),
        Command::Gc(args) => commands::gc::run(&args, globals, screen),
        Command::Prune(args) => commands::prune::run(&args, globals, screen),
        Command::Df => commands::df::run(globals, screen),
        Command::Host(args) => commands::host::run(&args, globals, screen),
        Command::Contract => commands::contract::run(screen),
        Command::Doctor(args) => commands::doctor::run(&args, globals, screen),
        Command::Images { command } => commands::images::run(command, globals, screen),
        Command::Rootfs { command } => commands::rootfs::run(command, globals, screen),
        Command::Kernel { command } => commands::kernel::run(command, globals, screen),
        Command::Artifacts { command } => commands::artifacts::run(&command, globals, screen),
        Command::Cp(args) => commands::cp::run(&args, globals, screen),
        Command::Supervise(args) => commands::supervise::run(&args, globals, screen),
        Command::Spec { command } => commands::spec::run(&command, screen),
        Command::Complete(args) => Ok(completion::run(args, globals)),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args, screen),
        Command::Login(args) => commands::login::run(&args, globals, screen),
        Command::Logout(args) => commands::logout::run(&args, globals, screen),
        Command::Whoami(args) => commands::whoami::run(&args, globals, screen),
        Command::Version => commands::version::run(screen),
    }
    .map_or_else(|error| (EXIT_FAILURE, Some(error)), |code| (code, None));
    if let Some(error) = outcome {
        screen.error(&error.report());
    }
    ExitCode::from(code)
}

/// Reads a command line.
pub(crate) fn parse<T: Into<std::ffi::OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Cli, clap::Error> {
    let matches = help::program().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
        .and_then(|mut cli| {
            cli.command.settle(&mut cli.globals)?;
            Ok(cli)
        })
        .map_err(|error| in_form_of(error, matches.subcommand_name()))
}

impl Command {
    /// The exit code that says that microagent itself failed.
    fn failure(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Connect(_) => microagent::EXIT_FAILED,
            _ => EXIT_FAILURE,
        }
    }

    /// Checks what one option alone does not show.
    fn settle(&mut self, globals: &mut Globals) -> Result<(), clap::Error> {
        match self {
            Self::Run(args) => args.settle(globals),
            Self::Create(args) => args.settle(globals),
            Self::Logs(args) => args.settle(globals),
            Self::Events(args) => args.settle(globals),
            Self::Stats(args) => args.settle(globals),
            _ => Ok(()),
        }
    }
}

/// A usage error that is found after the parsing.
pub(crate) fn usage(kind: ErrorKind, message: impl std::fmt::Display) -> clap::Error {
    clap::Error::raw(kind, message)
}

/// A usage error of a command, in the form all usage errors have.
fn in_form_of(error: clap::Error, subcommand: Option<&str>) -> clap::Error {
    let mut command = help::program();
    command.build();
    match subcommand.and_then(|name| command.find_subcommand_mut(name)) {
        Some(subcommand) => error.format(subcommand),
        None => error.format(&mut command),
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
mod tests;
