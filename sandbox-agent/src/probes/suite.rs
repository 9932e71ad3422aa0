//! Runs probes in a sandbox and judges them.
//!
//! Left out: what is done about a verdict. Invariant: what had to stop an attack is taken from the read-back of that very execution, never
//! from what this kind of host usually has; and [`Verdict::Held`] needs the control's success in the same run of the suite.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::{io::AsyncReadExt as _, process::Command, sync::mpsc};

use super::{
    seen::Seen,
    stage::{ProbeError, SECRET, Stage, host_name},
    table::{self, Contrast, Guard, Probe, Watch},
};
use crate::sandbox::{
    Control, ControlStatus, ExitCause, Layer, Outcome, Sandbox, SandboxError, Spec, Stream,
    probe as read_back,
};

/// How long an attack may take outside.
const OUTSIDE_LIMIT: Duration = Duration::from_secs(20);
/// How long the control looks for what a race gives away now and then.
const RACE_LIMIT: Duration = Duration::from_secs(5);
/// Largest output kept of an attack.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;
/// How many probes run at once where it is allowed.
const AT_ONCE: usize = 4;

/// What a probe has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The attack was stopped as it had to be, and succeeded in the control.
    Held,
    /// The attack was not stopped, or not as it had to be.
    Broken,
    /// Nothing can be said: the attack did not succeed in its control, or could not be made.
    ControlFailed,
    /// No layer that stops the attack is to be had as a whole on this host, and it was not stopped.
    Open,
    /// What it needs can't be made by this user; it is not covered here.
    NotCovered,
}

impl Verdict {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Broken => "broken",
            Self::ControlFailed => "control_failed",
            Self::Open => "open",
            Self::NotCovered => "not_covered",
        }
    }
}

/// What one probe did and saw.
#[derive(Clone, Debug)]
pub struct Report {
    /// The probe.
    pub probe: &'static Probe,
    /// The one layer that was on, of those that stop it; none: every layer was.
    pub only: Option<Layer>,
    /// What it has shown.
    pub verdict: Verdict,
    /// What had to stop it.
    pub guard: Option<Guard>,
    /// What had to be seen, in words.
    pub expected: String,
    /// What was seen, in words.
    pub observed: String,
    /// The control: where, and what was seen there.
    pub control: String,
    pub(super) seen: Option<Seen>,
}

impl Report {
    /// The probe's name, and the layer that it had against itself if it was only one.
    pub fn name(&self) -> String {
        self.only.map_or_else(|| self.probe.name.to_owned(), |layer| format!("{}/{layer}", self.probe.name))
    }
}

/// An attack inside, with what was read back for that execution.
pub(super) struct Inside {
    pub(super) seen: Seen,
    pub(super) controls: Vec<Control>,
}

impl Inside {
    pub(super) fn status(&self, layer: Layer) -> ControlStatus {
        status(&self.controls, layer)
    }
}

/// The status of a layer in a read-back. One that is not in it does not hold.
pub(super) fn status(controls: &[Control], layer: Layer) -> ControlStatus {
    let control = controls.iter().find(|control| control.layer == layer);
    control.map_or(ControlStatus::Unavailable, |control| control.status)
}

/// A sandbox with a stage to attack from.
pub struct Suite {
    pub(super) sandbox: Sandbox,
    stage: Stage,
}

impl Suite {
    /// Sets the stage for a sandbox.
    pub async fn start(sandbox: Sandbox) -> Result<Self, ProbeError> {
        let stage = Stage::set(sandbox.options()).await?;
        Ok(Self { sandbox, stage })
    }

    /// The controls of an execution with every layer, as read back now.
    pub async fn read_back(&self) -> Result<Vec<Control>, ProbeError> {
        Ok(read_back(&self.sandbox).await?)
    }

    /// Runs all probes, in the table's order.
    pub async fn audit(&self) -> Vec<Report> {
        let mut reports = vec![];
        // One after the other: they count processes and fill processors.
        for probe in table::all() {
            reports.extend(self.run(probe).await);
        }
        reports
    }

    /// Runs one probe and its control: against every layer, and where several stop it, against each of them alone.
    pub async fn run(&self, probe: &'static Probe) -> Vec<Report> {
        let control = self.contrast(probe).await;
        let mut reports = vec![self.judge(probe, None, &control).await];
        let stops = probe.layers().collect::<Vec<_>>();
        if stops.len() > 1 && reports[0].verdict != Verdict::NotCovered {
            for layer in stops {
                reports.push(self.judge(probe, Some(layer), &control).await);
            }
        }
        reports
    }

    /// Runs probes against one layer each, some at once, and their controls.
    pub(super) async fn proofs(&self, proofs: &[(Layer, &'static Probe)]) -> Vec<Report> {
        let mut runs = vec![];
        for (layer, probe) in proofs {
            runs.push(self.proof(*layer, probe).boxed());
        }
        stream::iter(runs).buffered(AT_ONCE).collect().await
    }

    async fn proof(&self, layer: Layer, probe: &'static Probe) -> Report {
        let control = self.contrast(probe).await;
        self.judge(probe, Some(layer), &control).await
    }

    async fn judge(&self, probe: &'static Probe, only: Option<Layer>, control: &Seen) -> Report {
        let mut report = Report {
            probe,
            only,
            verdict: Verdict::NotCovered,
            guard: None,
            expected: String::new(),
            observed: "needs root to make what it aims at".to_owned(),
            control: String::new(),
            seen: None,
        };
        if probe.root_only && self.stage.user().is_none() {
            return report;
        }
        let off = others(probe, only);
        let mut inside = self.inside(probe, &off).await;
        inside.seen = inside.seen.compared(control);
        let MustSee { guard, expected, whole } = must_see(probe, &inside.controls, &off);
        report.observed = inside.seen.to_string();
        report.control = describe_control(probe, control);
        report.guard = guard;
        let Some(first) = expected.first() else {
            let names =
                probe.layers().filter(|layer| !off.contains(layer)).map(Layer::name).collect::<Vec<_>>();
            report.expected = format!("nothing: {} can't be had", names.join(", "));
            // Alone it may be one that another carries: nothing is said of it then.
            report.verdict = if only.is_none() { Verdict::Open } else { Verdict::NotCovered };
            return report;
        };
        report.expected = expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let stopped = expected.iter().any(|expected| inside.seen.is(expected));
        report.verdict = match (&inside.seen, is_contrast(probe, control, first), stopped) {
            (Seen::Nothing(_), ..) | (_, false, _) => Verdict::ControlFailed,
            (_, true, true) => Verdict::Held,
            // A layer that holds in part has said so: this is the part that is missing.
            (_, true, false) if !whole => Verdict::Open,
            (_, true, false) => Verdict::Broken,
        };
        report.seen = Some(inside.seen);
        report
    }

    /// Runs the positive control.
    async fn contrast(&self, probe: &Probe) -> Seen {
        if probe.root_only && self.stage.user().is_none() {
            return Seen::Nothing("not made".to_owned());
        }
        match probe.contrast {
            Contrast::Outside => self.outside(probe).await,
            Contrast::Inside | Contrast::Answers => {
                self.inside(probe, &probe.layers().collect::<Vec<_>>()).await.seen
            }
        }
    }

    /// Attacks inside, with these layers off beside those that the probe never has.
    pub(super) async fn inside(&self, probe: &Probe, off: &[Layer]) -> Inside {
        match self.try_inside(probe, off).await {
            Ok(inside) => inside,
            Err(why) => Inside { seen: Seen::Nothing(why), controls: vec![] },
        }
    }

    async fn try_inside(&self, probe: &Probe, off: &[Layer]) -> Result<Inside, String> {
        let says = |error: SandboxError| error.to_string();
        let spec = self.spec(probe, off)?;
        let (sender, mut output) = mpsc::channel(16);
        let prepared = self.sandbox.prepare(&spec, None, sender).await.map_err(says)?;
        let controls = prepared.controls().to_vec();
        let mut running = prepared.release().await.map_err(says)?;
        let collect = async {
            let (mut stdout, mut stderr) = (vec![], vec![]);
            while let Some(chunk) = output.recv().await {
                let stream = if chunk.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                stream.extend_from_slice(&chunk.bytes);
            }
            (stdout, stderr)
        };
        let (outcome, (stdout, stderr)) = tokio::join!(running.outcome(), collect);
        let outcome = outcome.map_err(says)?;
        let said = Seen::of(&outcome.cause, &stdout, &stderr);
        let seen = match probe.watch {
            Watch::Result => said,
            Watch::Survivors if said == Seen::Done => self.survivors(),
            Watch::Outputs(_) if said == Seen::Done || outcome.cause == ExitCause::Timeout => {
                handed_out(&outcome)
            }
            // It did not come to what is looked for.
            Watch::Survivors | Watch::Outputs(_) => Seen::Nothing(said.to_string()),
        };
        Ok(Inside { seen, controls })
    }

    fn spec(&self, probe: &Probe, off: &[Layer]) -> Result<Spec, String> {
        let arguments = self.stage.fill(probe.attack)?;
        let mut spec = Spec::new(self.stage.program().to_string_lossy(), arguments);
        for path in self.stage.shown() {
            spec.profile = spec.profile.with_read_only(path);
        }
        // A host of that name would hide whether the name is its own.
        if spec.profile.hostname == host_name() {
            "probed".clone_into(&mut spec.profile.hostname);
        }
        (probe.fit)(&mut spec);
        if let Watch::Outputs(paths) = probe.watch {
            spec.outputs = paths.iter().map(Into::into).collect();
        }
        spec.omit = probe.without.iter().chain(off).copied().collect();
        Ok(spec)
    }

    /// Attacks outside, as the user that programs inside are.
    async fn outside(&self, probe: &Probe) -> Seen {
        let attack = async { self.try_outside(probe).await.unwrap_or_else(Seen::Nothing) };
        match tokio::time::timeout(OUTSIDE_LIMIT, attack).await {
            Ok(seen) => seen,
            Err(_) => Seen::Nothing(format!("not done after {OUTSIDE_LIMIT:?}")),
        }
    }

    async fn try_outside(&self, probe: &Probe) -> Result<Seen, String> {
        let says = |error: std::io::Error| error.to_string();
        let dir = self.stage.outside().map_err(says)?;
        let mut command = Command::new(self.stage.program());
        command.args(self.stage.fill(probe.attack)?).env_clear().current_dir(dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((uid, gid)) = self.stage.user() {
            command.uid(uid).gid(gid);
        }
        let mut child = command.spawn().map_err(says)?;
        if let Watch::Outputs(paths) = probe.watch {
            // As one reads a file that a program is known to have written.
            let from = Instant::now();
            while from.elapsed() < RACE_LIMIT {
                let secret = |path: &&str| {
                    let path = dir.path().join(path);
                    path.is_file() && fs::read(path).is_ok_and(|content| content == SECRET)
                };
                if paths.iter().any(secret) {
                    return Ok(Seen::Done);
                }
                tokio::task::yield_now().await;
            }
            return Ok(Seen::words("nothing of the host handed out"));
        }
        let (mut stdout, mut stderr) = (vec![], vec![]);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let read_out = async { out?.take(MAX_OUTPUT_BYTES).read_to_end(&mut stdout).await.ok() };
        let read_err = async { err?.take(MAX_OUTPUT_BYTES).read_to_end(&mut stderr).await.ok() };
        let (ended, ..) = tokio::join!(child.wait(), read_out, read_err);
        let ended = ended.map_err(says)?;
        let cause = match (ended.code(), std::os::unix::process::ExitStatusExt::signal(&ended)) {
            (Some(code), _) => ExitCause::Exited { code },
            (None, signal) => ExitCause::Signaled { signal: signal.unwrap_or_default() },
        };
        let said = Seen::of(&cause, &stdout, &stderr);
        Ok(if probe.watch == Watch::Survivors && said == Seen::Done { self.survivors() } else { said })
    }

    /// Whether a process with the marker among its arguments is there; it is ended.
    fn survivors(&self) -> Seen {
        let Ok(marker) = self.stage.value("marker") else { return Seen::Nothing("no marker".to_owned()) };
        let Ok(entries) = fs::read_dir("/proc") else { return Seen::Nothing("no /proc".to_owned()) };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let survivors = pids.filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == marker.as_bytes())
        });
        let survivors = survivors.filter_map(rustix::process::Pid::from_raw).collect::<Vec<_>>();
        for pid in &survivors {
            // One that has ended by itself meanwhile has been seen all the same.
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
        }
        if survivors.is_empty() { Seen::words("nothing left") } else { Seen::Done }
    }
}

/// The layers that are off for a probe to meet only one of those that stop it.
pub(super) fn others(probe: &Probe, only: Option<Layer>) -> Vec<Layer> {
    only.map_or_else(Vec::new, |only| probe.layers().filter(|layer| *layer != only).collect())
}

fn describe_control(probe: &Probe, seen: &Seen) -> String {
    match probe.contrast {
        Contrast::Outside => format!("outside: {seen}"),
        Contrast::Inside | Contrast::Answers => {
            let off = probe.layers().map(Layer::name).collect::<Vec<_>>().join(", ");
            format!("without {off}: {seen}")
        }
    }
}

/// Whether a control shows that the attack works, and is not answered so by whatever is asked.
fn is_contrast(probe: &Probe, seen: &Seen, stopped: &Seen) -> bool {
    match probe.contrast {
        Contrast::Outside | Contrast::Inside => seen.is(&Seen::Done),
        Contrast::Answers => answers(seen, stopped),
    }
}

/// What an execution's outputs give away.
fn handed_out(outcome: &Outcome) -> Seen {
    for file in outcome.files.iter().flatten() {
        let mut content = vec![0; SECRET.len()];
        let Ok(file) = file.try_clone().map(fs::File::from) else {
            return Seen::Nothing("an output can't be read".to_owned());
        };
        if file.read_exact_at(&mut content, 0).is_ok() && content == SECRET {
            return Seen::Done;
        }
    }
    Seen::words("nothing of the host handed out")
}

/// What has to be seen of an attack.
struct MustSee<'p> {
    /// The first that may stop it.
    guard: Option<Guard>,
    /// One of these.
    expected: Vec<&'p Seen>,
    /// Whether one that holds as a whole is among those that may stop it.
    whole: bool,
}

/// The first guard that holds as a whole has to stop it. A layer before that which holds in part may or may not be the one that does.
fn must_see<'p>(probe: &'p Probe, controls: &[Control], off: &[Layer]) -> MustSee<'p> {
    let mut must = MustSee { guard: None, expected: vec![], whole: false };
    for stop in probe.stops {
        let status = match stop.guard {
            Guard::Engine => ControlStatus::Enforced,
            Guard::Layer(layer) if off.contains(&layer) => ControlStatus::Unavailable,
            Guard::Layer(layer) => status(controls, layer),
        };
        if status == ControlStatus::Unavailable {
            continue;
        }
        must.guard = must.guard.or(Some(stop.guard));
        must.expected.push(&stop.seen);
        must.whole = status == ControlStatus::Enforced;
        if must.whole {
            break;
        }
    }
    must
}

/// Whether the kernel proper answered: otherwise than the layer does. Of many calls some are refused by the kernel with the same error.
fn answers(seen: &Seen, stopped: &Seen) -> bool {
    match seen {
        Seen::Nothing(_) => false,
        Seen::Each(results) => {
            let other = results.iter().filter(|(_, seen)| seen != stopped).count();
            !results.is_empty() && other * 4 >= results.len() * 3
        }
        one => one != stopped,
    }
}
