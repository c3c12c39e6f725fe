//! `microagent status` and `microagent inspect`.

use clap::Args;
use microagent::{Error, Microagent, Verify, WorkspaceStatus};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    each::{Names, each},
    output::{self, Colour, Screen, size},
    surroundings,
    template::Template,
};

/// Says everything there is to know of workspaces: state and last event, what they are made of and
/// whether that is still what was recorded, readiness, network, result and disk use.
///
/// `inspect` is the same in JSON.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent status web
  microagent status web --format '{{state}}'
  microagent inspect web db                # the same in JSON")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    names: Names,
    /// Hash everything it boots from again, also what has not changed since
    #[arg(long)]
    verify: bool,
    /// Print this text with each {{field}} filled in, named as in JSON: '{{state}} {{image.digest}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
}

pub(crate) fn run(args: &StatusArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let how = match args.verify {
        true => Verify::Everything,
        false => Verify::Changed,
    };
    let status = |name: &str| microagent.workspaces().open(name)?.status(how);
    let names = &args.names.names;
    let Some(template) = &args.format else {
        return Ok(each(names, screen, status, |status| text(status, screen)));
    };
    let mut code = 0;
    for name in names {
        match status(name).and_then(|status| template.fill(&status)) {
            Ok(line) => output::to_stdout(&output::clean(&line)),
            Err(error) => {
                screen.error(&error.report());
                code = EXIT_FAILURE;
            }
        }
    }
    Ok(code)
}

/// The same in JSON, whatever form was asked for.
pub(crate) fn inspect(args: &StatusArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    run(args, globals, &screen.for_programs())
}

fn text(status: &WorkspaceStatus, screen: &Screen) -> String {
    let mut rows = vec![
        ("name", status.workspace.to_string()),
        ("state", super::list::painted(status.state, screen)),
    ];
    if let Some(event) = &status.event {
        rows.push((
            "last event",
            output::clean(super::events::line(event).trim_end()),
        ));
    }
    rows.extend([
        ("created", status.created_at.to_string()),
        (
            "image",
            format!(
                "{} ({})",
                status.image.reference,
                output::short(&status.image.digest)
            ),
        ),
        (
            "kernel",
            format!("{} ({})", status.kernel.id, status.kernel.release),
        ),
        (
            "backend",
            status.backend.map_or_else(
                || format!("{}, when it boots", status.backend_choice),
                |backend| backend.to_string(),
            ),
        ),
        ("machine", output::machine(&status.resources)),
        (
            "command",
            match &status.command[..] {
                [] => "none: it idles".to_owned(),
                words => output::clean(&words.join(" ")),
            },
        ),
    ]);
    if status.setup_pending {
        rows.push(("setup", "to be run at the next start".to_owned()));
    }
    rows.push(("restart", status.restart.to_string()));
    let runtime = status.network.runtime.as_ref();
    rows.push((
        "network",
        match runtime.and_then(|runtime| runtime.provider) {
            Some(provider) => format!("{} ({provider})", status.network.mode),
            None => status.network.mode.to_string(),
        },
    ));
    rows.extend(
        status
            .network
            .ports
            .iter()
            .map(|port| ("port", port.to_string())),
    );
    for (signal, readiness) in status.readiness.iter().filter(|_| status.state.is_live()) {
        let name = serde_json::to_value(signal).unwrap_or_default();
        let (mark, colour) = match readiness.ready {
            true => ("yes", Colour::Green),
            false => ("no", Colour::Yellow),
        };
        let why = readiness.error.as_ref().or(readiness.detail.as_ref());
        let why = why.map_or_else(String::new, |why| format!(" ({})", output::clean(why)));
        rows.push((
            "ready",
            format!(
                "{} {}{why}",
                name.as_str().unwrap_or_default(),
                screen.paint(colour, mark)
            ),
        ));
    }
    if let Some(result) = &status.result {
        let code = result
            .exit_code
            .map_or_else(|| "unseen".to_owned(), |code| code.to_string());
        rows.push(("result", format!("exit code {code}, {}", result.exited_at)));
    }
    rows.extend(status.artifacts.egress.iter().map(|artifact| {
        (
            "artifact",
            format!("{} at {}", artifact.name, artifact.path),
        )
    }));
    if let Some(confinement) = &status.confinement {
        rows.push(("confined by", confinement.to_string()));
        rows.extend(
            confinement
                .missing
                .iter()
                .map(|missing| ("not by", format!("{}: {}", missing.layer, missing.reason))),
        );
    }
    rows.push((
        "disk use",
        format!(
            "{} of {}",
            size(status.disk_use.total_bytes),
            status.resources.size_mib
        ),
    ));
    if status.verification.ok {
        rows.push(("verified", screen.paint(Colour::Green, "as recorded")));
    }
    rows.extend(status.verification.divergence.iter().map(|divergence| {
        (
            "diverged",
            screen.paint(Colour::Red, &output::clean(&divergence.to_string())),
        )
    }));
    output::facts(&rows)
}
