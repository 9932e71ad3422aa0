//! The layers of the sandbox and what is known about each of them for one execution.
//!
//! Leaves out policy: which layers an execution must have is the agent's decision. Invariant: a [`Control`] is made from
//! a reading of the kernel (`readback`); this file holds no status.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// A user namespace that maps one unprivileged id.
    UserNamespace,
    /// A process-id namespace: the tree sees and signals only itself, and dies with its init.
    PidNamespace,
    /// A mount namespace.
    MountNamespace,
    /// A network namespace without any interface but an unconfigured loopback.
    NetNamespace,
    /// An IPC namespace.
    IpcNamespace,
    /// A UTS namespace with the profile's host name.
    UtsNamespace,
    /// A cgroup namespace.
    CgroupNamespace,
    /// A cgroup of its own, with limits for the tree as a whole.
    Cgroup,
    /// A root of its own by `pivot_root`, holding only what the profile names.
    PrivateRoot,
    /// A size-limited writable directory of its own.
    WorkArea,
    /// A `/proc` that shows the tree's own processes and nothing else of the host.
    MaskedProc,
    /// A session keyring of its own, holding nothing.
    Keyrings,
    /// All capability sets empty, the bounding set included.
    Capabilities,
    /// `no_new_privs`: executing a file can't add privileges.
    NoNewPrivs,
    /// Landlock rules for files, TCP, signals and abstract sockets.
    Landlock,
    /// The system-call allow-list.
    Seccomp,
    /// Resource limits.
    Rlimits,
    /// No descriptor reaches the program but stdin, stdout and stderr.
    ClosedFds,
    /// No environment variable is inherited.
    CleanEnv,
}

impl Layer {
    /// Every layer, outermost first.
    pub const ALL: [Self; 19] = [
        Self::UserNamespace,
        Self::PidNamespace,
        Self::MountNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::Cgroup,
        Self::PrivateRoot,
        Self::WorkArea,
        Self::MaskedProc,
        Self::Keyrings,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Landlock,
        Self::Seccomp,
        Self::Rlimits,
        Self::ClosedFds,
        Self::CleanEnv,
    ];

    /// The layer's name, as recorded.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::MountNamespace => "mount_namespace",
            Self::NetNamespace => "net_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::CgroupNamespace => "cgroup_namespace",
            Self::Cgroup => "cgroup",
            Self::PrivateRoot => "private_root",
            Self::WorkArea => "work_area",
            Self::MaskedProc => "masked_proc",
            Self::Keyrings => "keyrings",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no_new_privs",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Rlimits => "rlimits",
            Self::ClosedFds => "closed_fds",
            Self::CleanEnv => "clean_env",
        }
    }

    /// What the operator of a host can do to get this layer.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::UserNamespace => {
                "allow user namespaces: sysctl user.max_user_namespaces=15000, where it exists \
                 kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a \
                 container: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
            }
            Self::PidNamespace
            | Self::MountNamespace
            | Self::NetNamespace
            | Self::IpcNamespace
            | Self::UtsNamespace
            | Self::CgroupNamespace => {
                "follows from user_namespace; in a container a seccomp profile that allows unshare is needed too: docker \
                 run --security-opt seccomp=unconfined"
            }
            Self::PrivateRoot | Self::WorkArea => {
                "allow mount and pivot_root in the sandbox's own mount namespace: docker run --security-opt \
                 seccomp=unconfined --security-opt apparmor=unconfined"
            }
            Self::MaskedProc => {
                "the host's /proc must be fully visible for a new one to be mounted: docker run --security-opt \
                 systempaths=unconfined"
            }
            Self::Cgroup => {
                "let the agent make cgroups with memory and pids: run it as root, or delegate a cgroup to its user (systemd: \
                 Delegate=yes and DelegateSubgroup=agent); in a container with a writable /sys/fs/cgroup"
            }
            Self::Keyrings => {
                "a kernel built with CONFIG_KEYS, and in a container a seccomp profile that allows keyctl and add_key: \
                 docker run --security-opt seccomp=unconfined"
            }
            Self::Capabilities => "start the agent with CAP_SETPCAP or let it create user namespaces",
            Self::Landlock => {
                "Linux 6.12 or newer built with CONFIG_SECURITY_LANDLOCK, landlock in the kernel's lsm= list, and in a \
                 container a seccomp profile that allows the landlock calls"
            }
            Self::Seccomp => "a kernel built with CONFIG_SECCOMP_FILTER",
            Self::NoNewPrivs => "Linux 3.5 or newer",
            Self::Rlimits => {
                "raise the agent's own hard limits (ulimit -H) to the limits that executions are given"
            }
            Self::ClosedFds | Self::CleanEnv => "start the helper through the agent, not by hand",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlStatus {
    /// All of it, as read back.
    Enforced,
    /// Part of it; the evidence says which part is missing.
    Degraded,
    /// None of it.
    Unavailable,
}

/// What the kernel said about one layer of one execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The layer.
    pub layer: Layer,
    /// Whether it holds.
    pub status: ControlStatus,
    /// What was read where, and for a missing layer which call failed with which error.
    pub evidence: String,
    /// How to get it; empty when enforced.
    pub remedy: String,
}

impl Control {
    pub(super) fn new(layer: Layer, status: ControlStatus, evidence: impl Into<String>) -> Self {
        let remedy = if status == ControlStatus::Enforced { "" } else { layer.remedy() };
        Self { layer, status, evidence: evidence.into(), remedy: remedy.to_owned() }
    }
}
