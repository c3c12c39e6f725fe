//! What a kernel's first bytes say of it.
//!
//! Layouts: Linux `Documentation/arch/arm64/booting.rst` (image header), `Documentation/arch/x86/boot.rst`
//! (setup header), `drivers/firmware/efi/libstub/zboot-header.S` (EFI zboot), the ELF specification.

use std::path::Path;

use super::Refusal;

/// How much of a kernel has to be read to tell what it is: to the end of the x86 setup header's mark.
pub const HEAD: usize = 0x206;

/// Beginnings of packed files, by what they are.
const PACKED: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "packed with gzip"),
    (b"\xfd7zXZ\0", "packed with xz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"\x02\x21\x4c\x18", "packed with LZ4"),
    (b"\x04\x22\x4d\x18", "packed with LZ4"),
    (b"BZh", "packed with bzip2"),
];

/// Refuses what is no flat arm64 `Image`. `head` is the file's beginning, of [`HEAD`] bytes or the whole file.
///
/// # Errors
/// What it is instead.
pub fn check(path: &Path, head: &[u8]) -> Result<(), Refusal> {
    let at = |offset: usize, mark: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(mark))
    };
    let packed = |found| Refusal::PackedKernel {
        path: path.to_owned(),
        found,
    };
    let foreign = |found| Refusal::ForeignKernel {
        path: path.to_owned(),
        found,
    };
    // An EFI zboot image has the marks of a PE file, and could have any byte after them.
    if at(0, b"MZ") && at(4, b"zimg") {
        return Err(packed("a compressed EFI image (zboot)"));
    }
    if at(0x38, b"ARM\x64") {
        return Ok(());
    }
    if at(0, b"\x7fELF") {
        // e_machine, in the byte order that e_ident names.
        let machine = head.get(0x12..0x14).and_then(|two| two.try_into().ok());
        let machine = machine.map(|two| match head.get(5) {
            Some(2) => u16::from_be_bytes(two),
            _ => u16::from_le_bytes(two),
        });
        return Err(match machine {
            Some(62) => foreign("an ELF file for x86-64"),
            Some(183) => packed("an ELF file (vmlinux)"),
            _ => foreign("an ELF file for another processor"),
        });
    }
    if at(0x202, b"HdrS") {
        return Err(foreign("an x86 bzImage"));
    }
    match PACKED.iter().find(|(mark, _)| at(0, mark)) {
        Some((_, found)) => Err(packed(found)),
        None => Err(Refusal::NoKernel {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        for (offset, mark) in marks {
            bytes[*offset..offset + mark.len()].copy_from_slice(mark);
        }
        bytes
    }

    fn verdict(marks: &[(usize, &[u8])]) -> Result<(), Refusal> {
        check(Path::new("/k"), &head(marks))
    }

    #[test]
    fn a_flat_image_is_taken_with_and_without_its_efi_stub() {
        verdict(&[(0x38, b"ARM\x64")]).unwrap();
        verdict(&[(0, b"MZ"), (0x38, b"ARM\x64")]).unwrap();
        // To the end of its header and no further.
        check(Path::new("/k"), &head(&[(0x38, b"ARM\x64")])[..0x40]).unwrap();
    }

    #[test]
    fn everything_else_is_named_for_what_it_is() {
        let elf = |machine: &'static [u8]| -> Vec<(usize, &'static [u8])> {
            vec![(0, b"\x7fELF\x02\x01"), (0x12, machine)]
        };
        for (marks, found) in [
            (vec![(0, &b"\x1f\x8b\x08"[..])], "gzip"),
            (vec![(0, b"\xfd7zXZ\0")], "xz"),
            (vec![(0, b"\x28\xb5\x2f\xfd")], "zstd"),
            (vec![(0, b"\x02\x21\x4c\x18")], "LZ4"),
            (vec![(0, b"MZ\0\0zimg"), (0x38, b"ARM\x64")], "zboot"),
            (vec![(0x202, b"HdrS")], "bzImage"),
            (elf(b"\x3e\0"), "ELF file for x86-64"),
            (elf(b"\xb7\0"), "vmlinux"),
            (elf(b"\x08\0"), "another processor"),
            (vec![], "no arm64 Image header"),
        ] {
            let error = verdict(&marks).unwrap_err().to_string();
            assert!(error.contains("/k") && error.contains(found), "{error}");
        }
        let big = verdict(&[(0, b"\x7fELF\x02\x02"), (0x12, b"\0\xb7")]);
        assert!(matches!(big, Err(Refusal::PackedKernel { .. })), "{big:?}");
    }

    proptest! {
        #[test]
        fn any_beginning_gets_a_verdict(head in prop::collection::vec(any::<u8>(), 0..HEAD)) {
            let taken = check(Path::new("/k"), &head).is_ok();
            prop_assert!(!taken || head[0x38..].starts_with(b"ARM\x64"));
        }
    }
}
