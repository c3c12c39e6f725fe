//! Disks: find each by the serial the host gave it, waiting for late ones.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::error::Error;

/// How long a disk may take to appear.
const WAIT: Duration = Duration::from_secs(10);
/// A virtio-blk serial has at most 20 bytes; this is generous.
const LONGEST_SERIAL: usize = 64;

/// One virtio disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    name: String,
    serial: String,
}

/// Set to `ordered` by a VMM whose disks have serials of its own: the kernel hands words of its
/// command line that it does not know to its first program.
const DISKS: &str = "microagent_disks";

/// The device file of the disk with `serial`; if no disk has any serial, or the VMM says that they
/// mean nothing, the one at `position` in the order of their names.
pub(crate) fn wait_for(serial: &str, position: Option<usize>) -> Result<PathBuf, Error> {
    let ordered = std::env::var_os(DISKS).is_some_and(|value| value == "ordered");
    let deadline = Instant::now() + WAIT;
    let mut pause = Duration::from_micros(500);
    loop {
        let disks = list(Path::new("/sys/block"), ordered).unwrap_or_default();
        if let Some(disk) = choose(&disks, serial, position) {
            let device = Path::new("/dev").join(&disk.name);
            if device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() >= deadline {
            let present: Vec<_> = disks
                .iter()
                .map(|disk| format!("{} {:?}", disk.name, disk.serial))
                .collect();
            return Err(Error::NoDisk {
                serial: serial.to_owned(),
                seconds: WAIT.as_secs(),
                present: if present.is_empty() {
                    "none".to_owned()
                } else {
                    present.join(", ")
                },
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The disks there are, without their serials where those mean nothing.
fn list(folder: &Path, ordered: bool) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        if name.starts_with("vd") {
            // A VMM without serials leaves the file empty or away.
            let mut serial =
                fs::read_to_string(folder.join(&name).join("serial")).unwrap_or_default();
            if ordered {
                serial.clear();
            }
            serial.truncate(serial.trim_end().floor_char_boundary(LONGEST_SERIAL));
            disks.push(Disk { name, serial });
        }
    }
    // vdaa comes after vdz.
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    Ok(disks)
}

fn choose<'a>(disks: &'a [Disk], serial: &str, position: Option<usize>) -> Option<&'a Disk> {
    disks.iter().find(|disk| disk.serial == serial).or_else(|| {
        let nameless = disks.iter().all(|disk| disk.serial.is_empty());
        position
            .filter(|_| nameless)
            .and_then(|position| disks.get(position))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(disks: &[(&str, Option<&str>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, serial) in disks {
            let disk = folder.path().join(name);
            fs::create_dir(&disk).unwrap();
            if let Some(serial) = serial {
                fs::write(disk.join("serial"), serial).unwrap();
            }
        }
        folder
    }

    fn chosen(
        disks: &[(&str, Option<&str>)],
        serial: &str,
        position: Option<usize>,
    ) -> Option<String> {
        let folder = tree(disks);
        let disks = list(folder.path(), false).unwrap();
        choose(&disks, serial, position).map(|disk| disk.name.clone())
    }

    #[test]
    fn serials_decide_whatever_the_order() {
        let disks = [
            ("vda", Some("scratch\n")),
            ("vdb", Some("base")),
            ("loop0", None),
        ];
        assert_eq!(chosen(&disks, "base", Some(0)).as_deref(), Some("vdb"));
        assert_eq!(chosen(&disks, "scratch", Some(1)).as_deref(), Some("vda"));
        assert_eq!(chosen(&disks, "data", None), None);
    }

    #[test]
    fn a_vmms_own_serials_mean_nothing() {
        let folder = tree(&[("vda", Some("65024123")), ("vdb", Some("65024124"))]);
        let disks = list(folder.path(), true).unwrap();
        assert_eq!(choose(&disks, "scratch", Some(1)).unwrap().name, "vdb");
    }

    #[test]
    fn positions_count_only_where_no_disk_has_a_serial() {
        let bare = [("vdb", Some("\n")), ("vda", None), ("vdaa", None)];
        assert_eq!(chosen(&bare, "base", Some(0)).as_deref(), Some("vda"));
        assert_eq!(chosen(&bare, "scratch", Some(1)).as_deref(), Some("vdb"));
        assert_eq!(chosen(&bare, "third", Some(2)).as_deref(), Some("vdaa"));
        assert_eq!(chosen(&bare, "data", None), None);
        let mixed = [("vda", Some("other")), ("vdb", None)];
        assert_eq!(chosen(&mixed, "base", Some(0)), None);
    }
}
