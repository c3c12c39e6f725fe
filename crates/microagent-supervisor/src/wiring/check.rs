//! What can be wrong with a wiring by itself.

use std::{collections::HashSet, fs, hash::Hash};

use microagent_protocol::{
    LaunchSpec, MediationRoute,
    wiring::{MAX_DISKS, MAX_MEDIATION, MAX_PUBLISHED},
};

use crate::Error;

/// Where the guest's kernel and agent have their own, which a disk must not hide.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/run/microagent", "/sys"];

/// Looks at the wiring of `spec` without touching the host's ports or the disks' locks.
///
/// # Errors
/// [`Error::BadSpec`] naming the field.
pub(crate) fn validate(spec: &LaunchSpec) -> Result<(), Error> {
    most("disks", spec.disks.len(), MAX_DISKS)?;
    most("publish", spec.publish.len(), MAX_PUBLISHED)?;
    most("mediation", spec.mediation.len(), MAX_MEDIATION)?;
    once("disks", "name", spec.disks.iter().map(|disk| &disk.name))?;
    let mountpoints = spec.disks.iter().map(|disk| &disk.mountpoint);
    once("disks", "mount point", mountpoints)?;
    for disk in &spec.disks {
        let within = |taken: &&&str| {
            let rest = disk.mountpoint.as_str().strip_prefix(**taken);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(taken) = TAKEN.iter().find(within) {
            return Err(Error::spec(
                "disks",
                format!(
                    "mounts {} at {}, which would hide the guest's own {taken}; choose another \
                     mount point",
                    disk.name, disk.mountpoint
                ),
            ));
        }
        let regular = disk.path.is_absolute()
            && fs::metadata(&disk.path)
                .map_err(Error::file("look at the disk", &disk.path))?
                .is_file();
        if !regular {
            return Err(Error::spec(
                "disks",
                format!(
                    "names {} for {}, which is not the absolute path of a regular file",
                    disk.path.display(),
                    disk.name
                ),
            ));
        }
    }
    if spec.publish.iter().any(|port| port.guest_port == 0) {
        return Err(Error::spec("publish", "has the guest port 0"));
    }
    let low = |route: &&MediationRoute| route.port < MediationRoute::MIN_PORT;
    if let Some(route) = spec.mediation.iter().find(low) {
        return Err(Error::spec(
            "mediation",
            format!(
                "has the port {}; those below {} are microagent's own",
                route.port,
                MediationRoute::MIN_PORT
            ),
        ));
    }
    let ports = spec.mediation.iter().map(|route| route.port);
    once("mediation", "port", ports)
}

fn most(field: &'static str, count: usize, most: usize) -> Result<(), Error> {
    if count <= most {
        return Ok(());
    }
    Err(Error::spec(
        field,
        format!("has {count} entries, and {most} are the most"),
    ))
}

fn once<T: Eq + Hash + std::fmt::Display>(
    field: &'static str,
    what: &str,
    items: impl Iterator<Item = T>,
) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for item in items {
        let shown = item.to_string();
        if !seen.insert(item) {
            return Err(Error::spec(field, format!("has the {what} {shown} twice")));
        }
    }
    Ok(())
}
