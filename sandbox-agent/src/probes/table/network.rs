//! Sockets of every kind.

use super::{Contrast, EACCES, ENOENT, EPERM, PROBE, Probe, by};
use crate::{probes::Seen, sandbox::Layer};

const UNREACHABLE: Seen = Seen::Errno(libc::ENETUNREACH);

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "tcp",
        what: "connects to a TCP port of the host",
        attack: &["tcp", "{tcp}"],
        stops: &[
            by(Layer::Seccomp, EPERM),
            by(Layer::Landlock, EACCES),
            by(Layer::NetNamespace, UNREACHABLE),
        ],
        ..PROBE
    },
    Probe {
        name: "tcp_listen",
        what: "listens on a TCP port",
        attack: &["listen"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "udp",
        what: "sends a datagram to a UDP port of the host",
        attack: &["udp", "{udp}"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::NetNamespace, UNREACHABLE)],
        ..PROBE
    },
    Probe {
        name: "unix_path",
        what: "connects to a socket of the host by its path",
        attack: &["unix", "{socket}"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::PrivateRoot, ENOENT)],
        contrast: Contrast::Outside,
        ..PROBE
    },
    Probe {
        name: "unix_abstract",
        what: "connects to an abstract socket of the host",
        attack: &["abstract", "{abstract}"],
        stops: &[
            by(Layer::Seccomp, EPERM),
            by(Layer::NetNamespace, Seen::Errno(libc::ECONNREFUSED)),
            by(Layer::Landlock, EPERM),
        ],
        ..PROBE
    },
    Probe {
        name: "datagram_pair",
        what: "makes a pair of datagram sockets, which can send to any socket that they can name",
        attack: &["datagrams"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "netlink",
        what: "opens a socket to the kernel's network configuration",
        attack: &["netlink"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "vsock",
        what: "opens a socket to the machine's hypervisor",
        attack: &["vsock"],
        stops: &[by(Layer::Seccomp, EPERM)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "raw_packets",
        what: "opens a socket for raw packets of every interface",
        attack: &["packet"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::Capabilities, EPERM)],
        ..PROBE
    },
    Probe {
        name: "raw_ip",
        what: "opens a socket for raw IP packets",
        attack: &["raw"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::Capabilities, EPERM)],
        ..PROBE
    },
];
