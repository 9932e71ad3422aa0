/* More than one's share: processes, memory, disk, descriptors, output, core dumps. */
#include "attack.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* forks COUNT: that many children at once; says how many there were. */
static long forks(char **args) {
    pid_t parent = getpid();
    long long made = 0;
    pid_t child = 0;
    for (; made < number(args); made++) {
        child = fork();
        if (child < 0) break;
        if (child == 0) {
            /* Not to outlive a control outside; inside, the call is refused and the sandbox kills the tree. */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(20);
            if (getppid() == parent) pause();
            _exit(0);
        }
    }
    int error = errno;
    printf("made %lld\n", made);
    errno = error;
    return child < 0 ? -1 : 0;
}

static volatile char *touched(size_t size) {
    volatile char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    for (size_t at = 0; at < size; at += 4096) memory[at] = 1;
    return memory;
}

/* memory BYTES: used by this one process. */
static long memory(char **args) { return touched((size_t)number(args)) ? 0 : -1; }

/* memory_of_tree BYTES COUNT: that much in each of so many processes at once. Done if all have it at the same time. */
static long memory_of_tree(char **args) {
    size_t size = (size_t)number(args);
    long long count = number(args + 1);
    int ready[2], go[2];
    if (pipe(ready) < 0 || pipe(go) < 0) return -1;
    for (long long made = 0; made < count; made++) {
        pid_t child = fork();
        if (child < 0) return -1;
        if (child == 0) {
            close(go[1]), close(ready[0]);
            if (!touched(size)) _exit(errno);
            char byte = 'x';
            (void)!write(ready[1], &byte, 1);
            close(ready[1]);
            (void)!read(go[0], &byte, 1);
            _exit(0);
        }
    }
    close(ready[1]);
    long long have = 0;
    char byte;
    while (read(ready[0], &byte, 1) == 1) have++;
    close(go[1]);
    int status, lost = 0;
    while (wait(&status) > 0)
        if (WIFSIGNALED(status)) lost = WTERMSIG(status);
    if (have == count) return 0;
    return lost ? said("a process was killed with signal %d", lost) : said("a process could not have its part");
}

/* fill BYTES SIZE: that much, in files of that size. */
static long fill(char **args) {
    static char block[1 << 16];
    long long left = number(args), size = number(args + 1);
    long outcome = 0;
    int files = 0, error = 0;
    for (; left > 0 && outcome == 0; files++) {
        char name[32];
        snprintf(name, sizeof name, "fill-%d", files);
        int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0) outcome = -1;
        for (long long wrote = 0; outcome == 0 && wrote < size && left > 0; wrote += (long long)sizeof block, left -= (long long)sizeof block)
            outcome = write_all(fd, block, sizeof block);
        error = errno;
        close(fd);
    }
    for (; files >= 0; files--) {
        char name[32];
        snprintf(name, sizeof name, "fill-%d", files);
        unlink(name);
    }
    errno = error;
    return outcome;
}

/* many_files COUNT */
static long many_files(char **args) {
    long long made = 0, count = number(args);
    char name[32];
    long outcome = 0;
    for (; made < count && outcome == 0; made++) {
        snprintf(name, sizeof name, "many-%lld", made);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        outcome = fd < 0 ? -1 : close(fd);
    }
    int error = errno;
    for (; made >= 0; made--) {
        snprintf(name, sizeof name, "many-%lld", made);
        unlink(name);
    }
    errno = error;
    return outcome;
}

/* big_file BYTES: one file. */
static long big_file(char **args) {
    static char block[1 << 16];
    int fd = open("big", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    unlink("big");
    if (fd < 0) return -1;
    for (long long left = number(args); left > 0; left -= (long long)sizeof block)
        if (write_all(fd, block, sizeof block) < 0) return -1;
    return 0;
}

/* descriptors COUNT: that many open at once, if it may: its own soft limit goes as high as the hard one. */
static long descriptors(char **args) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -1;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) return -1;
    for (long long made = 3; made < number(args); made++)
        if (dup(1) < 0) return -1;
    return 0;
}

/* raise_limit VALUE: the hard limit for descriptors back to it. */
static long raise_limit(char **args) {
    struct rlimit limit = {(rlim_t)number(args), (rlim_t)number(args)};
    return setrlimit(RLIMIT_NOFILE, &limit);
}

static long lock_memory(char **args) {
    (void)args;
    static char page[8192];
    return mlock(page, sizeof page);
}

/* flood BYTES: on standard output. */
static long flood(char **args) {
    static char block[1 << 12];
    for (long long left = number(args); left > 0; left -= (long long)sizeof block)
        if (write_all(1, block, sizeof block) < 0) return -1;
    return 0;
}

/* spin MS: that much processor time. */
static long spin(char **args) {
    clock_t end = clock() + (clock_t)(number(args) * (CLOCKS_PER_SEC / 1000));
    while (clock() < end) {}
    return 0;
}

static long sleep_on(char **args) { return (long)sleep((unsigned)number(args)); }

/* A core dump of a child. Its limit is set first to what a small dump needs: refused where the hard limit is below. */
static long core_dump(char **args) {
    (void)args;
    struct rlimit limit = {16 << 20, 16 << 20};
    if (setrlimit(RLIMIT_CORE, &limit) < 0) return -1;
    pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        abort();
    }
    int status;
    if (waitpid(child, &status, 0) < 0) return -1;
    return WIFSIGNALED(status) && WCOREDUMP(status) ? 0 : said("no dump");
}

const struct attack RESOURCES[] = {
    {"forks", forks},
    {"memory", memory},
    {"memory_of_tree", memory_of_tree},
    {"fill", fill},
    {"many_files", many_files},
    {"big_file", big_file},
    {"descriptors", descriptors},
    {"raise_limit", raise_limit},
    {"lock_memory", lock_memory},
    {"flood", flood},
    {"spin", spin},
    {"sleep", sleep_on},
    {"core_dump", core_dump},
    {NULL, NULL},
};
