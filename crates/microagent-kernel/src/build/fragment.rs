//! The configuration: what `kernel/*.config` asks for, and whether Linux took it.

use crate::record::Architecture;

const COMMON: &str = include_str!("../../../../kernel/common.config");
const X86_64: &str = include_str!("../../../../kernel/x86_64.config");
const AARCH64: &str = include_str!("../../../../kernel/aarch64.config");

/// What is asked for on top of `tinyconfig`.
pub(super) fn fragment(architecture: Architecture) -> String {
    let own = match architecture {
        Architecture::X86_64 => X86_64,
        Architecture::Aarch64 => AARCH64,
    };
    format!("{COMMON}\n{own}")
}

/// Each line of `fragment` that does not hold in `config`. Linux drops an option without a word when
/// what it depends on is missing, or when a version renamed it.
pub(super) fn dropped(fragment: &str, config: &str) -> Vec<String> {
    let set: std::collections::BTreeMap<_, _> = config.lines().filter_map(assignment).collect();
    fragment
        .lines()
        .filter(|line| match (assignment(line), unset(line)) {
            (Some((name, value)), _) => set.get(name) != Some(&value),
            (None, Some(name)) => set.contains_key(name),
            (None, None) => false,
        })
        .map(str::to_owned)
        .collect()
}

/// `CONFIG_X=value`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    line.split_once('=')
        .filter(|(name, _)| name.starts_with("CONFIG_"))
}

/// `# CONFIG_X is not set`.
fn unset(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?
        .strip_suffix(" is not set")
        .filter(|name| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_drops_is_found() {
        let fragment = "# purpose\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x=y\"\n# CONFIG_D is not set\n# CONFIG_E is not set\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\nCONFIG_D=y\n";
        assert_eq!(
            dropped(fragment, config),
            ["CONFIG_B=y", "# CONFIG_D is not set"]
        );
    }

    #[test]
    fn each_option_is_decided_once_and_makes_no_module() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let fragment = fragment(architecture);
            let mut seen = std::collections::BTreeSet::new();
            for line in fragment.lines().filter(|line| !line.is_empty()) {
                let name = assignment(line).map(|(name, _)| name).or(unset(line));
                match name {
                    Some(name) => assert!(seen.insert(name), "{name} is there twice"),
                    None => assert!(line.starts_with('#'), "{line:?} is neither"),
                }
                assert!(!line.ends_with("=m"), "{line}");
            }
            // What the store asks of a kernel without modules.
            let drivers = crate::modules::drivers_from_config(Some(&fragment), "6.12").unwrap();
            assert!(
                drivers.verified && drivers.absent.is_empty(),
                "{:?}",
                drivers.absent
            );
        }
    }
}
