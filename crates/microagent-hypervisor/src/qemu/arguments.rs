//! QEMU's command line, built from typed parts. No shell ever reads it, and
//! no part can end its own option: commas are doubled as QEMU wants.

use std::{
    ffi::OsString,
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use microagent_protocol::{Mebibytes, NetworkMode};
use serde_json::json;

use super::{Accelerator, MachineType, disks::OpenDisk, kernel_line::kernel_line};
use crate::{
    DiskSpec, Error, MachineSpec,
    network::{IPV4, MAC, tap::TAP},
};

/// The descriptors QEMU inherits, by number.
pub(super) struct Descriptors<'a> {
    pub qmp: RawFd,
    pub console: RawFd,
    /// One for each of [`MachineSpec::disks`], opened as the disk demands.
    pub disks: &'a [OpenDisk],
    /// The connection to our vhost-user vsock device.
    pub vsock: Option<RawFd>,
    /// What its network card is on.
    pub network: Card,
}

/// What a network card is on.
#[derive(Clone, Copy)]
pub(super) enum Card {
    /// QEMU's own network.
    Own,
    /// The wire to the relay of its network.
    Wire(RawFd),
    /// The tap in its namespace.
    Tap,
}

/// Files QEMU reads by name.
pub(super) struct BootFiles<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
}

/// The name of the network card, for QMP's `set_link`.
pub(super) const NETWORK_DEVICE: &str = "nic0";

/// Builds the whole command line.
pub(super) fn arguments(
    spec: &MachineSpec,
    machine: MachineType,
    accelerator: Accelerator,
    descriptors: &Descriptors<'_>,
    files: &BootFiles<'_>,
) -> Result<Vec<OsString>, Error> {
    let mut line = Line::default();
    line.option(
        "-name",
        Value::of("").key("process", process_name(&spec.name)),
    );
    line.flag("-no-reboot");
    line.bare();
    line.option("-machine", machine_value(machine));
    if machine == MachineType::Virt {
        // Its transports are of the first virtio otherwise, which no vhost-user device speaks.
        line.option(
            "-global",
            Value::of("").key("virtio-mmio.force-legacy", "false"),
        );
    }
    line.option("-accel", accelerator_value(accelerator, spec.memory));
    line.option(
        "-cpu",
        match (accelerator, machine) {
            (Accelerator::Kvm, MachineType::Plain) => Value::of("host")
                .key("migratable", "no")
                .key("arch-capabilities", "off"),
            (Accelerator::Kvm, _) => Value::of("host"),
            (Accelerator::Tcg { .. }, _) => Value::of("max"),
        },
    );
    if machine == MachineType::Plain {
        line.option("-device", Value::of("i8042"));
    }
    line.option("-smp", Value::of(&spec.vcpus.get().to_string()));
    line.option("-m", Value::of(&format!("{}M", spec.memory.0)));
    line.json(
        "-object",
        &json!({
            "qom-type": "memory-backend-memfd",
            "id": "ram",
            "size": spec.memory.bytes(),
            // The vsock device of this process maps it too.
            "share": true,
            "seal": true,
        }),
    );
    line.option("-kernel", Value::path(files.kernel));
    line.option("-initrd", Value::path(files.initramfs));
    line.text("-append", &kernel_line(machine, accelerator));

    line.control(descriptors.qmp);
    line.option(
        "-chardev",
        Value::of("socket")
            .key("id", "console")
            .key("fd", descriptors.console),
    );
    line.option("-serial", Value::of("chardev:console"));

    let mut bus = Bus { machine, next: 0 };
    if descriptors.disks.len() != spec.disks.len() {
        return Err(Error::Invalid("a disk was not opened".to_owned()));
    }
    for (at, (disk, open)) in spec.disks.iter().zip(descriptors.disks).enumerate() {
        check_serial(disk)?;
        for (set, fd) in open.sets() {
            line.option("-add-fd", Value::of("").key("fd", fd).key("set", set));
        }
        let name = format!("disk{at}");
        line.json("-blockdev", &open.block_device(&name));
        line.json(
            "-device",
            &bus.device("virtio-blk", json!({"drive": name, "serial": disk.serial}))?,
        );
    }
    if let Some(fd) = descriptors.vsock {
        line.option(
            "-chardev",
            Value::of("socket").key("id", "vsock").key("fd", fd),
        );
        line.json(
            "-device",
            &bus.device("vhost-user-vsock", json!({"chardev": "vsock"}))?,
        );
    }
    line.json(
        "-object",
        &json!({"qom-type": "rng-random", "id": "rng", "filename": "/dev/urandom"}),
    );
    line.json("-device", &bus.device("virtio-rng", json!({"rng": "rng"}))?);
    if spec.network == NetworkMode::User {
        line.option("-netdev", network_backend(descriptors.network));
        line.json(
            "-device",
            &bus.device(
                "virtio-net",
                json!({"id": NETWORK_DEVICE, "netdev": "net", "mac": MAC}),
            )?,
        );
    }
    // Never inflated: what the guest frees goes back to the host by it.
    line.json(
        "-device",
        &bus.device("virtio-balloon", json!({"free-page-reporting": true}))?,
    );
    Ok(line.words)
}

fn network_backend(card: Card) -> Value {
    match card {
        Card::Tap => Value::of("tap")
            .key("id", "net")
            .key("ifname", TAP)
            .key("script", "no")
            .key("downscript", "no"),
        Card::Wire(fd) => Value::of("stream")
            .key("id", "net")
            .key("server", "off")
            .key("addr.type", "fd")
            .key("addr.str", fd),
        Card::Own => Value::of("user")
            .key("id", "net")
            .key("restrict", "off")
            .key("ipv6", "off")
            .key("net", format!("{}/{}", IPV4.network, IPV4.prefix))
            .key("host", IPV4.gateway)
            .key("dns", IPV4.dns)
            .key("dhcpstart", IPV4.guest),
    }
}

/// A QEMU without a machine, which waits for commands.
pub(super) fn idle_arguments(qmp: RawFd) -> Vec<OsString> {
    let mut line = Line::default();
    line.bare();
    line.option("-machine", Value::of("none"));
    line.control(qmp);
    line.words
}

/// The title in process lists: what the kernel keeps of a thread name is 15 bytes.
fn process_name(name: &str) -> String {
    let safe: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(12)
        .collect();
    format!("vm-{safe}")
}

fn machine_value(machine: MachineType) -> Value {
    match machine {
        // Timer, interrupt controller and clock are off by default, which only
        // works with KVM's paravirtual ones; option ROMs are for booting disks.
        MachineType::Microvm => Value::of("microvm")
            .key("acpi", "on")
            .key("pit", "on")
            .key("pic", "on")
            .key("rtc", "on")
            .key("isa-serial", "on")
            .key("x-option-roms", "off")
            .key("auto-kernel-cmdline", "off"),
        MachineType::Q35 => Value::of("q35")
            .key("usb", "off")
            .key("sata", "off")
            .key("smbus", "off")
            .key("vmport", "off")
            .key("hpet", "off")
            .key("smm", "off"),
        MachineType::Plain => Value::of("microvm")
            .key("acpi", "off")
            .key("pit", "on")
            .key("pic", "on")
            .key("rtc", "on")
            .key("isa-serial", "on")
            .key("x-option-roms", "off")
            .key("auto-kernel-cmdline", "on"),
        MachineType::Virt => Value::of("virt").key("gic-version", "max"),
    }
    .key("memory-backend", "ram")
    .key("mem-merge", "off")
    .key("dump-guest-core", "off")
}

fn accelerator_value(accelerator: Accelerator, memory: Mebibytes) -> Value {
    match accelerator {
        Accelerator::Kvm => Value::of("kvm"),
        Accelerator::Tcg { .. } => Value::of("tcg")
            .key("thread", "multi")
            .key("tb-size", translations(memory)),
    }
}

/// How many MiB of translated code are kept. QEMU keeps 1 GiB, whatever the guest has, and fills it: each
/// program is translated anew wherever it is loaded. A boot takes some 55 MiB; in 64 MiB small programs take
/// about as long as in 1 GiB, and in 32 MiB a fifth longer.
fn translations(memory: Mebibytes) -> u32 {
    (memory.0 / 4).clamp(64, 256)
}

fn check_serial(disk: &DiskSpec) -> Result<(), Error> {
    let serial = &disk.serial;
    let good = (1..=20).contains(&serial.len())
        && serial
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if good {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{serial:?} is no disk serial; use 1 to 20 of a-z, 0-9 and -"
        )))
    }
}

/// Places for virtio devices.
struct Bus {
    machine: MachineType,
    next: u32,
}

impl Bus {
    /// virtio-mmio transports of `microvm` with its second interrupt controller
    /// (24, of which the first does not work), less a reserve; `virt` has 32.
    const PLACES: u32 = 22;

    /// One device of a family, in this machine's form, at the next place: the
    /// guest finds them in the order they are added.
    fn device(
        &mut self,
        family: &str,
        properties: serde_json::Value,
    ) -> Result<serde_json::Value, Error> {
        if self.next >= Self::PLACES {
            return Err(Error::Unsupported(format!(
                "QEMU has room for {} devices in a machine, and it has more; attach fewer disks",
                Self::PLACES
            )));
        }
        let serde_json::Value::Object(mut device) = properties else {
            return Err(Error::Invalid(
                "a device's properties are no map".to_owned(),
            ));
        };
        match self.machine {
            MachineType::Microvm | MachineType::Plain | MachineType::Virt => {
                device.insert("driver".to_owned(), json!(format!("{family}-device")));
                // No bus is named: QEMU fills the transports from the last one down,
                // which is the order Linux finds them in. Naming the first one
                // (interrupt line 24) gives a device whose interrupts never come.
            }
            MachineType::Q35 => {
                device.insert("driver".to_owned(), json!(format!("{family}-pci")));
                device.insert("addr".to_owned(), json!(format!("{:x}", self.next + 2)));
                if family == "virtio-net" {
                    device.insert("romfile".to_owned(), json!(""));
                }
                if family != "vhost-user-vsock" {
                    device.insert("disable-legacy".to_owned(), json!("on"));
                }
            }
        }
        self.next += 1;
        Ok(device.into())
    }
}

#[derive(Default)]
struct Line {
    words: Vec<OsString>,
}

impl Line {
    /// Nothing that was not asked for, and its filter of system calls.
    fn bare(&mut self) {
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        self.option("-display", Value::of("none"));
        self.option(
            "-sandbox",
            Value::of("on")
                .key("obsolete", "deny")
                .key("elevateprivileges", "deny")
                .key("spawn", "deny")
                .key("resourcecontrol", "deny"),
        );
    }

    /// Its control channel.
    fn control(&mut self, fd: RawFd) {
        self.option(
            "-chardev",
            Value::of("socket").key("id", "qmp").key("fd", fd),
        );
        self.option(
            "-mon",
            Value::of("").key("chardev", "qmp").key("mode", "control"),
        );
    }

    fn flag(&mut self, name: &str) {
        self.words.push(name.into());
    }

    fn option(&mut self, name: &str, value: Value) {
        self.words.push(name.into());
        self.words.push(value.0);
    }

    /// A value that QEMU does not split.
    fn text(&mut self, name: &str, value: &str) {
        self.words.push(name.into());
        self.words.push(value.into());
    }

    fn json(&mut self, name: &str, value: &serde_json::Value) {
        self.text(name, &value.to_string());
    }
}

/// One option's value: a first word and keys.
struct Value(OsString);

impl Value {
    fn of(first: &str) -> Self {
        Self(doubled(first.as_bytes()))
    }

    /// A whole value that is a file's name, taken as it is.
    fn path(path: &Path) -> Self {
        Self(path.as_os_str().to_owned())
    }

    fn key(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(",");
        }
        self.0.push(key);
        self.0.push("=");
        self.0.push(doubled(value.to_string().as_bytes()));
        self
    }
}

fn doubled(value: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for byte in std::ffi::OsStr::from_bytes(value).as_bytes() {
        out.push(*byte);
        if *byte == b',' {
            out.push(b',');
        }
    }
    OsString::from_vec(out)
}
