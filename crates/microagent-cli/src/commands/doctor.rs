//! `microagent doctor`.

use clap::Args;
use microagent::{BackendChoice, DoctorOptions, DoctorReport, Error, Microagent, Verdict};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    output::{Colour, Screen, clean},
    progress::Progress,
    surroundings,
};

/// Each check does what a boot does; a small probe machine is booted with a deadline. What was
/// proved stays valid until this host is booted again.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when something can run (ready or degraded), 1 when nothing can.\n\n\
        MICROAGENT_CONFINEMENT says how much a monitor is held back, here and for each machine that is \
        started:\n  auto      all that this host can give (the default)\n  required  all of it, or no \
        machine\n  off       nothing but what the monitor does itself, for debugging one\n\n\
        MICROAGENT_BOOT_TIMEOUT says how long a guest may take: the probe machines here (usually 5 s with \
        KVM, 30 s emulated) and each boot (usually a minute), as in 90s or 2m"
)]
pub(crate) struct DoctorArgs {
    /// Look at one backend: auto, firecracker, qemu, qemu-kvm, qemu-tcg or apple-vf
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendChoice,
    /// Prove everything again
    #[arg(long)]
    fresh: bool,
}

pub(crate) fn run(args: &DoctorArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let progress = Progress::new(screen);
    progress.say("Booting a probe");
    let options = DoctorOptions::new().backend(args.backend).fresh(args.fresh);
    let report = microagent.doctor(&options);
    progress.clear();
    let report = report?;
    screen.coloured(&report, |report| text(report, screen));
    Ok(if report.ok { 0 } else { EXIT_FAILURE })
}

fn text(report: &DoctorReport, screen: &Screen) -> String {
    let width = report
        .checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in &report.checks {
        let verdict = verdict(check.verdict, screen);
        text.push_str(&format!(
            "{verdict}  {:width$}  {}\n",
            check.name,
            indented(&clean(&check.detail), 10 + width + 2)
        ));
        if let Some(remedy) = &check.remedy
            && check.verdict != Verdict::Ready
            && !check.detail.contains(remedy.as_str())
        {
            text.push_str(&format!("{:8}  {:width$}  -> {}\n", "", "", clean(remedy)));
        }
    }
    // The rest of it stands with the checks above.
    let reason = clean(report.reason.lines().next().unwrap_or_default());
    let conclusion = match report.chosen {
        Some(backend) => format!("{backend} runs the machines: {reason}"),
        None => format!("nothing can run here: {reason}"),
    };
    let verdict = verdict(report.verdict, screen);
    text + &format!("\n{}  {conclusion}\n", verdict.trim_end())
}

/// Text of several lines, each but the first moved in by `columns`.
pub(super) fn indented(text: &str, columns: usize) -> String {
    text.replace('\n', &format!("\n{}", " ".repeat(columns)))
}

fn verdict(verdict: Verdict, screen: &Screen) -> String {
    let (colour, word) = match verdict {
        Verdict::Ready => (Colour::Green, "ready   "),
        Verdict::Degraded => (Colour::Yellow, "degraded"),
        Verdict::Unusable => (Colour::Red, "unusable"),
    };
    screen.paint(colour, word)
}

#[cfg(test)]
mod tests {
    use microagent::{Backend, HostCheck};

    use super::*;

    #[test]
    fn each_check_has_a_line_and_its_remedy() {
        let check = |name: &str, verdict, remedy: Option<&str>| HostCheck {
            name: name.to_owned(),
            verdict,
            required: false,
            detail: format!("saw {name}"),
            remedy: remedy.map(str::to_owned),
            ms: 1,
        };
        let report = DoctorReport {
            ok: true,
            verdict: Verdict::Degraded,
            os: "linux".into(),
            architecture: "x86_64".into(),
            chosen: Some(Backend::QemuTcg),
            reason: "no hardware virtualisation".into(),
            checks: vec![
                check("qemu", Verdict::Ready, None),
                check("kvm", Verdict::Unusable, Some("Enable it.")),
                check("passt", Verdict::Degraded, Some("saw passt")),
            ],
        };
        let globals = Globals {
            no_color: true,
            ..Globals::default()
        };
        let text = text(&report, &Screen::new(&globals));
        assert_eq!(
            text,
            "ready     qemu   saw qemu\nunusable  kvm    saw kvm\n                 -> Enable it.\n\
             degraded  passt  saw passt\n\n\
             degraded  qemu-tcg runs the machines: no hardware virtualisation\n"
        );
    }
}
