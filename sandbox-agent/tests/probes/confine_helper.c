/* Stands in for the agent's binary: gives up root, on request installs the filter of a container runtime that allows no
 * namespaces and no mounts, then becomes the real helper. Built with -DHELPER="path" and, for the filter, -DFORBID. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSE(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), ANSWER(SECCOMP_RET_ERRNO | EPERM)

int main(int argc, char **argv) {
    (void)argc;
    if (geteuid() == 0 && (setgroups(0, NULL) || setresgid(12345, 12345, 12345) || setresuid(12345, 12345, 12345))) {
        perror("giving up root");
        return 1;
    }
#ifdef FORBID
    struct sock_filter program[] = {
        LOAD(nr),
        REFUSE(SYS_unshare), REFUSE(SYS_setns), REFUSE(SYS_mount), REFUSE(SYS_umount2), REFUSE(SYS_pivot_root),
        REFUSE(SYS_mount_setattr), REFUSE(SYS_open_tree), REFUSE(SYS_fsopen), REFUSE(SYS_keyctl), REFUSE(SYS_bpf),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1), ANSWER(SECCOMP_RET_ERRNO | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
        LOAD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1), ANSWER(SECCOMP_RET_ERRNO | EPERM),
        ANSWER(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) {
        perror("installing the filter");
        return 1;
    }
#endif
    /* A descriptor that the agent's binary inherits and knows nothing of. */
    if (fcntl(open("/", O_RDONLY), F_DUPFD, 100) < 0) return 1;
    argv[0] = HELPER;
    execv(HELPER, argv);
    perror("executing the helper");
    return 1;
}
