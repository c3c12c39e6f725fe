//! What a program may rely on, for programs: states and their moves, causes, signals, kinds of
//! errors and exit codes.

use microagent_protocol::{
    Backend, Capabilities, EndCause, NetworkMode, ReadinessSignal, State,
    state::TRANSITIONS,
    supervisor::{ErrorKind, SUPERVISOR_PROTOCOL},
};
use serde::Serialize;

use crate::{
    profile::{Profile, ProfileInfo},
    result::{EXIT_FAILED, EXIT_TIMED_OUT},
    supervise::RestartPolicy,
};

/// The version of the contract: it changes when something is taken away or means something else.
const VERSION: &str = "microagent.v1";

/// The contract. Everything in it is made of what the program itself goes by.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Contract {
    /// Its version.
    pub version: &'static str,
    /// The version of the protocol that supervisors speak.
    pub supervisor_protocol: u32,
    /// Every state.
    pub states: Vec<StateContract>,
    /// What a workspace can be told, and what comes of it.
    pub controls: Vec<ControlContract>,
    /// Why a machine can end.
    pub end_causes: Vec<EndCause>,
    /// What a workspace can be ready for.
    pub readiness_signals: Vec<ReadinessSignal>,
    /// What kinds of failures there are.
    pub error_kinds: Vec<ErrorKind>,
    /// Exit codes of `run`, `exec` and `connect --send` that are not the command's own.
    pub exit_codes: ExitCodes,
    /// The sizes that have a name.
    pub profiles: Vec<ProfileInfo>,
    /// How a workspace can be connected.
    pub network_modes: Vec<NetworkMode>,
    /// When a workspace can be started again by `supervise`.
    pub restart_policies: Vec<RestartPolicy>,
    /// What can run machines.
    pub backends: Vec<Backend>,
    /// What the machines of each can do.
    pub capabilities: Vec<BackendContract>,
    /// The files of a workspace that others may read.
    pub files: Vec<FileContract>,
}

/// A state.
#[derive(Clone, Debug, Serialize)]
pub struct StateContract {
    /// Its name.
    pub name: State,
    /// Whether a machine exists in it.
    pub live: bool,
    /// The states that can follow it.
    pub next: Vec<State>,
}

/// What machines of a backend can do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BackendContract {
    /// The backend.
    pub name: Backend,
    /// What its machines can do.
    #[serde(flatten)]
    pub can: Capabilities,
}

/// Something a workspace can be told.
#[derive(Clone, Debug, Serialize)]
pub struct ControlContract {
    /// The command.
    pub name: &'static str,
    /// The states it does something in; in others it is refused, or there is nothing to do.
    pub from: Vec<State>,
    /// The state after it, if all goes well.
    pub to: State,
}

/// Exit codes with a meaning of their own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExitCodes {
    /// The time was up.
    pub timed_out: u8,
    /// microagent failed.
    pub failed: u8,
    /// The command cannot be executed.
    pub not_executable: u8,
    /// The command was not found.
    pub not_found: u8,
    /// Added to the number of the signal that ended the command.
    pub signal_base: u8,
    /// The command line is wrong.
    pub usage: u8,
}

/// A file of a workspace.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FileContract {
    /// Its name in the workspace's directory.
    pub name: &'static str,
    /// What is in it.
    pub content: &'static str,
    /// Who writes it, and when.
    pub written: &'static str,
}

const FILES: [FileContract; 5] = [
    FileContract {
        name: "manifest.json",
        content: "what it is made of: a line with format and SHA-256, then JSON",
        written: "whole, when it is created or applied to",
    },
    FileContract {
        name: "events.jsonl",
        content: "each change of state, a JSON object a line, numbered from 1",
        written: "appended to by the supervisor; past 1 MiB, whole without its middle",
    },
    FileContract {
        name: "result.json",
        content: "how the workload ended, with its bounded output",
        written: "whole, when the workload has ended",
    },
    FileContract {
        name: "console.log",
        content: "what the guest wrote to its console; bytes of the guest",
        written: "appended to, and moved to console.log.1 when it is full",
    },
    FileContract {
        name: "scratch.ext4",
        content: "what the workspace wrote: an ext4 file system, sparse",
        written: "by the guest, while it is live",
    },
];

/// The contract of this microagent.
#[must_use]
pub fn contract() -> Contract {
    Contract {
        version: VERSION,
        supervisor_protocol: SUPERVISOR_PROTOCOL,
        states: State::ALL
            .map(|name| StateContract {
                name,
                live: name.is_live(),
                next: State::ALL
                    .into_iter()
                    .filter(|next| name.may_become(*next))
                    .collect(),
            })
            .into(),
        controls: controls(),
        end_causes: EndCause::ALL.into(),
        readiness_signals: ReadinessSignal::ALL.into(),
        error_kinds: ErrorKind::ALL.into(),
        exit_codes: ExitCodes {
            timed_out: EXIT_TIMED_OUT,
            failed: EXIT_FAILED,
            not_executable: 126,
            not_found: 127,
            signal_base: 128,
            usage: 2,
        },
        profiles: Profile::ALL.map(Profile::describe).into(),
        network_modes: vec![NetworkMode::User, NetworkMode::Isolated],
        restart_policies: RestartPolicy::ALL.into(),
        backends: Backend::ALL.into(),
        capabilities: Backend::ALL
            .map(|name| BackendContract {
                name,
                can: name.capabilities(),
            })
            .into(),
        files: FILES.into(),
    }
}

/// The commands, with the states that the transition table lets them begin in.
fn controls() -> Vec<ControlContract> {
    let before = |to: State| -> Vec<State> {
        TRANSITIONS
            .iter()
            .filter(|(_, next)| *next == to)
            .map(|(from, _)| *from)
            .collect()
    };
    let control = |name, from: Vec<State>, to| ControlContract { name, from, to };
    vec![
        control("start", before(State::Starting), State::Running),
        control("halt", before(State::Halted), State::Halted),
        control("stop", before(State::Stopped), State::Stopped),
        control("kill", before(State::Stopped), State::Stopped),
        control("pause", before(State::Paused), State::Paused),
        control("resume", vec![State::Paused], State::Running),
        control("quarantine", before(State::Quarantined), State::Quarantined),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_is_what_the_program_goes_by() {
        let json = serde_json::to_value(contract()).unwrap();
        assert_eq!(json["version"], "microagent.v1");
        assert_eq!(json["states"].as_array().unwrap().len(), State::ALL.len());
        let start = &json["controls"][0];
        assert_eq!(start["name"], "start");
        assert_eq!(
            start["from"],
            serde_json::json!(["prepared", "halted", "stopped", "failed"])
        );
        assert_eq!(json["readiness_signals"][0], "guestReady");
        assert_eq!(json["exit_codes"]["failed"], 125);
        assert_eq!(json["profiles"][1]["memory_mib"], 512);
        assert_eq!(json["capabilities"][2]["name"], "qemu-tcg");
        assert_eq!(json["capabilities"][2]["user_network"], true);
    }

    /// `docs/backends.md` has the table that is made of the contract.
    #[test]
    fn the_table_of_capabilities_is_fresh() {
        let json = serde_json::to_value(contract().capabilities).unwrap();
        let backends = json.as_array().unwrap();
        let names: Vec<_> = backends.iter().map(|one| &one["name"]).collect();
        let mut table = String::from("| what its machines can do |");
        names
            .iter()
            .for_each(|name| table.push_str(&format!(" `{}` |", name.as_str().unwrap())));
        table.push_str("\n|---|");
        names.iter().for_each(|_| table.push_str("---|"));
        table.push('\n');
        let keys = backends[0].as_object().unwrap().keys();
        for key in keys.filter(|key| *key != "name") {
            table.push_str(&format!("| `{key}` |"));
            for backend in backends {
                let can = backend[key].as_bool().unwrap();
                table.push_str(if can { " yes |" } else { " no |" });
            }
            table.push('\n');
        }
        let page = include_str!("../../../docs/backends.md");
        assert!(
            page.contains(&table),
            "docs/backends.md is to have this:\n{table}"
        );
    }
}
