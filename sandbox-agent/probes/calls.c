/* System calls as such: any of them by number, foreign entries into the kernel, and those whose arguments decide. */
#include "attack.h"

#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* All arguments wrong in every type, so that no call can do anything. */
static long one_call(char **args) {
    long answer = syscall(number(args), -1L, -1L, -1L, -1L, -1L, -1L);
    return answer < 0 ? -1 : 0;
}

/* calls RANGE...: each of them in a child of its own, "N RESULT" a line. A range is N or N-M. */
static long calls(char **args) {
    for (; *args; args++) {
        char *end;
        long first = strtol(*args, &end, 10), last = *end == '-' ? strtol(end + 1, NULL, 10) : first;
        for (long call = first; call <= last; call++) {
            char text[24];
            snprintf(text, sizeof text, "%ld", call);
            char *one[] = {text, NULL};
            if (in_child(text, one_call, one) == -1) return -1;
        }
    }
    return SAID;
}

#ifdef __x86_64__
static long x32(char **args) {
    (void)args;
    return syscall(0x40000000 | SYS_getpid);
}

static long i386(char **args) {
    (void)args;
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(20) : "memory");
    return answer > 0 ? 0 : -1;
}
#endif

static long clone_into(char **args) {
    long child = syscall(SYS_clone, number(args) | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    return child;
}

/* clone_namespace FLAG...: a process in new namespaces, for each of them, "FLAG RESULT" a line. */
static long clone_namespace(char **args) {
    for (; *args; args++) {
        char *one[] = {*args, NULL};
        if (in_child(*args, clone_into, one) == -1) return -1;
    }
    return SAID;
}

static long clone3(char **args) {
    (void)args;
    return syscall(SYS_clone3, NULL, 0);
}

static long io_uring(char **args) {
    (void)args;
    struct io_uring_params params = {0};
    return syscall(SYS_io_uring_setup, 4, &params);
}

static long userfaultfd(char **args) {
    (void)args;
    return syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */);
}

static long memfd_secret(char **args) {
    (void)args;
#ifdef SYS_memfd_secret
    return syscall(SYS_memfd_secret, 0);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static long memfd(char **args) {
    (void)args;
    return syscall(SYS_memfd_create, "probe", 0);
}

static long add_key(char **args) {
    (void)args;
    return syscall(SYS_add_key, "user", "exchequer-probe", "x", 1, KEY_SPEC_PROCESS_KEYRING);
}

/* key NAME: the session keyring's key of that name. */
static long key(char **args) {
    return syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", *args, 0);
}

static long bpf_map(char **args) {
    (void)args;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_ARRAY;
    attr.key_size = attr.value_size = 4;
    attr.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

static long perf_event(char **args) {
    (void)args;
    struct perf_event_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.size = sizeof attr;
    attr.type = PERF_TYPE_SOFTWARE;
    attr.config = PERF_COUNT_SW_TASK_CLOCK;
    attr.exclude_kernel = attr.exclude_hv = 1;
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static long kernel_log(char **args) {
    (void)args;
    static char text[4096];
    return syscall(SYS_syslog, 3 /* SYSLOG_ACTION_READ_ALL */, text, sizeof text);
}

/* A time that no clock has: refused for the time before anybody's right is looked at. */
static long set_clock(char **args) {
    (void)args;
    struct timespec never = {.tv_sec = 0, .tv_nsec = -1};
    return syscall(SYS_clock_settime, CLOCK_REALTIME, &never);
}

/* The name it has already. */
static long set_hostname(char **args) {
    (void)args;
    char name[65] = "";
    if (gethostname(name, sizeof name - 1) < 0) return -1;
    return sethostname(name, strlen(name));
}

static long install_filter(char **args) {
    (void)args;
    return syscall(SYS_seccomp, 2 /* SECCOMP_GET_ACTION_AVAIL */, 0, &(unsigned){0x7fff0000});
}

static long input_injection(char **args) {
    (void)args;
    return ioctl(0, TIOCSTI, "x");
}

/* So that its request passes a comparison of all 64 bits that the kernel does not make. */
static long input_injection_high(char **args) {
    (void)args;
    return syscall(SYS_ioctl, 0, 0x100000000UL | TIOCSTI, "x");
}

static long death_signal(char **args) {
    (void)args;
    return prctl(PR_SET_PDEATHSIG, 0);
}

static long undumpable(char **args) {
    (void)args;
    return prctl(PR_SET_DUMPABLE, 0);
}

static long randomization_off(char **args) {
    (void)args;
    return syscall(SYS_personality, 0x0040000 /* ADDR_NO_RANDOMIZE */);
}

const struct attack CALLS[] = {
    {"calls", calls},
#ifdef __x86_64__
    {"x32", x32},
    {"i386", i386},
#endif
    {"clone_namespace", clone_namespace},
    {"clone3", clone3},
    {"io_uring", io_uring},
    {"userfaultfd", userfaultfd},
    {"memfd_secret", memfd_secret},
    {"memfd", memfd},
    {"add_key", add_key},
    {"key", key},
    {"bpf_map", bpf_map},
    {"perf_event", perf_event},
    {"kernel_log", kernel_log},
    {"set_clock", set_clock},
    {"set_hostname", set_hostname},
    {"install_filter", install_filter},
    {"input_injection", input_injection},
    {"input_injection_high", input_injection_high},
    {"death_signal", death_signal},
    {"undumpable", undumpable},
    {"randomization_off", randomization_off},
    {NULL, NULL},
};
