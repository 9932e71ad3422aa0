//! What an execution can see: paths, devices, the work area. Plain data, so that profiles can become files.
//!
//! Leaves out limits (the hold's business, [`super::spec::Limits`]). Invariant: nothing that a profile does not name is
//! visible inside, beyond the empty directories that lead to what it names.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The one writable directory inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkArea {
    /// Where it is, inside.
    pub path: PathBuf,
    /// Its size limit in bytes.
    pub size_bytes: u64,
    /// How many files and directories it holds at most.
    pub max_files: u64,
    /// Whether programs may be executed from it.
    pub executable: bool,
}

/// The port of 127.0.0.1 inside on which the agent listens with [`Network::Egress`]. It is the same in every network namespace, so that
/// equal executions have equal environments.
pub const EGRESS_PORT: u16 = 3128;

/// What of a network there is inside. In each case no interface but a loopback of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing: the loopback is down.
    #[default]
    None,
    /// The loopback is up.
    Loopback,
    /// The loopback is up, and the agent listens on it: what it forwards is the agent's decision.
    Egress,
}

impl Network {
    /// The mode's name, as recorded and as written in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Loopback => "loopback",
            Self::Egress => "egress",
        }
    }
}

/// What is visible inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The profile's name, as recorded.
    pub name: String,
    /// The host name inside.
    pub hostname: String,
    /// Host paths visible read-only (and executable) at the same place; those the host lacks are skipped.
    pub read_only: Vec<PathBuf>,
    /// Device nodes of the host's `/dev`, by name.
    pub devices: Vec<String>,
    /// The writable directory.
    pub work: WorkArea,
    /// The network.
    #[serde(default)]
    pub network: Network,
}

impl Profile {
    /// System programs and libraries read-only, a small work area, five harmless devices, no network.
    pub fn strict() -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        Self {
            name: "strict".to_owned(),
            hostname: "sandbox".to_owned(),
            read_only: paths(&[
                "/usr",
                "/bin",
                "/sbin",
                "/lib",
                "/lib32",
                "/lib64",
                "/etc/alternatives",
                "/etc/ld.so.cache",
                "/etc/ld.so.conf",
                "/etc/ld.so.conf.d",
                "/etc/localtime",
            ]),
            devices: ["null", "zero", "full", "random", "urandom"].map(str::to_owned).to_vec(),
            work: WorkArea {
                path: PathBuf::from("/tmp"),
                size_bytes: 64 << 20,
                max_files: 16_384,
                executable: false,
            },
            network: Network::None,
        }
    }

    /// Adds a host path to what is visible read-only.
    pub fn with_read_only(mut self, path: impl AsRef<Path>) -> Self {
        self.read_only.push(path.as_ref().to_owned());
        self
    }
}
