/* Files, mounts, programs with privileges, and what is inherited. */
#include "attack.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static long open_one(char **args) { return open(*args, O_RDONLY | O_NONBLOCK | O_NOCTTY); }

/* read PATH: its first byte. */
static long read_file(char **args) {
    char byte;
    int fd = open(*args, O_RDONLY);
    return fd < 0 ? -1 : read(fd, &byte, 1);
}

static long write_file(char **args) { return open(*args, O_WRONLY | O_CREAT, 0600); }

/* open PATH...: each of them, "PATH RESULT" a line. */
static long open_files(char **args) {
    for (; *args; args++) {
        char *one[] = {*args, NULL};
        if (in_child(*args, open_one, one) == -1) return -1;
    }
    return SAID;
}

static long list(char **args) {
    DIR *directory = opendir(*args);
    return directory && readdir(directory) ? 0 : -1;
}

static long mount_tmpfs(char **args) {
    (void)args;
    if (mkdir("mount", 0700) < 0 && errno != EEXIST) return -1;
    return mount("tmpfs", "mount", "tmpfs", 0, "size=64k");
}

/* nested_mount TYPE: in namespaces of its own, where it may. */
static long nested_mount(char **args) {
    if (mkdir("mount", 0700) < 0 && errno != EEXIST) return -1;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) < 0) return -1;
    return mount(*args, "mount", *args, 0, NULL);
}

/* A device node. A whiteout, which the kernel itself gives anybody. */
static long device_node(char **args) {
    (void)args;
    unlink("node");
    long made = mknod("node", S_IFCHR | 0600, 0);
    int error = errno;
    unlink("node");
    errno = error;
    return made;
}

/* Copies this program into the working directory and runs the copy. */
static long execute_copy(char **args) {
    (void)args;
    char buffer[1 << 16];
    ssize_t count;
    int from = open("/proc/self/exe", O_RDONLY), to = open("copy", O_WRONLY | O_CREAT | O_TRUNC, 0700);
    /* Where there is no /proc a script does: what is asked is whether the kernel executes it. */
    if (to < 0) return -1;
    if (from < 0 && write_all(to, "#!/bin/true\n", 12) < 0) return -1;
    while (from >= 0 && (count = read(from, buffer, sizeof buffer)) > 0)
        if (write_all(to, buffer, (size_t)count) < 0) return -1;
    close(to);
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0) return -1;
    pid_t child = vfork();
    if (child == 0) {
        execl("copy", "copy", "hostname", "", NULL);
        int error = errno;
        (void)!write(report[1], &error, sizeof error);
        _exit(1);
    }
    close(report[1]);
    int error;
    long refused = read(report[0], &error, sizeof error) == sizeof error;
    waitpid(child, NULL, 0);
    unlink("copy");
    errno = error;
    return refused ? -1 : 0;
}

static unsigned long long own_capabilities(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0) return 0;
    return data[0].permitted | (unsigned long long)data[1].permitted << 32;
}

/* wait: says what it may, and ends with its input. What `gain_by`, `signal` and `trace` aim at. */
static long wait_for_end(char **args) {
    (void)args;
    char byte;
    /* Whatever the host's policy for tracing: this one may be traced. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    printf("waiting %u %llx\n", geteuid(), own_capabilities());
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
    return 0;
}

/* gain_by PROGRAM: starts it, and looks at what it may. Done if one of its user ids is not its starter's, or if it has a capability that
 * its starter has not. */
static long gain_by(char **args) {
    int started[2], hold[2], output[2];
    if (access(*args, X_OK) < 0 || pipe2(started, O_CLOEXEC) < 0 || pipe(hold) < 0 || pipe2(output, O_CLOEXEC) < 0) return -1;
    pid_t child = vfork();
    if (child == 0) {
        /* Waits for its input, if it reads any. */
        dup2(hold[0], 0);
        dup2(output[1], 1);
        dup2(output[1], 2);
        execl(*args, *args, "wait", NULL);
        int error = errno;
        (void)!write(started[1], &error, sizeof error);
        _exit(1);
    }
    close(started[1]);
    close(output[1]);
    int error;
    if (read(started[0], &error, sizeof error) == sizeof error) {
        waitpid(child, NULL, 0);
        errno = error;
        return -1;
    }
    /* The kernel closes descriptors before it gives privileges: a word from it is needed, or its end. It is not waited for before its ids
     * are read. */
    char word[256] = "", path[64], line[256];
    unsigned ids[4] = {getuid(), getuid(), getuid(), getuid()};
    unsigned long long permitted = 0;
    long known = 0;
    if (poll(&(struct pollfd){.fd = output[0], .events = POLLIN}, 1, 1000) == 1)
        (void)!read(output[0], word, sizeof word - 1);
    if (sscanf(word, "waiting %u %llx", ids + 1, &permitted) == 2) {
        known = 1;
    } else {
        /* No program of ours: what /proc says of it, by the number that it has there, which need not be the one that it has here. */
        int seen_as = 0, handle = (int)syscall(SYS_pidfd_open, child, 0);
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", handle);
        FILE *info = handle < 0 ? NULL : fopen(path, "r");
        while (info && fgets(line, sizeof line, info)) sscanf(line, "Pid: %d", &seen_as);
        snprintf(path, sizeof path, "/proc/%d/status", seen_as);
        FILE *status = seen_as > 0 ? fopen(path, "r") : NULL;
        while (status && fgets(line, sizeof line, status)) {
            known |= sscanf(line, "Uid: %u %u %u %u", ids, ids + 1, ids + 2, ids + 3) == 4;
            sscanf(line, "CapPrm: %llx", &permitted);
        }
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (!known) return said("not to be seen");
    for (int which = 1; which < 4; which++)
        if (ids[which] != getuid()) return 0;
    return permitted & ~own_capabilities() ? 0 : said("no privilege gained");
}

/* A capability in the bounding set: what an executed file could give. */
static long bounding(char **args) {
    (void)args;
    for (int capability = 0; capability < 64; capability++)
        if (prctl(PR_CAPBSET_READ, capability) == 1) return 0;
    return said("empty");
}

/* inherited_fds: any descriptor but the three. */
static long inherited_fds(char **args) {
    (void)args;
    for (int fd = 3; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) != -1) return 0;
    return said("none");
}

/* variables: any at all. */
static long variables(char **args) {
    (void)args;
    extern char **environ;
    return *environ ? 0 : said("none");
}

/* hostname NAME: whether that is the name of the machine. */
static long hostname(char **args) {
    struct utsname names;
    if (uname(&names) < 0) return -1;
    return strcmp(names.nodename, *args) == 0 ? 0 : said("another name");
}

/* namespace KIND IDENTITY: whether it is in that namespace. */
static long namespace(char **args) {
    char path[64], identity[64] = "";
    snprintf(path, sizeof path, "/proc/self/ns/%s", args[0]);
    if (readlink(path, identity, sizeof identity - 1) < 0) return -1;
    return strcmp(identity, args[1]) == 0 ? 0 : said("another namespace");
}

/* links TARGET: the outputs of an execution as ways out of its work area. */
static long links(char **args) {
    if (symlink(*args, "symbolic") < 0 || mkfifo("fifo", 0644) < 0) return -1;
    int file = open("plain", O_WRONLY | O_CREAT, 0644);
    if (file < 0 || write_all(file, "x", 1) < 0 || link("plain", "hard") < 0) return -1;
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", *args);
    char *slash = strrchr(parent, '/');
    if (!slash) return -1;
    *slash = 0;
    return symlink(parent, "directory");
}

/* swap TARGET: a file that is a symbolic link every other moment, until the end. */
static long swap(char **args) {
    int file = open("swapped", O_WRONLY | O_CREAT, 0644);
    if (file < 0 || write_all(file, "x", 1) < 0 || symlink(*args, "other") < 0) return -1;
    puts("swapping");
    fflush(stdout);
    for (;;)
        if (syscall(SYS_renameat2, AT_FDCWD, "swapped", AT_FDCWD, "other", 2 /* RENAME_EXCHANGE */) < 0) return -1;
}

const struct attack FILES[] = {
    {"read", read_file},
    {"write", write_file},
    {"open", open_files},
    {"list", list},
    {"mount_tmpfs", mount_tmpfs},
    {"nested_mount", nested_mount},
    {"device_node", device_node},
    {"execute_copy", execute_copy},
    {"wait", wait_for_end},
    {"gain_by", gain_by},
    {"bounding", bounding},
    {"inherited_fds", inherited_fds},
    {"variables", variables},
    {"hostname", hostname},
    {"namespace", namespace},
    {"links", links},
    {"swap", swap},
    {NULL, NULL},
};
