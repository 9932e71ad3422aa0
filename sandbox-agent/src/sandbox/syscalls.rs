//! The system calls that a profile's programs may make, in groups, each with the reason; and those that kill.
//!
//! The lists: `base`, `groups`, `hostile`. Leaves out how they become a filter (`seccomp`).
//!
//! Invariant: what is in no list answers EPERM, so a new kernel's new calls are out until somebody writes down why they should
//! be in. The numbers are the kernel's for both architectures (a test compares them with its headers).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

mod base;
mod groups;
mod hostile;

/// An architecture that the lists have numbers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64 by its own table; x32 and 32-bit entries are foreign.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// What this program was compiled for; `None`: the lists have no numbers for it.
    pub const HOST: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X86_64)
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        Some(Self::Aarch64)
    } else {
        None
    };
}

/// A group of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// What every profile allows.
    Base,
    /// Runtimes that place and prioritise their own threads.
    Threads,
    /// TCP; comes with a network, and only with it.
    Network,
    /// Compilers and the programs that drive them.
    Build,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 4] = [Self::Base, Self::Threads, Self::Network, Self::Build];
    /// Those that a profile names.
    pub const NAMED: [Self; 2] = [Self::Threads, Self::Build];

    /// The name, as written in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Threads => "threads",
            Self::Network => "network",
            Self::Build => "build",
        }
    }

    /// Its calls. A call that is in `base` or among the hostile ones too is answered as here where the group is on.
    pub fn calls(self) -> &'static [Call] {
        match self {
            Self::Base => base::CALLS,
            Self::Threads => groups::THREADS,
            Self::Network => groups::NETWORK,
            Self::Build => groups::BUILD,
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::NAMED.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|group| group.name() == text);
        found.ok_or_else(|| format!("has to be one of {named}"))
    }
}

/// The calls that kill.
pub fn hostile() -> &'static [Call] {
    hostile::CALLS
}

/// A system call, how it is answered and why.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Its number on x86-64, if it is there.
    pub x86_64: Option<u32>,
    /// Its number on aarch64, if it is there.
    pub aarch64: Option<u32>,
    /// How it is answered.
    pub answer: Answer,
    /// Why.
    pub reason: &'static str,
}

impl Call {
    /// Its number, if the architecture has it.
    pub fn number(&self, arch: Arch) -> Option<u32> {
        match arch {
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }

    const fn answers(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    const fn when(self, cases: &'static [Case], otherwise: Verdict) -> Self {
        self.answers(Answer::When { cases, otherwise })
    }
}

/// How a call is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It is let through.
    Allow,
    /// It fails with this error number.
    Refuse(u32),
    /// It kills the process.
    Kill,
    /// It is let through in one of these cases.
    When {
        /// The cases.
        cases: &'static [Case],
        /// The answer in all others.
        otherwise: Verdict,
    },
}

/// The answer where no case holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fails with this error number.
    Refuse(u32),
    /// It kills the process.
    Kill,
}

/// A case in which a call is let through: conditions that all hold, and what they say.
#[derive(Clone, Copy, Debug)]
pub struct Case(pub &'static [Condition], pub &'static str);

/// A condition on one argument: its low 32 bits, which are all that the kernel reads of any argument compared here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u32,
    /// The bits that count.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

impl Condition {
    const fn equal(argument: u32, value: u32) -> Self {
        Self::masked(argument, u32::MAX, value)
    }

    const fn masked(argument: u32, mask: u32, value: u32) -> Self {
        Self { argument, mask, value }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Refuse(error) => Verdict::Refuse(*error).fmt(f),
            Self::Kill => Verdict::Kill.fmt(f),
            Self::When { otherwise, .. } => write!(f, "by argument, else {otherwise}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse(error) if *error == libc::EPERM.unsigned_abs() => f.write_str("EPERM"),
            Self::Refuse(error) if *error == libc::ENOSYS.unsigned_abs() => f.write_str("ENOSYS"),
            Self::Refuse(error) => write!(f, "error {error}"),
            Self::Kill => f.write_str("kill"),
        }
    }
}

const EPERM: Verdict = Verdict::Refuse(libc::EPERM.unsigned_abs());

const fn call(name: &'static str, x86_64: u32, aarch64: u32, reason: &'static str) -> Call {
    Call { name, x86_64: Some(x86_64), aarch64: Some(aarch64), answer: Answer::Allow, reason }
}

/// A call that only x86-64 has.
const fn x86_64(name: &'static str, number: u32, reason: &'static str) -> Call {
    Call { name, x86_64: Some(number), aarch64: None, answer: Answer::Allow, reason }
}

#[cfg(test)]
mod tests;
