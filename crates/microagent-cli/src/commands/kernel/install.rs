//! `microagent kernel install`.

use std::path::{Path, PathBuf};

use clap::Args;
use microagent::{Error, KernelSource, Microagent};

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Where it comes from: `distribution` (its kernel package, downloaded but not installed on
    /// this host), `host` (the kernel this host runs), or a kernel file
    #[arg(long, value_name = "SOURCE", default_value = "distribution")]
    from: PathBuf,
    /// The modules that belong to a kernel file, as /lib/modules/RELEASE; without it the kernel
    /// must have every driver built in
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// The SHA-256 that a kernel file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// The distribution's package to take instead of its usual one
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
    /// Boot this one from now on when none is named
    #[arg(long)]
    default: bool,
}

pub(crate) fn run(args: InstallArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let make_default = args.default;
    let source = source(args)?;
    let progress = Progress::new(screen);
    let kernels = microagent.kernels();
    let installed = kernels.install(&source, &mut |step| progress.kernel(&step));
    progress.clear();
    let record = installed?;
    if make_default {
        kernels.set_default(&record.id)?;
    }
    screen.result(&record, super::line);
    Ok(0)
}

fn source(args: InstallArgs) -> Result<KernelSource, Error> {
    let InstallArgs {
        from,
        modules,
        sha256,
        package,
        ..
    } = args;
    let of_a_file = |given: bool, option| {
        if given {
            let reason = "it belongs to --from FILE".to_owned();
            return Err(Error::Invalid { option, reason });
        }
        Ok(())
    };
    let named = |name: &str| from == Path::new(name);
    if named("distribution") || named("host") {
        of_a_file(modules.is_some(), "--modules")?;
        of_a_file(sha256.is_some(), "--sha256")?;
    }
    if package.is_some() && !named("distribution") {
        let reason = "it belongs to --from distribution".to_owned();
        return Err(Error::Invalid {
            option: "--package",
            reason,
        });
    }
    if named("distribution") {
        return Ok(KernelSource::DistributionPackage { package });
    }
    if named("host") {
        return Ok(KernelSource::Host);
    }
    let modules = modules
        .map(|path| surroundings::absolute(&path))
        .transpose()?;
    Ok(KernelSource::File {
        kernel: surroundings::absolute(&from)?,
        modules,
        sha256,
    })
}
