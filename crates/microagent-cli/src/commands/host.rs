//! `microagent host`.

use clap::Args;
use microagent::{BackendChoice, DoctorOptions, Error, HostReport, Microagent};

use super::{contract, doctor::indented};
use crate::{
    cli::Globals,
    output::{Screen, table},
    progress::Progress,
    surroundings,
};

/// What this host has to run machines with, found out as `doctor` does, without a verdict on the
/// whole.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Look at one backend: auto, firecracker, qemu, qemu-kvm, qemu-tcg or apple-vf
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendChoice,
    /// Find everything out again
    #[arg(long)]
    fresh: bool,
}

pub(crate) fn run(args: &HostArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let progress = Progress::new(screen);
    progress.say("Booting a probe");
    let options = DoctorOptions::new().backend(args.backend).fresh(args.fresh);
    let report = microagent.host(&options);
    progress.clear();
    screen.result(&report?, text);
    Ok(0)
}

fn text(report: &HostReport) -> String {
    let chosen = report
        .chosen
        .map_or_else(|| "none".to_owned(), |backend| backend.to_string());
    let mut text = format!(
        "{} on {}; backend {chosen}\n\n",
        report.os, report.architecture
    );
    let names = report.checks.iter().map(|check| check.name.len());
    let width = names.max().unwrap_or(0);
    for check in &report.checks {
        let detail = indented(&check.detail, width + 2);
        text.push_str(&format!("{:width$}  {detail}\n", check.name));
    }
    let backends: Vec<_> = report
        .backends
        .iter()
        .map(|backend| {
            let usable = if backend.usable { "yes" } else { "no" };
            vec![
                backend.name.to_string(),
                usable.to_owned(),
                contract::abilities(&backend.capabilities),
            ]
        })
        .collect();
    text + "\n" + &table(&["BACKEND", "HERE", "ITS MACHINES HAVE"], &backends)
}
