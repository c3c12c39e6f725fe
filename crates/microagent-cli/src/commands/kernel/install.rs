//! `microagent kernel install`.

use std::path::{Path, PathBuf};

use clap::Args;
use microagent::{DEFAULT_KERNEL_CHANNEL, Error, KernelRepository, KernelSource, Microagent};

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Where it comes from: `distribution` (its kernel package, downloaded but not installed on
    /// this host), `host` (the kernel this host runs), `tuf:URL` (a signed repository; `tuf` for the
    /// one this build was given), or a kernel file
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
    /// The channel of a signed repository [default: stable]
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// A file with the root metadata of a signed repository, instead of the one this build was given
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
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
        channel,
        trust_root,
        ..
    } = args;
    let repository = from.to_str().and_then(|from| {
        let rest = from.strip_prefix("tuf")?;
        rest.is_empty()
            .then_some(None)
            .or_else(|| rest.strip_prefix(':').map(Some))
    });
    let of_a_file = |given: bool, option| {
        if given {
            let reason = "it belongs to --from FILE".to_owned();
            return Err(Error::Invalid { option, reason });
        }
        Ok(())
    };
    let named = |name: &str| from == Path::new(name);
    let of_a_repository = |given: bool, option| {
        if given && repository.is_none() {
            let reason = "it belongs to --from tuf:URL".to_owned();
            return Err(Error::Invalid { option, reason });
        }
        Ok(())
    };
    of_a_repository(channel.is_some(), "--channel")?;
    of_a_repository(trust_root.is_some(), "--trust-root")?;
    if named("distribution") || named("host") || repository.is_some() {
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
    if let Some(url) = repository {
        let channel = channel.unwrap_or_else(|| DEFAULT_KERNEL_CHANNEL.to_owned());
        let mut source = KernelRepository::new(channel);
        if let Some(url) = url {
            source = source.url(url);
        }
        if let Some(root) = trust_root {
            source = source.root(surroundings::absolute(&root)?);
        }
        return Ok(KernelSource::Repository(source));
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
