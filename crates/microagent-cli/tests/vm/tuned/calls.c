/* System calls that no program of the image makes alone: each argument is a check, which says nothing if it holds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NEED(what) do { if (!(what)) { printf("%s: %s\n", #what, strerror(errno)); exit(1); } } while (0)

static int bpf(int command, union bpf_attr *attr) {
    return syscall(SYS_bpf, command, attr, sizeof *attr);
}

/* Sends one datagram to this machine itself. */
static ssize_t send_one(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    NEED(fd >= 0);
    ssize_t sent = sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
    close(fd);
    return sent;
}

/* A program that drops every packet and counts it in a map, attached to a control group: its member cannot send. */
static void check_bpf(const char *group) {
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    int counter = bpf(BPF_MAP_CREATE, &map);
    NEED(counter >= 0);
    struct bpf_insn program[] = {
        {.code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = 10, .off = -4, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 2, .src_reg = 10},
        {.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 2, .imm = -4},
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = counter},
        {0},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_map_lookup_elem},
        {.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = 0, .off = 2, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 1, .imm = 1},
        {.code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = 0, .src_reg = 1, .imm = BPF_ADD},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    static char log[4096];
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_CGROUP_SKB, .expected_attach_type = BPF_CGROUP_INET_EGRESS,
        .insns = (uintptr_t)program, .insn_cnt = sizeof program / sizeof *program,
        .license = (uintptr_t)"GPL", .log_level = 1, .log_buf = (uintptr_t)log, .log_size = sizeof log,
    };
    int loaded = bpf(BPF_PROG_LOAD, &load);
    if (loaded < 0) printf("%s\n", log);
    NEED(loaded >= 0);
    int directory = open(group, O_RDONLY | O_DIRECTORY);
    NEED(directory >= 0);
    union bpf_attr attach = {.target_fd = directory, .attach_bpf_fd = loaded, .attach_type = BPF_CGROUP_INET_EGRESS};
    char path[256];
    snprintf(path, sizeof path, "%s/cgroup.procs", group);
    FILE *procs = fopen(path, "w");
    NEED(procs && fprintf(procs, "%d", getpid()) > 0 && fclose(procs) == 0);
    NEED(send_one() == 1);
    NEED(bpf(BPF_PROG_ATTACH, &attach) == 0);
    NEED(send_one() == -1 && errno == EPERM);
    uint32_t key = 0;
    uint64_t dropped = 0;
    union bpf_attr look = {.map_fd = counter, .key = (uintptr_t)&key, .value = (uintptr_t)&dropped};
    NEED(bpf(BPF_MAP_LOOKUP_ELEM, &look) == 0 && dropped == 1);
    NEED(bpf(BPF_PROG_DETACH, &attach) == 0);
    NEED(send_one() == 1);
}

/* A filter that answers one system call with an error of its own, and lets the others pass. */
static void check_seccomp(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 42),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    NEED(syscall(SYS_getppid) >= 0);
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    NEED(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
    NEED(syscall(SYS_getppid) == -1 && errno == 42);
    NEED(getpid() > 0);
}

/* A rule set that allows no file to be written: one that could be is refused, and reading goes on. */
static void check_landlock(void) {
    struct landlock_ruleset_attr handled = {.handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE};
    int rules = syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
    NEED(rules >= 0);
    NEED(open("/tmp", O_TMPFILE | O_WRONLY, 0600) >= 0);
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    NEED(syscall(SYS_landlock_restrict_self, rules, 0) == 0);
    NEED(open("/dev/null", O_WRONLY) == -1 && errno == EACCES);
    NEED(open("/dev/null", O_RDONLY) >= 0);
}

/* A packet that Linux sends out of a tap is read here, frame by frame. */
static void check_tap(void) {
    int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    NEED(tap >= 0);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strcpy(request.ifr_name, "tapcheck");
    NEED(ioctl(tap, TUNSETIFF, &request) == 0);
    NEED(system("ip addr add 192.0.2.1/24 dev tapcheck && ip link set tapcheck up") == 0);
    NEED(system("ping -c1 -W1 192.0.2.2 > /dev/null") != 0);
    unsigned char frame[2048];
    for (ssize_t length; (length = read(tap, frame, sizeof frame)) > 0;)
        if (length >= 42 && frame[12] == 8 && frame[13] == 6 && frame[41] == 2) return;
    printf("nobody asked who 192.0.2.2 is\n");
    exit(1);
}

int main(int count, char **words) {
    NEED(count >= 2);
    if (!strcmp(words[1], "bpf")) check_bpf(words[2]);
    else if (!strcmp(words[1], "seccomp")) check_seccomp();
    else if (!strcmp(words[1], "landlock")) check_landlock();
    else if (!strcmp(words[1], "tap")) check_tap();
    else return 2;
    return 0;
}
