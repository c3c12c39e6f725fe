//! The kernel of `kernel build`, booted: what agents and the containers they start need works in it.
//!
//! It takes longer to build than all tests take: `cargo xtask kernel test` builds it and names it here.

use testkit::Sandbox;

/// Each line is a name and a command of busybox's shell that succeeds.
const CHECKS: &str = r#"
check() { name=$1; shift; if out=$("$@" 2>&1); then echo "ok $name"; else echo "FAILED $name: $out"; fi; }
has() { zcat /proc/config.gz | grep -q "^CONFIG_$1=y"; }
controllers() { for it in cpu cpuset io memory pids; do grep -qw $it /sys/fs/cgroup/cgroup.controllers || return 1; done; }
limited() { echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir -p /sys/fs/cgroup/limited && echo 16M > /sys/fs/cgroup/limited/memory.max && grep -q 16777216 /sys/fs/cgroup/limited/memory.max; }
netns() { unshare -n true; }
veth() { ip link add va type veth peer name vb && ip link set va up; }
bridge() { ip link add br0 type bridge && ip link set va master br0; }
dummy() { ip link add du0 type dummy; }
tun() { mkdir -p /dev/net; [ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200; : < /dev/net/tun; }
fuse() { [ -c /dev/fuse ] && : < /dev/fuse; }
filesystems() { for it in ext4 erofs overlay tmpfs fuse virtiofs; do grep -qw $it /proc/filesystems || { echo $it; return 1; }; done; }
loop() { dd if=/dev/zero of=/tmp/disk bs=1M count=4 && { [ -b /dev/loop0 ] || mknod /dev/loop0 b 7 0; } && losetup /dev/loop0 /tmp/disk; }
nested() { mkdir -p /over/l /over/u /over/w /over/m && mount -t overlay overlay -o lowerdir=/over/l,upperdir=/over/u,workdir=/over/w /over/m; }
ontmpfs() { mkdir -p /t && mount -t tmpfs t /t && mkdir /t/l /t/u /t/w /t/m && mount -t overlay o -o lowerdir=/t/l,upperdir=/t/u,workdir=/t/w /t/m && echo x > /t/m/f; }
seccomp() { grep -q '^Seccomp_filters:' /proc/self/status; }
userns() { [ -e /proc/self/ns/user ] && unshare -U true; }
nftables() { has NF_TABLES && has NFT_MASQ && has NFT_COMPAT; }
verity() { has DM_VERITY && [ -c /dev/mapper/control ]; }
check release grep -q microagent /proc/version
check no-modules [ ! -e /proc/modules ]
check controllers controllers
check memory-limit limited
check netns netns
check userns userns
check veth veth
check bridge bridge
check dummy dummy
check tun tun
check fuse fuse
check filesystems filesystems
check loop loop
check overlay-on-tmpfs ontmpfs
check seccomp seccomp
check nftables nftables
check dm-verity verity
check landlock has SECURITY_LANDLOCK
check bpf has BPF_SYSCALL
# The root is an overlay already, and Linux takes none as the upper layer of another: programs use a tmpfs or a volume.
check overlay-on-overlay-is-refused sh -c '! (mkdir -p /over/l /over/u /over/w /over/m; mount -t overlay overlay -o lowerdir=/over/l,upperdir=/over/u,workdir=/over/w /over/m)'
"#;

#[test]
#[ignore = "takes a kernel that takes long to build: cargo xtask kernel test"]
fn it_has_what_containers_need() {
    let kernel = std::env::var_os("MICROAGENT_TUNED_KERNEL")
        .expect("MICROAGENT_TUNED_KERNEL names the kernel; `cargo xtask kernel test` sets it");
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let installed = sandbox
        .microagent(["kernel", "install", "--default", "--from"])
        .arg(kernel)
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(installed["modules"], serde_json::json!([]));
    assert_eq!(installed["absent"], serde_json::json!([]));
    let run = sandbox
        .run([Sandbox::BUSYBOX, "sh", "-c", CHECKS])
        .run()
        .success();
    let said = run.out();
    eprintln!("{said}");
    assert!(!said.contains("FAILED"), "{run}");
    assert_eq!(said.matches("ok ").count(), 20, "{run}");
}
