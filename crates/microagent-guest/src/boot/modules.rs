//! Kernel modules: load what the initramfs lists, what the boot waits for first. One after the other:
//! under emulation two at a time took longer than both in turn.

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags, openat},
    system::finit_module,
};

use crate::{
    console,
    error::{Context, Error},
};

/// More than any closure of the modules a machine needs.
const MOST_MODULES: usize = 256;

/// The devices of a PCI bus; none on machines that have no such bus.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// What a module is for, which says when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What others build on, and whatever is not known here: first of all.
    Ground,
    /// The disks.
    Disks,
    /// The connection to the host.
    Link,
    /// The root, once its disks are mounted.
    Root,
    /// The network, once the host is asked how it is configured.
    Network,
    /// Nothing in the boot waits for it.
    Late,
    /// Nobody waits for it: loaded when the machine has been ready for a while.
    Afterwards,
}

impl Purpose {
    fn of(module: &str) -> Self {
        match module {
            "virtio_blk" => Self::Disks,
            "overlay" => Self::Root,
            "vsock" | "vmw_vsock_virtio_transport_common" | "vmw_vsock_virtio_transport" => {
                Self::Link
            }
            "failover" | "net_failover" | "virtio_net" => Self::Network,
            "rng_core" | "virtio_rng" => Self::Late,
            "virtio_balloon" => Self::Afterwards,
            _ => Self::Ground,
        }
    }
}

/// The modules of the initramfs. They stay in reach after the root has changed.
#[derive(Debug)]
pub(crate) struct Modules {
    folder: Option<OwnedFd>,
    /// File names, in an order that suits their dependencies.
    names: Vec<String>,
}

impl Modules {
    /// Reads which modules `folder` has and in what order its file `order` wants them.
    pub(crate) fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("order");
        let order = match std::fs::read_to_string(&path) {
            Ok(order) => order,
            // A kernel with everything built in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    folder: None,
                    names: Vec::new(),
                });
            }
            Err(error) => return Err(error).context(format_args!("read {}", path.display())),
        };
        let pci = std::fs::read_dir(PCI_DEVICES).is_ok_and(|mut devices| devices.next().is_some());
        let names = parse_order(&order)?
            .into_iter()
            .filter(|name| pci || !module_of(name).starts_with("virtio_pci"))
            .map(str::to_owned)
            .collect();
        let file = File::open(folder).context(format_args!("open {}", folder.display()))?;
        Ok(Self {
            folder: Some(file.into()),
            names,
        })
    }

    /// Loads those for `purpose`. What does not load is left for [`Self::retry`].
    pub(crate) fn load(&self, purpose: Purpose) -> Vec<&str> {
        self.names
            .iter()
            .map(String::as_str)
            .filter(|name| Purpose::of(module_of(name)) == purpose)
            .filter(|name| self.load_one(name).is_err())
            .collect()
    }

    /// Tries again what failed while other modules were still being loaded.
    /// What still fails is reported and left out: what needed it says so
    /// itself, and some (processor-specific checksums) are only there to be tried.
    pub(crate) fn retry(&self, failed: &[&str]) {
        for name in failed {
            if let Err(error) = self.load_one(name) {
                console::say(format_args!("load the module {name}: {error}"));
            }
        }
    }

    fn load_one(&self, name: &str) -> io::Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let file = openat(
            folder,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        match finit_module(file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// `overlay` of `007-overlay.ko`.
fn module_of(file: &str) -> &str {
    let name = file.split_once('-').map_or(file, |(_, name)| name);
    name.strip_suffix(".ko").unwrap_or(name)
}

/// The file names of an order file: one a line, empty lines skipped.
fn parse_order(text: &str) -> Result<Vec<&str>, Error> {
    let names: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let malformed = |why: String| Error::Malformed {
        what: "the module order".to_owned(),
        why,
    };
    if names.len() > MOST_MODULES {
        return Err(malformed(format!(
            "it lists more than {MOST_MODULES} modules"
        )));
    }
    if let Some(name) = names
        .iter()
        .find(|name| name.contains('/') || name.starts_with('.'))
    {
        return Err(malformed(format!("{name:?} is no plain file name")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_blank_lines_are_not_modules() {
        let names = parse_order("000-virtio.ko\n\n001-virtio_ring.ko \n").unwrap();
        assert_eq!(names, ["000-virtio.ko", "001-virtio_ring.ko"]);
        assert!(parse_order("").unwrap().is_empty());
    }

    #[test]
    fn only_plain_names_of_a_sane_number_are_taken() {
        for bad in ["../x.ko", "a/b.ko", ".", &"x\n".repeat(MOST_MODULES + 1)] {
            assert!(
                matches!(parse_order(bad), Err(Error::Malformed { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_folder_without_an_order_has_no_modules() {
        let folder = tempfile::tempdir().unwrap();
        let modules = Modules::read(folder.path()).unwrap();
        assert!(modules.names.is_empty());
        assert!(modules.load(Purpose::Ground).is_empty());
    }

    #[test]
    fn what_is_not_known_comes_first() {
        for (file, purpose) in [
            ("000-virtio_ring.ko", Purpose::Ground),
            ("virtio_mmio.ko", Purpose::Ground),
            ("006-virtio_blk.ko", Purpose::Disks),
            ("007-overlay.ko", Purpose::Root),
            ("009-vmw_vsock_virtio_transport.ko", Purpose::Link),
            ("012-virtio_net.ko", Purpose::Network),
            ("014-virtio_rng.ko", Purpose::Late),
            ("015-virtio_balloon.ko", Purpose::Afterwards),
            ("013-something-new.ko", Purpose::Ground),
        ] {
            assert_eq!(Purpose::of(module_of(file)), purpose, "{file}");
        }
    }

    #[test]
    fn a_module_that_is_missing_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("order"), "000-virtio_blk.ko\n").unwrap();
        let modules = Modules::read(folder.path()).unwrap();
        assert_eq!(modules.load(Purpose::Disks), ["000-virtio_blk.ko"]);
        assert!(modules.load(Purpose::Late).is_empty());
    }
}
