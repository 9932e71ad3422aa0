//! The table of probes. By subject: `calls`, `files`, `network`, `processes`, `resources`.
//!
//! Left out: running them. Invariant: a layer is named for a probe only where it stops the attack by itself; the suite tries each alone.

mod calls;
mod files;
mod network;
mod processes;
mod resources;

use super::seen::Seen;
use crate::sandbox::{Layer, Spec};

/// What stops an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A layer.
    Layer(Layer),
    /// The engine around the layers: its clocks, its counting, its killing of the whole tree, its taking of outputs.
    Engine,
}

impl Guard {
    /// The layer, if it is one.
    pub fn layer(self) -> Option<Layer> {
        match self {
            Self::Layer(layer) => Some(layer),
            Self::Engine => None,
        }
    }
}

/// One thing that stops an attack, alone, and what is seen then.
#[derive(Debug)]
pub struct Stop {
    /// What stops it.
    pub guard: Guard,
    /// What is seen when it does.
    pub seen: Seen,
}

/// The positive control: where the attack has to succeed, lest its failure prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contrast {
    /// Inside, with all that stops it left off.
    Inside,
    /// Outside, as the user that programs inside are on the host.
    Outside,
    /// Inside, with all that stops it left off, it reaches the kernel proper: the answer is another one. For calls that this kernel may not
    /// have, or that are made with arguments that change nothing.
    Answers,
}

/// Where the result is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// In what the attack says and how it ends.
    Result,
    /// Among the host's processes once the execution is over: one that has the attack's marker.
    Survivors,
    /// In the output files handed out: the host's secret.
    Outputs(&'static [&'static str]),
}

/// How long a probe takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Milliseconds.
    Quick,
    /// A limit has to be reached first.
    Slow,
}

/// One probe.
#[derive(Debug)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// What the attack does.
    pub what: &'static str,
    /// The attack and its arguments; `{x}` stands for something of the stage.
    pub attack: &'static [&'static str],
    /// What stops it. The first one that this host has gives the answer.
    pub stops: &'static [Stop],
    /// Layers that are off throughout, because they would hide the ones that are probed.
    pub without: &'static [Layer],
    /// The positive control.
    pub contrast: Contrast,
    /// Where its result is seen.
    pub watch: Watch,
    /// Limits that it needs.
    pub fit: fn(&mut Spec),
    /// How long it takes.
    pub cost: Cost,
    /// Whether what it aims at can be made by root only; without, it can't be run and nothing is said of it.
    pub root_only: bool,
}

impl Probe {
    /// The layers that stop it, in order.
    pub fn layers(&self) -> impl Iterator<Item = Layer> {
        self.stops.iter().filter_map(|stop| stop.guard.layer())
    }
}

const fn by(layer: Layer, seen: Seen) -> Stop {
    Stop { guard: Guard::Layer(layer), seen }
}

const fn by_engine(seen: Seen) -> Stop {
    Stop { guard: Guard::Engine, seen }
}

const SIGSYS: Seen = Seen::Killed(libc::SIGSYS);
const EPERM: Seen = Seen::Errno(libc::EPERM);
const EACCES: Seen = Seen::Errno(libc::EACCES);
const ENOENT: Seen = Seen::Errno(libc::ENOENT);

/// What most probes are: quick, alone against all layers, with the control inside.
const PROBE: Probe = Probe {
    name: "",
    what: "",
    attack: &[],
    stops: &[],
    without: &[],
    contrast: Contrast::Inside,
    watch: Watch::Result,
    fit: |_| {},
    cost: Cost::Quick,
    root_only: false,
};

/// All of them, by subject.
pub const PROBES: [&[Probe]; 5] =
    [calls::PROBES, files::PROBES, network::PROBES, processes::PROBES, resources::PROBES];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    PROBES.into_iter().flatten()
}

/// The probe of that name.
pub fn named(name: &str) -> Option<&'static Probe> {
    all().find(|probe| probe.name == name)
}

/// For each layer a quick probe by which its status is told.
pub const PROOFS: [(Layer, &str); 19] = [
    (Layer::UserNamespace, "trace_host"),
    (Layer::PidNamespace, "signal_host"),
    (Layer::MountNamespace, "mount_namespace"),
    (Layer::NetNamespace, "udp"),
    (Layer::IpcNamespace, "shared_memory"),
    (Layer::UtsNamespace, "hostname"),
    (Layer::CgroupNamespace, "cgroup_namespace"),
    (Layer::Cgroup, "fork_bomb"),
    (Layer::PrivateRoot, "host_file"),
    (Layer::WorkArea, "disk_fill"),
    (Layer::MaskedProc, "kernel_proc"),
    (Layer::Keyrings, "session_key"),
    (Layer::Capabilities, "set_hostname"),
    (Layer::NoNewPrivs, "setuid_program"),
    (Layer::Landlock, "host_file"),
    (Layer::Seccomp, "hostile_calls"),
    (Layer::Rlimits, "descriptors"),
    (Layer::ClosedFds, "inherited_descriptors"),
    (Layer::CleanEnv, "environment"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_there_once() {
        let names = all().map(|probe| probe.name).collect::<Vec<_>>();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(
            all().all(|probe| !probe.name.is_empty() && !probe.what.is_empty() && !probe.stops.is_empty())
        );
    }

    #[test]
    fn every_layer_has_a_quick_probe_that_it_stops() {
        assert_eq!(PROOFS.map(|(layer, _)| layer), Layer::ALL);
        for (layer, name) in PROOFS {
            let probe = named(name).unwrap_or_else(|| panic!("{layer}: {name}"));
            assert!(probe.layers().any(|stop| stop == layer), "{layer} does not stop {name}");
            assert_eq!(probe.cost, Cost::Quick, "{name}");
        }
    }

    #[test]
    fn no_layer_is_both_off_and_probed() {
        for probe in all() {
            assert!(probe.layers().all(|layer| !probe.without.contains(&layer)), "{}", probe.name);
        }
    }
}
