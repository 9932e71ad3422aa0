//! What profiles can allow beyond the base: scheduling for language runtimes, TCP, builds.
//!
//! Invariant: no call of these groups makes a socket that is not TCP.

use super::{Answer, Call, Case, Condition, EPERM, call};

/// Group `threads`: runtimes that place and prioritise their own threads.
pub(super) const THREADS: &[Call] = &[
    call("sched_setaffinity", 203, 122, "thread pools (OpenMP, OpenBLAS); within the agent's processors"),
    call("sched_setscheduler", 144, 119, "batch and idle policies; the kernel refuses real-time ones"),
    call("sched_setparam", 142, 118, "thread libraries"),
    call("sched_setattr", 314, 274, "thread libraries, newer form"),
    call("sched_getattr", 315, 275, "thread libraries, newer form"),
    call("sched_rr_get_interval", 148, 127, "thread libraries"),
    call("setpriority", 141, 140, "lowering own priority (nice, os.setPriority); the kernel refuses raising"),
    call("get_mempolicy", 239, 236, "numerical libraries read where memory lies"),
    call("io_uring_setup", 425, 425, "event loops (libuv) try it and fall back").answers(ENOSYS),
];

/// Group `network`: TCP. Where to is decided by the network namespace, which has a loopback only, and by Landlock.
pub(super) const NETWORK: &[Call] = &[
    call("socket", 41, 198, "TCP over IPv4 and IPv6; no UDP, no raw packets, no netlink, no vsock")
        .when(SOCKETS, EPERM),
    call("connect", 42, 203, "TCP"),
    call("bind", 49, 200, "TCP; Landlock refuses it unless the network is the loopback"),
    call("listen", 50, 201, "TCP"),
    call("accept", 43, 202, "TCP"),
    call("accept4", 288, 242, "TCP"),
    call("setsockopt", 54, 208, "timeouts, buffers, keep-alive; no filters, no protocol modules")
        .when(OPTIONS, EPERM),
    call("sendto", 44, 206, "TCP").when(&[Case(&[Condition::masked(3, MSG_FASTOPEN, 0)], CONNECTED)], EPERM),
    call("sendmsg", 46, 211, "TCP").when(&[Case(&[Condition::masked(2, MSG_FASTOPEN, 0)], CONNECTED)], EPERM),
    call("sendmmsg", 307, 269, "TCP")
        .when(&[Case(&[Condition::masked(3, MSG_FASTOPEN, 0)], CONNECTED)], EPERM),
    call("recvmmsg", 299, 243, "TCP"),
];

/// Group `build`: compilers and the programs that drive them.
pub(super) const BUILD: &[Call] = &[
    call("setresuid", 117, 147, "make sets its own id again; the kernel refuses any other"),
    call("setresgid", 119, 149, "make sets its own id again; the kernel refuses any other"),
    call("setreuid", 113, 145, "as setresuid"),
    call("setregid", 114, 143, "as setresgid"),
    call("personality", 135, 92, "build systems ask for it").when(&[ASKED], EPERM),
];

const ENOSYS: Answer = Answer::Refuse(libc::ENOSYS.unsigned_abs());

/// Connects while sending, beside Landlock's rule for `connect`.
const MSG_FASTOPEN: u32 = 0x2000_0000;
const CONNECTED: &str = "without MSG_FASTOPEN, which would connect";

const ASKED: Case = Case(
    &[Condition::equal(0, u32::MAX)],
    "asked for, not set: ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC weaken",
);

/// A socket's type without the two flags that may be set in it (`SOCK_NONBLOCK`, `SOCK_CLOEXEC`).
const TYPE: u32 = !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).unsigned_abs();
const STREAM: Condition = Condition::masked(1, TYPE, libc::SOCK_STREAM.unsigned_abs());
const IPV4: Condition = Condition::equal(0, libc::AF_INET.unsigned_abs());
const IPV6: Condition = Condition::equal(0, libc::AF_INET6.unsigned_abs());
/// The family's own stream protocol, which is TCP; not multipath TCP, whose subflows Landlock has no rule for.
const DEFAULT: Condition = Condition::equal(2, 0);
const TCP: Condition = Condition::equal(2, libc::IPPROTO_TCP.unsigned_abs());

const SOCKETS: &[Case] = &[
    Case(&[IPV4, STREAM, DEFAULT], "TCP over IPv4"),
    Case(&[IPV4, STREAM, TCP], "TCP over IPv4"),
    Case(&[IPV6, STREAM, DEFAULT], "TCP over IPv6"),
    Case(&[IPV6, STREAM, TCP], "TCP over IPv6"),
];

const SOCKET: Condition = Condition::equal(1, libc::SOL_SOCKET.unsigned_abs());
const TCP_LEVEL: Condition = Condition::equal(1, libc::IPPROTO_TCP.unsigned_abs());
const IPV6_LEVEL: Condition = Condition::equal(1, libc::IPPROTO_IPV6.unsigned_abs());

const fn named(option: i32) -> Condition {
    Condition::equal(2, option.unsigned_abs())
}

const REUSEADDR: Condition = named(libc::SO_REUSEADDR);
const REUSEPORT: Condition = named(libc::SO_REUSEPORT);
const KEEPALIVE: Condition = named(libc::SO_KEEPALIVE);
const LINGER: Condition = named(libc::SO_LINGER);
const RCVTIMEO: Condition = named(libc::SO_RCVTIMEO);
const SNDTIMEO: Condition = named(libc::SO_SNDTIMEO);
const RCVBUF: Condition = named(libc::SO_RCVBUF);
const SNDBUF: Condition = named(libc::SO_SNDBUF);
const NODELAY: Condition = named(libc::TCP_NODELAY);
const KEEPIDLE: Condition = named(libc::TCP_KEEPIDLE);
const KEEPINTVL: Condition = named(libc::TCP_KEEPINTVL);
const KEEPCNT: Condition = named(libc::TCP_KEEPCNT);
const CORK: Condition = named(libc::TCP_CORK);
const QUICKACK: Condition = named(libc::TCP_QUICKACK);
const USER_TIMEOUT: Condition = named(libc::TCP_USER_TIMEOUT);
const V6ONLY: Condition = named(libc::IPV6_V6ONLY);

const OPTIONS: &[Case] = &[
    Case(&[SOCKET, REUSEADDR], "SO_REUSEADDR"),
    Case(&[SOCKET, REUSEPORT], "SO_REUSEPORT"),
    Case(&[SOCKET, KEEPALIVE], "SO_KEEPALIVE"),
    Case(&[SOCKET, LINGER], "SO_LINGER"),
    Case(&[SOCKET, RCVTIMEO], "SO_RCVTIMEO"),
    Case(&[SOCKET, SNDTIMEO], "SO_SNDTIMEO"),
    Case(&[SOCKET, RCVBUF], "SO_RCVBUF"),
    Case(&[SOCKET, SNDBUF], "SO_SNDBUF"),
    Case(&[TCP_LEVEL, NODELAY], "TCP_NODELAY"),
    Case(&[TCP_LEVEL, KEEPIDLE], "TCP_KEEPIDLE"),
    Case(&[TCP_LEVEL, KEEPINTVL], "TCP_KEEPINTVL"),
    Case(&[TCP_LEVEL, KEEPCNT], "TCP_KEEPCNT"),
    Case(&[TCP_LEVEL, CORK], "TCP_CORK"),
    Case(&[TCP_LEVEL, QUICKACK], "TCP_QUICKACK"),
    Case(&[TCP_LEVEL, USER_TIMEOUT], "TCP_USER_TIMEOUT"),
    Case(&[IPV6_LEVEL, V6ONLY], "IPV6_V6ONLY"),
];
