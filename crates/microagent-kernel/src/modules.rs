//! Which modules a kernel needs to run a microVM, and the order to load them in.
//!
//! Dependencies are read from the modules themselves (`.modinfo`): distribution packages do not ship `modules.dep`,
//! which `depmod` writes on the host at installation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::compression::decompress_if_needed;
use crate::elf::Elf;
use crate::error::{IoContext, KernelError, Result};

/// Largest module accepted once decompressed.
const MAX_MODULE: usize = 64 * 1024 * 1024;
/// Most files and directories a module tree may have; the largest distributions have about 7,000.
const MAX_TREE_ENTRIES: usize = 50_000;
/// Most modules a closure may have; a distribution kernel needs 10 to 20.
const MAX_CLOSURE: usize = 256;
/// What ends a signed module (`include/linux/module_signature.h`), after the signature and its 12-byte description.
const SIGNATURE_MARKER: &[u8] = b"~Module signature appended~\n";
/// Size of `struct module_signature`; its last four bytes are the signature's length, big-endian.
const SIGNATURE_DESCRIPTION: usize = 12;
/// Largest `modules.builtin`; real ones are below 64 KB.
const MAX_BUILTIN: u64 = 4 * 1024 * 1024;

/// How badly a microVM needs a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No VM without it.
    Required,
    /// At least one of these.
    Transport,
    /// Better with it.
    Optional,
    /// Asked for by name when another driver starts working, where the guest has nobody to load it.
    Helper,
}

/// The drivers of a microVM in the order they are wanted: (module, configuration option, need).
const DRIVERS: [(&str, &str, Need); 10] = [
    ("virtio_mmio", "CONFIG_VIRTIO_MMIO", Need::Transport),
    ("virtio_pci", "CONFIG_VIRTIO_PCI", Need::Transport),
    ("virtio_blk", "CONFIG_VIRTIO_BLK", Need::Required),
    ("crc32c_generic", "CONFIG_CRYPTO_CRC32C", Need::Helper),
    ("ext4", "CONFIG_EXT4_FS", Need::Required),
    ("overlay", "CONFIG_OVERLAY_FS", Need::Required),
    (
        "vmw_vsock_virtio_transport",
        "CONFIG_VIRTIO_VSOCKETS",
        Need::Required,
    ),
    ("virtio_net", "CONFIG_VIRTIO_NET", Need::Optional),
    ("virtio_rng", "CONFIG_HW_RANDOM_VIRTIO", Need::Optional),
    ("virtio_balloon", "CONFIG_VIRTIO_BALLOON", Need::Optional),
];

/// A module to be loaded, uncompressed.
#[derive(Debug)]
pub(crate) struct Module {
    /// Name as the kernel knows it, with underscores.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// What a kernel offers a microVM.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    /// In load order: each after those it depends on.
    pub(crate) modules: Vec<Module>,
    /// Wanted drivers that need no loading.
    pub(crate) built_in: Vec<String>,
    /// Optional drivers this kernel does not have.
    pub(crate) absent: Vec<String>,
    /// Whether the required drivers are known to be there.
    pub(crate) verified: bool,
}

/// A kernel's modules on disk, as under `/lib/modules/<release>`.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads the names in `root`, which has `modules.builtin` and, somewhere below, the modules.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = root.join("modules.builtin");
        let size = fs::metadata(&path).context("read", &path)?.len();
        if size > MAX_BUILTIN {
            let reason = format!("it has {size} bytes; at most {MAX_BUILTIN} are read");
            return Err(KernelError::InvalidModules {
                name: path.display().to_string(),
                reason,
            });
        }
        let built_in = parse_builtin(&fs::read(&path).context("read", &path)?);
        Ok(Self {
            root: root.to_owned(),
            files: module_files(root)?,
            built_in,
        })
    }

    /// The drivers a microVM needs with all they depend on, for the kernel `release`.
    pub(crate) fn drivers(&self, release: &str) -> Result<Drivers> {
        let mut closure = Closure {
            tree: self,
            release,
            done: BTreeSet::new(),
            drivers: Drivers::default(),
        };
        let mut transports = 0;
        let mut missing = Vec::new();
        for (name, _, need) in DRIVERS {
            let found = closure.add(name, 0)?;
            match need {
                Need::Transport => transports += usize::from(found),
                Need::Required if !found => missing.push(name.to_owned()),
                Need::Required => {}
                Need::Optional if !found => closure.drivers.absent.push(name.to_owned()),
                Need::Optional | Need::Helper => {}
            }
        }
        finish(closure.drivers, release, transports, missing)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let compressed = fs::read(path).context("read", path)?;
        let name = || path.display().to_string();
        let bytes =
            decompress_if_needed(&compressed, MAX_MODULE).map_err(|e| KernelError::Decompress {
                name: name(),
                reason: e.to_string(),
            })?;
        Ok(bytes.into_owned())
    }
}

/// Judges a kernel that comes without modules by the configuration it carries; without one nothing is known, and the
/// VM will tell.
pub(crate) fn drivers_from_config(config: Option<&str>, release: &str) -> Result<Drivers> {
    let Some(config) = config else {
        return Ok(Drivers::default());
    };
    let mut drivers = Drivers::default();
    let mut transports = 0;
    let mut missing = Vec::new();
    for (name, option, need) in DRIVERS {
        let found = config
            .lines()
            .any(|line| line.strip_prefix(option) == Some("=y"));
        match need {
            Need::Transport => transports += usize::from(found),
            Need::Required if !found => missing.push(name.to_owned()),
            Need::Optional if !found => drivers.absent.push(name.to_owned()),
            Need::Required | Need::Optional | Need::Helper => {}
        }
        if found {
            drivers.built_in.push(name.to_owned());
        }
    }
    finish(drivers, release, transports, missing)
}

fn finish(
    mut drivers: Drivers,
    release: &str,
    transports: usize,
    mut missing: Vec<String>,
) -> Result<Drivers> {
    if transports == 0 {
        missing.push("virtio_mmio or virtio_pci".to_owned());
    }
    if !missing.is_empty() {
        return Err(KernelError::MissingDrivers {
            release: release.to_owned(),
            missing,
        });
    }
    drivers.verified = true;
    Ok(drivers)
}

/// The depth-first walk over dependencies.
struct Closure<'a> {
    tree: &'a ModuleTree,
    release: &'a str,
    done: BTreeSet<String>,
    drivers: Drivers,
}

impl Closure<'_> {
    /// Adds a module after its dependencies; false if the kernel has no such driver.
    fn add(&mut self, name: &str, depth: usize) -> Result<bool> {
        let invalid = |reason: String| KernelError::InvalidModules {
            name: name.to_owned(),
            reason,
        };
        if self.done.contains(name) {
            return Ok(true);
        }
        if self.tree.built_in.contains(name) {
            self.done.insert(name.to_owned());
            if depth == 0 {
                self.drivers.built_in.push(name.to_owned());
            }
            return Ok(true);
        }
        let Some(path) = self.tree.files.get(name) else {
            return Ok(false);
        };
        if depth > 32 || self.done.len() >= MAX_CLOSURE {
            return Err(invalid(format!(
                "more than {MAX_CLOSURE} modules, or a chain of more than 32, depend on each other"
            )));
        }
        // Before its dependencies, so that a circle ends.
        self.done.insert(name.to_owned());
        let bytes = self.tree.read(path)?;
        let info = ModuleInfo::parse(&bytes)
            .ok_or_else(|| invalid("it is no ELF module with a .modinfo section".to_owned()))?;
        if info.release != self.release {
            return Err(KernelError::WrongModules {
                path: self.tree.root.clone(),
                found: info.release,
                expected: self.release.to_owned(),
            });
        }
        for wanted in &info.wants_first {
            // A soft dependency: the module works without it.
            let _absent_is_fine = self.add(wanted, depth + 1)?;
        }
        for dependency in &info.depends {
            if !self.add(dependency, depth + 1)? {
                return Err(invalid(format!(
                    "it depends on module {dependency}, which is not there"
                )));
            }
        }
        self.drivers.modules.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(true)
    }
}

/// What a module says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ModuleInfo {
    /// Kernel release it was built for, the first word of `vermagic`.
    release: String,
    /// Modules it cannot be loaded without.
    depends: Vec<String>,
    /// `softdep` modules to load before it, if they exist.
    wants_first: Vec<String>,
}

impl ModuleInfo {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let section = Elf::parse(bytes)?.section(b".modinfo")?;
        let mut info = Self {
            release: String::new(),
            depends: Vec::new(),
            wants_first: Vec::new(),
        };
        for entry in section.split(|byte| *byte == 0) {
            let Ok(entry) = std::str::from_utf8(entry) else {
                continue;
            };
            match entry.split_once('=') {
                Some(("vermagic", magic)) => {
                    info.release = magic.split(' ').next().unwrap_or_default().to_owned();
                }
                Some(("depends", names)) => {
                    info.depends.extend(
                        names
                            .split(',')
                            .filter(|name| !name.is_empty())
                            .map(module_name),
                    );
                }
                Some(("softdep", rule)) => {
                    let before = rule.split_once("pre:").map_or("", |(_, names)| names);
                    let before = before.split("post:").next().unwrap_or_default();
                    info.wants_first
                        .extend(before.split_whitespace().map(module_name));
                }
                _ => {}
            }
        }
        Some(info)
    }
}

/// A module without the signature appended to it, if there is one.
pub(crate) fn without_signature(module: &[u8]) -> &[u8] {
    let signed = || {
        let (rest, description) = module
            .strip_suffix(SIGNATURE_MARKER)?
            .split_last_chunk::<SIGNATURE_DESCRIPTION>()?;
        let [.., a, b, c, d] = *description;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        rest.get(..rest.len().checked_sub(length)?)
    };
    signed().unwrap_or(module)
}

/// Whether a kernel of this configuration loads only signed modules; to be safe also when the configuration is unknown.
pub(crate) fn signatures_required(config: Option<&str>) -> bool {
    const FORCING: [&str; 3] = [
        "CONFIG_MODULE_SIG_FORCE=y",
        "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y",
        "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y",
    ];
    config.is_none_or(|config| config.lines().any(|line| FORCING.contains(&line)))
}

/// The name the kernel uses for a module named in a file or a list: dashes are underscores.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Names in `modules.builtin`, which has one path per line.
fn parse_builtin(list: &[u8]) -> BTreeSet<String> {
    String::from_utf8_lossy(list)
        .lines()
        .filter_map(|line| Some(module_name(line.rsplit('/').next()?.strip_suffix(".ko")?)))
        .collect()
}

/// Module files below `root` by module name. Symbolic links are not followed: packages hang links to source trees here.
fn module_files(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    let mut entries = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).context("list", &directory)? {
            let entry = entry.context("list", &directory)?;
            entries += 1;
            if entries > MAX_TREE_ENTRIES {
                let reason = format!("it has more than {MAX_TREE_ENTRIES} entries");
                return Err(KernelError::InvalidModules {
                    name: root.display().to_string(),
                    reason,
                });
            }
            let kind = entry.file_type().context("inspect", &entry.path())?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file()
                && let Some(stem) = entry.file_name().to_str().and_then(module_file_stem)
            {
                files.insert(module_name(stem), entry.path());
            }
        }
    }
    Ok(files)
}

/// `overlay` of `overlay.ko`, `overlay.ko.xz`, …
pub(crate) fn module_file_stem(file_name: &str) -> Option<&str> {
    let base = [".xz", ".zst", ".gz"]
        .iter()
        .find_map(|end| file_name.strip_suffix(end))
        .unwrap_or(file_name);
    base.strip_suffix(".ko").filter(|stem| {
        !stem.is_empty()
            && stem
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    })
}

#[cfg(test)]
mod tests;
