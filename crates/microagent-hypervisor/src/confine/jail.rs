//! Namespaces and a root file system of its own for a VMM. Planned before the fork, entered by the
//! child between fork and exec. The plan is the same list of files that Landlock gets; each is there
//! under its own name, and nothing else is.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        mount_change, move_mount, open_tree, unmount,
    },
};

use super::{Reach, jailer::Jailer};

/// What a jailed VMM may find of its own in `/proc`: itself. The host's other processes are not there.
const OWN_PROC: &str = "/proc/self";
/// Links that programs count on in `/dev`.
const DEV_LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
];
/// A directory that every host has and that the new root can be put on for a moment.
const FOOTHOLD: &CStr = c"/usr";
/// What its host is called inside.
const HOST_NAME: &[u8] = b"microagent";

/// Steps of a child's birth; one that fails is told by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Prepare,
    MapUser,
    TakeFiles,
    MakeRoot,
    PlaceFiles,
    EnterRoot,
    NameHost,
    Tap,
    Limits,
    Privileges,
    Landlock,
    Bind,
    Exec,
}

impl Step {
    const ALL: [Self; 13] = [
        Self::Prepare,
        Self::MapUser,
        Self::TakeFiles,
        Self::MakeRoot,
        Self::PlaceFiles,
        Self::EnterRoot,
        Self::NameHost,
        Self::Tap,
        Self::Limits,
        Self::Privileges,
        Self::Landlock,
        Self::Bind,
        Self::Exec,
    ];

    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }

    /// Whether it belongs to the jail, without which a VMM can be started all the same.
    pub(crate) const fn of_the_jail(self) -> bool {
        matches!(
            self,
            Self::MapUser
                | Self::TakeFiles
                | Self::MakeRoot
                | Self::PlaceFiles
                | Self::EnterRoot
                | Self::NameHost
        )
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Prepare => "prepare its descriptors",
            Self::MapUser => "map its user into a user namespace",
            Self::TakeFiles => "take the files it may reach",
            Self::MakeRoot => "mount a root of its own",
            Self::PlaceFiles => "mount the files it may reach",
            Self::EnterRoot => "enter its root",
            Self::NameHost => "name its host",
            Self::Tap => "make its network card",
            Self::Limits => "limit its resources",
            Self::Privileges => "drop its privileges",
            Self::Landlock => "put on its Landlock rules",
            Self::Bind => "bind it to its parent's life",
            Self::Exec => "execute it",
        }
    }
}

/// A failed step.
pub(crate) type Failed = (Step, Errno);

/// A planned jail.
pub(crate) struct Jail {
    files: Vec<Placed>,
    /// For a jailer, which makes it the root itself: where it lies.
    below: Option<Below>,
    /// `uid_map` and `gid_map`; without a user namespace, none.
    maps: Option<[Vec<u8>; 2]>,
    network: bool,
}

/// A root for a jailer: on a file system of its own, that only the child and what it becomes see.
struct Below {
    /// Where that is mounted.
    base: CString,
    /// The directories to the root, from the top, below that; the root last.
    path: Vec<CString>,
    /// In this user namespace the machine's files are its user's.
    users: OwnedFd,
}

/// A file or directory, and where it goes below the new root.
struct Placed {
    source: CString,
    /// Relative, without a leading slash.
    target: CString,
    /// The directories above the target, from the top.
    above: Vec<CString>,
    directory: bool,
    attributes: u64,
    /// Whether it is the machine's own, and so its user's where it has one.
    own: bool,
    /// The detached mount, between two steps of the child.
    mount: Option<OwnedFd>,
}

impl Jail {
    /// Plans it. `with_users`: with a user namespace, which whoever is not root needs for the rest.
    pub(crate) fn plan(reach: &Reach, with_users: bool) -> io::Result<Self> {
        const SHARED: u64 = libc::MOUNT_ATTR_NOSUID;
        let lists = [
            (
                &reach.read,
                SHARED | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
            ),
            (&reach.write, SHARED | libc::MOUNT_ATTR_NOEXEC),
            (
                &reach.make,
                SHARED | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
            ),
        ];
        let own = lists[0].1 | libc::MOUNT_ATTR_NOEXEC;
        let mut files = vec![Placed::new(Path::new(OWN_PROC), true, own)?];
        for (paths, attributes) in lists {
            for path in paths {
                // What is not there, or not for this user, cannot be reached in a jail either.
                let Ok(meta) = std::fs::metadata(path) else {
                    continue;
                };
                let device = path.starts_with("/dev");
                let nodev = if device { 0 } else { libc::MOUNT_ATTR_NODEV };
                let mut file = Placed::new(path, meta.is_dir(), attributes | nodev)?;
                file.own = reach.make.contains(path) || meta.is_file();
                file.own &= !path.starts_with("/proc") && !path.starts_with("/sys");
                files.push(file);
            }
        }
        // Parents first, so that a child is put on what its parent shows; the same place twice is
        // what was asked for last.
        files.sort_by(|a, b| a.target.as_bytes().cmp(b.target.as_bytes()));
        files.dedup_by(|a, b| a.target == b.target && a.attributes == b.attributes);
        let map = |id: u32| format!("{id} {id} 1\n").into_bytes();
        let maps = with_users.then(|| {
            [
                map(rustix::process::geteuid().as_raw()),
                map(rustix::process::getegid().as_raw()),
            ]
        });
        Ok(Self {
            files,
            below: None,
            maps,
            network: !reach.host_network,
        })
    }

    /// Plans it for a jailer, which makes the devices itself.
    pub(crate) fn plan_below(
        reach: &Reach,
        jailer: Option<&Jailer>,
        users: OwnedFd,
    ) -> io::Result<Self> {
        let jailer = jailer.ok_or(io::ErrorKind::InvalidInput)?;
        let mut reach = reach.clone();
        let device = |path: &Path| path.starts_with("/dev") && path != Path::new("/dev/null");
        reach.write.retain(|path| !device(path));
        let mut jail = Self::plan(&reach, false)?;
        let below = jailer.root.strip_prefix(&jailer.base);
        let place = Placed::new(
            &Path::new("/").join(below.map_err(io::Error::other)?),
            true,
            0,
        )?;
        let mut path = place.above;
        path.push(place.target);
        jail.below = Some(Below {
            base: CString::new(jailer.base.as_os_str().as_bytes())?,
            path,
            users,
        });
        Ok(jail)
    }

    pub(crate) const fn has_users(&self) -> bool {
        self.maps.is_some()
    }

    pub(crate) const fn has_network(&self) -> bool {
        self.network
    }

    /// The namespaces a child is born into.
    pub(crate) fn flags(&self) -> u64 {
        let users = if self.maps.is_some() {
            libc::CLONE_NEWUSER
        } else {
            0
        };
        let network = if self.network { libc::CLONE_NEWNET } else { 0 };
        // An anchor has that one already.
        let processes = match self.below {
            None => libc::CLONE_NEWPID,
            Some(_) => 0,
        };
        let all = users
            | network
            | processes
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        u64::from(all.cast_unsigned())
    }

    /// Makes the child's user known in its namespace; then it may do the rest.
    pub(crate) fn map_user(&self) -> Result<(), Failed> {
        let Some([users, groups]) = &self.maps else {
            return Ok(());
        };
        let write = |file: &CStr, text: &[u8]| {
            let file = openat(CWD, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, text).map(drop)
        };
        write(c"/proc/self/setgroups", b"deny")
            .and_then(|()| write(c"/proc/self/uid_map", users))
            .and_then(|()| write(c"/proc/self/gid_map", groups))
            .map_err(|errno| (Step::MapUser, errno))
    }

    /// Moves the child into its root. Only system calls: this runs between fork and exec.
    pub(crate) fn enter(&mut self) -> Result<(), Failed> {
        let at = |step: Step| move |errno: Errno| (step, errno);
        // What is mounted from here on is not to be seen outside.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", alone).map_err(at(Step::TakeFiles))?;
        let users = self.below.as_ref().map(|below| &below.users);
        for file in &mut self.files {
            file.take(users).map_err(at(Step::TakeFiles))?;
        }
        // Whoever has no user of ours must get through as well.
        let mask = rustix::process::umask(Mode::from(0o022));
        self.make_root().map_err(at(Step::MakeRoot))?;
        for file in &mut self.files {
            file.place().map_err(at(Step::PlaceFiles))?;
        }
        for (target, link) in DEV_LINKS {
            symlinkat(target, CWD, link).map_err(at(Step::PlaceFiles))?;
        }
        rustix::process::umask(mask);
        match self.below {
            None => enter_root().map_err(at(Step::EnterRoot))?,
            Some(_) => rustix::process::chdir(c"/").map_err(at(Step::EnterRoot))?,
        }
        rustix::system::sethostname(HOST_NAME).map_err(at(Step::NameHost))
    }

    /// An empty file system, for now on top of [`FOOTHOLD`] or where a jailer looks for it, with the
    /// root as the working directory.
    fn make_root(&self) -> Result<(), Errno> {
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let (place, size) = match &self.below {
            // A jailer copies the program into it, and makes devices.
            Some(below) => (below.base.as_c_str(), c"64m"),
            None => {
                attributes |= MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                (FOOTHOLD, c"1m")
            }
        };
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"size", size)?;
        fsconfig_set_string(&context, c"mode", c"0755")?;
        fsconfig_create(&context)?;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(
            &root,
            c"",
            CWD,
            place,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        rustix::process::chdir(place)?;
        if let Some(below) = &self.below {
            for directory in &below.path {
                make_directory(directory)?;
            }
            if let Some(root) = below.path.last() {
                rustix::process::chdir(root.as_c_str())?;
            }
        }
        make_directory(c"dev")
    }
}

impl Placed {
    fn new(path: &Path, directory: bool, attributes: u64) -> io::Result<Self> {
        let text = |path: &Path| {
            CString::new(path.as_os_str().as_bytes())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let mut target = std::path::PathBuf::new();
        let mut above = Vec::new();
        for part in path.components() {
            match part {
                Component::RootDir => {}
                Component::Normal(name) => {
                    if !target.as_os_str().is_empty() {
                        above.push(text(&target)?);
                    }
                    target.push(name);
                }
                // `check` wants absolute paths; one that climbs is not planned for.
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        Ok(Self {
            source: text(path)?,
            target: text(&target)?,
            above,
            directory,
            attributes,
            own: false,
            mount: None,
        })
    }

    /// A copy of the mount, not yet anywhere, with less allowed than on the original.
    /// With `users`, the machine's own belong to its user.
    fn take(&mut self, users: Option<&OwnedFd>) -> Result<(), Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = match open_tree(CWD, self.source.as_c_str(), flags) {
            Ok(mount) => mount,
            // As in `plan`: without capabilities over foreign users the child may see less.
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let users = users.filter(|_| self.own);
        set_attributes(mount.as_raw_fd(), c"", true, self.attributes, users)?;
        self.mount = Some(mount);
        Ok(())
    }

    fn place(&mut self) -> Result<(), Errno> {
        let Some(mount) = self.mount.take() else {
            return Ok(());
        };
        for directory in &self.above {
            make_directory(directory)?;
        }
        if self.directory {
            make_directory(&self.target)?;
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            match openat(CWD, self.target.as_c_str(), flags, Mode::from(0o444)) {
                // It may stand on what a parent shows, which is read-only or no plain file.
                Ok(_) | Err(Errno::ROFS | Errno::ACCESS | Errno::NXIO | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        move_mount(
            &mount,
            c"",
            CWD,
            self.target.as_c_str(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    }
}

fn make_directory(path: &CStr) -> Result<(), Errno> {
    match mkdirat(CWD, path, Mode::from(0o755)) {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::ACCESS | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes the working directory the root, and the root that was unreachable.
fn enter_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    set_attributes(
        libc::AT_FDCWD,
        c"/",
        false,
        libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        None,
    )
}

/// mount_setattr(2), which adds to what a mount forbids and takes nothing away; with a user
/// namespace, owners are seen as it maps them.
#[allow(unsafe_code)]
fn set_attributes(
    at: i32,
    path: &CStr,
    recursive: bool,
    attributes: u64,
    users: Option<&OwnedFd>,
) -> Result<(), Errno> {
    let mapped = users.map_or(0, |_| libc::MOUNT_ATTR_IDMAP);
    let attr = libc::mount_attr {
        attr_set: attributes | mapped,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |users| u64::from(users.as_raw_fd().cast_unsigned())),
    };
    let flags = if recursive {
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE
    } else {
        libc::AT_EMPTY_PATH
    };
    // SAFETY: the path is a C string and `attr` a structure of the size that is told; both live
    // past the call, which only reads them.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}
