# Run in the guest by a shell. Each check does what its name says; the machine has a second disk at /data.
export DM_DISABLE_UDEV=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Where packages were unpacked and their scripts not run (of another architecture), what those leave behind.
for it in iptables ip6tables; do [ -e /usr/sbin/$it ] || ln -s $it-nft /usr/sbin/$it; done
[ -e /etc/group ] || echo docker:x:999: > /etc/group
check() {
    name=$1; shift
    if out=$( (set -e; "$@") 2>&1 ); then echo "ok $name"; else echo "FAILED $name: $out"; fi
}
fail() { echo "$*"; exit 1; }
has() { zcat /proc/config.gz | grep -q "^CONFIG_$1=y" || fail "no $1"; }
G=/sys/fs/cgroup

# --- The kernel itself, and the machine's devices
release() { grep -q microagent /proc/version; [ ! -e /proc/modules ]; }
filesystems() { for it in ext4 erofs overlay tmpfs fuse virtiofs; do grep -qw $it /proc/filesystems || fail $it; done; }
drivers() {
    for it in net blk rng balloon console; do [ -d /sys/bus/virtio/drivers/virtio_$it ] || fail virtio_$it; done
    [ -d /sys/bus/virtio/drivers/virtiofs ]; [ -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport ]
    # Each device this machine has is driven.
    for it in /sys/bus/virtio/devices/*; do [ -e $it/driver ] || fail $it $(cat $it/device); done
    [ "$(ls -d /sys/bus/virtio/drivers/virtio_blk/virtio* | wc -l)" = 3 ]
    ls -d /sys/bus/virtio/drivers/virtio_net/virtio* /sys/bus/virtio/drivers/virtio_rng/virtio*
    grep -q virtio /sys/class/misc/hw_random/rng_current
    [ "$(head -c 64 /dev/hwrng | wc -c)" = 64 ]
}
elsewhere() {
    for it in VIRTIO_PCI VIRTIO_MMIO; do has $it; done
    # Of arm64's machines none is Hyper-V's yet.
    [ "$(uname -m)" != x86_64 ] || for it in HYPERV HYPERV_NET HYPERV_STORAGE HYPERV_VSOCKETS; do has $it; done
}

# --- Control groups
controllers() { for it in cpu cpuset io memory pids; do grep -qw $it $G/cgroup.controllers || fail $it; done; }
group() { echo "+cpu +memory +pids" > $G/cgroup.subtree_control; mkdir -p $G/$1; }
inside() { sh -c "echo \$\$ > $G/$1/cgroup.procs; $2"; }
memory() {
    group memory; echo 16M > $G/memory/memory.max
    inside memory 'head -c 4M /dev/zero | tail > /dev/null'
    ! inside memory 'head -c 64M /dev/zero | tail > /dev/null; exit $?' || fail "64 MiB fit into 16"
    grep -q '^oom_kill [1-9]' $G/memory/memory.events
}
pids() {
    group pids; echo 3 > $G/pids/pids.max
    ! inside pids 'sleep 9 & sleep 9 & sleep 9 & sleep 9 & wait' || fail "four of three processes"
    grep -q '^max [1-9]' $G/pids/pids.events
    echo 1 > $G/pids/cgroup.kill
}
cpu() {
    group cpu; echo "10000 100000" > $G/cpu/cpu.max
    ! inside cpu 'exec timeout 1 sh -c "while :; do :; done"'
    grep -q '^nr_throttled [1-9]' $G/cpu/cpu.stat
}
killed() {
    group killed; inside killed 'sleep 1000 & sleep 1000 &'
    grep -q 'populated 1' $G/killed/cgroup.events
    echo 1 > $G/killed/cgroup.freeze
    for _ in $(seq 100); do ! grep -q 'frozen 1' $G/killed/cgroup.events || break; sleep 0.05; done
    grep -q 'frozen 1' $G/killed/cgroup.events
    echo 1 > $G/killed/cgroup.kill
    for _ in $(seq 100); do ! grep -q 'populated 0' $G/killed/cgroup.events || break; sleep 0.05; done
    rmdir $G/killed
}

# --- Namespaces
namespaces() {
    for it in cgroup ipc mnt net pid time user uts; do [ -e /proc/self/ns/$it ] || fail $it; done
    # As a user that is nobody on the outside, root on the inside.
    out=$(setpriv --reuid=65534 --clear-groups unshare -UrmpfniuCT --mount-proc sh -c '
        hostname inside; mount -t tmpfs t /mnt; ipcmk -Q > /dev/null
        echo $(id -u) $$ $(hostname) $(ls /proc/ | grep -c ^[0-9]) $(grep -c : /proc/net/dev) $(ipcs -q | grep -c 0x)')
    [ "$out" = "0 1 inside 3 1 1" ] || [ "$out" = "0 1 inside 4 1 1" ] || fail "$out"
    [ "$(hostname)" != inside ]; ! grep -q ' /mnt ' /proc/mounts; [ "$(ipcs -q | grep -c 0x)" = 0 ]
}

# --- Networks
bridged() {
    ip link add br0 type bridge; ip addr add 10.9.0.1/24 dev br0; ip link set br0 up
    for it in a b; do
        ip netns add $it; ip link add v$it type veth peer name eth0 netns $it; ip link set v$it master br0 up
    done
    ip -n a addr add 10.9.0.2/24 dev eth0; ip -n a link set eth0 up; ip -n a link set lo up
    ip -n b addr add 10.9.0.3/24 dev eth0; ip -n b link set eth0 up
    ip netns exec a ping -c2 -W5 10.9.0.3
    ip netns exec b sh -c 'echo hello | busybox nc -l -p 7 > /dev/null 2>&1 &'
    for _ in $(seq 100); do ip netns exec b ss -ltn | grep -q :7 && break; sleep 0.05; done
    [ "$(timeout 9 ip netns exec a busybox nc 10.9.0.3 7 < /dev/null)" = hello ]
    [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]
}
links() { ip link add du0 type dummy; ip link add mv0 link du0 type macvlan mode bridge; ip link del mv0; ip link del du0; }
nft() {
    command nft -f - <<'RULES'
table inet agent {
    set ports { type inet_service; flags interval; elements = { 20-25, 80 }; }
    map services { type inet_service : ipv4_addr . inet_service; elements = { 90 : 10.9.0.3 . 7 }; }
    chain out {
        type filter hook output priority 0; policy accept;
        ip daddr 127.0.0.9 icmp type echo-request limit rate 1000/second counter name pings
        ct state established,related counter accept
        tcp dport @ports counter reject with tcp reset
        meta skuid 65534 counter drop
    }
    counter pings { }
    chain nat {
        type nat hook postrouting priority 100
        ip saddr 10.9.0.0/24 oifname != "br0" counter masquerade
    }
    chain local {
        type nat hook output priority -100
        ip daddr 10.9.0.9 meta l4proto tcp counter dnat ip to tcp dport map @services
    }
}
table bridge agent {
    chain f {
        type filter hook forward priority 0
        counter
    }
}
table netdev agent {
    chain i {
        type filter hook ingress device lo priority 0
        counter
    }
}
RULES
    ping -c3 -i 0.2 -W5 127.0.0.9
    command nft list counter inet agent pings | grep 'packets 3 '
    ip netns exec a ping -c1 -W5 10.9.0.3
    command nft list chain bridge agent f | grep 'counter packets [1-9]'
    command nft list chain netdev agent i | grep 'counter packets [1-9]'
    ! busybox nc -w5 127.0.0.1 22 < /dev/null
    command nft list chain inet agent out | grep 'tcp dport @ports counter packets [1-9]'
    # An address that nobody has leads to one behind the bridge.
    ip netns exec b sh -c 'echo translated | busybox nc -l -p 7 > /dev/null 2>&1 &'
    for _ in $(seq 100); do ip netns exec b ss -ltn | grep -q :7 && break; sleep 0.05; done
    [ "$(timeout 9 busybox nc 10.9.0.9 90 < /dev/null)" = translated ]
    command nft flush ruleset
}
bpf() { mkdir -p $G/bpf; /tmp/calls bpf $G/bpf; }

# --- Disks and file systems
loop() { truncate -s 16M $1; mkfs.ext4 -q -b 4096 $1; }
verity() {
    loop /tmp/v.img; truncate -s 4M /tmp/v.hash
    root=$(veritysetup format /tmp/v.img /tmp/v.hash | sed -n 's/^Root hash:[[:space:]]*//p')
    veritysetup open /tmp/v.img checked /tmp/v.hash $root
    mkdir -p /tmp/v; mount -o ro /dev/mapper/checked /tmp/v; ls /tmp/v | grep lost+found
    dd if=/dev/mapper/checked of=/dev/null bs=1M
    umount /tmp/v; veritysetup close checked
    printf x | dd of=/tmp/v.img bs=1 seek=9000000 conv=notrunc
    veritysetup open /tmp/v.img checked /tmp/v.hash $root
    ! dd if=/dev/mapper/checked of=/dev/null bs=1M || fail "a changed block was read"
    veritysetup close checked
}
fuse() {
    loop /tmp/f.img; mkdir -p /tmp/f; fuse2fs /tmp/f.img /tmp/f -o fakeroot
    grep -q ' /tmp/f fuse' /proc/mounts; echo inside > /tmp/f/file; sync; [ "$(cat /tmp/f/file)" = inside ]; umount /tmp/f
}
erofs() {
    mkdir -p /tmp/e/tree /tmp/e/at; cp -a /usr/share/doc/docker.io /etc/debian_version /tmp/e/tree
    mkfs.erofs -zlz4 /tmp/e/image /tmp/e/tree; mount -o loop,ro /tmp/e/image /tmp/e/at
    diff -r /tmp/e/tree /tmp/e/at; ! touch /tmp/e/at/x; umount /tmp/e/at
}
stack() { mkdir -p $1/l $1/u $1/w $1/m; mount -t overlay o -o lowerdir=$1/l,upperdir=$1/u,workdir=$1/w $1/m; echo x > $1/m/f; cat $1/u/f; umount $1/m; }
# The root is an overlay already, and Linux takes none as the upper layer of another.
refused() { ! out=$(stack /over 2>&1) || fail "it was taken"; }
tmpfs() { mkdir -p /t; mount -t tmpfs t /t; stack /t; }

# --- What all of this is for: an unchanged container engine, on a disk of its own
docker() {
    dockerd --data-root /data/docker > /tmp/dockerd.log 2>&1 < /dev/null &
    for _ in $(seq 240); do command docker info > /dev/null 2>&1 && break; sleep 0.5; done
    command docker info > /tmp/info || { tail -n 20 /tmp/dockerd.log; exit 1; }
    grep 'Storage Driver: overlay2' /tmp/info; grep 'Cgroup Version: 2' /tmp/info; ! grep WARNING /tmp/info
    mkdir -p /tmp/c/bin; cp /bin/busybox /tmp/c/bin/; ln -sf busybox /tmp/c/bin/sh
    tar -C /tmp/c -c . | command docker import - tiny
    [ "$(command docker run --rm --memory 64m --pids-limit 50 --cpus 0.5 tiny /bin/sh -c 'busybox cat /sys/fs/cgroup/memory.max; busybox id -u')" = "$(printf '67108864\n0')" ]
    command docker run -d --name web -p 8080:80 tiny /bin/busybox nc -ll -p 80 -e /bin/busybox echo served
    # By an address of this machine it is the rules that lead there, by loopback it is the engine's proxy.
    for it in 10.9.0.1 127.0.0.1; do
        for _ in $(seq 100); do [ "$(busybox nc -w2 $it 8080 < /dev/null)" != served ] || break; sleep 0.1; done
        [ "$(busybox nc -w2 $it 8080 < /dev/null)" = served ] || fail "not by $it"
    done
    iptables -t nat -nvxL DOCKER | grep -E '^ +[1-9][0-9]* .*dpt:8080 to:172'
    [ "$(command docker run --rm --link web tiny /bin/busybox nc -w5 web 80 < /dev/null)" = served ]
    ! command docker run --rm --memory 16m tiny /bin/busybox sh -c 'busybox head -c 99m /dev/zero | busybox tail; exit $?'
    command docker kill web; kill $(cat /var/run/docker.pid)
}

check release release
check filesystems filesystems
check drivers drivers
check drivers-for-other-machines elsewhere
check controllers controllers
check memory-limit memory
check pids-limit pids
check cpu-limit cpu
check freeze-and-kill killed
check namespaces namespaces
check bridge-and-veth bridged
check dummy-and-macvlan links
check nft nft
check tap /tmp/calls tap
check bpf bpf
check seccomp /tmp/calls seccomp
check landlock /tmp/calls landlock
check dm-verity verity
check fuse fuse
check erofs erofs
check overlay-on-ext4 stack /data
check overlay-on-tmpfs tmpfs
check overlay-on-overlay-is-refused refused
check docker docker
