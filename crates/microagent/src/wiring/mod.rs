//! What connects a workspace's machine besides its root: volumes, published ports, mediation routes.

mod bundle;
mod volume;

use std::{collections::HashSet, path::Path};

use microagent_protocol::{
    ExtraDisk, MediationRoute, PublishedPort,
    wiring::{MAX_DISKS, MAX_MEDIATION, MAX_PUBLISHED},
};
use serde::{Deserialize, Serialize};

pub use self::volume::{InvalidVolume, Volume, VolumeSource};
use crate::{
    error::{Error, Result},
    io::EventSink,
};

/// What connects a machine to its host besides its root disks.
///
/// ```
/// use microagent::Wiring;
///
/// let wiring = Wiring::default()
///     .volume("/srv/data.ext4:/data:rw".parse()?)
///     .publish("8080:80".parse()?)
///     .mediation("2048=127.0.0.1:9900".parse()?);
/// # let _ = wiring;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Wiring {
    pub(crate) volumes: Vec<Volume>,
    pub(crate) publish: Vec<PublishedPort>,
    pub(crate) mediation: Vec<MediationRoute>,
}

impl Wiring {
    /// Attaches a volume after those attached so far.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.volumes.push(volume);
        self
    }

    /// Lets a port of the host lead into the guest.
    pub fn publish(mut self, port: PublishedPort) -> Self {
        self.publish.push(port);
        self
    }

    /// Lets programs of the guest reach a server of the host.
    pub fn mediation(mut self, route: MediationRoute) -> Self {
        self.mediation.push(route);
        self
    }

    /// Adds everything of another one after what is there.
    pub fn and(mut self, other: Self) -> Self {
        self.volumes.extend(other.volumes);
        self.publish.extend(other.publish);
        self.mediation.extend(other.mediation);
        self
    }

    /// Looks at everything that can be wrong with it before anything is done.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the option, [`Error::Io`] naming a volume's file.
    pub(crate) fn check(&self) -> Result<()> {
        most("--volume", self.volumes.len(), MAX_DISKS)?;
        most("--publish", self.publish.len(), MAX_PUBLISHED)?;
        most("--mediation", self.mediation.len(), MAX_MEDIATION)?;
        let mountpoints = self.volumes.iter().map(Volume::mountpoint);
        once("--volume", "the mount point", mountpoints)?;
        let names = self.volumes.iter().map(Volume::name);
        once("--volume", "the name", names)?;
        let addresses = self.publish.iter().filter(|port| port.host_port != 0);
        let addresses = addresses.map(PublishedPort::host_address);
        once("--publish", "the host's port", addresses)?;
        let ports = self.mediation.iter().map(|route| route.port);
        once("--mediation", "the port", ports)?;
        self.volumes.iter().try_for_each(Volume::check)
    }

    /// The disks of a workspace in `directory`, where those of bundles are built.
    ///
    /// # Errors
    /// [`Error::Bundle`] naming the archive.
    pub(crate) fn disks(&self, directory: &Path, events: &EventSink) -> Result<Vec<ExtraDisk>> {
        let disks = self.attached(directory);
        for (volume, disk) in self.volumes.iter().zip(&disks) {
            if let VolumeSource::Bundle(archive) = volume.source() {
                bundle::make(volume, archive, &disk.path, events)?;
            }
        }
        Ok(disks)
    }

    /// The same disks, whether those of bundles are built or not.
    pub(crate) fn attached(&self, directory: &Path) -> Vec<ExtraDisk> {
        let disk = |volume: &Volume| ExtraDisk {
            name: volume.name().clone(),
            path: match volume.source() {
                VolumeSource::Disk(path) => path.clone(),
                VolumeSource::Bundle(_) => directory.join(format!("bundle-{}.ext4", volume.name())),
            },
            mountpoint: volume.mountpoint().clone(),
            read_only: volume.is_read_only(),
        };
        self.volumes.iter().map(disk).collect()
    }

    /// Whether the machine writes to a file that outlives it, and so has to end cleanly.
    pub(crate) fn writes_outside(&self) -> bool {
        self.volumes.iter().any(|volume| {
            matches!(volume.source(), VolumeSource::Disk(_)) && !volume.is_read_only()
        })
    }

    /// Whether making the disks takes more than a moment.
    pub(crate) fn has_bundles(&self) -> bool {
        let is_bundle = |volume: &Volume| matches!(volume.source(), VolumeSource::Bundle(_));
        self.volumes.iter().any(is_bundle)
    }
}

fn most(option: &'static str, count: usize, most: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    let reason = format!("it is given {count} times, and {most} are the most");
    Err(Error::invalid(option, reason))
}

fn once<T: Eq + std::hash::Hash + std::fmt::Display>(
    option: &'static str,
    what: &str,
    items: impl Iterator<Item = T>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for item in items {
        let shown = item.to_string();
        if !seen.insert(item) {
            return Err(Error::invalid(
                option,
                format!("{what} {shown} is given twice"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(wiring: &Wiring) -> String {
        wiring.check().unwrap_err().to_string()
    }

    #[test]
    fn what_is_given_twice_is_refused() {
        let volume = |text: &str| text.parse::<Volume>().unwrap();
        let two = Wiring::default()
            .volume(volume("/a.tar:/a"))
            .volume(volume("/b.tar:/a"));
        assert!(refusal(&two).contains("/a is given twice"));
        let ports = Wiring::default()
            .publish("8080:80".parse().unwrap())
            .publish("127.0.0.1:8080:81".parse().unwrap());
        assert!(refusal(&ports).contains("127.0.0.1:8080"));
        let free = Wiring::default()
            .publish("0:80".parse().unwrap())
            .publish("0:80".parse().unwrap());
        free.check().unwrap();
        let routes = Wiring::default()
            .mediation("2048=a:1".parse().unwrap())
            .mediation("2048=b:1".parse().unwrap());
        assert!(refusal(&routes).contains("2048"));
    }

    #[test]
    fn only_disks_of_the_caller_outlive_the_machine() {
        for (text, outlives) in [
            ("/d.ext4:/d:rw", true),
            ("/d.ext4:/d:ro", false),
            ("/d.tar:/d:rw", false),
        ] {
            let wiring = Wiring::default().volume(text.parse().unwrap());
            assert_eq!(wiring.writes_outside(), outlives, "{text}");
        }
    }

    #[test]
    fn bundles_are_built_into_the_workspace_and_disks_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("data.tar");
        let mut tar = tar_of("given", b"given");
        std::fs::write(&archive, &tar).unwrap();
        let workspace = dir.path().join("workspace");
        std::fs::create_dir(&workspace).unwrap();
        let wiring = |mode: &str| {
            let bundle = format!("{}:/data:{mode}", archive.display());
            Wiring::default()
                .volume(bundle.parse().unwrap())
                .volume("/d.ext4:/d".parse().unwrap())
        };
        let events: EventSink = std::sync::Arc::new(|_| {});
        for (mode, length) in [("ro", 0..1 << 20), ("rw", 500 << 20..700 << 20)] {
            let disks = wiring(mode).disks(&workspace, &events).unwrap();
            assert_eq!(disks[0].path, workspace.join("bundle-data.ext4"));
            assert_eq!(disks[0].read_only, mode == "ro");
            assert_eq!(disks[1].path, Path::new("/d.ext4"));
            let built = std::fs::metadata(&disks[0].path).unwrap().len();
            assert!(length.contains(&built), "{built}");
        }
        tar.truncate(700);
        std::fs::write(&archive, tar).unwrap();
        let error = wiring("ro").disks(&workspace, &events).unwrap_err();
        assert!(error.to_string().contains("data.tar"), "{error}");
    }

    /// A tar of one file.
    fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(512) + 1024, 0);
        header
    }
}
