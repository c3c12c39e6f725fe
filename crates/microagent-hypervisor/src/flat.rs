//! Disks for a monitor that takes one file for each.

use microagent_disk::JoinedFile;

use crate::{DiskForm, Error, MachineSpec};

/// The same machine with each disk in one file, as `monitor` cannot join several.
pub(crate) fn with_flat_disks(spec: &MachineSpec, monitor: &str) -> Result<MachineSpec, Error> {
    let mut spec = spec.clone();
    for disk in &mut spec.disks {
        if disk.form == DiskForm::Joined {
            let list = &disk.path;
            let flat = JoinedFile::open(list)
                .and_then(|joined| joined.flat(list))
                .map_err(|source| Error::Io {
                    context: format!(
                        "make one file of the disk {}, as {monitor} cannot join several",
                        list.display()
                    ),
                    source,
                })?;
            (disk.path, disk.form) = (flat, DiskForm::Raw);
        }
    }
    Ok(spec)
}
