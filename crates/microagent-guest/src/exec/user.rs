//! Users: who a process runs as, by the guest's own passwd and group files.
//! It parses them itself: they belong to the image, and name services do not
//! work in a static program.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use microagent_protocol::StartFailure;

use crate::error::{Context, Error};

/// The most that is read of a passwd or group file.
const LONGEST_FILE: usize = 8 * 1024 * 1024;
/// The most supplementary groups Linux takes.
const MOST_GROUPS: usize = 65_536;
/// The highest user or group number container engines take.
const HIGHEST_ID: u32 = i32::MAX as u32;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User number.
    pub(crate) uid: u32,
    /// Group number.
    pub(crate) gid: u32,
    /// Supplementary group numbers.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: String,
}

/// Resolves `name`, `uid`, `name:group`, `uid:gid` and mixtures; root if there is none.
///
/// The rules are those container users know: a number is always a number and
/// needs no entry; without a group it is the user's own (0 if there is no
/// entry) and the user's supplementary groups count; with a group only that
/// one counts.
pub(crate) fn resolve(user: Option<&str>, root: &Path) -> Result<Identity, Error> {
    let passwd = read(&root.join("etc/passwd"))?;
    let group = read(&root.join("etc/group"))?;
    lookup(user.unwrap_or_default(), &passwd, &group)
}

fn lookup(spec: &str, passwd: &str, group: &str) -> Result<Identity, Error> {
    let unknown = |message: String| Error::start(StartFailure::UnknownUser, message);
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user);
    let entry = users(passwd).find(|entry| match number {
        Some(number) => entry.uid == number,
        None => entry.name == user,
    });
    let uid = number.or(entry.as_ref().map(|entry| entry.uid)).ok_or_else(|| {
        unknown(format!(
            "the user {user:?} is not in the image's /etc/passwd; name one that is, or a number up to {HIGHEST_ID}"
        ))
    })?;
    let mut identity = Identity {
        uid,
        gid: entry.as_ref().map_or(0, |entry| entry.gid),
        groups: Vec::new(),
        home: entry
            .as_ref()
            .map(|entry| entry.home)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/")
            .to_owned(),
    };
    if let Some(wanted) = wanted_group {
        identity.gid = parse_id(wanted)
            .or_else(|| groups(group).find(|entry| entry.name == wanted).map(|entry| entry.gid))
            .ok_or_else(|| {
                unknown(format!(
                    "the group {wanted:?} is not in the image's /etc/group; name one that is, or a number up to {HIGHEST_ID}"
                ))
            })?;
    } else if let Some(entry) = entry {
        identity.groups = groups(group)
            .filter(|group| group.members.split(',').any(|member| member == entry.name))
            .map(|group| group.gid)
            .take(MOST_GROUPS)
            .collect();
    }
    Ok(identity)
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= HIGHEST_ID)
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The lines of a passwd file that make sense.
fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (parse_id(fields.next()?)?, parse_id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or_default();
        (!name.is_empty()).then_some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// The lines of a group file that make sense.
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = parse_id(fields.next()?)?;
        let members = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some(Group { name, gid, members })
    })
}

/// A text file of the image, bounded; empty if it is not there.
fn read(path: &Path) -> Result<String, Error> {
    // Non-blocking, so that a pipe in its place does not hold the agent.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).context(format_args!("open {}", path.display())),
    };
    let context = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    let regular = file.metadata().context(context())?.is_file();
    if regular {
        file.take(LONGEST_FILE as u64 + 1)
            .read_to_end(&mut bytes)
            .context(context())?;
    }
    if !regular || bytes.len() > LONGEST_FILE {
        return Err(Error::Unreadable {
            path: path.to_owned(),
            limit: LONGEST_FILE,
        });
    }
    // A line with other bytes cannot be asked for, but must not hide the rest.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken:x:zero:0::/:\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n\
        4242:x:7:7::/odd:\n\
        nohome:x:8:8\n";
    const GROUP: &str =
        "root:x:0:\nalice:x:1001:\nvideo:x:44:bob,alice\nusers:x:100:alice\nnear:x:5:alicex\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = lookup(spec, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn names_numbers_and_mixtures() {
        let home = "/home/alice".to_owned();
        assert_eq!(ids(""), (0, 0, vec![], "/root".to_owned()));
        assert_eq!(ids("alice"), (1000, 1001, vec![44, 100], home.clone()));
        assert_eq!(ids("1000"), (1000, 1001, vec![44, 100], home.clone()));
        assert_eq!(ids("alice:video"), (1000, 44, vec![], home.clone()));
        assert_eq!(ids("alice:9"), (1000, 9, vec![], home));
        assert_eq!(ids("1234"), (1234, 0, vec![], "/".to_owned()));
        assert_eq!(ids("1234:users"), (1234, 100, vec![], "/".to_owned()));
        assert_eq!(ids(":44"), (0, 44, vec![], "/root".to_owned()));
    }

    #[test]
    fn a_number_is_never_a_name_and_a_missing_home_is_the_root() {
        assert_eq!(ids("4242"), (4242, 0, vec![], "/".to_owned()));
        assert_eq!(ids("nohome"), (8, 8, vec![], "/".to_owned()));
    }

    #[test]
    fn unknown_names_are_refused_and_named() {
        for bad in [
            "mallory",
            "broken",
            "alice:nogroup",
            "-1",
            "+5",
            "4294967295",
            "2147483648",
        ] {
            let error = lookup(bad, PASSWD, GROUP).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Start {
                        reason: StartFailure::UnknownUser,
                        ..
                    }
                ),
                "{bad}"
            );
            assert!(
                error.to_string().contains(bad.rsplit(':').next().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn an_image_without_the_files_still_has_root() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(resolve(None, folder.path()).unwrap().uid, 0);
        std::fs::create_dir_all(folder.path().join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve(None, folder.path()),
            Err(Error::Unreadable { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_file_breaks_the_parser(passwd in ".{0,200}", group in ".{0,200}", spec in ".{0,20}") {
            let _ = lookup(&spec, &passwd, &group);
        }
    }
}
