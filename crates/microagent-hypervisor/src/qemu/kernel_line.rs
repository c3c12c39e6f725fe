//! The guest kernel's command line: the one place where it is decided.

use super::{Accelerator, MachineType};

/// The kernel command line for a machine.
///
/// Nothing of a workspace is ever in it: the guest agent is told over vsock.
///
/// Measured without effect on the boot under emulation, and so left out:
/// `mitigations=off`, `nokaslr`, `i8042.noprobe`, `pci=off`, `lpj=`, `audit=0`,
/// `8250.nr_uarts=1`, `rcupdate.rcu_expedited=1`.
pub(super) fn kernel_line(machine: MachineType, accelerator: Accelerator) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str| words.push(word.to_owned());
    add(match machine {
        MachineType::Microvm | MachineType::Q35 | MachineType::Plain => "console=ttyS0",
        MachineType::Virt => "console=ttyAMA0",
    });
    // Errors still reach the console; each line costs milliseconds under emulation.
    add("quiet");
    // A panic resets at once, and QEMU ends at a reset: no machine is left spinning.
    add("panic=-1");
    // Cryptographic self-tests: a fifth of the boot under emulation (2.33 s of
    // processor time with, 1.93 s without), and no defence: they find defects of
    // a build or a processor, not attacks.
    add("cryptomgr.notests");
    // The host's own generator feeds the guest as well (virtio-rng and the
    // agent's first message); this only lets the guest start without waiting.
    add("random.trust_cpu=on");
    if matches!(machine, MachineType::Microvm | MachineType::Q35) {
        // Triple fault: works on both machine types without firmware or ACPI help.
        add("reboot=t");
    }
    if machine == MachineType::Plain {
        // What emulates a processor need not know the way into a triple fault.
        add("reboot=k");
    }
    if machine != MachineType::Virt
        && let Accelerator::Tcg { tsc_khz } = accelerator
    {
        // A busy host starves the emulated timer while the kernel tests it.
        add("no_timer_check");
        if let Some(khz) = tsc_khz {
            // Measuring it in the guest fails on a busy host, and then the boot hangs.
            add(&format!("tsc_early_khz={khz}"));
            // It is the host's own counter; a watchdog delayed by a busy host
            // would take it for unstable and leave the guest without a good clock.
            add("tsc=reliable");
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_is_told_the_clock_and_kvm_is_not() {
        let tcg = Accelerator::Tcg {
            tsc_khz: Some(2_445_404),
        };
        let line = kernel_line(MachineType::Microvm, tcg);
        assert!(line.split(' ').any(|word| word == "tsc_early_khz=2445404"));
        let line = kernel_line(MachineType::Microvm, Accelerator::Kvm);
        assert!(!line.contains("tsc"));
        assert!(line.starts_with("console=ttyS0 "));
        // What a PC's clocks need is unknown elsewhere, and unknown words reach PID 1.
        let line = kernel_line(MachineType::Virt, tcg);
        assert!(line.starts_with("console=ttyAMA0 "));
        assert!(!line.contains("tsc") && !line.contains("no_timer_check"));
    }
}
