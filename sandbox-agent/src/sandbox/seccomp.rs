//! A profile's system-call filter, made from the lists in [`super::syscalls`].
//!
//! One program per set of groups: it checks the architecture, then looks the number up by halving the list, so that neither a
//! call nor the kernel's pass over all numbers when the filter is installed walks a chain of comparisons. Each call has one
//! answer in one place; foreign entries (32-bit, x32) kill.
//!
//! Leaves out when it is installed ([`super::payload`]). Invariant: what is in no list is refused, and nothing is let through on a
//! foreign architecture's numbers.

use std::collections::BTreeMap;

use seccompiler::sock_filter;

use super::landlock_rules::Reach;
use super::profile::Profile;
use super::sys;
use super::syscalls::{Answer, Arch, Call, Case, Group, Verdict, hostile};

/// How many filters the kernel must show for a process in addition to those it had.
pub(super) const INSTALLED: usize = 1;

/// A compiled filter.
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// Installs it on this process, for good; it has `no_new_privs` or the capability instead.
    pub(super) fn install(&self) -> Result<(), i32> {
        sys::install_filter(&self.0)
    }
}

/// The filters of all profiles there can be: one for each set of groups beside the base.
pub(super) struct Filters([Filter; 1 << BESIDE_BASE.len()]);

/// Each group's bit is its place.
const BESIDE_BASE: [Group; 3] = [Group::Threads, Group::Network, Group::Build];

impl Filters {
    /// For this machine; `None`: there are no numbers for its architecture.
    pub(super) fn compile() -> Option<Self> {
        let arch = Arch::HOST?;
        Some(Self(std::array::from_fn(|set| {
            let chosen = BESIDE_BASE.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
            Filter(program(arch, &chosen.map(|(_, group)| *group).collect::<Vec<_>>()))
        })))
    }

    /// The one that this profile asks for, if the network it asks for is there: without one there are no calls for it.
    pub(super) fn of(&self, profile: &Profile, reach: Reach) -> &Filter {
        let mut groups = profile.groups();
        groups.retain(|group| *group != Group::Network || reach != Reach::Nothing);
        let bits = BESIDE_BASE.iter().enumerate().filter(|(_, group)| groups.contains(group));
        &self.0[bits.map(|(bit, _)| 1 << bit).sum::<usize>()]
    }
}

/// How each call is answered where these groups are on: a group overrules the base, and both the hostile list.
fn answers(arch: Arch, groups: &[Group]) -> BTreeMap<u32, &'static Answer> {
    let lists = [hostile(), Group::Base.calls()];
    let lists = lists.into_iter().chain(groups.iter().map(|group| group.calls()));
    lists.flatten().filter_map(|call: &Call| Some((call.number(arch)?, &call.answer))).collect()
}

/// Numbers of system calls that a profile refuses whatever their arguments.
pub struct RefusedCalls {
    /// Those that kill.
    pub hostile: Vec<i64>,
    /// Those that are in no list, up to `LAST_NUMBER`. Without `sync`, which does no harm but takes its time, and those
    /// that the kernel lets past every filter.
    pub unlisted: Vec<i64>,
}

/// Higher than any number that a kernel has.
const LAST_NUMBER: i64 = 600;

/// `uretprobe` and `uprobe`: newer kernels, which plant them in traced programs themselves, let them past every filter. Called
/// by a program itself they end it or answer ENXIO.
#[cfg(target_arch = "x86_64")]
const EXEMPT: [i64; 2] = [335, 336];
#[cfg(not(target_arch = "x86_64"))]
const EXEMPT: [i64; 0] = [];

/// What the filter of a profile refuses, for probes.
pub fn refused_calls(profile: &Profile) -> RefusedCalls {
    let answers = Arch::HOST.map(|arch| answers(arch, &profile.groups())).unwrap_or_default();
    let killed = answers.iter().filter(|(_, answer)| matches!(answer, Answer::Kill));
    let out = |number: &i64| {
        let listed = u32::try_from(*number).is_ok_and(|number| answers.contains_key(&number));
        !listed && *number != libc::SYS_sync && !EXEMPT.contains(number)
    };
    RefusedCalls {
        hostile: killed.map(|(number, _)| i64::from(*number)).collect(),
        unlisted: (0..=LAST_NUMBER).filter(out).collect(),
    }
}

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Places in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Calls of the x32 table, which shares the architecture mark of x86-64, have this bit.
const X32_BIT: u32 = 0x4000_0000;

/// The kernel's mark of an architecture (`AUDIT_ARCH_*`).
const fn mark(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

fn program(arch: Arch, groups: &[Group]) -> Vec<sock_filter> {
    let mut code = vec![
        step(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, mark(arch), 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD_WORD, NUMBER),
    ];
    if arch == Arch::X86_64 {
        code.extend([jump(JUMP_IF_AT_LEAST, X32_BIT, 0, 1), step(RETURN, libc::SECCOMP_RET_KILL_PROCESS)]);
    }
    code.extend(look_up(&intervals(&answers(arch, groups))));
    code
}

/// From this number on (until the next interval) calls are answered so.
struct Interval {
    from: u32,
    code: Vec<sock_filter>,
}

/// All numbers, in order, neighbours with the same answer in one interval. What is in no list is refused with EPERM.
fn intervals(answers: &BTreeMap<u32, &Answer>) -> Vec<Interval> {
    let unlisted = || vec![step(RETURN, returned(Verdict::Refuse(libc::EPERM.unsigned_abs())))];
    let mut found: Vec<Interval> = vec![];
    let mut push = |from, code| match found.last() {
        Some(last) if last.code == code => {}
        _ => found.push(Interval { from, code }),
    };
    let mut next = 0;
    for (&number, answer) in answers {
        if number > next {
            push(next, unlisted());
        }
        push(number, answered(answer));
        next = number + 1;
    }
    push(next, unlisted());
    found
}

/// Halves the intervals until one is left. Jumps reach 255 instructions; a longer way takes one more.
fn look_up(intervals: &[Interval]) -> Vec<sock_filter> {
    if let [only] = intervals {
        return only.code.clone();
    }
    let (below, above) = intervals.split_at(intervals.len() / 2);
    let from = above[0].from;
    let (below, above) = (look_up(below), look_up(above));
    let mut code = match u8::try_from(below.len()) {
        Ok(over) => vec![jump(JUMP_IF_AT_LEAST, from, over, 0)],
        Err(_) => vec![
            jump(JUMP_IF_AT_LEAST, from, 0, 1),
            step(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

fn answered(answer: &Answer) -> Vec<sock_filter> {
    match *answer {
        Answer::Allow => vec![step(RETURN, libc::SECCOMP_RET_ALLOW)],
        Answer::Refuse(error) => vec![step(RETURN, returned(Verdict::Refuse(error)))],
        Answer::Kill => vec![step(RETURN, returned(Verdict::Kill))],
        Answer::When { cases, otherwise } => {
            cases.iter().flat_map(allowed_if).chain([step(RETURN, returned(otherwise))]).collect()
        }
    }
}

/// Allows if all conditions of the case hold; else goes on behind its own code.
fn allowed_if(case: &Case) -> Vec<sock_filter> {
    let mut code = vec![step(RETURN, libc::SECCOMP_RET_ALLOW)];
    // From the last to the first: each knows how far the end is.
    for condition in case.0.iter().rev() {
        let over = u8::try_from(code.len()).expect("a case has few conditions");
        let masked = (condition.mask != u32::MAX).then(|| step(AND, condition.mask));
        // Both architectures are little-endian: the low word of an argument comes first.
        let load = step(LOAD_WORD, ARGUMENTS + 8 * condition.argument);
        let check = jump(JUMP_IF_EQUAL, condition.value, 0, over);
        code.splice(0..0, [load].into_iter().chain(masked).chain([check]));
    }
    code
}

fn returned(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Refuse(error) => libc::SECCOMP_RET_ERRNO | error,
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

const fn step(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
