//! Kernel modules: load what the initramfs lists, in its order.

use std::{fs::File, io, path::Path};

use rustix::system::finit_module;

use crate::{
    console,
    error::{Context, Error},
};

/// More than any closure of the modules a machine needs.
const MOST_MODULES: usize = 256;

/// Loads the modules of `folder` in the order of its file `order`. A module
/// that does not load is reported and left out: what needed it says so itself,
/// and some (processor-specific checksums) are only there to be tried.
pub(crate) fn load_all(folder: &Path) -> Result<(), Error> {
    let path = folder.join("order");
    let order = match std::fs::read_to_string(&path) {
        Ok(order) => order,
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format_args!("read {}", path.display())),
    };
    for name in parse_order(&order)? {
        if let Err(error) = load(&folder.join(name)) {
            console::say(format_args!("load the module {name}: {error}"));
        }
    }
    Ok(())
}

fn load(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The file names of an order file: one a line, empty lines skipped.
fn parse_order(text: &str) -> Result<Vec<&str>, Error> {
    let names: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let malformed = |why: String| Error::Malformed {
        what: "the module order".to_owned(),
        why,
    };
    if names.len() > MOST_MODULES {
        return Err(malformed(format!(
            "it lists more than {MOST_MODULES} modules"
        )));
    }
    if let Some(name) = names
        .iter()
        .find(|name| name.contains('/') || name.starts_with('.'))
    {
        return Err(malformed(format!("{name:?} is no plain file name")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_blank_lines_are_not_modules() {
        let names = parse_order("000-virtio.ko\n\n001-virtio_ring.ko \n").unwrap();
        assert_eq!(names, ["000-virtio.ko", "001-virtio_ring.ko"]);
        assert!(parse_order("").unwrap().is_empty());
    }

    #[test]
    fn only_plain_names_of_a_sane_number_are_taken() {
        for bad in ["../x.ko", "a/b.ko", ".", &"x\n".repeat(MOST_MODULES + 1)] {
            assert!(
                matches!(parse_order(bad), Err(Error::Malformed { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_folder_without_an_order_has_no_modules() {
        let folder = tempfile::tempdir().unwrap();
        load_all(folder.path()).unwrap();
    }
}
