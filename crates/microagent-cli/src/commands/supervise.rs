//! `microagent supervise`.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    Error, Microagent, SuperviseEnd, SuperviseEvent, SuperviseOptions, SuperviseReport,
    SuperviseUnit, UnitReport, WorkspaceName,
};

use crate::{cli::Globals, completion, output::Screen, signals, surroundings};

const EXAMPLES: &str = "\
Examples:
  microagent create web nginx:1 --image-command --restart always && microagent supervise web
  microagent supervise web --max-restarts 5
  microagent supervise web --install        # systemd keeps it up from now on, and after a reboot

The workspace's own policy says when it is started again: never (it is not started at all),
on-failure (when it failed), always (whenever it ended). Nobody starts again what `microagent halt`
ended. The pause before a restart is 1 second, then twice the last one up to 60 seconds; a machine
that was up for 60 seconds makes it 1 second again.

With a health check in its spec, a machine whose probes fail as often as that says is killed, and
counts as failed.

On SIGTERM, SIGINT and SIGHUP the workspace is halted, and then this command ends. When it is
killed the workspace runs on; `supervise` watches it again.";

/// Starts a workspace, watches it, and starts it again when it ends.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SuperviseArgs {
    /// The workspace
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    name: WorkspaceName,
    /// Start it again at most so often [default: no limit; 0 is none, too]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_restarts: u32,
    /// Seconds its workload may take to end on SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u32,
    /// Have systemd do this for the user, now and after each boot: write a unit and start it
    #[arg(long, conflicts_with = "uninstall", help_heading = "systemd")]
    install: bool,
    /// Stop the unit and remove it
    #[arg(long, help_heading = "systemd")]
    uninstall: bool,
}

pub(crate) fn run(args: &SuperviseArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    if args.install {
        return install(args, globals, screen);
    }
    if args.uninstall {
        let directory = surroundings::systemd_dir()?;
        let systemctl = surroundings::systemctl();
        let report = SuperviseUnit::uninstall(&args.name, &directory, &systemctl)?;
        screen.result(&report, removed);
        return Ok(0);
    }
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut workspace = microagent.workspaces().open(args.name.as_str())?;
    let mut options = SuperviseOptions::new().grace(Duration::from_secs(u64::from(args.grace)));
    if args.max_restarts > 0 {
        options = options.max_restarts(args.max_restarts);
    }
    signals::on_end(options.stop())?;
    let report = workspace.supervise(&options, |event| {
        tracing::debug!(?event, "supervise");
        if let Some(line) = line(&event) {
            screen.announce(&format!("{}: {line}", args.name));
        }
    })?;
    screen.result(&report, told);
    Ok(0)
}

fn install(args: &SuperviseArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let config = surroundings::config(globals, &[])?;
    // What does not exist cannot be kept up.
    Microagent::new(config.clone())
        .workspaces()
        .open(args.name.as_str())?;
    let mut arguments = vec![
        "--state-dir".to_owned(),
        config.state_dir.to_string_lossy().into_owned(),
        "supervise".to_owned(),
        args.name.to_string(),
        "--grace".to_owned(),
        args.grace.to_string(),
    ];
    if args.max_restarts > 0 {
        arguments.extend(["--max-restarts".to_owned(), args.max_restarts.to_string()]);
    }
    let unit = SuperviseUnit {
        workspace: args.name.clone(),
        program: surroundings::this_program()?,
        arguments,
        environment: surroundings::unit_environment(),
    };
    let report = unit.install(&surroundings::systemd_dir()?, &surroundings::systemctl())?;
    screen.result(&report, installed);
    Ok(0)
}

fn installed(report: &UnitReport) -> String {
    let mut text = format!("Wrote {}.\n", report.path.display());
    if report.registered {
        text.push_str(&format!("{} is started and enabled.\n", report.unit));
    } else {
        text.push_str(&by_hand(report));
    }
    text
}

fn removed(report: &UnitReport) -> String {
    if !report.changed {
        return format!("There was no {}.\n", report.path.display());
    }
    let mut text = format!("Removed {}.\n", report.path.display());
    if !report.registered {
        text.push_str(&by_hand(report));
    }
    text
}

/// What is left to do where systemd was not told.
fn by_hand(report: &UnitReport) -> String {
    let reason = report.reason.as_deref().unwrap_or("unknown");
    let commands: String = report
        .commands
        .iter()
        .map(|command| format!("  {command}\n"))
        .collect();
    format!("systemd was not told ({reason}). Run:\n{commands}")
}

/// An event for people, if it is worth a line.
fn line(event: &SuperviseEvent) -> Option<String> {
    Some(match event {
        SuperviseEvent::Found { state } => format!("it is {state} already; watching it"),
        SuperviseEvent::Starting { restart: 0 } => "starting".to_owned(),
        SuperviseEvent::Starting { restart } => format!("starting again ({restart})"),
        SuperviseEvent::Started(started) => format!("ready after {} ms", started.ms),
        SuperviseEvent::StartFailed { error } => format!("not started: {}", error.message),
        SuperviseEvent::Unwell { failures, reason } => {
            format!("not well ({failures}): {reason}")
        }
        SuperviseEvent::Well => "well again".to_owned(),
        SuperviseEvent::Ended { state, cause } => match cause {
            Some(cause) => format!("{state}: {cause}"),
            None => format!("{state}"),
        },
        SuperviseEvent::Waiting { ms } => {
            format!("waiting {} s", ms / 1000)
        }
        SuperviseEvent::Halting => "halting".to_owned(),
        _ => return None,
    })
}

fn told(report: &SuperviseReport) -> String {
    let why = match report.end {
        SuperviseEnd::Policy => format!("its restart policy is {}", report.restart),
        SuperviseEnd::RestartLimit => {
            format!("it was started again {} times", report.restarts)
        }
        SuperviseEnd::Halted => "it was halted".to_owned(),
        SuperviseEnd::Quarantined => "it is quarantined".to_owned(),
        SuperviseEnd::Removed => "it was removed".to_owned(),
        SuperviseEnd::Requested => "it was asked to end".to_owned(),
    };
    let state = report
        .state
        .map(|state| format!(" (it is {state})"))
        .unwrap_or_default();
    format!(
        "{} is not supervised any more: {why}{state}.\n",
        report.workspace
    )
}
