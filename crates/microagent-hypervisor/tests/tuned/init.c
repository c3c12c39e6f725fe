/* PID 1 of a guest that is spoken to over its virtio console: a line is a question, and a line the answer. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

static char *held;
static size_t held_size;

static const char *error(void) { return strerror(errno); }

/* "ok", or why not. */
static const char *said(int failed) { return failed ? error() : "ok"; }

static int place(const char *path, const char *kind, const char *tag) {
    mkdir(path, 0755);
    return mount(tag, path, kind, 0, NULL);
}

/* Memory that is there for whoever asks, in KiB. */
static void memory(FILE *console) {
    FILE *info = fopen("/proc/meminfo", "r");
    char line[128];
    while (info && fgets(line, sizeof line, info))
        if (!strncmp(line, "MemTotal:", 9)) fprintf(console, "%ld\n", atol(line + 9));
    if (info) fclose(info);
}

/* Each virtio device with the driver that has it, if there is one. */
static void drivers(FILE *console) {
    char path[300], driver[300];
    struct dirent *entry;
    DIR *devices = opendir("/sys/bus/virtio/devices");
    while (devices && (entry = readdir(devices))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/driver", entry->d_name);
        ssize_t length = readlink(path, driver, sizeof driver - 1);
        driver[length < 0 ? 0 : length] = 0;
        const char *name = strrchr(driver, '/');
        fprintf(console, "%s ", name ? name + 1 : "nobody");
    }
    fprintf(console, "\n");
    if (devices) closedir(devices);
}

static void answer(FILE *console, char *line) {
    char *word = strtok(line, " \r\n"), *first = strtok(NULL, " \r\n"), *second = strtok(NULL, " \r\n");
    struct utsname name;
    if (!word) return;
    if (!strcmp(word, "release")) {
        uname(&name);
        fprintf(console, "%s %s\n", name.release, name.machine);
    } else if (!strcmp(word, "drivers")) {
        drivers(console);
    } else if (!strcmp(word, "memory")) {
        memory(console);
    } else if (!strcmp(word, "take") && first) {
        held_size = atol(first) << 20;
        held = mmap(NULL, held_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (held != MAP_FAILED) memset(held, 42, held_size);
        fprintf(console, "%s\n", said(held == MAP_FAILED));
    } else if (!strcmp(word, "give")) {
        fprintf(console, "%s\n", said(munmap(held, held_size)));
    } else if (!strcmp(word, "share") && first) {
        fprintf(console, "%s\n", said(place("/share", "virtiofs", first)));
    } else if (!strcmp(word, "read") && first) {
        char content[256];
        FILE *file = fopen(first, "r");
        fprintf(console, "%s\n", file && fgets(content, sizeof content, file) ? content : error());
        if (file) fclose(file);
    } else if (!strcmp(word, "write") && first && second) {
        FILE *file = fopen(first, "w");
        int failed = !file || fprintf(file, "%s", second) < 0;
        failed |= file && fclose(file);
        fprintf(console, "%s\n", said(failed));
    } else if (!strcmp(word, "end")) {
        reboot(RB_AUTOBOOT);
    } else {
        fprintf(console, "what is %s?\n", word);
    }
}

int main(void) {
    place("/proc", "proc", "proc");
    place("/sys", "sysfs", "sysfs");
    place("/dev", "devtmpfs", "devtmpfs");
    int fd = open("/dev/hvc0", O_RDWR | O_NOCTTY);
    if (fd < 0) {
        printf("/dev/hvc0: %s\n", error());
        return 1;
    }
    struct termios raw;
    tcgetattr(fd, &raw);
    cfmakeraw(&raw);
    tcsetattr(fd, TCSANOW, &raw);
    FILE *console = fdopen(fd, "r+");
    setvbuf(console, NULL, _IONBF, 0);
    fprintf(console, "here\n");
    char line[256];
    while (fgets(line, sizeof line, console)) answer(console, line);
    return 1;
}
