//! What a machine is, told to a Firecracker that waits for it.

use super::FirecrackerMachine;
use crate::{
    Error, MachineSpec,
    firecracker::{
        Tuning,
        api::{
            Balloon, BootSource, CacheType, Drive, MachineConfiguration, NetworkInterface, Vsock,
        },
    },
    network::{MAC, tap::TAP},
};

/// The guest kernel's command line. Like QEMU's, it holds nothing of a workspace.
///
/// `reboot=k`: the guest ends by a reset through the keyboard controller, at which Firecracker
/// exits; at a power-off it would stay. The disks' serials are Firecracker's own, so the guest
/// takes them by their order.
pub(super) const KERNEL_LINE: &str = if cfg!(target_arch = "aarch64") {
    "console=ttyS0 quiet reboot=k panic=1 random.trust_cpu=on cryptomgr.notests \
     keep_bootcon microagent_disks=ordered"
} else {
    "console=ttyS0 quiet reboot=k panic=1 random.trust_cpu=on cryptomgr.notests \
     i8042.noaux i8042.nomux i8042.dumbkbd microagent_disks=ordered"
};

impl FirecrackerMachine {
    /// Tells it everything, and starts the machine.
    pub(super) fn configure(
        &self,
        tuning: &Tuning,
        spec: &MachineSpec,
        boot: &BootSource<'_>,
    ) -> Result<(), Error> {
        if let Some(path) = &tuning.metrics {
            self.api.metrics(path)?;
        }
        self.api.machine(&MachineConfiguration {
            vcpu_count: spec.vcpus.get(),
            mem_size_mib: spec.memory.0,
            smt: tuning.smt,
            track_dirty_pages: false,
            huge_pages: tuning.huge_pages,
            cpu_template: tuning.cpu_template,
        })?;
        self.api.boot_source(boot)?;
        for (at, disk) in spec.disks.iter().enumerate() {
            self.api.drive(&Drive {
                drive_id: format!("disk{at}"),
                path_on_host: &disk.path,
                is_root_device: false,
                is_read_only: disk.read_only,
                // A guest's flush of a disk it can write to reaches the host's disk. What it only
                // reads has nothing to flush.
                cache_type: if disk.read_only {
                    CacheType::Unsafe
                } else {
                    CacheType::Writeback
                },
                io_engine: "Sync",
                rate_limiter: tuning.disk_limit.filter(|_| !disk.read_only),
            })?;
        }
        self.api.vsock(&Vsock {
            guest_cid: spec.vsock.cid,
            uds_path: &spec.vsock.uds,
        })?;
        if self.network.is_some() {
            self.api.network(&NetworkInterface {
                iface_id: "eth0",
                host_dev_name: TAP,
                guest_mac: MAC,
                rx_rate_limiter: tuning.network_limit,
                tx_rate_limiter: tuning.network_limit,
            })?;
        }
        self.api.entropy()?;
        if tuning.balloon {
            self.api.balloon(&Balloon {
                amount_mib: 0,
                deflate_on_oom: true,
                stats_polling_interval_s: 0,
            })?;
        }
        self.api.start()?;
        self.vmm.check_confinement()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_ends_by_a_reset() {
        let words: Vec<_> = KERNEL_LINE.split_ascii_whitespace().collect();
        assert!(words.contains(&"reboot=k") && words.contains(&"panic=1"));
    }
}
