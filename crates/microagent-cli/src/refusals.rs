//! What container engines can do and a microVM cannot, or does by itself: recognised, never
//! translated in silence, and answered with what to do instead.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

/// A flag of container engines that is refused.
struct Refusal {
    long: &'static str,
    short: Option<char>,
    takes_value: bool,
    instead: &'static str,
}

const fn with_value(long: &'static str, short: Option<char>, instead: &'static str) -> Refusal {
    Refusal {
        long,
        short,
        takes_value: true,
        instead,
    }
}

const fn plain(long: &'static str, short: Option<char>, instead: &'static str) -> Refusal {
    Refusal {
        long,
        short,
        takes_value: false,
        instead,
    }
}

const OWN_KERNEL: &str =
    "Every workspace has its own kernel and shares no namespace with the host: leave it out.";
const ROOT: &str = "The guest is root in its own kernel already: leave it out.";
const CAPABILITIES: &str = "The guest has every capability in its own kernel, and none on the host: leave it out; \
     run as another user with --user.";
const DEVICES: &str = "A microVM has virtual disks and a network, and no device of the host.";
const FILES: &str = "A microVM shares no directory with the host. Attach a tar or an ext4 image with --volume, put the \
     files into the image, or copy them in and out as a stream: tar -c DIR | microagent run -i IMAGE \
     sh -c 'tar -x && …'. (`microagent cp` is for kept workspaces.)";
const PORTS: &str = "Name each port that is to lead into the guest: --publish 8080:80. What the guest is to reach on \
     the host is named with --mediation.";
const CGROUPS: &str = "Size the machine instead: --memory, --cpus, --disk-size or --profile.";

const REFUSED: &[Refusal] = &[
    plain("privileged", None, ROOT),
    with_value("cap-add", None, CAPABILITIES),
    with_value("cap-drop", None, CAPABILITIES),
    with_value("security-opt", None, OWN_KERNEL),
    with_value("pid", None, OWN_KERNEL),
    with_value("ipc", None, OWN_KERNEL),
    with_value("uts", None, OWN_KERNEL),
    with_value("userns", None, OWN_KERNEL),
    with_value("cgroupns", None, OWN_KERNEL),
    with_value("cgroup-parent", None, OWN_KERNEL),
    with_value(
        "sysctl",
        None,
        "Set it in the guest's own kernel: --setup 'sysctl -w NAME=VALUE'.",
    ),
    with_value("device", None, DEVICES),
    with_value("gpus", None, DEVICES),
    with_value("mount", None, FILES),
    with_value("volumes-from", None, FILES),
    with_value(
        "tmpfs",
        None,
        "Mount one in the guest: --setup 'mount -t tmpfs tmpfs /path'.",
    ),
    with_value(
        "shm-size",
        None,
        "The guest's /dev/shm may take half of its memory: size it with --memory.",
    ),
    plain("publish-all", Some('P'), PORTS),
    with_value("link", None, PORTS),
    with_value("pod", None, "There are no pods: one image, one machine."),
    plain(
        "init",
        None,
        "Every guest has an init that reaps its zombies already: leave it out.",
    ),
    plain(
        "read-only",
        None,
        "Nothing a run writes outlives it, unless --keep is given: leave it out.",
    ),
    with_value(
        "restart",
        None,
        "Give a workspace that stays a policy with `create --restart`; `supervise` holds to it.",
    ),
    with_value("cpu-shares", None, CGROUPS),
    with_value("cpuset-cpus", None, CGROUPS),
    with_value("memory-swap", None, CGROUPS),
    with_value("pids-limit", None, CGROUPS),
    with_value("ulimit", None, CGROUPS),
    with_value("storage-opt", None, CGROUPS),
    with_value(
        "runtime",
        None,
        "microagent is the runtime; choose how machines run with --backend.",
    ),
];

/// Takes every refused flag, so that it is answered and not merely unknown.
#[derive(Debug)]
pub(crate) struct RefusedFlags;

impl Refusal {
    /// Apart from the name that a command may have an option of its own by.
    fn id(&self) -> String {
        format!("refused-{}", self.long)
    }
}

impl Args for RefusedFlags {
    fn augment_args(mut command: Command) -> Command {
        for refusal in REFUSED {
            let own = |arg: &Arg| arg.get_long() == Some(refusal.long);
            if command.get_arguments().any(own) {
                continue;
            }
            let action = if refusal.takes_value {
                ArgAction::Append
            } else {
                ArgAction::Count
            };
            let mut arg = Arg::new(refusal.id())
                .long(refusal.long)
                .hide(true)
                .action(action);
            if let Some(short) = refusal.short {
                arg = arg.short(short);
            }
            command = command.arg(arg);
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RefusedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |refusal: &&Refusal| {
            let source = match matches.try_contains_id(&refusal.id()) {
                Ok(true) => matches.value_source(&refusal.id()),
                // A command with an option of this name does not refuse it.
                Ok(false) | Err(_) => None,
            };
            source == Some(ValueSource::CommandLine)
        };
        match REFUSED.iter().find(given) {
            None => Ok(Self),
            Some(refusal) => Err(flag_error(refusal.long, refusal.instead)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        Self::from_arg_matches(matches).map(|_| ())
    }
}

fn flag_error(flag: &str, instead: &str) -> clap::Error {
    let message = format!("--{flag} is a container's option, not a microVM's.\n  {instead}");
    crate::cli::usage(ErrorKind::UnknownArgument, message)
}

/// The network mode, where container engines have others.
pub(crate) fn network(value: &str) -> Result<microagent::NetworkMode, String> {
    value
        .parse()
        .map_err(|error: microagent::InvalidNetworkMode| match value {
            "none" => "a microVM without a network is --network isolated".to_owned(),
            "host" | "bridge" | "default" => {
                "a microVM shares no network with the host; --network user lets it reach out"
                    .to_owned()
            }
            shared if shared.starts_with("container:") || shared.starts_with("ns:") => {
                "machines share no network; --network user lets this one reach out".to_owned()
            }
            _ => error.to_string(),
        })
}

/// Commands of container engines, and what does their work here.
pub(crate) const COMMANDS: &[(&str, &str)] = &[
    (
        "compose",
        "There are no groups of containers here: start each with `microagent run`.",
    ),
    (
        "pod",
        "There are no pods here: start each image with `microagent run`.",
    ),
    (
        "play",
        "There are no pods here: start each image with `microagent run`.",
    ),
    (
        "kube",
        "There are no pods here: start each image with `microagent run`.",
    ),
    (
        "swarm",
        "There is no cluster here: start each image with `microagent run`.",
    ),
    (
        "stack",
        "There is no cluster here: start each image with `microagent run`.",
    ),
    (
        "service",
        "There is no daemon here: start each image with `microagent run`.",
    ),
    ("build", BUILD),
    ("buildx", BUILD),
    ("pull", "Use `microagent images pull`."),
    ("push", "Use `microagent images push`."),
    ("load", "Use `microagent images load`."),
    ("save", "Use `microagent images save`."),
    ("import", "Use `microagent images import`."),
    (
        "export",
        "Use `microagent images export` for an image; `microagent cp NAME:/ - >FILE` for a workspace's files.",
    ),
    ("tag", "Use `microagent images tag`."),
    ("history", "Use `microagent images history`."),
    ("rmi", "Use `microagent images rm`."),
    ("info", "Use `microagent doctor`."),
    ("attach", SHELL),
    ("shell", SHELL),
    ("ssh", SHELL),
    (
        "restart",
        "Use `microagent halt NAME`, then `microagent start NAME`.",
    ),
    (
        "rename",
        "A name stays; `microagent clone OLD NEW` makes a second workspace of what the first has written.",
    ),
    ("update", "Use `microagent apply`."),
    (
        "top",
        "Use `microagent stats NAME`, or `microagent exec NAME -- ps` for its processes.",
    ),
    ("port", "Use `microagent network NAME`."),
    (
        "diff",
        "What a workspace has written becomes an image with `microagent commit`.",
    ),
    (
        "search",
        "Registries are not searched; give an image's whole name to `microagent run`.",
    ),
    (
        "container",
        "Its verbs stand by themselves: `microagent list`, `microagent delete`.",
    ),
    (
        "system",
        "There is no daemon here; `microagent doctor` says what this host can run, `microagent df` what is kept, and `microagent prune` takes away what nobody needs.",
    ),
    (
        "volume",
        "There are no named volumes here; attach a file with `microagent run --volume`.",
    ),
];

const BUILD: &str = "Images are built by other tools; bring the result in with `microagent images import` (an archive) or \
     `microagent images pull` (a registry).";

const SHELL: &str =
    "Use `microagent connect NAME` for a shell, `microagent exec -it NAME COMMAND` for a command.";

/// The answer to a command that there is none of: where another program has it, or where two
/// letters changed places (the parser's own suggestions miss that in short words).
pub(crate) fn command(error: &clap::Error, known: &Command) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    if let Some((name, instead)) = COMMANDS.iter().find(|(other, _)| other == name) {
        return Some(format!("microagent has no command `{name}`. {instead}"));
    }
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    let meant = known
        .get_subcommands()
        .map(Command::get_name)
        .find(|other| letters(other) == letters(name))?;
    Some(format!(
        "microagent has no command `{name}`. Did you mean `microagent {meant}`?"
    ))
}
