//! A small program in the place of Firecracker's jailer: it takes what the jailer's published list of
//! options has and nothing else, and does of the jailer's work what a machine can see.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{chown, chroot},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
};

/// The options of `docs/jailer.md` in Firecracker's sources, and whether they take a value.
const OPTIONS: &[(&str, bool)] = &[
    ("--id", true),
    ("--exec-file", true),
    ("--uid", true),
    ("--gid", true),
    ("--cgroup-version", true),
    ("--parent-cgroup", true),
    ("--cgroup", true),
    ("--chroot-base-dir", true),
    ("--netns", true),
    ("--resource-limit", true),
    ("--daemonize", false),
    ("--new-pid-ns", false),
];

pub(crate) fn main(arguments: &[String]) -> ! {
    if arguments == ["--version"] {
        println!("Jailer v1.12.1\n");
        std::process::exit(0);
    }
    let mut rest = arguments.iter();
    let mut given = Vec::new();
    while let Some(word) = rest.next().filter(|word| *word != "--") {
        let known = OPTIONS.iter().find(|(name, _)| name == word);
        let (name, takes) =
            known.unwrap_or_else(|| panic!("Found argument '{word}' which wasn't expected"));
        let value = takes.then(|| rest.next().unwrap().clone());
        given.push((*name, value.unwrap_or_default()));
    }
    let value = |wanted: &str| {
        let mut found = given.iter().filter(|(name, _)| *name == wanted);
        let (_, value) = found
            .next()
            .unwrap_or_else(|| panic!("Argument '{wanted}' required"));
        assert!(found.next().is_none(), "'{wanted}' twice");
        value.as_str()
    };
    let id = value("--id");
    if id == "jail-broken" {
        eprintln!("Failed to create /dev/kvm via mknod inside the jail: Operation not permitted");
        std::process::exit(1);
    }
    assert!(id.len() <= 64 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
    let program = fs::canonicalize(value("--exec-file")).unwrap();
    let [user, group] = ["--uid", "--gid"].map(|name| value(name).parse::<u32>().unwrap());
    let root = fs::canonicalize(value("--chroot-base-dir"))
        .unwrap()
        .join(program.file_name().unwrap())
        .join(id)
        .join("root");
    assert_eq!(value("--resource-limit"), "no-file=1024");
    fs::create_dir_all(root.join("dev/net")).unwrap();
    // The jailer makes its devices anew, and fails where they are.
    for device in ["kvm", "net/tun", "urandom"] {
        assert!(!root.join("dev").join(device).exists(), "{device}");
        make_device(&root.join("dev").join(device), device, user);
    }
    let program = fs::File::open(program).unwrap();
    chroot(&root).unwrap();
    std::env::set_current_dir("/").unwrap();
    for path in ["/", "/dev", "/dev/net"] {
        chown(path, Some(user), Some(group)).unwrap();
    }
    let error = Command::new(format!("/proc/self/fd/{}", inherited(&program)))
        .arg0("firecracker")
        .args(["--id", id, "--start-time-us", "1"])
        .args(rest)
        .env_clear()
        .uid(user)
        .gid(group)
        .exec();
    panic!("{error}");
}

fn make_device(path: &Path, name: &str, user: u32) {
    let (major, minor) = match name {
        "kvm" => (10, 232),
        "net/tun" => (10, 200),
        _ => (1, 9),
    };
    let text = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a C string and integers.
    #[allow(unsafe_code)]
    let made = unsafe {
        libc::mknod(
            text.as_ptr(),
            libc::S_IFCHR | 0o600,
            libc::makedev(major, minor),
        )
    };
    assert_eq!(made, 0, "{path:?}: {}", std::io::Error::last_os_error());
    chown(path, Some(user), Some(user)).unwrap();
}

/// The number under which the program executed finds it.
fn inherited(file: &fs::File) -> i32 {
    // SAFETY: a descriptor that lives, and integers.
    #[allow(unsafe_code)]
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(done, 0);
    file.as_raw_fd()
}
