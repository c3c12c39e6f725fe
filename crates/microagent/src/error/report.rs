//! What a failure is to programs and to whoever uses the command line: its kind, and what to do.

use std::io;

use microagent_image::ImageError;
use microagent_kernel::KernelError;
use microagent_protocol::{
    Mebibytes,
    supervisor::{ErrorKind, ErrorReport},
};

use super::Error;
use crate::workspaces::RefusedChange;

impl Error {
    /// The failure in the form that crosses process boundaries and is printed as JSON.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        let report = ErrorReport::new(self.kind(), self.to_string());
        let report = match self {
            Self::Supervisor(inner) => (**inner).clone(),
            Self::NoCommand { .. } => report.remedy("Write the command after the image."),
            Self::NameTaken { .. } => report.remedy("Choose another name, or delete it."),
            Self::NoWorkspace { .. } => report.remedy("`microagent list` shows those there are."),
            Self::NoResult { name } => {
                report.remedy(format!("`microagent wait {name}` waits for it."))
            }
            Self::NoArtifact { workspace, .. } => report.remedy(format!(
                "Artifacts are declared with --output when a workspace is made; `microagent cp \
                 {workspace}:/PATH .` takes any file."
            )),
            Self::State { remedy, .. } => report.remedy(remedy.clone()),
            Self::Busy { .. } => report.remedy("Try again when it is done."),
            Self::Damaged { .. } => report
                .remedy("Take out what matters with `microagent cp`, then `microagent delete` it."),
            Self::Diverged { .. } => report.remedy(
                "Restore the named file, or make the workspace anew and copy its files over.",
            ),
            Self::Unchangeable { refused, .. } => report.remedy(remedies(refused)),
            Self::BaseGone { image, digest, .. } => report.remedy(format!(
                "Pull or import it again by its digest, {digest}: {image} may stand for another image now."
            )),
            Self::NotEnding { .. } => report.remedy("`microagent kill` ends it at once."),
            Self::SupervisorMissing { .. } => {
                report.remedy("Install microagent, or name the supervisor program.")
            }
            Self::SupervisorFailed { log, .. } => ErrorReport {
                detail: log.clone(),
                ..report
            }
            .remedy("Try again; `microagent doctor` says what this host can run."),
            Self::NeverStarted {
                console, memory, ..
            } => ErrorReport {
                detail: console.clone(),
                ..report
            }
            .remedy(if *memory < BOOTS {
                format!(
                    "Give it more memory: many kernels do not boot in {} MiB. `microagent doctor` says what this host can run.",
                    memory.0
                )
            } else {
                "`microagent doctor` says what this host can run.".to_owned()
            }),
            Self::Spec(error) if error.faults().len() > 1 => ErrorReport {
                detail: Some(error.lines().join("\n")),
                ..report
            },
            Self::TimedOut { .. } => report.remedy("Give it more time with --timeout."),
            Self::NotReady { workspace, .. } => report.remedy(format!(
                "Try again; `microagent status {workspace}` says how it is."
            )),
            Self::NotMeasured { .. } => report.remedy(
                "Try again; it takes a scratch disk with room, and a host that does not do too much else.",
            ),
            Self::Image(error) => match image_remedy(error) {
                Some(remedy) => report.remedy(remedy),
                None => report,
            },
            Self::Kernel(error) => match kernel_remedy(error) {
                Some(remedy) => report.remedy(remedy),
                None => report,
            },
            Self::ForeignPlatform { host, .. } => {
                report.remedy(format!("Leave --platform out, or choose {host}."))
            }
            Self::NotLoggedIn { registry } => {
                report.remedy(format!("Log in with `microagent login {registry}`."))
            }
            _ => report,
        };
        ErrorReport {
            retryable: report.retryable || self.is_retryable(),
            ..report
        }
    }

    fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Cancelled { .. } | Self::TimedOut { .. } | Self::Busy { .. }
        )
    }

    /// What kind of failure it is, for programs.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. }
            | Self::NoCommand { .. }
            | Self::Settings { .. }
            | Self::Spec(_) => ErrorKind::Invalid,
            Self::NameTaken { .. }
            | Self::State { .. }
            | Self::Diverged { .. }
            | Self::Unchangeable { .. } => ErrorKind::Conflict,
            Self::NoWorkspace { .. }
            | Self::NoResult { .. }
            | Self::NoArtifact { .. }
            | Self::BaseGone { .. }
            | Self::NotLoggedIn { .. } => ErrorKind::NotFound,
            Self::Busy { .. } | Self::NotEnding { .. } => ErrorKind::Transient,
            Self::ForeignPlatform { .. } => ErrorKind::Unsupported,
            Self::Image(error) => image_kind(error),
            Self::Kernel(error) => kernel_kind(error),
            Self::SupervisorMissing { .. } => ErrorKind::NotFound,
            Self::Supervisor(report) => report.kind,
            Self::Copy(error) => error.kind(),
            Self::CopyLost { .. }
            | Self::NeverStarted { .. }
            | Self::NotReady { .. }
            | Self::NotMeasured { .. }
            | Self::TimedOut { .. }
            | Self::Cancelled { .. } => ErrorKind::Transient,
            Self::SupervisorFailed { .. } => ErrorKind::Internal,
            Self::SupervisorStart { .. }
            | Self::Credentials { .. }
            | Self::SetupFailed { .. }
            | Self::Untrusted { .. }
            | Self::Damaged { .. }
            | Self::Disk { .. }
            | Self::Io { .. }
            | Self::Scratch { .. }
            | Self::Bundle { .. }
            | Self::Random(_) => ErrorKind::Permanent,
        }
    }
}

fn image_kind(error: &ImageError) -> ErrorKind {
    match error {
        ImageError::BadReference { .. }
        | ImageError::BadRegistry { .. }
        | ImageError::BadDigest { .. }
        | ImageError::BadPlatform { .. }
        | ImageError::BadChange { .. }
        | ImageError::CannotExport { .. }
        | ImageError::CannotPush { .. }
        | ImageError::Settings { .. }
        | ImageError::BadKey { .. }
        | ImageError::BadName { .. }
        | ImageError::Ambiguous { .. } => ErrorKind::Invalid,
        ImageError::NotFound { .. } | ImageError::NotLocal { .. } | ImageError::Unknown { .. } => {
            ErrorKind::NotFound
        }
        ImageError::NoSuchPlatform { .. } => ErrorKind::Unsupported,
        ImageError::Connection { .. }
        | ImageError::RateLimited { .. }
        | ImageError::StoreBusy { .. } => ErrorKind::Transient,
        _ => ErrorKind::Permanent,
    }
}

/// What to do, in the words of the command line.
fn image_remedy(error: &ImageError) -> Option<String> {
    let fixed = match error {
        ImageError::NotLocal { .. } => {
            "`microagent images list` shows what is there; `images pull` and `images import` get more."
        }
        ImageError::Unauthorized { registry, .. } | ImageError::LoginRefused { registry } => {
            return Some(format!(
                "`microagent login {registry}` logs in; `microagent whoami {registry}` says as whom you ask now."
            ));
        }
        ImageError::RateLimited { registry, .. } => {
            return Some(format!(
                "Wait; or log in with `microagent login {registry}`, which often raises the limit; or name a mirror in registries.toml."
            ));
        }
        ImageError::NoSuchPlatform { .. } => "Name one of them with --platform.",
        ImageError::NoSuchHost { .. } => {
            "Offline, `microagent images import FILE --name NAME` brings in an archive or a root file system."
        }
        ImageError::Connection { .. } => {
            "Try again: what came is kept, and a pull goes on there; a push sends only what is missing."
        }
        ImageError::PlainHttp { .. } => {
            "Name it with --insecure-registry, or as `insecure` in registries.toml, if that is meant."
        }
        ImageError::Proxy { .. } => {
            "The proxy comes from HTTPS_PROXY or HTTP_PROXY; hosts in NO_PROXY are asked directly."
        }
        ImageError::NoSpace { .. } => NO_SPACE,
        ImageError::NoPlace { .. } => {
            "Choose a directory that is yours with --state-dir or MICROAGENT_HOME."
        }
        ImageError::Unknown { .. } | ImageError::Ambiguous { .. } => {
            "`microagent images list` shows what is there."
        }
        other => return is_full(other).then(|| NO_SPACE.to_owned()),
    };
    Some(fixed.to_owned())
}

/// Debian's kernel does not boot in 64 MiB, and does in 96.
const BOOTS: Mebibytes = Mebibytes(128);

const NO_SPACE: &str = "`microagent df` shows what takes it; `microagent prune` and `microagent images rm` take away. Or choose another place with --state-dir.";

/// Whether a full disk is behind an error.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// What to do, in the words of the command line.
fn kernel_remedy(error: &KernelError) -> Option<&'static str> {
    match error {
        KernelError::NotFound { .. } => Some(
            "`microagent kernel list` shows those there are; `microagent kernel install` gets the distribution's.",
        ),
        KernelError::HostKernelAbsent { .. } => Some(
            "`microagent kernel install` gets the distribution's, `--from FILE` takes any other.",
        ),
        KernelError::PackageUnknown { .. } => Some(OTHER_KERNELS),
        KernelError::ToolUnavailable { program, .. } if program.starts_with("apt") => {
            Some(OTHER_KERNELS)
        }
        _ => None,
    }
}

const OTHER_KERNELS: &str =
    "`microagent kernel install --from host` takes this host's own, `--from FILE` any other.";

fn kernel_kind(error: &KernelError) -> ErrorKind {
    match error {
        KernelError::NotFound { .. }
        | KernelError::PackageUnknown { .. }
        | KernelError::NoSuchChannel { .. }
        | KernelError::HostKernelAbsent { .. } => ErrorKind::NotFound,
        KernelError::InvalidChannel { .. }
        | KernelError::InvalidRepository { .. }
        | KernelError::NoTrustedRoot => ErrorKind::Invalid,
        KernelError::MissingDrivers { .. }
        | KernelError::OptionsDropped { .. }
        | KernelError::ForeignArchitecture { .. }
        | KernelError::NoGuest => ErrorKind::Unsupported,
        KernelError::ToolTimedOut { .. }
        | KernelError::RepositoryUnreachable { .. }
        | KernelError::Busy { .. } => ErrorKind::Transient,
        _ => ErrorKind::Permanent,
    }
}

/// What to do about each, said once.
fn remedies(refused: &[RefusedChange]) -> String {
    let mut words: Vec<(&str, Vec<&str>)> = Vec::new();
    for change in refused {
        match words
            .iter_mut()
            .find(|(remedy, _)| *remedy == change.remedy)
        {
            Some((_, fields)) => fields.push(&change.field),
            None => words.push((&change.remedy, vec![&change.field])),
        }
    }
    let words: Vec<_> = words
        .into_iter()
        .map(|(remedy, fields)| format!("{}: {remedy}.", fields.join(", ")))
        .collect();
    words.join(" ")
}
