/* The attacks of the probe suite: one static program, one attack a run, named by its arguments.
 *
 *   attack NAME [ARGUMENT...]
 *
 * Exit status 0: it succeeded. 1: it did not, or it had several results; the output says. 99: there is no such attack.
 *
 * Left out: what the result should have been (src/probes). Nothing here harms a host that refuses nothing: the calls are made with
 * arguments that change nothing, and what has to be made is made in the working directory. */
#include "attack.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

long said(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("said ", stdout);
    vprintf(format, values);
    putchar('\n');
    va_end(values);
    return SAID;
}

long long number(char **args) { return *args ? strtoll(*args, NULL, 0) : 0; }

long write_all(int fd, const void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t wrote = write(fd, (const char *)bytes + done, count - done);
        if (wrote < 0) return -1;
        done += (size_t)wrote;
    }
    return 0;
}

static int result(const char *label, long outcome) {
    int number = errno;
    if (outcome == SAID) return 1;
    if (label) printf("%s ", label);
    if (outcome >= 0) {
        puts("done");
        return 0;
    }
    printf("errno %d\n", number);
    return 1;
}

long in_child(const char *label, attack_fn *run, char **args) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) return -1;
    if (child == 0) {
        /* A call that waits for ever is a result too. */
        alarm(5);
        errno = 0;
        int status = result(label, run(args));
        fflush(stdout);
        _exit(status);
    }
    int status;
    if (waitpid(child, &status, 0) < 0) return -1;
    if (WIFSIGNALED(status)) {
        if (label) printf("%s ", label);
        printf("killed %d\n", WTERMSIG(status));
    }
    return SAID;
}

static attack_fn *find(const char *name) {
    const struct attack *tables[] = {CALLS, FILES, NETWORK, PROCESSES, RESOURCES};
    for (size_t table = 0; table < sizeof tables / sizeof *tables; table++)
        for (const struct attack *attack = tables[table]; attack->name; attack++)
            if (strcmp(attack->name, name) == 0) return attack->run;
    return NULL;
}

int main(int argc, char **argv) {
    attack_fn *run = argc > 1 ? find(argv[1]) : NULL;
    if (!run) {
        fprintf(stderr, "no attack %s\n", argc > 1 ? argv[1] : "named");
        return 99;
    }
    errno = 0;
    return result(NULL, run(argv + 2));
}
