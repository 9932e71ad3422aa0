/* What the attacks have in common. An attack returns 0 or more if it succeeded, -1 with errno if the kernel refused it, SAID if it has
 * printed its result itself. Each result is one line on standard output: "done", "errno N", "killed N" or "said TEXT". */
#ifndef ATTACK_H
#define ATTACK_H
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>

typedef long attack_fn(char **args);
struct attack {
    const char *name;
    attack_fn *run;
};
/* Ended by an entry without a name. */
extern const struct attack CALLS[], FILES[], NETWORK[], PROCESSES[], RESOURCES[];

enum { SAID = -2 };
/* Prints a result that is no error number. */
long said(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Runs it in a child, and says how the child ended; `label`, if there is one, is printed before it. */
long in_child(const char *label, attack_fn *run, char **args);
/* The first argument as a number, 0 if there is none. */
long long number(char **args);
/* Writes all of it. */
long write_all(int fd, const void *bytes, size_t count);
#endif
