//! What `run` and `create` have in common: the options of a workspace, and what they mean to the library.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum as _, error::ErrorKind};
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    BackendChoice, CreateOptions, DeclaredArtifact, EnvVar, Error, KernelChoice, Mebibytes,
    NetworkMode, Platform, Profile, PullPolicy, Reference, RunOptions, Spec, Timestamp, VcpuCount,
    VerifyKey, env_file,
};

use crate::{
    cli::{FORM, Form, Globals, usage},
    commands::wiring_args::WiringArgs,
    completion,
    refusals::{self, RefusedFlags},
    surroundings,
};

/// The options of a workspace.
#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    /// A spec (microagent.yaml) that says all this; single options go over it, repeatable ones add
    #[arg(long, value_name = "FILE", help_heading = "Workspace")]
    file: Option<PathBuf>,
    /// The image, when it does not stand before the command
    #[arg(long = "image", value_name = "IMAGE", help_heading = "Command", add = ArgValueCompleter::new(completion::images))]
    image: Option<String>,
    /// Run this string in the image's /bin/sh
    #[arg(long, value_name = "STRING", help_heading = "Command")]
    exec: Option<String>,
    /// Run this program instead of the image's entrypoint ("" for none)
    #[arg(long, value_name = "PROGRAM", help_heading = "Command")]
    entrypoint: Option<String>,
    /// Run this string in the image's /bin/sh first; repeatable, in order
    #[arg(long, value_name = "STRING", help_heading = "Command")]
    setup: Vec<String>,
    /// Set a variable, or take its value from here (-e NAME); repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]", help_heading = "Command")]
    env: Vec<EnvArg>,
    /// Set the variables in this file, a NAME[=VALUE] a line; repeatable, -e goes over it
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    env_file: Vec<PathBuf>,
    /// Run in this directory; made if it is missing
    #[arg(long, short, value_name = "DIR", help_heading = "Command")]
    workdir: Option<String>,
    /// Run as this user: NAME, UID, NAME:GROUP or UID:GID of the guest
    #[arg(long, short, value_name = "USER", help_heading = "Command")]
    user: Option<String>,

    /// The guest's host name [default: the workspace's name]
    #[arg(long, value_name = "NAME", help_heading = "Workspace")]
    hostname: Option<String>,

    /// The machine's size: tiny (256 MiB, 1 CPU, 512 MiB of disk), small (512, 2, 1024), medium
    /// (2048, 2, 8192) or large (4096, 4, 16384) [default: small]
    #[arg(long, value_name = "PROFILE", help_heading = "Machine")]
    profile: Option<Profile>,
    /// Memory: MiB, or a number with M or G
    #[arg(long, short, value_name = "SIZE", help_heading = "Machine")]
    memory: Option<Mebibytes>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", help_heading = "Machine")]
    cpus: Option<VcpuCount>,
    /// The most the workspace may write: MiB, or a number with M or G
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    disk_size: Option<Mebibytes>,
    /// user (outbound connections) or isolated (loopback only) [default: user]
    #[arg(long, visible_alias = "net", value_name = "MODE",
          value_parser = refusals::network, help_heading = "Machine")]
    network: Option<NetworkMode>,
    /// auto, firecracker, qemu, qemu-kvm, qemu-tcg or apple-vf
    #[arg(
        long,
        value_name = "BACKEND",
        default_value = "auto",
        help_heading = "Machine"
    )]
    backend: BackendChoice,
    /// An installed kernel's id, or a kernel file (with a slash in it) [default: the default kernel]
    #[arg(long, value_name = "KERNEL", help_heading = "Machine", add = ArgValueCompleter::new(completion::kernels))]
    kernel: Option<String>,
    /// The modules that belong to a kernel file
    #[arg(
        long,
        value_name = "DIR",
        requires = "kernel",
        help_heading = "Machine"
    )]
    modules: Option<PathBuf>,

    /// When to pull: missing, always or never
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "missing",
        help_heading = "Image"
    )]
    pull: PullPolicy,
    /// Which of a multi-platform image's images, such as linux/amd64 [default: this host's]
    #[arg(long, value_name = "OS/ARCH", help_heading = "Image")]
    platform: Option<Platform>,
    /// Accept the image only with a signature of this key (a PEM file, such as cosign.pub)
    #[arg(long, value_name = "FILE", help_heading = "Image")]
    verify_key: Option<PathBuf>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST", help_heading = "Image")]
    pub(crate) insecure_registry: Vec<String>,

    /// Declare a file or directory of the guest as an artifact, by a name; repeatable. Or the form of
    /// results: text or json
    #[arg(long = "output", value_name = "NAME=/PATH", help_heading = "Artifacts")]
    outputs: Vec<OutputArg>,
    /// Has the global option's place, so that `--output` can be both here.
    #[arg(id = FORM, long = "output-form", hide = true)]
    _form: Option<Form>,

    #[command(flatten)]
    wiring: WiringArgs,

    #[command(flatten)]
    _refused: RefusedFlags,
}

/// The value of `-e`: set here, or taken from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EnvArg {
    Set(EnvVar),
    FromHost(String),
}

impl FromStr for EnvArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('=') {
            return text
                .parse()
                .map(Self::Set)
                .map_err(|error: microagent::InvalidEnvVar| error.to_string());
        }
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(format!("{text:?} is not a variable's name"));
        }
        Ok(Self::FromHost(text.to_owned()))
    }
}

/// The value of `--output` where artifacts can be declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OutputArg {
    /// How results are printed.
    Form(Form),
    /// What is taken out.
    Artifact(DeclaredArtifact),
}

impl FromStr for OutputArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('=') {
            return text
                .parse()
                .map(Self::Artifact)
                .map_err(|error: microagent::InvalidWiring| error.to_string());
        }
        Form::from_str(text, false).map(Self::Form).map_err(|_| {
            "write NAME=/guest/path for an artifact, or text or json for the form of results"
                .to_owned()
        })
    }
}

/// The words of a command line that belong to no option.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// The first one.
    pub(crate) first: Option<String>,
    /// All others.
    pub(crate) rest: Vec<String>,
}

impl Words {
    /// Finds out which words are the image and which the command. With `--image` all are the
    /// command's.
    fn split(mut self, image: Option<&str>) -> (Option<String>, Vec<String>) {
        // The two hyphens between image and command are neither's.
        if self.rest.first().is_some_and(|word| word == "--") {
            self.rest.remove(0);
        }
        match (image, self.first) {
            (Some(image), Some(word)) => {
                self.rest.insert(0, word);
                (Some(image.to_owned()), self.rest)
            }
            (Some(image), None) => (Some(image.to_owned()), self.rest),
            (None, first) => (first, self.rest),
        }
    }
}

impl WorkspaceArgs {
    /// Checks what one option alone does not show, and hands on what is meant for all commands; gives
    /// the image, if one was named, and the command.
    ///
    /// # Errors
    /// A usage error.
    pub(crate) fn settle(
        &self,
        words: Words,
        globals: &mut Globals,
    ) -> Result<(Option<String>, Vec<String>), clap::Error> {
        self.hand_on_form(globals)?;
        let (image, command) = words.split(self.image.as_deref());
        if let Some(image) = &image
            && let Err(error) = image.parse::<Reference>()
        {
            return Err(usage(ErrorKind::ValueValidation, error));
        }
        if self.exec.is_some() && !command.is_empty() {
            return Err(usage(
                ErrorKind::ArgumentConflict,
                "--exec and a command after the image cannot be used together",
            ));
        }
        Ok((image, command))
    }

    fn hand_on_form(&self, globals: &mut Globals) -> Result<(), clap::Error> {
        let mut forms = self.outputs.iter().filter_map(|output| match output {
            OutputArg::Form(form) => Some(*form),
            OutputArg::Artifact(_) => None,
        });
        let Some(form) = forms.next() else {
            return Ok(());
        };
        if globals.json || forms.next().is_some() {
            return Err(usage(
                ErrorKind::ArgumentConflict,
                "the form of results is given twice, by --output or --json",
            ));
        }
        globals.output = Some(form);
        Ok(())
    }

    /// Whether a port of the host is to be picked.
    pub(crate) fn wants_free_ports(&self) -> bool {
        self.wiring.wants_free_ports()
    }

    /// Whether a spec may name what the command line does not.
    pub(crate) fn has_spec(&self) -> bool {
        self.file.is_some()
    }

    /// The library's options for this image and command, over what the spec says.
    pub(crate) fn into_options(
        self,
        image: Option<String>,
        command: Vec<String>,
    ) -> Result<CreateOptions, Error> {
        let spec = match &self.file {
            Some(file) => Spec::read(file)?.options()?,
            None => CreateOptions::new(RunOptions::new("")),
        };
        let run = self.over(spec.run_options().clone(), image, command)?;
        Ok(spec.with_run_options(run))
    }

    fn over(
        self,
        options: RunOptions,
        image: Option<String>,
        command: Vec<String>,
    ) -> Result<RunOptions, Error> {
        let entrypoint = self.entrypoint.map(|program| match program.as_str() {
            "" => Vec::new(),
            _ => vec![program],
        });
        let mut options = options
            .overridden_by(self.exec, entrypoint, command)
            .backend(self.backend)
            .pull(self.pull)
            .wiring(self.wiring.into_wiring()?)
            .kernel(kernel(self.kernel, self.modules)?);
        if let Some(path) = &self.verify_key {
            options = options.verify_key(VerifyKey::read(path)?);
        }
        for path in &self.env_file {
            for var in read_env_file(path)? {
                options = options.env(var.name(), var.value());
            }
        }
        for var in self.env {
            options = match var {
                EnvArg::Set(var) => options.env(var.name(), var.value()),
                EnvArg::FromHost(name) => match host_variable(&name) {
                    Some(value) => options.env(name, value),
                    // As container engines do: what is not set here is not set there.
                    None => options.env_remove(name),
                },
            };
        }
        for script in self.setup {
            options = options.setup(script);
        }
        for output in self.outputs {
            if let OutputArg::Artifact(artifact) = output {
                options = options.output(artifact);
            }
        }
        macro_rules! set {
            ($($method:ident: $value:expr),* $(,)?) => {
                $(if let Some(value) = $value { options = options.$method(value); })*
            };
        }
        set! {
            image: image, profile: self.profile, network: self.network, workdir: self.workdir,
            user: self.user, hostname: self.hostname, memory: self.memory, vcpus: self.cpus,
            disk: self.disk_size, platform: self.platform,
        }
        Ok(options)
    }
}

pub(crate) fn host_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(crate) fn read_env_file(path: &Path) -> Result<Vec<EnvVar>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    })?;
    env_file::parse(&text, host_variable).map_err(|error| Error::Invalid {
        option: "--env-file",
        reason: format!("{}, {error}", path.display()),
    })
}

fn kernel(given: Option<String>, modules: Option<PathBuf>) -> Result<KernelChoice, Error> {
    Ok(match given {
        None => KernelChoice::Default,
        Some(path) if path.contains('/') => KernelChoice::File {
            kernel: surroundings::absolute(path.as_ref())?,
            modules: modules
                .map(|path| surroundings::absolute(&path))
                .transpose()?,
        },
        Some(id) => KernelChoice::Installed(id),
    })
}

/// Reads `90`, `90s`, `1.5m`, `2h`, `7d` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let invalid =
        || format!("{text:?} is not a time; give seconds, or a number with ms, s, m, h or d");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(invalid()),
    }
}

/// Reads an instant: a time as JSON shows it, or how long ago it was.
pub(crate) fn instant(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = duration(text) {
        let now = SystemTime::now();
        return Ok(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    serde_json::from_value::<Timestamp>(text.into())
        .map(|at| at.0)
        .map_err(|_| {
            format!(
                "{text:?} is not a time; write 2026-01-31T12:00:00Z, or how long ago: 90s, 2h, 7d"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, ms) in [
            ("12", 12_000),
            ("1.5m", 90_000),
            ("500ms", 500),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("3s", 3_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "-1", "1w", "s", "1.2.3", "1e999", "inf", "nan"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn instants_are_times_or_ages() {
        let at = instant("1970-01-01T00:00:01Z").unwrap();
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let age = instant("1h").unwrap().elapsed().unwrap();
        assert!((3600..3610).contains(&age.as_secs()), "{age:?}");
        assert!(instant("yesterday").is_err());
    }

    #[test]
    fn variables_are_set_or_taken_from_here() {
        assert_eq!("A=b=c".parse(), Ok(EnvArg::Set("A=b=c".parse().unwrap())));
        assert_eq!("HOME".parse(), Ok(EnvArg::FromHost("HOME".into())));
        for text in ["", "=x", "A B"] {
            assert!(text.parse::<EnvArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_kernel_with_a_slash_is_a_file() {
        assert_eq!(
            kernel(Some("6.1-abc".into()), None).unwrap(),
            KernelChoice::Installed("6.1-abc".into())
        );
        let file = kernel(Some("./vmlinuz".into()), None).unwrap();
        assert!(matches!(file, KernelChoice::File { kernel, .. } if kernel.is_absolute()));
    }
}
