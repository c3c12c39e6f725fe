//! Single values: names, paths, words, variables and files.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use microagent_protocol::{
    EnvVar, FileMode, WorkspaceName,
    wiring::{GuestPath, ItemName},
};

use super::{
    super::{
        kind::{Kind, list, list_or, names, pattern, text, written},
        table::Table,
    },
    MAX_ITEMS,
};
use crate::options::HostFile;

/// A path component that is not `.` or `..`, and the path of such.
const GUEST_PATH: &str = r"^(/+([^/.\x00][^/\x00]*|\.[^/.\x00][^/\x00]*|\.\.[^/\x00]+))+/*$";

const ITEM_NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$";

const HOSTNAME: &str =
    r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$";

pub(super) fn workspace_name() -> Kind<WorkspaceName> {
    pattern(
        "a name of 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends",
        "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        |text| text.parse().ok(),
    )
}

pub(super) fn item_name() -> Kind<ItemName> {
    pattern(
        "a name of 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-' that starts with a letter or digit",
        ITEM_NAME,
        |text| text.parse().ok(),
    )
}

pub(super) fn guest_path() -> Kind<GuestPath> {
    pattern("an absolute path without . and ..", GUEST_PATH, |text| {
        text.parse::<GuestPath>().ok()
    })
    .limited(GuestPath::MAX_LEN)
}

pub(super) fn absolute() -> Kind<String> {
    pattern("an absolute path in the guest", r"^/[^\x00]*$", |text| {
        (text.starts_with('/') && !text.contains('\0')).then(|| text.to_owned())
    })
}

pub(super) fn hostname() -> Kind<String> {
    pattern(
        "a host name, up to 63 letters, digits, '-' and '.'",
        HOSTNAME,
        |text| crate::hostname::check(text).then(|| text.to_owned()),
    )
    .limited(crate::hostname::MAX_LEN)
}

pub(super) fn user() -> Kind<String> {
    pattern(
        "NAME, UID, NAME:GROUP or UID:GID",
        r"^[^:\x00\n]+(:[^:\x00\n]*)?$",
        |text| crate::command::is_user(text).then(|| text.to_owned()),
    )
}

/// A path of the host, from `base` if it is relative.
pub(super) fn host_path(base: &Rc<Path>) -> Kind<PathBuf> {
    let base = Rc::clone(base);
    text().map(move |path| base.join(path))
}

/// A program, or a list of words.
pub(super) fn words() -> Kind<Vec<String>> {
    let word = pattern(
        "a program (for more words write a list, for a shell line use service)",
        r"^[^ \t\r\n\x00]+$",
        |text| {
            let good = !text.is_empty() && !text.contains([' ', '\t', '\r', '\n', '\0']);
            good.then(|| vec![text.to_owned()])
        },
    );
    list_or(list(any_text(), MAX_ITEMS), word)
}

/// Any text without a NUL; it may be empty.
pub(super) fn any_text() -> Kind<String> {
    pattern("text", r"^[^\x00]*$", |text| {
        (!text.contains('\0')).then(|| text.to_owned())
    })
}

pub(super) fn file(base: &Rc<Path>) -> Kind<HostFile> {
    let mut table = Table::new("a table");
    let src = table.required(
        "src",
        "The file on the host; relative to the spec.",
        host_path(base),
    );
    let dst = table.required("dst", "Where it goes in the guest.", guest_path());
    let mode = table.optional(
        "mode",
        "Its permissions, octal and in quotes (`\"0644\"`); those it has on the host unless said.",
        pattern(
            "octal permissions such as \"0644\"",
            "^[0-7]{3,4}$",
            |text| text.parse::<FileMode>().ok(),
        ),
    );
    table.absent(&[
        ("source", "write src"),
        ("target", "write dst"),
        (
            "path",
            "write src for the host's file and dst for the guest's",
        ),
        (
            "content",
            "put it into a file beside the spec and name that with src",
        ),
    ]);
    table.build(move |_, _| {
        Some(HostFile {
            mode: mode.take(),
            src: src.take()?,
            dst: dst.take()?,
        })
    })
}

pub(super) fn env() -> Kind<Vec<EnvVar>> {
    let valid = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    names("variable name", r"^[^=\x00]+$", valid, written()).map(|pairs| {
        pairs
            .into_iter()
            .filter_map(|(name, value)| EnvVar::new(name, value).ok())
            .collect()
    })
}
