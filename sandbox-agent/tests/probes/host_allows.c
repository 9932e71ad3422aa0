/* Says by its exit status whether this host lets a plain user make all the namespaces, asking the kernel directly. */
#define _GNU_SOURCE
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

int main(void) {
    if (geteuid() == 0 && (setgroups(0, NULL) || setresgid(12345, 12345, 12345) || setresuid(12345, 12345, 12345)))
        return 2;
    int all = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
    if (unshare(all)) return 1;
    return mount("tmpfs", "/tmp", "tmpfs", 0, "") ? 1 : 0;
}
