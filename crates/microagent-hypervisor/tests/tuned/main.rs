//! Devices that guest kernels of `kernel build` have drivers for, and our drivers do not use (all): QEMU is run as it
//! is, with a PID 1 that is spoken to over the virtio console.
//!
//! It takes a kernel that takes long to build: `cargo xtask kernel test` builds it and names it here.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use microagent_hypervisor::measure_tsc_khz;
use serde_json::{Value, json};
use testkit::require;

const INIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tuned/init.c");
/// Enough for an emulated machine on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY: u64 = 256;

/// A machine type, and how its devices are reached.
struct Machine {
    program: &'static str,
    package: &'static str,
    machine: &'static str,
    /// The end of the names of its devices.
    bus: &'static str,
    console: &'static str,
    compiler: &'static str,
}

const X86_64: [Machine; 2] = [
    Machine {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        machine: "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,x-option-roms=off,auto-kernel-cmdline=off",
        bus: "device",
        console: "ttyS0",
        compiler: "cc",
    },
    Machine {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        machine: "q35",
        bus: "pci",
        console: "ttyS0",
        compiler: "cc",
    },
];

const AARCH64: [Machine; 2] = [
    Machine {
        program: "qemu-system-aarch64",
        package: "qemu-system-arm",
        machine: "virt,gic-version=max",
        bus: "device",
        console: "ttyAMA0",
        compiler: "aarch64-linux-gnu-gcc",
    },
    Machine {
        program: "qemu-system-aarch64",
        package: "qemu-system-arm",
        machine: "virt,gic-version=max",
        bus: "pci",
        console: "ttyAMA0",
        compiler: "aarch64-linux-gnu-gcc",
    },
];

impl Machine {
    /// What its kernel is told, as our driver does.
    fn line(&self) -> String {
        let clock = measure_tsc_khz().filter(|_| self.console == "ttyS0");
        let clock =
            clock.map(|khz| format!(" tsc=reliable tsc_early_khz={khz} no_timer_check reboot=t"));
        format!("console={}{}", self.console, clock.unwrap_or_default())
    }
}

#[test]
#[ignore = "takes a kernel that takes long to build: cargo xtask kernel test"]
fn devices_that_our_drivers_do_not_use_are_driven() {
    let kernel = std::env::var_os("MICROAGENT_TUNED_KERNEL")
        .map(PathBuf::from)
        .expect("MICROAGENT_TUNED_KERNEL names the kernel; `cargo xtask kernel test` sets it");
    let machines = match &fs::read(&kernel).unwrap()[..64] {
        image if image[56..60] == *b"ARM\x64" => &AARCH64,
        _ => &X86_64,
    };
    for machine in machines {
        eprintln!("{} with virtio-*-{}", machine.machine, machine.bus);
        let place = tempfile::tempdir().unwrap();
        let mut guest = Guest::boot(machine, &kernel, place.path());
        let release = guest.ask("release");
        assert!(release.contains("-microagent "), "{release}");
        let drivers = guest.ask("drivers");
        for driver in ["virtio_console", "virtio_balloon", "virtio_rng", "virtiofs"] {
            assert!(drivers.contains(driver), "{driver}: {drivers}");
        }
        assert!(!drivers.contains("nobody"), "{drivers}");
        shares(&mut guest, place.path());
        inflates(&mut guest);
        gives_back(&mut guest);
        guest.end();
    }
}

/// What one side writes the other reads.
fn shares(guest: &mut Guest, place: &Path) {
    let shared = place.join("shared");
    fs::write(shared.join("from-host"), "of the host").unwrap();
    assert_eq!(guest.ask("share files"), "ok");
    assert_eq!(guest.ask("read /share/from-host"), "of the host");
    assert_eq!(guest.ask("write /share/from-guest of-the-guest"), "ok");
    let written = fs::read_to_string(shared.join("from-guest")).unwrap();
    assert_eq!(written, "of-the-guest");
}

/// A balloon takes memory from the guest, and gives it back.
fn inflates(guest: &mut Guest) {
    let memory = |guest: &mut Guest| guest.ask("memory").parse::<u64>().unwrap() / 1024;
    let all = memory(guest);
    guest.balloon(MEMORY / 2);
    let less = wait("the balloon is inflated", || {
        let now = memory(guest);
        (now + MEMORY / 2 <= all).then_some(now)
    });
    guest.balloon(MEMORY);
    wait("the balloon is empty", || {
        (memory(guest) == all).then_some(())
    });
    eprintln!("MemTotal: {all} MiB, {less} with a balloon");
}

/// What the guest frees is the host's again, and nobody asked for it.
fn gives_back(guest: &mut Guest) {
    const TAKEN: u64 = 96;
    let before = guest.resident();
    assert_eq!(guest.ask(&format!("take {TAKEN}")), "ok");
    let taken = guest.resident();
    assert!(taken >= before + TAKEN - 16, "{before} and {taken} MiB");
    assert_eq!(guest.ask("give"), "ok");
    let after = wait("freed memory is reported", || {
        let now = guest.resident();
        (now + TAKEN * 3 / 4 <= taken).then_some(now)
    });
    eprintln!("the host's memory: {before} MiB, {taken} while taken, {after} after");
}

fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(start.elapsed() < PATIENCE, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A program that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of words for a line of words.
struct Channel(BufReader<UnixStream>);

impl Channel {
    fn accept(listener: &UnixListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let stream = wait("QEMU connects", || listener.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, words: &str) {
        self.0
            .get_mut()
            .write_all(format!("{words}\n").as_bytes())
            .unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

struct Guest {
    qemu: Ended,
    console: Channel,
    control: Channel,
    _files: Ended,
}

impl Guest {
    fn boot(machine: &Machine, kernel: &Path, place: &Path) -> Self {
        for (program, package) in [
            (machine.program, machine.package),
            (machine.compiler, "gcc or gcc-aarch64-linux-gnu"),
            ("cpio", "cpio"),
        ] {
            require(program, package);
        }
        let shared = place.join("shared");
        fs::create_dir(&shared).unwrap();
        let [console, control, files] = ["console", "control", "files"].map(|it| place.join(it));
        let listen = |path: &Path| UnixListener::bind(path).unwrap();
        let (consoles, controls) = (listen(&console), listen(&control));
        let daemon = share(&shared, &files);
        let chardev = |id: &str, path: &Path| format!("socket,id={id},path={}", path.display());
        let device = |kind: &str, more: &str| format!("{kind}-{}{more}", machine.bus);
        let mut qemu = Command::new(machine.program);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-accel", "tcg", "-cpu", "max", "-machine", machine.machine])
        .args([
            "-m",
            &format!("{MEMORY}M"),
            "-machine",
            "memory-backend=ram",
        ])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=ram,size={MEMORY}M,share=on"),
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs(machine, place))
        .args([
            "-append",
            &format!("{} panic=-1 cryptomgr.notests", machine.line()),
        ])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args([
            "-serial",
            &format!("file:{}", place.join("serial").display()),
        ])
        .args([
            "-chardev",
            &chardev("control", &control),
            "-mon",
            "chardev=control,mode=control",
        ])
        .args([
            "-chardev",
            &chardev("console", &console),
            "-device",
            &device("virtio-serial", ""),
        ])
        .args([
            "-device",
            "virtconsole,chardev=console",
            "-device",
            &device("virtio-rng", ""),
        ])
        .args([
            "-device",
            &device("virtio-balloon", ",free-page-reporting=on"),
        ])
        .args(["-chardev", &chardev("files", &files)])
        .args([
            "-device",
            &device("vhost-user-fs", ",chardev=files,tag=files"),
        ])
        .stdin(Stdio::null());
        let qemu = Ended(qemu.spawn().unwrap());
        let mut guest = Self {
            qemu,
            control: Channel::accept(&controls),
            console: Channel::accept(&consoles),
            _files: daemon,
        };
        assert!(guest.control.hear().contains("QMP"));
        guest.command("qmp_capabilities", &json!({}));
        let here = guest.console.hear();
        let serial = || fs::read_to_string(place.join("serial")).unwrap_or_default();
        assert_eq!(here, "here", "{}", serial());
        guest
    }

    fn ask(&mut self, question: &str) -> String {
        self.console.say(question);
        self.console.hear()
    }

    fn command(&mut self, name: &str, arguments: &Value) {
        let command = json!({"execute": name, "arguments": arguments});
        self.control.say(&command.to_string());
        // What it tells besides are events.
        loop {
            let answer: Value = serde_json::from_str(&self.control.hear()).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return;
            }
        }
    }

    /// Leaves the guest so many MiB.
    fn balloon(&mut self, left: u64) {
        self.command("balloon", &json!({"value": left << 20}));
    }

    /// The guest's memory that the host holds, in MiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.qemu.0.id())).unwrap();
        let shared = status
            .lines()
            .find_map(|line| line.strip_prefix("RssShmem:"));
        let kib = shared.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() / 1024
    }

    fn end(mut self) {
        self.console.say("end");
        let status = wait("the machine ends", || self.qemu.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

/// The host's side of virtio-fs.
fn share(directory: &Path, socket: &Path) -> Ended {
    // Debian keeps it out of the PATH: QEMU's own until 7.2, and a package of its own since.
    let program = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
    let program = program.into_iter().find(|path| Path::new(path).exists());
    let program = program.expect("install qemu-system-common or virtiofsd");
    let mut daemon = Command::new(program);
    match program {
        "/usr/lib/qemu/virtiofsd" => daemon
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", directory.display())]),
        _ => daemon
            .arg(format!("--socket-path={}", socket.display()))
            .arg(format!("--shared-dir={}", directory.display())),
    };
    let daemon = Ended(
        daemon
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait("virtiofsd listens", || socket.exists().then_some(()));
    daemon
}

/// PID 1 and nothing else.
fn initramfs(machine: &Machine, place: &Path) -> PathBuf {
    let root = place.join("root");
    fs::create_dir_all(root.join("dev")).unwrap();
    let mut compile = Command::new(machine.compiler);
    compile.args(["-static", "-O1", "-Wall", "-Werror", INIT, "-o"]);
    assert!(compile.arg(root.join("init")).status().unwrap().success());
    let archive = place.join("initramfs");
    let pack = format!("find . | cpio -o -H newc --quiet > {}", archive.display());
    let mut pack_up = Command::new("sh");
    pack_up.args(["-c", &pack]).current_dir(&root);
    assert!(pack_up.status().unwrap().success());
    archive
}
