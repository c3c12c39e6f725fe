use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use microagent_protocol::{Mebibytes, VcpuCount};
use proptest::prelude::*;

use super::*;
use crate::{ConsoleSpec, DiskSpec, VsockSpec};

fn limits() -> Limits {
    Limits {
        vcpus: 1..=10,
        memory: 128 * MEBIBYTE..=16 * 1024 * MEBIBYTE,
    }
}

fn disk(serial: &str, read_only: bool) -> DiskSpec {
    DiskSpec {
        path: format!("/disks/{serial}.ext4").into(),
        form: DiskForm::Raw,
        serial: serial.to_owned(),
        read_only,
    }
}

fn spec() -> MachineSpec {
    MachineSpec {
        name: "m".to_owned(),
        memory: Mebibytes(512),
        vcpus: VcpuCount::try_from(2).unwrap(),
        kernel: "/kernels/Image".into(),
        initramfs: "/kernels/initramfs".into(),
        disks: vec![disk("base", true), disk("scratch", false)],
        network: NetworkMode::Isolated,
        vsock: VsockSpec {
            cid: GUEST_CID,
            uds: "/run/v".into(),
        },
        console: ConsoleSpec {
            log: "/w/console.log".into(),
            limit: 4096,
        },
        confinement: ConfinementMode::Auto,
        runtime_dir: "/run".into(),
        attempt: 0,
    }
}

/// A flat `Image`, and disks of a mebibyte.
fn seen(spec: &MachineSpec) -> Seen {
    let mut kernel = vec![0; kernel::HEAD];
    kernel[0x38..0x3c].copy_from_slice(b"ARM\x64");
    Seen {
        kernel,
        disks: vec![MEBIBYTE; spec.disks.len()],
    }
}

fn plan(spec: &MachineSpec) -> Result<Plan, Refusal> {
    Plan::of(spec, &limits(), &seen(spec))
}

#[test]
fn a_machine_is_asked_for_as_it_is_specified() {
    let disk = |identifier: &str, read_only| Disk {
        path: format!("/disks/{identifier}.ext4"),
        identifier: identifier.to_owned(),
        read_only,
    };
    let expected = Plan {
        kernel: "/kernels/Image".to_owned(),
        initramfs: "/kernels/initramfs".to_owned(),
        command_line: COMMAND_LINE,
        vcpus: 2,
        memory: 512 * 1024 * 1024,
        // The guest agent finds them by serial, and in this order where it could not.
        disks: vec![disk("base", true), disk("scratch", false)],
    };
    assert_eq!(plan(&spec()), Ok(expected));
}

#[test]
fn the_guest_hears_of_its_console_and_finds_disks_by_serial() {
    let words: Vec<_> = COMMAND_LINE.split(' ').collect();
    assert_eq!(words[0], "console=hvc0");
    // This word would have the agent ignore the serials, which are ours here.
    assert!(!COMMAND_LINE.contains("microagent_disks"));
    assert!(
        microagent_protocol::Backend::AppleVf
            .capabilities()
            .disk_serials
    );
}

/// What is refused of the specification after `change`.
fn refused(change: impl FnOnce(&mut MachineSpec)) -> String {
    let mut spec = spec();
    change(&mut spec);
    plan(&spec).unwrap_err().to_string()
}

#[test]
fn what_the_framework_cannot_do_is_refused_with_a_remedy() {
    let text = refused(|spec| spec.network = NetworkMode::User);
    assert!(text.contains("isolated"), "{text}");
    let text = refused(|spec| spec.confinement = ConfinementMode::Required);
    assert!(text.contains("MICROAGENT_CONFINEMENT=auto"), "{text}");
    let text = refused(|spec| spec.vsock.cid = 7);
    assert!(
        text.contains("identifier 7") && text.contains("ask for 3"),
        "{text}"
    );
    let text = refused(|spec| spec.memory = Mebibytes(64));
    assert!(
        text.contains("64 MiB") && text.contains("128 to 16384"),
        "{text}"
    );
    let text = refused(|spec| spec.vcpus = VcpuCount::try_from(11).unwrap());
    assert!(
        text.contains("11 vCPUs") && text.contains("1 to 10"),
        "{text}"
    );
    let text = refused(|spec| spec.disks[0].form = DiskForm::Joined);
    assert!(text.contains("/disks/base.ext4"), "{text}");
    let text = refused(|spec| spec.disks[1].serial = "Scratch".to_owned());
    assert!(text.contains("\"Scratch\""), "{text}");
    let text = refused(|spec| spec.disks[1].serial = "base".to_owned());
    assert!(text.contains("\"base\""), "{text}");
    let text = refused(|spec| spec.initramfs = OsStr::from_bytes(b"/k/\xff").into());
    assert!(text.contains("UTF-8"), "{text}");
}

#[test]
fn there_is_room_for_what_a_workspace_may_have_and_no_more_than_the_bus_has() {
    let with = |count: usize| {
        let mut spec = spec();
        spec.disks = (0..count)
            .map(|at| disk(&format!("d{at}"), false))
            .collect();
        plan(&spec)
    };
    // The base disk, the scratch disk and sixteen volumes.
    assert_eq!(with(18).unwrap().disks.len(), 18);
    assert_eq!(with(28).unwrap().disks.len(), 28);
    let refusal = with(29).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Devices {
            asked: 32,
            most: 31
        }
    );
}

#[test]
fn a_disk_ends_with_a_block() {
    let spec = spec();
    let mut seen = seen(&spec);
    seen.disks[1] = 1000;
    let text = Plan::of(&spec, &limits(), &seen).unwrap_err().to_string();
    assert!(
        text.contains("scratch.ext4") && text.contains("to 1024 bytes"),
        "{text}"
    );
    seen.disks[1] = 0;
    assert!(Plan::of(&spec, &limits(), &seen).is_err());
}

proptest! {
    #[test]
    fn a_plan_is_within_the_limits_and_has_each_disk_once(
        memory in any::<u32>(),
        vcpus in 1_u32..=32,
        lengths in prop::collection::vec(prop_oneof![Just(0_u64), Just(MEBIBYTE), any::<u64>()], 0..40),
        read_only in any::<u64>(),
    ) {
        let mut spec = spec();
        spec.memory = Mebibytes(memory);
        spec.vcpus = VcpuCount::try_from(vcpus).unwrap();
        spec.disks = (0..lengths.len())
            .map(|at| disk(&format!("d{at}"), read_only >> at & 1 == 1))
            .collect();
        let mut seen = seen(&spec);
        seen.disks.clone_from(&lengths);
        let Ok(plan) = Plan::of(&spec, &limits(), &seen) else {
            let fits = (128..=16 * 1024).contains(&memory)
                && vcpus <= 10
                && lengths.len() <= 28
                && lengths.iter().all(|length| *length > 0 && length % 512 == 0);
            prop_assert!(!fits);
            return Ok(());
        };
        prop_assert!(limits().memory.contains(&plan.memory) && plan.memory % MEBIBYTE == 0);
        prop_assert!(limits().vcpus.contains(&(plan.vcpus as u64)));
        prop_assert_eq!(plan.disks.len(), lengths.len());
        for (asked, planned) in spec.disks.iter().zip(&plan.disks) {
            prop_assert_eq!(&planned.identifier, &asked.serial);
            prop_assert_eq!(planned.read_only, asked.read_only);
        }
    }
}
