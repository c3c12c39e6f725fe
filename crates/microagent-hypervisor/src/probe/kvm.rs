//! A first look at KVM: what can be said without booting anything.

use std::{
    fs::OpenOptions,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

/// `KVM_GET_API_VERSION`, linux/kvm.h: `_IO(0xAE, 0x00)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
/// The only version there is.
const API_VERSION: i32 = 12;

/// A `/dev/kvm` that opens and answers. That alone proves nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    /// Whether the processor shows `vmx` or `svm`; always true where it has no such flags.
    pub hardware: bool,
}

impl Device {
    pub(super) const fn remedy(self) -> &'static str {
        if self.hardware {
            "see QEMU's words in the detail; in a virtual machine, use one with nested virtualisation"
        } else {
            "use a host, or a virtual machine with nested virtualisation, whose processor shows vmx or svm \
             (on own hardware: enable VT-x or AMD-V in the firmware); until then software emulation serves"
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.hardware {
            "/dev/kvm opens"
        } else {
            "/dev/kvm opens, but the processor shows neither vmx nor svm (a paravirtual KVM)"
        })
    }
}

/// Why there is nothing to try.
pub(super) struct Missing {
    pub reason: String,
    pub remedy: String,
}

/// Opens the device and asks for its version.
#[allow(unsafe_code)]
pub(super) fn look() -> Result<Device, Missing> {
    let missing = |reason: String, remedy: &str| Missing {
        reason,
        remedy: remedy.to_owned(),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/kvm")
        .map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "load the module, as root (modprobe kvm_intel, or modprobe kvm_amd); enable VT-x or AMD-V in \
                     the firmware, or nested virtualisation for this virtual machine"
                }
                io::ErrorKind::PermissionDenied => {
                    "add your user to the group of /dev/kvm (usually, as root: usermod -aG kvm <user>) and log in again"
                }
                _ => "see the kernel's log (dmesg)",
            };
            missing(format!("/dev/kvm does not open: {error}"), remedy)
        })?;
    // SAFETY: this request takes no argument and the descriptor is open.
    let version = unsafe { libc::ioctl(file.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    if version != API_VERSION {
        return Err(missing(
            format!("/dev/kvm answers with interface version {version} instead of {API_VERSION}"),
            "use a kernel whose KVM has the stable interface",
        ));
    }
    Ok(Device {
        hardware: cfg!(not(target_arch = "x86_64")) || shows_virtualisation(),
    })
}

fn shows_virtualisation() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|f| f == "vmx" || f == "svm"))
    })
}
