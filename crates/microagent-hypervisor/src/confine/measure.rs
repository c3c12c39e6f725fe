//! What the kernel shows of a process that is held back.

use std::{fs, path::PathBuf};

use microagent_protocol::{Confinement, ConfinementLayer, ConfinementMode, MissingLayer};

use super::{Applied, HOST_NETWORK, NO_LANDLOCK, jailer::own_user};

/// `SECCOMP_MODE_FILTER`, as `/proc/PID/status` has it.
const FILTER: &str = "2";

pub(super) fn confinement(applied: &Applied, pid: u32) -> Confinement {
    use ConfinementLayer as Layer;
    let mut found = Confinement::default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map_or("", str::trim)
    };
    let mut note = |layer: Layer, holds: bool, why_not: &dyn Fn() -> String| {
        if holds {
            found.in_force.push(layer);
        } else {
            found.missing.push(MissingLayer {
                layer,
                reason: why_not(),
            });
        }
    };
    let off = applied.mode == ConfinementMode::Off;
    let unseen = || match off {
        true => "it was switched off".to_owned(),
        false => "the kernel does not show it".to_owned(),
    };
    note(Layer::NoNewPrivileges, field("NoNewPrivs:") == "1", &unseen);
    let powerless = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"]
        .iter()
        .all(|set| !field(set).is_empty() && field(set).bytes().all(|digit| digit == b'0'));
    note(Layer::NoCapabilities, powerless, &unseen);
    note(
        Layer::SystemCalls,
        field("Seccomp:") == FILTER,
        &|| match applied.filters_calls {
            true => "its filter is not on".to_owned(),
            false => "it has none of its own".to_owned(),
        },
    );

    let landlock = applied.landlock.unwrap_or(0);
    let jailed = applied.jailer == Ok(true);
    let too_old = |wanted: i32| {
        move || match (off, landlock) {
            (true, _) => "it was switched off".to_owned(),
            (false, 0) if jailed => {
                "a jailer changes its root, which Landlock forbids; its root has no other files"
                    .to_owned()
            }
            (false, 0) => NO_LANDLOCK.to_owned(),
            (false, have) => format!("this kernel has Landlock {have}; {wanted} is needed"),
        }
    };
    note(Layer::Files, landlock >= 1, &too_old(1));
    note(
        Layer::Tcp,
        landlock >= 4 && !applied.tcp,
        &|| match applied.tcp {
            true => HOST_NETWORK.to_owned(),
            false => too_old(4)(),
        },
    );
    note(Layer::Signals, landlock >= 6, &too_old(6));

    let no_jail = || {
        let reason = applied.no_jail.clone();
        reason.unwrap_or_else(|| "it is in the supervisor's own".to_owned())
    };
    for (layer, name) in [
        (Layer::Users, "user"),
        (Layer::Mounts, "mnt"),
        (Layer::Processes, "pid"),
        (Layer::Ipc, "ipc"),
        (Layer::HostName, "uts"),
        (Layer::Network, "net"),
    ] {
        let holds = apart(pid, name) && (layer != Layer::Mounts || own_devices(pid));
        note(layer, holds, &|| match layer {
            Layer::Users if jailed => "its user is nobody else's instead".to_owned(),
            Layer::Users if applied.no_jail.is_none() && !applied.with_users => {
                "this host gives its user none; root needs none for the others".to_owned()
            }
            Layer::Network if applied.host_network => HOST_NETWORK.to_owned(),
            _ => no_jail(),
        });
    }
    // Only a jailer gives it one; where none was asked for, none is missing.
    let own_user = || {
        field("Uid:")
            .split_whitespace()
            .all(|id| id == own_user().to_string())
    };
    match &applied.jailer {
        Ok(false) => {}
        Ok(true) => note(Layer::OwnUser, own_user(), &unseen),
        Err(why) => note(Layer::OwnUser, false, &|| why.clone()),
    }
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let held = applied.limits.as_ref().is_ok_and(|name| {
        groups
            .lines()
            .any(|line| line.starts_with("0::") && line.ends_with(name.as_str()))
    });
    note(Layer::Limits, held, &|| match &applied.limits {
        Ok(name) => format!("it is not in {name} any more"),
        Err(reason) => reason.clone(),
    });
    found
}

/// Whether the process is in another namespace of this kind than this one.
fn apart(pid: u32, name: &str) -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}"));
    match (of(&pid.to_string()), of("self")) {
        (Ok(theirs), Ok(ours)) => theirs != ours,
        _ => false,
    }
}

/// Whether its root is one of few devices: it has neither this host's memory nor its disks.
fn own_devices(pid: u32) -> bool {
    let dev = PathBuf::from(format!("/proc/{pid}/root/dev"));
    fs::read_dir(dev).is_ok_and(|devices| devices.count() <= 12)
}
