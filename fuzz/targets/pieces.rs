//! What can stand in the files that disks are made of: the index of a converted layer, and, where it begins with a
//! `#`, the list of a disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_disk::DiskList;
use microagent_image::disk::fuzz_index;

fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&b'#') {
        list(data);
    } else {
        // Any answer but a panic is fine: the index is merged or refused.
        drop(fuzz_index(data));
    }
});

fn list(data: &[u8]) {
    let Some(list) = std::str::from_utf8(data).ok().and_then(DiskList::parse) else {
        return;
    };
    assert_eq!(list.text().as_bytes(), data);
    let bytes: u64 = list.runs().iter().map(|run| run.length).sum();
    assert_eq!(bytes, list.size_bytes());
    for run in list.runs() {
        assert!(run.file < list.files().len());
    }
    for file in list.files() {
        assert!(
            !file.name.contains('/') && file.name != "..",
            "{}",
            file.name
        );
    }
}
