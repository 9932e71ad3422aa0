/* Uses memory in the way named by the first argument; sizes in MiB. Exit 0: it got what it wanted. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static int touch(size_t mib) {
    volatile char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) { printf("errno %d\n", errno); return 1; }
    for (size_t at = 0; at < mib << 20; at += 4096) memory[at] = 1;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    size_t mib = strtoull(argv[2], NULL, 10);
    /* Address space only, as runtimes reserve it. */
    if (strcmp(argv[1], "reserve") == 0) {
        void *memory = mmap(NULL, mib << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) { printf("errno %d\n", errno); return 1; }
        return 0;
    }
    if (strcmp(argv[1], "touch") == 0) return touch(mib);
    /* In so many children, which keep it until all have it. Ends well only if none is killed. */
    if (strcmp(argv[1], "share") == 0 && argc > 3) {
        int children = atoi(argv[3]), ready[2], go[2];
        if (pipe(ready) || pipe(go)) return 2;
        for (int n = 0; n < children; n++) {
            if (fork() == 0) {
                char word = 1;
                close(go[1]);
                if (touch(mib)) _exit(1);
                if (write(ready[1], &word, 1) != 1) _exit(2);
                _exit(read(go[0], &word, 1) == 0 ? 0 : 2);
            }
        }
        close(ready[1]);
        char word;
        int got = 0, failed = 0, status;
        while (got < children && read(ready[0], &word, 1) == 1) {
            if (++got == children) close(go[1]);
            if (waitpid(-1, &status, WNOHANG) > 0 && status) return 3;
        }
        close(go[1]);
        while (wait(&status) > 0) failed |= status;
        return failed ? 3 : 0;
    }
    /* Lets the kernel kill a child for its memory, and goes on as if nothing had been. */
    if (strcmp(argv[1], "sacrifice") == 0) {
        if (fork() == 0) _exit(touch(mib));
        wait(NULL);
        return 0;
    }
    return 2;
}
