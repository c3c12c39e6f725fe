//! A QEMU guest with the vsock modules and the fixture as PID 1, attached to a [`VsockDevice`].

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use microagent_hypervisor::vsock::{self, VsockConfig, VsockDevice};
use tempfile::TempDir;

const MODULES: [&str; 6] = [
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_mmio.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];

/// One VM at a time: the tests of this file share two CPUs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) struct Guest {
    pub(crate) device: VsockDevice,
    pub(crate) uds: PathBuf,
    qemu: Child,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    /// Boots to the fixture's hello.
    pub(crate) fn boot() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = TempDir::new().unwrap();
        let uds = dir.path().join("v");
        let device =
            VsockDevice::spawn(VsockConfig::new(dir.path().join("vhost"), &uds, 7)).unwrap();
        let qemu = start(dir.path());
        Self {
            device,
            uds,
            qemu,
            dir,
            _turn: turn,
        }
    }

    /// Kills the VMM as the kernel would on memory shortage.
    pub(crate) fn kill(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }

    /// Boots another VMM against the same device.
    pub(crate) fn reboot(&mut self) {
        self.qemu = start(self.dir.path());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.qemu.id()
    }

    pub(crate) fn try_connect(&self, port: u32) -> std::io::Result<UnixStream> {
        vsock::connect(&self.uds, port, Instant::now() + Duration::from_secs(20))
    }

    /// A stream on which nothing waits longer than 20 s: a stall is a failure.
    pub(crate) fn connect(&self, port: u32) -> UnixStream {
        let stream = self
            .try_connect(port)
            .unwrap_or_else(|e| panic!("connect {port}: {e}"));
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// One QMP command, answered.
    pub(crate) fn qmp(&self, command: &str) {
        let mut stream = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        for command in ["qmp_capabilities", command] {
            writeln!(stream, r#"{{"execute":"{command}"}}"#).unwrap();
            loop {
                let line = lines.next().unwrap().unwrap();
                assert!(!line.contains(r#""error""#), "{line}");
                if line.contains(r#""return""#) {
                    break;
                }
            }
        }
    }

    pub(crate) fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.console());
            eprintln!("{:?}", self.device.stats());
        }
        // Dead already is as good.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn start(dir: &Path) -> Child {
    let (kernel, initramfs) = assets();
    let listener = vsock::listen(&dir.join("v"), 1000).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "microvm,pit=on,pic=on,rtc=on", "-accel", "tcg", "-cpu", "max", "-m", "256"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-machine", "memory-backend=mem"])
        .arg("-chardev")
        .arg(format!("socket,id=vs,path={}", dir.join("vhost").display()))
        .args(["-device", "vhost-user-vsock-device,chardev=vs"])
        .arg("-serial")
        .arg(format!("file:{}", dir.join("console").display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", dir.join("qmp").display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 no_timer_check tsc_early_khz={} reboot=t panic=-1 quiet cryptomgr.notests",
            tsc_khz()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64 starts (package qemu-system-x86)");
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut hello = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        let console = || fs::read_to_string(dir.join("console")).unwrap_or_default();
        assert!(
            qemu.try_wait().unwrap().is_none(),
            "QEMU ended: {}",
            console()
        );
        if Instant::now() > deadline {
            let _ = qemu.kill();
            panic!("the guest did not boot: {}", console());
        }
    };
    hello.set_nonblocking(false).unwrap();
    hello
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut text = String::new();
    hello.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ready");
    fs::remove_file(dir.join("v_1000")).unwrap();
    qemu
}

/// Kernel image and initramfs, made once per run of the tests.
fn assets() -> &'static (PathBuf, PathBuf) {
    static ASSETS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    ASSETS.get_or_init(|| {
        let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let root = kernel_root(&scratch);
        let kernel = only_match(&root.join("boot"), "vmlinuz-");
        let version = kernel.file_name().unwrap().to_str().unwrap()["vmlinuz-".len()..].to_owned();
        let modules = root.join("lib/modules").join(version).join("kernel");

        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vsock_guest.rs");
        let init = scratch.join("vsock_guest");
        let status = Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "-O",
                "-Ctarget-feature=+crt-static",
                "-Cpanic=abort",
                "-Cstrip=symbols",
                "-o",
            ])
            .arg(&init)
            .arg(fixture)
            .status()
            .expect("rustc runs");
        assert!(status.success(), "the guest fixture builds");

        let mut archive = Vec::new();
        cpio(&mut archive, "init", 0o100_755, &fs::read(init).unwrap());
        for module in MODULES {
            let name = module.rsplit('/').next().unwrap();
            cpio(
                &mut archive,
                name,
                0o100_644,
                &fs::read(modules.join(module)).unwrap(),
            );
        }
        cpio(&mut archive, "dev", 0o040_755, b"");
        // The kernel opens it as init's standard streams.
        cpio(&mut archive, "dev/console", 0o020_600, b"");
        cpio(&mut archive, "TRAILER!!!", 0, b"");
        let initramfs = scratch.join(format!("vsock-initramfs-{}", std::process::id()));
        fs::write(&initramfs, archive).unwrap();
        (kernel, initramfs)
    })
}

/// A directory with `boot/vmlinuz-*` and `lib/modules`: as told, or the distribution's cloud kernel, unpacked once.
fn kernel_root(scratch: &Path) -> PathBuf {
    if let Some(root) = std::env::var_os("MICROAGENT_TEST_KERNEL_ROOT") {
        return root.into();
    }
    let root = scratch.join("kernel");
    if root.join("boot").is_dir() {
        return root;
    }
    let depends = Command::new("apt-cache")
        .args(["depends", "linux-image-cloud-amd64"])
        .output()
        .expect("apt-cache runs (or set MICROAGENT_TEST_KERNEL_ROOT)");
    let depends = String::from_utf8(depends.stdout).unwrap();
    let package = depends
        .split_whitespace()
        .find(|word| {
            word.starts_with("linux-image-")
                && word.ends_with("-cloud-amd64")
                && *word != "linux-image-cloud-amd64"
        })
        .expect("package linux-image-cloud-amd64 is known to apt");
    let download = scratch.join("download");
    fs::create_dir_all(&download).unwrap();
    let status = Command::new("apt-get")
        .args(["download", package])
        .current_dir(&download)
        .status()
        .unwrap();
    assert!(status.success(), "apt-get download {package}");
    let deb = only_match(&download, "linux-image-");
    let partial = scratch.join("kernel.partial");
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .arg(deb)
        .arg(&partial)
        .status()
        .unwrap();
    assert!(status.success(), "dpkg-deb -x");
    fs::rename(partial, &root).unwrap();
    root
}

fn only_match(dir: &Path, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .unwrap_or_else(|| panic!("{prefix}* in {}", dir.display()))
}

/// One entry of a "newc" archive. A device is the console: 5, 1.
fn cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        5,
        1,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The host's time-stamp counter rate: software emulation passes it on and the guest cannot calibrate it reliably.
fn tsc_khz() -> u64 {
    let read = || {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_rdtsc() }
    };
    let (start, began) = (read(), Instant::now());
    while began.elapsed() < Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    (read() - start) * 1_000_000 / began.elapsed().as_nanos() as u64
}
