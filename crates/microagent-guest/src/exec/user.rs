//! Users: who a process runs as, by the guest's own passwd and group files.
//! It parses them itself: they belong to the image, and name services do not
//! work in a static program.

use std::{
    fs::{self, Metadata, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use microagent_protocol::StartFailure;

use crate::error::{Context, Error};

/// The most that is read of a passwd or group file.
const LONGEST_FILE: usize = 8 * 1024 * 1024;
/// The most of one that is kept in memory.
const MOST_KEPT: usize = 64 * 1024;
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

impl Identity {
    /// Whether it differs from what the agent itself is.
    pub(crate) fn is_other_than_root(&self) -> bool {
        (self.uid, self.gid) != (0, 0) || !self.groups.is_empty()
    }
}

/// The passwd and group files of an image.
#[derive(Debug)]
pub(crate) struct Accounts {
    passwd: Kept,
    group: Kept,
    last: Mutex<Option<Resolved>>,
}

/// Who was asked for last, and in which files he was found.
#[derive(Debug)]
struct Resolved {
    user: Option<String>,
    passwd: Arc<str>,
    group: Arc<str>,
    identity: Identity,
}

impl Accounts {
    /// Those of the file system below `root`.
    pub(crate) fn below(root: &Path) -> Self {
        Self {
            passwd: Kept::new(root.join("etc/passwd")),
            group: Kept::new(root.join("etc/group")),
            last: Mutex::new(None),
        }
    }

    /// Resolves `name`, `uid`, `name:group`, `uid:gid` and mixtures; root if there is none.
    ///
    /// The rules are those container users know: a number is always a number and
    /// needs no entry; without a group it is the user's own (0 if there is no
    /// entry) and the user's supplementary groups count; with a group only that
    /// one counts.
    pub(crate) fn resolve(&self, user: Option<&str>) -> Result<Identity, Error> {
        let (passwd, group) = (self.passwd.text()?, self.group.text()?);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.user.as_deref() == user
            && Arc::ptr_eq(&last.passwd, &passwd)
            && Arc::ptr_eq(&last.group, &group)
        {
            return Ok(last.identity.clone());
        }
        let identity = lookup(user.unwrap_or_default(), &passwd, &group)?;
        // Files that are not kept would only be held in memory for nothing.
        *last = (passwd.len().max(group.len()) <= MOST_KEPT).then(|| Resolved {
            user: user.map(str::to_owned),
            passwd,
            group,
            identity: identity.clone(),
        });
        Ok(identity)
    }
}

/// A text file, read anew when it has changed.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    last: Mutex<Option<(Stamp, Arc<str>)>>,
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Whether a later change would show: two changes within one tick of the clock look the same.
    fn is_old(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let changed = u64::try_from(self.changed.0);
        matches!((now, changed), (Ok(now), Ok(changed)) if changed + 1 < now.as_secs())
    }
}

impl Kept {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: Mutex::new(None),
        }
    }

    /// What it says; nothing if it is not there.
    fn text(&self) -> Result<Arc<str>, Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((stamp, text)) = &*last
            && fs::metadata(&self.path).is_ok_and(|file| Stamp::of(&file) == *stamp)
        {
            return Ok(Arc::clone(text));
        }
        *last = None;
        let (text, stamp) = read(&self.path)?;
        if let Some(stamp) = stamp.filter(|stamp| stamp.is_old() && text.len() <= MOST_KEPT) {
            *last = Some((stamp, Arc::clone(&text)));
        }
        Ok(text)
    }
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

/// A text file of the image, bounded, and which one it was; empty if it is not there.
fn read(path: &Path) -> Result<(Arc<str>, Option<Stamp>), Error> {
    // Non-blocking, so that a pipe in its place does not hold the agent.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Arc::from(""), None)),
        Err(error) => return Err(error).context(format_args!("open {}", path.display())),
    };
    let context = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    let metadata = file.metadata().context(context())?;
    if metadata.is_file() {
        file.take(LONGEST_FILE as u64 + 1)
            .read_to_end(&mut bytes)
            .context(context())?;
    }
    if !metadata.is_file() || bytes.len() > LONGEST_FILE {
        return Err(Error::Unreadable {
            path: path.to_owned(),
            limit: LONGEST_FILE,
        });
    }
    // A line with other bytes cannot be asked for, but must not hide the rest.
    let text = Arc::from(String::from_utf8_lossy(&bytes));
    Ok((text, Some(Stamp::of(&metadata))))
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
        let accounts = Accounts::below(folder.path());
        assert_eq!(accounts.resolve(None).unwrap().uid, 0);
        std::fs::create_dir_all(folder.path().join("etc/passwd")).unwrap();
        assert!(matches!(
            accounts.resolve(None),
            Err(Error::Unreadable { .. })
        ));
    }

    #[test]
    fn what_changed_is_read_again_and_what_did_not_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, accounts) = (folder.path().join("etc"), Accounts::below(folder.path()));
        fs::create_dir(&etc).unwrap();
        let uid = || accounts.resolve(Some("u")).unwrap().uid;
        let replace = |uid: u32| {
            let part = etc.join("part");
            fs::write(&part, format!("u:x:{uid}:1::/:\n")).unwrap();
            fs::rename(part, etc.join("passwd")).unwrap();
        };
        // Within one tick of the clock, in place and by another file.
        for number in 10..30 {
            fs::write(etc.join("passwd"), format!("u:x:{number}:1::/:\n")).unwrap();
            assert_eq!(uid(), number);
            replace(number + 30);
            assert_eq!(uid(), number + 30);
        }
        assert!(accounts.passwd.last.lock().unwrap().is_none());
        // Old enough by its own clock to be kept.
        let old = |stamp: Stamp| Stamp {
            changed: (stamp.changed.0 - 5, 0),
            ..stamp
        };
        let now = Stamp::of(&fs::metadata(etc.join("passwd")).unwrap());
        assert!(!now.is_old() && old(now).is_old());
        *accounts.passwd.last.lock().unwrap() = Some((now, Arc::from("u:x:7:7::/:")));
        assert_eq!(uid(), 7);
        replace(8);
        assert_eq!(uid(), 8);
    }

    #[test]
    fn whoever_is_asked_for_again_is_not_looked_for_and_nobody_else_is_mistaken_for_him() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = Accounts::below(folder.path());
        let keep = |kept: &Kept, text: &str| {
            fs::create_dir_all(folder.path().join("etc")).unwrap();
            fs::write(&kept.path, text).unwrap();
            let stamp = Stamp::of(&fs::metadata(&kept.path).unwrap());
            *kept.last.lock().unwrap() = Some((stamp, Arc::from(text)));
        };
        keep(&accounts.passwd, PASSWD);
        keep(&accounts.group, GROUP);
        for _ in 0..2 {
            let alice = accounts.resolve(Some("alice")).unwrap();
            assert_eq!((alice.uid, alice.groups.len()), (1000, 2));
            assert_eq!(accounts.resolve(Some("alice")).unwrap(), alice);
            assert!(!accounts.resolve(None).unwrap().is_other_than_root());
            assert!(accounts.resolve(Some("mallory")).is_err());
        }
        // A change of either file counts.
        let alice = accounts.resolve(Some("alice")).unwrap();
        keep(&accounts.group, "video:x:44:alice\n");
        assert_eq!(accounts.resolve(Some("alice")).unwrap().groups, [44]);
        keep(&accounts.passwd, "alice:x:5:6::/:\n");
        assert_ne!(accounts.resolve(Some("alice")).unwrap().uid, alice.uid);
    }

    proptest! {
        #[test]
        fn no_file_breaks_the_parser(passwd in ".{0,200}", group in ".{0,200}", spec in ".{0,20}") {
            let _ = lookup(&spec, &passwd, &group);
        }
    }
}
