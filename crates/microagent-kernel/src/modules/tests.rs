use proptest::prelude::*;

use super::*;
use crate::fixtures::{RELEASE, module, module_tree, signed};

fn names(drivers: &Drivers) -> Vec<&str> {
    drivers
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .collect()
}

#[test]
fn modules_come_after_what_they_depend_on() {
    let directory = tempfile::tempdir().unwrap();
    let drivers = ModuleTree::open(&module_tree(directory.path(), &[]))
        .unwrap()
        .drivers(RELEASE)
        .unwrap();
    assert_eq!(
        names(&drivers),
        [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "virtio_blk",
            "overlay",
            "vsock",
            "vmw_vsock_virtio_transport",
            "virtio_rng"
        ]
    );
    assert_eq!(
        (drivers.built_in, drivers.absent, drivers.verified),
        (
            vec!["ext4".into()],
            vec!["virtio_net".into(), "virtio_balloon".into()],
            true
        )
    );
    for module in &drivers.modules {
        assert!(
            Elf::parse(&module.bytes).is_some(),
            "{} is still compressed",
            module.name
        );
    }
}

#[test]
fn a_kernel_without_required_drivers_is_refused_with_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let root = module_tree(
        directory.path(),
        &["overlay", "virtio_mmio", "vmw_vsock_virtio_transport"],
    );
    match ModuleTree::open(&root).unwrap().drivers(RELEASE) {
        Err(KernelError::MissingDrivers { missing, .. }) => {
            assert_eq!(
                missing,
                [
                    "overlay",
                    "vmw_vsock_virtio_transport",
                    "virtio_mmio or virtio_pci"
                ]
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_dependency_and_another_kernels_modules_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = module_tree(directory.path(), &["vsock"]);
    let error = ModuleTree::open(&root)
        .unwrap()
        .drivers(RELEASE)
        .unwrap_err()
        .to_string();
    assert!(error.contains("depends on module vsock"), "{error}");
    let error = ModuleTree::open(&root)
        .unwrap()
        .drivers("6.1.0-other")
        .unwrap_err();
    assert!(
        matches!(&error, KernelError::WrongModules { found, .. } if found == RELEASE),
        "{error}"
    );
}

#[test]
fn a_circle_of_dependencies_ends() {
    let directory = tempfile::tempdir().unwrap();
    let root = module_tree(directory.path(), &[]);
    fs::write(
        root.join("kernel/virtio_ring.ko"),
        module("virtio_ring", &["virtio"], ""),
    )
    .unwrap();
    let drivers = ModuleTree::open(&root).unwrap().drivers(RELEASE).unwrap();
    assert_eq!(
        names(&drivers)
            .iter()
            .filter(|name| **name == "virtio")
            .count(),
        1
    );
}

#[test]
fn a_kernel_without_modules_is_judged_by_its_configuration() {
    let complete = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\nCONFIG_OVERLAY_FS=y\nCONFIG_VIRTIO_VSOCKETS=y\n";
    assert!(
        drivers_from_config(Some(complete), RELEASE)
            .unwrap()
            .verified
    );
    assert!(!drivers_from_config(None, RELEASE).unwrap().verified);
    let error = drivers_from_config(
        Some(&complete.replace("OVERLAY_FS=y", "OVERLAY_FS=m")),
        RELEASE,
    )
    .unwrap_err();
    assert!(
        matches!(&error, KernelError::MissingDrivers { missing, .. } if missing == &["overlay"]),
        "{error}"
    );
}

#[test]
fn a_signature_is_taken_off_and_nothing_else() {
    let plain = module("overlay", &[], "");
    assert_eq!(without_signature(&signed(plain.clone())), plain);
    assert_eq!(without_signature(&plain), plain);
    let mut lying = signed(plain);
    let at = lying.len() - SIGNATURE_MARKER.len() - 4;
    lying[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(without_signature(&lying), lying);
}

proptest! {
    #[test]
    fn damaged_modules_never_panic(at in any::<usize>(), flip in 1_u8.., length in any::<usize>()) {
        let whole = signed(module("virtio_blk", &["virtio", "virtio_ring"], "softdep=pre: a b post: c"));
        let mut flipped = whole.clone();
        let index = at % flipped.len();
        flipped[index] ^= flip;
        for bytes in [&flipped[..], &whole[..length % whole.len()]] {
            if let Some(info) = ModuleInfo::parse(bytes) {
                prop_assert!(info.depends.len() <= bytes.len());
            }
            prop_assert!(bytes.starts_with(without_signature(bytes)));
        }
    }

    #[test]
    fn any_list_of_built_in_modules_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let names = parse_builtin(&bytes);
        prop_assert!(names.iter().all(|name| !name.contains(['/', '-'])));
    }
}
