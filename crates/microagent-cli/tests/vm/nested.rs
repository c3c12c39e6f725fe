//! microagent on a host that delegates control groups of version 2, whatever this one does: the host is a guest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{Sandbox, busybox_tar, require};

const HOST: &str = "host:nested";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Where Debian's QEMU keeps what it loads when it is needed, and what it puts into machines.
const MODULES: &str = "/usr/lib/x86_64-linux-gnu/qemu";
const FIRMWARE: &str = "/usr/share/qemu";

/// What is done on that host. It hands a group to its session, as `Delegate=yes` of systemd does. Whether machines
/// boot there is not waited for: an emulated machine in an emulated one takes its time.
const SCRIPT: &str = r#"
    given=/sys/fs/cgroup/given
    mkdir -p $given/session
    echo '+cpu +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
    echo '+cpu +memory +pids' > $given/cgroup.subtree_control
    echo $$ > $given/session/cgroup.procs
    export HOME=/root MICROAGENT_CONFINEMENT=required
    microagent images import --name busybox:test /busybox.tar
    MICROAGENT_BOOT_TIMEOUT=1 microagent doctor | grep -A1 ' confinement '
    microagent create --memory 128M --network isolated held busybox:test -- sleep 1000
    microagent start held > /start 2>&1 &
    n=0
    until group=$(ls -d $given/microagent-vm-* 2>/dev/null) && grep -q . $group/cgroup.procs; do
        n=$((n + 1)); [ $n -lt 600 ] || { cat /start; exit 1; }
        sleep 0.1
    done
    for file in memory.max cpu.max pids.max; do echo $file $(cat $group/$file); done
    vmm=$(cat $group/cgroup.procs)
    echo member $(tr '\0' ' ' < /proc/$vmm/cmdline)
    until microagent status held | grep '^confined'; do sleep 0.1; done
    microagent delete --force held
    wait
    echo left $(find $given -mindepth 1 -type d)
"#;

#[test]
fn a_qemu_is_held_by_control_groups_where_they_are_delegated() {
    if !cfg!(target_arch = "x86_64") {
        testkit::skip_test("the host that is made here has QEMU for x86_64");
        return;
    }
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let place = tempfile::tempdir().unwrap();
    sandbox.import(HOST, &host(&sandbox, place.path()));
    let run = sandbox
        .run(["--memory", "1G", "--cpus", "2", "--network", "isolated"])
        .args([HOST, "sh", "-c", SCRIPT])
        .run()
        .success();
    let out = run.out();
    println!("{out}");
    let line = |begin: &str| {
        let found = out.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin}: {run}"))
    };
    // `doctor` starts a monitor of its own, and looks at it.
    let checked = line("ready     confinement");
    let (held, _) = checked.split_once(". Not by").unwrap_or((checked, ""));
    assert!(held.ends_with("cgroup limits"), "{checked}");
    // The guest's memory and what a monitor needs besides; its two vCPUs and one more processor.
    assert_eq!(
        line("memory.max"),
        format!("memory.max {}", (128_u64 + 1536) << 20)
    );
    assert_eq!(line("cpu.max"), "cpu.max 300000 100000");
    assert_eq!(line("pids.max"), "pids.max 512");
    assert!(
        line("member").starts_with(&format!("member {QEMU} ")),
        "{run}"
    );
    assert!(line("confined by").ends_with("cgroup limits"), "{run}");
    // The group went with the machine.
    assert_eq!(line("left"), "left /sys/fs/cgroup/given/session");
}

/// A root file system with this microagent, a kernel, an image, and this host's QEMU.
fn host(sandbox: &Sandbox, place: &Path) -> PathBuf {
    let root = fs::canonicalize(place).unwrap().join("root");
    fs::create_dir(&root).unwrap();
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-xf")
        .arg(busybox_tar()));
    require(QEMU, "qemu-system-x86");
    require("strip", "binutils");
    let inside = |path: &str| {
        let path = root.join(path.trim_start_matches('/'));
        let directory = path.parent().unwrap();
        fs::create_dir_all(directory).unwrap();
        // A link of the archive could lead to the file that is copied.
        assert_eq!(fs::canonicalize(directory).unwrap(), directory);
        path
    };
    let program = inside("/bin/microagent");
    run(Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(&program)
        .arg(env!("CARGO_BIN_EXE_microagent")));
    let accelerators = fs::read_dir(MODULES).into_iter().flatten().flatten();
    let accelerators = accelerators.map(|entry| entry.path()).filter(|path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("accel-")
    });
    let mut programs: Vec<_> = accelerators.collect();
    programs.extend([QEMU.into(), env!("CARGO_BIN_EXE_microagent").into()]);
    let mut files: Vec<_> = fs::read_dir(FIRMWARE)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["bios-microvm.bin", "qboot.rom", "pvh.bin"].contains(&&*name)
    });
    for program in &programs {
        let libraries = Command::new("ldd").arg(program).output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        let libraries = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        files.extend(libraries.map(PathBuf::from));
    }
    files.extend(
        programs
            .into_iter()
            .filter(|path| !path.ends_with("microagent")),
    );
    files.sort();
    files.dedup();
    for file in files {
        fs::copy(&file, inside(file.to_str().unwrap())).unwrap();
    }
    fs::copy(busybox_tar(), root.join("busybox.tar")).unwrap();
    // The kernel of the tests.
    let state = inside("/root/.microagent/kernels");
    run(Command::new("cp")
        .arg("-a")
        .arg(sandbox.state().join("kernels"))
        .arg(&state));
    let archive = place.join("host.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    archive
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
