/* Other processes: seen, signalled, traced, outlived; and one's own place among them. */
#include "attack.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* signal PID: whether it may be signalled. */
static long signal_process(char **args) { return kill((pid_t)number(args), 0); }

/* What started this one: inside, the sandbox's init. */
static long kill_parent(char **args) {
    (void)args;
    return kill(getppid(), SIGKILL);
}

static long trace(pid_t pid) {
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) < 0) return -1;
    waitpid(pid, NULL, __WALL);
    return ptrace(PTRACE_DETACH, pid, 0, 0);
}

/* trace PID */
static long trace_process(char **args) { return trace((pid_t)number(args)); }

static pid_t sibling(void) {
    int ready[2];
    if (pipe(ready) < 0) return -1;
    pid_t child = fork();
    if (child == 0) {
        /* Whatever the host's policy for tracing: this one may be traced. */
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        (void)!write(ready[1], "x", 1);
        alarm(5);
        pause();
        _exit(0);
    }
    char byte;
    if (child > 0 && read(ready[0], &byte, 1) != 1) return -1;
    return child;
}

static pid_t other;

static long trace_other(char **args) {
    (void)args;
    return trace(other);
}

static long read_other(char **args) {
    (void)args;
    static int here, there;
    struct iovec to = {&here, sizeof here}, from = {&there, sizeof there};
    return process_vm_readv(other, &to, 1, &from, 1, 0);
}

static long against_sibling(attack_fn *run, char **args) {
    other = sibling();
    if (other < 0) return -1;
    long outcome = in_child(NULL, run, args);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    return outcome;
}

static long trace_sibling(char **args) { return against_sibling(trace_other, args); }
static long read_sibling(char **args) { return against_sibling(read_other, args); }

/* orphan MARKER: a process of another session, without a parent, that sleeps on; the marker is among its arguments, as among this one's. */
static long orphan(char **args) {
    (void)args;
    int ready[2];
    if (pipe(ready) < 0) return -1;
    pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        if (setsid() < 0 || fork() != 0) _exit(0);
        (void)!write(ready[1], "x", 1);
        close(0), close(1), close(2), close(ready[0]), close(ready[1]);
        sleep(60);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    char byte;
    return read(ready[0], &byte, 1) == 1 ? 0 : -1;
}

static long lower_priority(char **args) {
    (void)args;
    return setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 1);
}

static long io_priority(char **args) {
    (void)args;
    return syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7);
}

static long batch_scheduling(char **args) {
    (void)args;
    struct sched_param none = {0};
    return syscall(SYS_sched_setscheduler, 0, SCHED_BATCH, &none);
}

static long pin_processor(char **args) {
    (void)args;
    unsigned long mask[16] = {0};
    long size = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
    return size < 0 ? -1 : syscall(SYS_sched_setaffinity, 0, (size_t)size, mask);
}

/* The limits of what started this one: inside, the sandbox's init. */
static long limits_of_parent(char **args) {
    (void)args;
    struct rlimit limit;
    return prlimit(getppid(), RLIMIT_NOFILE, NULL, &limit);
}

/* shared_memory ID: a segment that another process made. */
static long shared_memory(char **args) { return shmat((int)number(args), NULL, SHM_RDONLY) == (void *)-1 ? -1 : 0; }

/* make_shared_memory: says the id and waits for the end of its input; the segment ends with it, however it ends. */
static long make_shared_memory(char **args) {
    (void)args;
    int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0666);
    if (id < 0 || shmat(id, NULL, 0) == (void *)-1 || shmctl(id, IPC_RMID, NULL) < 0) return -1;
    char byte;
    printf("%d\n", id);
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
    return 0;
}

const struct attack PROCESSES[] = {
    {"signal", signal_process},
    {"kill_parent", kill_parent},
    {"trace", trace_process},
    {"trace_sibling", trace_sibling},
    {"read_sibling", read_sibling},
    {"orphan", orphan},
    {"lower_priority", lower_priority},
    {"io_priority", io_priority},
    {"batch_scheduling", batch_scheduling},
    {"pin_processor", pin_processor},
    {"limits_of_parent", limits_of_parent},
    {"shared_memory", shared_memory},
    {"make_shared_memory", make_shared_memory},
    {NULL, NULL},
};
