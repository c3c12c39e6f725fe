//! A machine's files, and what is seen of a machine there.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use microagent_disk::DiskList;
use microagent_hypervisor::{
    ConsoleSpec, DiskForm, DiskSpec, MachineSpec, VsockSpec,
    firecracker::{Firecracker, FirecrackerBinary, FirecrackerMachine},
};
use microagent_protocol::{ConfinementMode, Mebibytes, NetworkMode, VcpuCount};
use serde_json::Value;

use crate::fake;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A machine's files in a directory of their own.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: MachineSpec,
}

impl Place {
    pub(crate) fn new(behaviour: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("fc")
            .tempdir_in("/tmp")
            .unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["run", "snapshots"] {
            fs::create_dir(at(name)).unwrap();
        }
        let disk = |name: &str, read_only| {
            fs::write(at(name), name).unwrap();
            DiskSpec {
                path: at(name),
                form: DiskForm::Raw,
                serial: name.to_owned(),
                read_only,
            }
        };
        // In two files, which this backend cannot join.
        let mut list = DiskList::new();
        for (name, digest) in [("one", "1"), ("two", "2")] {
            fs::write(at(name), name.repeat(512)).unwrap();
            assert!(list.push(name, &digest.repeat(64), 512, 1024));
        }
        fs::write(at("base.vmdk"), list.text()).unwrap();
        let base = DiskSpec {
            path: at("base.vmdk"),
            form: DiskForm::Joined,
            serial: "base".to_owned(),
            read_only: true,
        };
        fs::write(at("kernel"), "kernel").unwrap();
        fs::write(at("initramfs"), "initramfs").unwrap();
        let spec = MachineSpec {
            name: behaviour.to_owned(),
            memory: Mebibytes(256),
            vcpus: VcpuCount::try_from(2).unwrap(),
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            disks: vec![base, disk("scratch", false)],
            network: NetworkMode::Isolated,
            confinement: ConfinementMode::Auto,
            vsock: VsockSpec {
                cid: 3,
                uds: at("run/v"),
            },
            console: ConsoleSpec {
                log: at("console.log"),
                limit: 64 * 1024,
            },
            runtime_dir: at("run"),
            attempt: 0,
        };
        Self { dir, spec }
    }

    /// This program under another name.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if !path.exists() {
            // What it may execute is a file of its own.
            let this = std::env::current_exe().unwrap();
            if fs::hard_link(&this, &path).is_err() {
                testkit::executable(&path, &fs::read(&this).unwrap());
            }
        }
        path
    }

    pub(crate) fn driver(&self) -> Firecracker {
        Firecracker::new(FirecrackerBinary::at(&self.program("firecracker")).unwrap())
            .start_limit(SOON)
    }

    pub(crate) fn launch(&self) -> FirecrackerMachine {
        self.driver()
            .launch_firecracker(&self.spec)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// What was asked: method, path, body.
    pub(crate) fn requests(&self) -> Vec<(String, String, Value)> {
        let text = fs::read_to_string(self.spec.runtime_dir.join(fake::REQUESTS)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) fn body(&self, path: &str) -> Value {
        let requests = self.requests();
        let found = requests.into_iter().rfind(|(_, asked, _)| asked == path);
        found.unwrap_or_else(|| panic!("{path} was not asked")).2
    }

    pub(crate) fn console(&self) -> String {
        fs::read_to_string(&self.spec.console.log).unwrap_or_default()
    }

    /// What is left of a machine that is gone.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        fs::read_dir(&self.spec.runtime_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != fake::REQUESTS)
            .collect()
    }
}

pub(crate) fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !there() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
