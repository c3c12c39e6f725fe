//! Real guests for the driver's tests: the distribution's kernel, and an
//! initramfs with a PID 1 compiled here.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// Each test program uses a part of it.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use microagent_disk::DiskList;
use microagent_host::lock::{Lock, Sharing};
use microagent_hypervisor::{
    ConsoleSpec, DiskForm, DiskSpec, MachineSpec, VsockSpec, measure_tsc_khz,
    qemu::{Accelerator, Qemu, QemuBinary, QemuMachine},
};
use microagent_protocol::{ConfinementMode, Mebibytes, NetworkMode, VcpuCount};

const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Modules a test guest loads, in the order of their dependencies.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];

/// A place the tests share and keep: `MICROAGENT_TEST_CACHE`, or cargo's.
pub(crate) fn cache() -> PathBuf {
    let dir = std::env::var_os("MICROAGENT_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
        PathBuf::from,
    );
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A driver with software emulation.
pub(crate) fn tcg() -> Qemu {
    static BINARY: OnceLock<(QemuBinary, Option<u64>)> = OnceLock::new();
    let (binary, tsc_khz) = BINARY.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap();
        let binary = QemuBinary::find(&path).unwrap_or_else(|error| panic!("{error}"));
        (binary, measure_tsc_khz())
    });
    Qemu::new(binary.clone(), Accelerator::Tcg { tsc_khz: *tsc_khz })
}

/// The distribution's kernel package, unpacked once: (vmlinux, modules' kernel directory).
pub(crate) fn kernel() -> (PathBuf, PathBuf) {
    static KERNEL: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    KERNEL
        .get_or_init(|| {
            let dir = cache().join("hypervisor-kernel");
            fs::create_dir_all(&dir).unwrap();
            // Test programs run at the same time; one of them downloads.
            let lock = File::create(dir.join("lock")).unwrap();
            let _lock = Lock::wait(lock, Sharing::Exclusive, || ()).unwrap();
            let vmlinux = dir.join("vmlinux");
            if !vmlinux.exists() {
                unpack(&dir, &vmlinux);
            }
            let release = fs::read_dir(dir.join("x/lib/modules"))
                .unwrap()
                .next()
                .unwrap()
                .unwrap();
            (vmlinux, release.path().join("kernel"))
        })
        .clone()
}

fn unpack(dir: &Path, vmlinux: &Path) {
    let run = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|error| {
            panic!("{command:?}: {error}; install the packages apt and dpkg")
        });
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let depends = run(Command::new("apt-cache").args(["depends", META_PACKAGE]));
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .expect("the kernel's package name")
        .to_owned();
    run(Command::new("apt-get")
        .args(["download", &package])
        .current_dir(dir));
    let deb = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .unwrap();
    run(Command::new("dpkg-deb")
        .arg("-x")
        .arg(&deb)
        .arg(dir.join("x")));
    let image = fs::read_dir(dir.join("x/boot"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("vmlinuz")
        })
        .unwrap();
    let elf = extract(&fs::read(image).unwrap());
    let temporary = vmlinux.with_extension("tmp");
    fs::write(&temporary, elf).unwrap();
    fs::rename(temporary, vmlinux).unwrap();
}

/// The LZ4 (legacy frame) payload of a bzImage, as Debian packs it.
fn extract(image: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let setup = (usize::from(image[0x1f1]) + 1) * 512;
    let payload = &image[setup + word(0x248)..][..word(0x24c)];
    assert_eq!(
        payload[..4],
        [0x02, 0x21, 0x4c, 0x18],
        "the kernel is not packed with LZ4"
    );
    let mut at = 4;
    let mut out = Vec::new();
    // The last four bytes are the unpacked size, which the kernel build appends.
    while at + 4 < payload.len() {
        let size = u32::from_le_bytes(payload[at..at + 4].try_into().unwrap()) as usize;
        lz4_block(&payload[at + 4..at + 4 + size], &mut out);
        at += 4 + size;
    }
    assert_eq!(out[..4], *b"\x7fELF");
    out
}

fn lz4_block(block: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    let length = |at: &mut usize, nibble: u8| {
        let mut length = usize::from(nibble);
        if nibble == 15 {
            loop {
                let byte = block[*at];
                *at += 1;
                length += usize::from(byte);
                if byte != 255 {
                    break;
                }
            }
        }
        length
    };
    while at < block.len() {
        let token = block[at];
        at += 1;
        let literals = length(&mut at, token >> 4);
        out.extend_from_slice(&block[at..at + literals]);
        at += literals;
        if at == block.len() {
            break;
        }
        let offset = usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
        at += 2;
        let matched = length(&mut at, token & 15) + 4;
        let from = out.len() - offset;
        for n in 0..matched {
            out.push(out[from + n]);
        }
    }
}

/// PID 1, compiled once for each version of its source.
fn init() -> &'static [u8] {
    static INIT: OnceLock<Vec<u8>> = OnceLock::new();
    INIT.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let out = dir.path().join("init");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/init.rs");
        let status = Command::new(rustc)
            .args([
                "--edition=2024",
                "-Ctarget-feature=+crt-static",
                "-Cpanic=abort",
            ])
            .args(["-Copt-level=s", "-Cstrip=symbols", "-o"])
            .arg(&out)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success(), "the test guest's init does not compile");
        fs::read(out).unwrap()
    })
}

/// An initramfs (newc) whose init does what `mode` says.
pub(crate) fn initramfs(mode: &str) -> Vec<u8> {
    packed(mode, MODULES, &BTreeMap::new())
}

fn packed(mode: &str, load: &[&str], files: &BTreeMap<PathBuf, PathBuf>) -> Vec<u8> {
    let mut cpio = Cpio::default();
    cpio.entry("dev", 0o040_755, &[], (0, 0));
    cpio.entry("dev/console", 0o020_600, &[], (5, 1));
    cpio.entry("init", 0o100_755, init(), (0, 0));
    cpio.entry("mode", 0o100_644, mode.as_bytes(), (0, 0));
    let mut list = String::new();
    for module in load {
        let (_, modules) = kernel();
        let name = module.rsplit('/').next().unwrap();
        cpio.entry(
            name,
            0o100_644,
            &fs::read(modules.join(module)).unwrap(),
            (0, 0),
        );
        list.push_str(name);
        list.push('\n');
    }
    cpio.entry("modules", 0o100_644, list.as_bytes(), (0, 0));
    let mut list = String::new();
    for (at, (to, from)) in files.iter().enumerate() {
        let name = format!("file{at}");
        cpio.entry(&name, 0o100_755, &fs::read(from).unwrap(), (0, 0));
        list.push_str(&format!("{name} {}\n", to.display()));
    }
    cpio.entry("files", 0o100_644, list.as_bytes(), (0, 0));
    cpio.entry("TRAILER!!!", 0, &[], (0, 0));
    cpio.0
}

#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        let inode = self.0.len();
        let (size, name_size) = (data.len(), name.len() + 1);
        let (major, minor) = device;
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0
        );
        self.0.extend(header.as_bytes());
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A machine's files in a directory of their own.
pub(crate) struct Guest {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: MachineSpec,
    /// How long its console is waited for.
    pub(crate) patience: Duration,
}

impl Guest {
    pub(crate) fn new(mode: &str) -> Self {
        Self::with(mode, &kernel().0, MODULES, &BTreeMap::new())
    }

    /// One that runs this test program, with the argument `in-a-guest`, as root.
    pub(crate) fn of_this_program() -> Self {
        let program = std::env::current_exe().unwrap();
        let libraries = Command::new("ldd").arg(&program).output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        let mut files: BTreeMap<PathBuf, PathBuf> = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(|library| (library.into(), library.into()))
            .collect();
        files.insert("/program".into(), program);
        let mut guest = Self::with("program", &kernel().0, MODULES, &files);
        guest.spec.memory = Mebibytes(512);
        guest
    }

    /// One for a kernel that has everything built in.
    pub(crate) fn built_in(mode: &str, kernel: &Path) -> Self {
        Self::with(mode, kernel, &[], &BTreeMap::new())
    }

    fn with(
        mode: &str,
        kernel: &Path,
        modules: &[&str],
        files: &BTreeMap<PathBuf, PathBuf>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("run")).unwrap();
        fs::write(path("initramfs"), packed(mode, modules, files)).unwrap();
        let spec = MachineSpec {
            name: format!("test-{mode}"),
            memory: Mebibytes(256),
            vcpus: VcpuCount::try_from(1).unwrap(),
            kernel: kernel.to_owned(),
            initramfs: path("initramfs"),
            disks: Vec::new(),
            network: NetworkMode::Isolated,
            confinement: ConfinementMode::Auto,
            vsock: VsockSpec {
                cid: 3,
                uds: path("run/v.sock"),
            },
            console: ConsoleSpec {
                log: path("console.log"),
                limit: 1024 * 1024,
            },
            runtime_dir: path("run"),
            attempt: 0,
        };
        Self {
            dir,
            spec,
            patience: Duration::from_secs(60),
        }
    }

    pub(crate) fn with_disk(mut self, serial: &str, read_only: bool) -> Self {
        let path = self.dir.path().join(serial);
        let file = File::create(&path).unwrap();
        file.set_len(1024 * 1024).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, serial.as_bytes(), 0).unwrap();
        self.spec.disks.push(DiskSpec {
            path,
            form: DiskForm::Raw,
            serial: serial.to_owned(),
            read_only,
        });
        self
    }

    /// The same, read-only and in two files, the first of which has something else in front.
    pub(crate) fn with_joined_disk(mut self, serial: &str) -> Self {
        let at = |name: &str| self.dir.path().join(name);
        let mut head = vec![b'x'; 512];
        head.extend_from_slice(serial.as_bytes());
        head.resize(1024, 0);
        fs::write(at("head"), head).unwrap();
        fs::write(at("tail"), vec![0; 1024 * 1024 - 512]).unwrap();
        let mut list = DiskList::new();
        assert!(list.push("head", &"0".repeat(64), 512, 512));
        assert!(list.push("tail", &"1".repeat(64), 0, 1024 * 1024 - 512));
        let path = at(serial).with_extension(microagent_disk::EXTENSION);
        fs::write(&path, list.text()).unwrap();
        self.spec.disks.push(DiskSpec {
            path,
            form: DiskForm::Joined,
            serial: serial.to_owned(),
            read_only: true,
        });
        self
    }

    pub(crate) fn launch(&self) -> QemuMachine {
        tcg()
            .launch_qemu(&self.spec)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(&self.spec.console.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until the console shows `text`; the tests' only patience.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + self.patience;
        loop {
            let console = self.console();
            if console.contains(text) {
                return console;
            }
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the console:\n{console}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is in the runtime directory.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.spec.runtime_dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

/// Whether this process number exists, as anything but a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}
