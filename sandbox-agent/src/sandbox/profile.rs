//! What an execution can see and which calls it can make: paths, devices, the work area, the network. Plain data.
//!
//! Leaves out profiles as files and what an agent's configuration allows of them ([`crate::profiles`]), and limits
//! ([`super::spec::Limits`]). Invariant: nothing that a profile does not name is
//! visible inside, beyond the empty directories that lead to what it names.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::syscalls::Group;
use crate::profiles;

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
    /// Every mode, the narrowest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Loopback, Self::Egress];

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
    /// Groups of system calls beside the base, of [`Group::NAMED`]; a network brings its own.
    #[serde(default)]
    pub seccomp: Vec<Group>,
}

impl Profile {
    /// The built-in `strict`: system programs and libraries read-only, a small work area, five harmless devices, no network.
    pub fn strict() -> Self {
        profiles::built_in("strict").expect("it is built in").sandbox.clone()
    }

    /// The groups of system calls beside the base.
    pub fn groups(&self) -> Vec<Group> {
        let network = (self.network != Network::None).then_some(Group::Network);
        self.seccomp.iter().copied().chain(network).collect()
    }

    /// Adds a host path to what is visible read-only.
    pub fn with_read_only(mut self, path: impl AsRef<Path>) -> Self {
        self.read_only.push(path.as_ref().to_owned());
        self
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("has to be one of {all}"))
    }
}
