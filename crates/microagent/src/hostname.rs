//! What may be a host name.

/// The longest host name Linux takes of us, in bytes.
pub(crate) const MAX_LEN: usize = 63;

/// Whether Linux and resolvers take this as a host name: labels of letters, digits and inner
/// hyphens.
pub(crate) fn check(hostname: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    hostname.len() <= MAX_LEN && hostname.split('.').all(label)
}
