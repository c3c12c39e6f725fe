//! `microagent kernel verify`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{CheckedKernel, CheckedKernels, Error, Microagent};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    completion,
    output::Screen,
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The kernels' ids, as `kernel list` shows them
    #[arg(required_unless_present = "all", add = ArgValueCompleter::new(completion::kernels))]
    kernels: Vec<String>,
    /// Every installed kernel
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
}

pub(crate) fn run(args: &VerifyArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let checked = microagent.kernels().verify(&args.kernels)?;
    screen.result(&checked, text);
    Ok(if checked.ok { 0 } else { EXIT_FAILURE })
}

fn text(checked: &CheckedKernels) -> String {
    let mut text: String = checked.kernels.iter().map(one).collect();
    for fault in &checked.damaged {
        text.push_str(&format!("damaged: {fault}\n"));
    }
    text
}

fn one(kernel: &CheckedKernel) -> String {
    if !kernel.ok {
        let mut text = format!("{}  damaged\n", kernel.id);
        for it in &kernel.divergence {
            let found = it.found.as_deref().unwrap_or("gone");
            text.push_str(&format!(
                "  {} is {found}, and {} was installed\n",
                it.file, it.expected
            ));
        }
        return text;
    }
    let note = if kernel.vouched {
        ""
    } else {
        " (as it was installed; nobody vouched for that)"
    };
    format!("{}  ok{note}\n", kernel.id)
}
