/* One attack per run, named by the first argument. Exit 0: it succeeded. Exit 1: refused, "errno N" on stdout. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static long attack(int argc, char **argv) {
    const char *name = argv[1];
    const char *arg = argc > 2 ? argv[2] : "";
    if (is(name, "read")) return open(arg, O_RDONLY);
    if (is(name, "write")) return open(arg, O_WRONLY | O_CREAT, 0600);
    if (is(name, "exec_file")) { execl(arg, arg, NULL); return -1; }
    if (is(name, "mount")) return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
    if (is(name, "umount")) return umount2("/nowhere", MNT_DETACH);
    if (is(name, "pivot_root")) return syscall(SYS_pivot_root, "/nowhere", "/nowhere");
    if (is(name, "chroot")) return chroot("/");
    if (is(name, "fsopen")) return syscall(SYS_fsopen, "tmpfs", 0);
    if (is(name, "open_tree")) return syscall(SYS_open_tree, AT_FDCWD, "/", 0);
    if (is(name, "ptrace")) return ptrace(PTRACE_TRACEME, 0, 0, 0);
    if (is(name, "process_vm_readv")) return syscall(SYS_process_vm_readv, getpid(), NULL, 0, NULL, 0, 0);
    if (is(name, "bpf")) { union bpf_attr a; memset(&a, 0, sizeof a); return syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a); }
    if (is(name, "io_uring_setup")) { struct io_uring_params p; memset(&p, 0, sizeof p); return syscall(SYS_io_uring_setup, 1, &p); }
    if (is(name, "unshare")) return unshare(CLONE_NEWUSER);
    if (is(name, "setns")) return syscall(SYS_setns, -1, 0);
    if (is(name, "clone_newuser")) return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) == 0 ? (_exit(0), 0) : 0;
    if (is(name, "clone3")) return syscall(SYS_clone3, NULL, 0);
    if (is(name, "keyctl")) return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1);
    if (is(name, "add_key")) return syscall(SYS_add_key, "user", "probe", "x", 1, KEY_SPEC_PROCESS_KEYRING);
    if (is(name, "userfaultfd")) return syscall(SYS_userfaultfd, 1);
    if (is(name, "perf_event_open")) { struct perf_event_attr a; memset(&a, 0, sizeof a); return syscall(SYS_perf_event_open, &a, 0, -1, -1, 0); }
    if (is(name, "kexec")) return syscall(SYS_kexec_load, 0, 0, NULL, 1UL << 20);
    if (is(name, "open_by_handle_at")) return syscall(SYS_open_by_handle_at, -1, NULL, 0);
    if (is(name, "sethostname")) return syscall(SYS_sethostname, "", (size_t)-1);
    if (is(name, "clock_settime")) return syscall(SYS_clock_settime, 99, NULL);
    if (is(name, "syslog")) return syscall(SYS_syslog, 10, NULL, 0);
    if (is(name, "memfd_create")) return syscall(SYS_memfd_create, "x", 0);
    if (is(name, "seccomp")) return syscall(SYS_seccomp, 2, 0, NULL) == -1 && errno == EFAULT ? 0 : -1;
    if (is(name, "setuid")) return syscall(SYS_setresuid, getuid(), getuid(), getuid());
    if (is(name, "socket_inet")) return socket(AF_INET, SOCK_STREAM, 0);
    if (is(name, "socket_inet6")) return socket(AF_INET6, SOCK_DGRAM, 0);
    if (is(name, "socket_netlink")) return socket(AF_NETLINK, SOCK_RAW, 0);
    if (is(name, "socket_unix")) return socket(AF_UNIX, SOCK_STREAM, 0);
    if (is(name, "socket_vsock")) return socket(40, SOCK_STREAM, 0);
    if (is(name, "connect")) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arg))};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int s = socket(AF_INET, SOCK_STREAM, 0);
        return s < 0 ? s : connect(s, (struct sockaddr *)&to, sizeof to);
    }
    if (is(name, "socketpair")) { int ends[2]; return socketpair(AF_UNIX, SOCK_STREAM, 0, ends); }
    if (is(name, "pdeathsig")) return prctl(PR_SET_PDEATHSIG, 0);
    if (is(name, "tiocsti")) return ioctl(0, TIOCSTI, "x") == -1 && errno != EPERM ? 0 : -1;
    if (is(name, "mknod_device")) return mknod("node", S_IFCHR | 0600, 0) == 0 || errno != EPERM ? 0 : -1;
    if (is(name, "mkfifo")) return mkfifo("fifo", 0600);
    if (is(name, "raise_limit")) { struct rlimit l = {1 << 20, 1 << 20}; return setrlimit(RLIMIT_NOFILE, &l); }
    if (is(name, "signal")) return kill(atoi(arg), 0);
    if (is(name, "allocate")) {
        size_t size = strtoull(arg, NULL, 10);
        volatile char *memory = malloc(size);
        if (!memory) return -1;
        for (size_t at = 0; at < size; at += 4096) memory[at] = 1;
        return 0;
    }
    if (is(name, "forks")) {
        int made = 0;
        pid_t parent = getpid();
        while (made < atoi(arg)) {
            pid_t child = fork();
            if (child < 0) break;
            if (child == 0) {
                /* Not to outlive the positive control; inside, the call is refused and the sandbox kills the tree. */
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() == parent) pause();
                _exit(0);
            }
            made++;
        }
        printf("%d\n", made);
        return 0;
    }
    if (is(name, "fds")) {
        for (int fd = 3; fd < 4096; fd++)
            if (fcntl(fd, F_GETFD) != -1) { printf("descriptor %d\n", fd); return -1; }
        return 0;
    }
#ifdef __x86_64__
    if (is(name, "x32")) return syscall(0x40000000 | SYS_getpid) == -1 && errno != ENOSYS ? -1 : 0;
    if (is(name, "i386")) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory"); return r > 0 ? 0 : -1; }
#endif
    fprintf(stderr, "unknown attack %s\n", name);
    exit(99);
}

int main(int argc, char **argv) {
    if (argc < 2) return 99;
    errno = 0;
    if (attack(argc, argv) >= 0) return 0;
    printf("errno %d\n", errno);
    return 1;
}
