//! The cgroup of one execution: its limits, what they are read back as, its counters, and killing its members.
//!
//! Leaves out making and removing it ([`super::keeper`]). Invariant: what is opened here is opened with the helper's
//! rights and serves when the supervisor has given them up; nothing is claimed but what the kernel's files say.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use super::super::control::{ControlStatus, Layer};
use super::super::spec::Limits;
use super::super::sys;
use super::super::wire::Refusal;
use super::devices::{self, Known};
use super::files::{Files, Seen};
use super::{
    Bounds, Controller, Counted, CpuTime, KILL, PIDS_MAX, PIDS_PEAK, PROCS, Parent, Version, kill_members,
    members, places, v1, v2,
};

/// One hierarchy's part of a leaf.
struct Part {
    version: Version,
    holds: Vec<Controller>,
    dir: PathBuf,
    procs: File,
    files: Files,
}

/// The cgroup of one execution.
pub(in super::super) struct Leaf {
    /// What a member's `/proc/<pid>/cgroup` ends with.
    tail: String,
    bounds: Bounds,
    parts: Vec<Part>,
    kill: Option<File>,
    /// Whether its members were killed before.
    killed: bool,
    before: CpuTime,
}

/// What became of making a process a member.
pub(in super::super) struct Attached {
    /// Whether its memory is counted, and limited, with the leaf's.
    pub(in super::super) to_memory: bool,
    /// The first refusal.
    pub(in super::super) refused: io::Result<()>,
}

/// What holds of a leaf for one process.
#[derive(Debug)]
pub(in super::super) struct Held {
    pub(in super::super) status: ControlStatus,
    pub(in super::super) evidence: String,
    /// Whether it is in it with its memory, which can't grow beyond what was asked.
    pub(in super::super) limits_memory: bool,
}

impl Leaf {
    /// Opens the leaf that the helper took for an execution, if there is one. Why there is none is told in `refusals`. To be
    /// called with the helper's rights: what is opened here keeps them.
    pub(in super::super) fn for_execution(
        parent: &Parent,
        taken: Option<io::Result<u64>>,
        omit: &[Layer],
        refusals: &mut Vec<Refusal>,
    ) -> Option<Self> {
        if omit.contains(&Layer::Cgroup) {
            return None;
        }
        refusals.extend_from_slice(&parent.problems);
        let opened = taken?.and_then(|number| Self::open(parent, number));
        opened.map_err(|error| refusals.push(Refusal::new(Layer::Cgroup, "making a cgroup", &error))).ok()
    }

    pub(super) fn open(parent: &Parent, number: u64) -> io::Result<Self> {
        let mut leaf = Self {
            tail: format!("/{}/{number}", parent.name),
            bounds: Bounds::default(),
            parts: vec![],
            kill: None,
            killed: false,
            before: CpuTime::default(),
        };
        for hierarchy in &parent.hierarchies {
            let (version, dir) = (hierarchy.version, hierarchy.leaf(number));
            let open = |file: &str| OpenOptions::new().write(true).open(dir.join(file));
            if version == Version::V2 {
                leaf.kill = open(KILL).ok();
            }
            let procs = open(PROCS)?;
            let (limits, counters): (fn(_) -> _, fn(_) -> _) = match version {
                Version::V1 => (v1::limits, v1::counters),
                Version::V2 => (v2::limits, v2::counters),
            };
            let names = |of: fn(Controller) -> &'static [&'static str]| {
                hierarchy.holds.iter().flat_map(|one| of(*one)).copied().collect::<Vec<_>>()
            };
            // A kernel that does not count swap has no file for it: judged when read back.
            let files = Files::open(&dir, &names(limits), &names(counters));
            leaf.parts.push(Part { version, holds: hierarchy.holds.clone(), dir, procs, files });
        }
        Ok(leaf)
    }

    /// Sets its limits. What is refused is told in `refusals` and shows when read back.
    pub(in super::super) fn limit(&mut self, limits: &Limits, refusals: &mut Vec<Refusal>) {
        self.limit_with(limits, &devices::concerned(limits.io_bytes_per_s), refusals);
    }

    /// Where no device is known nothing is written for any; why, the read-back tells.
    pub(super) fn limit_with(&mut self, limits: &Limits, devices: &Known, refusals: &mut Vec<Refusal>) {
        let devices = devices.as_deref().unwrap_or_default();
        let &Limits { memory_bytes, pids, cpus_milli, io_bytes_per_s, .. } = limits;
        self.bounds = Bounds { memory_bytes, pids, cpus_milli, io_bytes_per_s };
        for part in &self.parts {
            for (file, error) in part.limit(self.bounds, devices) {
                refusals.push(Refusal::new(Layer::Cgroup, format!("writing {file}"), &error));
            }
        }
    }

    /// Makes `pid` a member of every part, 0 the caller. Its children will be members; the memory it has already is not counted here.
    pub(in super::super) fn attach(&self, pid: i32) -> Attached {
        let text = pid.to_string();
        let mut attached = Attached { to_memory: false, refused: Ok(()) };
        for part in &self.parts {
            let written = (&part.procs).write_all(text.as_bytes());
            attached.to_memory |= written.is_ok() && part.holds.contains(&Controller::Memory);
            attached.refused = attached.refused.and(written);
        }
        attached
    }

    /// From here on, processor time is the program's.
    pub(in super::super) fn start_counting(&mut self) {
        self.before = self.cpu_time().unwrap_or_default();
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.holds.contains(&controller))
    }

    fn cpu_time(&self) -> Option<CpuTime> {
        let part = self.part(Controller::CpuTime)?;
        match part.version {
            Version::V1 => v1::cpu_time(&part.files),
            Version::V2 => v2::cpu_time(&part.files),
        }
    }

    /// Processor time since [`Self::start_counting`], of all members, ended ones included.
    pub(in super::super) fn cpu_used(&self) -> Option<CpuTime> {
        Some(self.cpu_time()?.since(self.before))
    }

    /// Whether memory ran out so far.
    pub(in super::super) fn out_of_memory(&self) -> bool {
        self.part(Controller::Memory)
            .and_then(|part| match part.version {
                Version::V1 => v1::oom_kills(&part.files),
                Version::V2 => v2::oom_kills(&part.files),
            })
            .is_some_and(|kills| kills > 0)
    }

    /// Kills every member; to be repeated until none is left. At a normal end there is none, and nothing to lift.
    pub(in super::super) fn kill(&mut self) {
        let Some(first) = self.parts.first() else { return };
        let killed = self.kill.as_ref().is_some_and(|mut kill| kill.write_all(b"1").is_ok());
        let at_once = killed || kill_members(&first.dir);
        // Forks that raced a kill one by one live until the next, and are not to be without limits. What is left then may be on
        // its way out, and not listed any more.
        if self.killed || (at_once && !members(&first.dir).is_empty()) {
            self.lift();
        }
        self.killed = true;
    }

    /// What waits for a device can't be killed before its request is done, and before Linux 6.18 what has used up its part of the
    /// processors does not run at all, not even to end: at a low limit either can take minutes. So the killed wait for device
    /// and processor alone. Where this fails, init is killed before they have ended, and with it usage and output files are lost.
    pub(in super::super) fn lift(&self) {
        if self.bounds.io_bytes_per_s == 0 && self.bounds.cpus_milli == 0 {
            return;
        }
        for part in &self.parts {
            let lifts = match part.version {
                Version::V1 => v1::lifts(&part.files.look(v1::DELAYING)),
                Version::V2 => v2::lifts(&part.files.look(v2::DELAYING)),
            };
            let _ = part.write(lifts);
        }
    }

    /// What was counted. Final once the last member has ended.
    pub(in super::super) fn counted(&self) -> Counted {
        let memory = self.part(Controller::Memory).and_then(|part| {
            let peak = match part.version {
                Version::V1 => v1::peak_memory(&part.files),
                Version::V2 => v2::peak_memory(&part.files),
            };
            Some((part.version, peak?))
        });
        let io = self.part(Controller::Io).and_then(|part| match part.version {
            Version::V1 => v1::io_bytes(&part.files),
            Version::V2 => v2::io_bytes(&part.files),
        });
        Counted {
            cpu: self.cpu_used(),
            peak_memory: memory,
            peak_pids: self.part(Controller::Pids).and_then(|part| part.files.number(PIDS_PEAK)),
            io,
            out_of_memory: self.out_of_memory(),
        }
    }

    /// What holds for the process `pid`, read back from where it is a member and from the limits there.
    pub(in super::super) fn read_back(&self, pid: i32) -> io::Result<Held> {
        let list = format!("/proc/{pid}/cgroup");
        let list = sys::read_whole(&list)
            .map_err(|error| io::Error::new(error.kind(), format!("{list}: {error}")))?;
        // Those of now: one that is gone is not missed, one that came since is.
        Ok(self.judge(&list, &devices::concerned(self.bounds.io_bytes_per_s)))
    }

    pub(super) fn judge(&self, list: &str, devices: &Known) -> Held {
        let (mut evidence, mut missing) = (vec![], vec![]);
        let mut held = vec![];
        let cpu = (self.bounds.cpus_milli > 0).then_some(Controller::Cpu);
        let io = (self.bounds.io_bytes_per_s > 0).then_some(Controller::Io);
        for controller in [Controller::Memory, Controller::Pids].into_iter().chain(cpu).chain(io) {
            let Some(part) = self.part(controller) else {
                missing.push(format!("no {} controller", controller.name(Version::V2)));
                continue;
            };
            let path = places::member_path(list, part.version, controller.name(part.version));
            let inside = path.is_some_and(|path| path.ends_with(&self.tail));
            let limits = part.files.look(part.limit_files(controller));
            let name = controller.name(part.version);
            let (values, unmet) = match controller {
                Controller::Io => part.judge_io(&limits, devices, self.bounds.io_bytes_per_s),
                _ => (show(&limits), part.judge_other(controller, &limits, self.bounds)),
            };
            let path = path.unwrap_or("not listed");
            evidence.push(format!("{name} by {} in {path}: {values}", part.version.name()));
            match unmet {
                _ if !inside => missing.push(format!("not in its {name} cgroup")),
                Err(why) => missing.push(format!("{name} is not limited as asked{why}")),
                Ok(()) => held.push(controller),
            }
        }
        let mut counts = vec![];
        for controller in [Controller::CpuTime, Controller::Io] {
            let Some(Part { version, .. }) = self.part(controller) else { continue };
            let path = places::member_path(list, *version, controller.name(*version));
            if path.is_some_and(|path| path.ends_with(&self.tail)) {
                counts.push(format!("{} by {}", controller.name(*version), version.name()));
            } else {
                missing.push(format!(
                    "not in its {} cgroup: what is counted there is not its own",
                    controller.name(*version)
                ));
            }
        }
        if !counts.is_empty() {
            evidence.push(format!("counted: {}", counts.join(", ")));
        }
        let status = match (missing.is_empty(), held.is_empty()) {
            (true, _) => ControlStatus::Enforced,
            (false, true) => ControlStatus::Unavailable,
            (false, false) => ControlStatus::Degraded,
        };
        let limits_memory = held.contains(&Controller::Memory);
        Held { status, evidence: [missing, evidence].concat().join("; "), limits_memory }
    }
}

impl Part {
    /// Sets the limits; what was refused, by file.
    fn limit(&self, bounds: Bounds, devices: &[String]) -> Vec<(&'static str, io::Error)> {
        let mut writes = vec![];
        if self.holds.contains(&Controller::Memory) {
            writes.extend(match self.version {
                Version::V1 => v1::memory_limits(bounds.memory_bytes),
                Version::V2 => v2::memory_limits(bounds.memory_bytes),
            });
        }
        if self.holds.contains(&Controller::Pids) {
            writes.push((PIDS_MAX, bounds.pids.to_string()));
        }
        if self.holds.contains(&Controller::Cpu) && bounds.cpus_milli > 0 {
            writes.extend(match self.version {
                Version::V1 => v1::cpu_limits(bounds.cpus_milli),
                Version::V2 => v2::cpu_limits(bounds.cpus_milli),
            });
        }
        if self.holds.contains(&Controller::Io) && bounds.io_bytes_per_s > 0 {
            writes.extend(match self.version {
                Version::V1 => v1::io_limits(devices, bounds.io_bytes_per_s),
                Version::V2 => v2::io_limits(devices, bounds.io_bytes_per_s),
            });
        }
        self.write(writes)
    }

    /// Writes to those of the files that there are; the first refusal of each file.
    fn write(&self, writes: Vec<(&'static str, String)>) -> Vec<(&'static str, io::Error)> {
        let mut refused: Vec<(&'static str, io::Error)> = vec![];
        for (file, value) in writes {
            if let Some(Err(error)) = self.files.write(file, &value)
                && refused.iter().all(|(known, _)| *known != file)
            {
                refused.push((file, error));
            }
        }
        refused
    }

    fn limit_files(&self, controller: Controller) -> &'static [&'static str] {
        match self.version {
            Version::V1 => v1::limits(controller),
            Version::V2 => v2::limits(controller),
        }
    }

    /// Whether it is limited as asked; io is [`Self::judge_io`]'s.
    fn judge_other(&self, controller: Controller, limits: &Seen, bounds: Bounds) -> Result<(), String> {
        let is_limited = match (controller, self.version) {
            (Controller::Memory, Version::V1) => v1::memory_is_limited(limits, bounds.memory_bytes),
            (Controller::Memory, Version::V2) => v2::memory_is_limited(limits, bounds.memory_bytes),
            (Controller::Cpu, Version::V1) => v1::cpu_is_limited(limits, bounds.cpus_milli),
            (Controller::Cpu, Version::V2) => v2::cpu_is_limited(limits, bounds.cpus_milli),
            _ => limits.number(PIDS_MAX) == Some(bounds.pids),
        };
        // The values say the rest.
        if is_limited { Ok(()) } else { Err(String::new()) }
    }

    /// Which of the devices read back with their limit, and why it is not all of them.
    fn judge_io(&self, limits: &Seen, devices: &Known, bytes_per_s: u64) -> (String, Result<(), String>) {
        let is_limited = |device: &&String| match self.version {
            Version::V1 => v1::io_is_limited(limits, device, bytes_per_s),
            Version::V2 => v2::io_is_limited(limits, device, bytes_per_s),
        };
        let known = devices.as_deref().unwrap_or_default();
        let (limited, unlimited): (Vec<_>, Vec<_>) = known.iter().partition(is_limited);
        let values = format!("{bytes_per_s} bytes/s each way, block devices: {}", name_some(&limited));
        let unmet = match devices {
            Err(why) => Err(format!(": {why}")),
            Ok(_) if unlimited.is_empty() => Ok(()),
            Ok(_) => Err(format!(", block devices: {}", name_some(&unlimited))),
        };
        (values, unmet)
    }
}

/// What the files say.
fn show(limits: &Seen) -> String {
    let one = |(file, value): &(&str, String)| format!("{file}={}", value.replace('\n', ", "));
    limits.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// How many devices evidence names: it goes into a record, whose size is bounded.
const MAX_NAMED: usize = 16;

/// How many there are, and which are the first.
fn name_some(devices: &[&String]) -> String {
    let names = devices.iter().take(MAX_NAMED).map(|device| device.as_str()).collect::<Vec<_>>().join(", ");
    match devices.len() {
        0 => "0".to_owned(),
        count @ 1..=MAX_NAMED => format!("{count} ({names})"),
        count => format!("{count} ({names}, and {} more)", count - MAX_NAMED),
    }
}
