//! What came of an attack: success, the kernel's error, a signal, an end by the sandbox, or the attack's own words.
//!
//! Left out: whether that is as it should be. Invariant: what can't be understood is [`Seen::Nothing`], which no table expects.

use std::{borrow::Cow, collections::BTreeSet, fmt, io};

use crate::sandbox::ExitCause;

/// What came of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It succeeded.
    Done,
    /// The kernel refused it.
    Errno(i32),
    /// A signal ended it. SIGSYS is the system-call filter's.
    Killed(i32),
    /// The sandbox ended it, for this reason.
    Ended(&'static str),
    /// It did not succeed, in its own words.
    Said(Cow<'static, str>),
    /// One result for each of several, by name.
    Each(Vec<(String, Seen)>),
    /// Nothing that could be understood.
    Nothing(String),
}

impl Seen {
    /// Words of an attack, for a table.
    pub const fn words(text: &'static str) -> Self {
        Self::Said(Cow::Borrowed(text))
    }

    /// Whether this is what was expected; of several results, whether each is.
    pub fn is(&self, expected: &Self) -> bool {
        match self {
            Self::Each(results) => !results.is_empty() && results.iter().all(|(_, seen)| seen == expected),
            one => one == expected,
        }
    }

    /// What a program said and how it ended.
    pub(super) fn of(cause: &ExitCause, stdout: &[u8], stderr: &[u8]) -> Self {
        match cause {
            ExitCause::Exited { code: 0 | 1 } => Self::parse(&String::from_utf8_lossy(stdout))
                .unwrap_or_else(|| Self::Nothing("it said nothing".to_owned())),
            ExitCause::Exited { code } => {
                let said = String::from_utf8_lossy(stderr);
                Self::Nothing(format!("exit status {code}: {}", said.trim_end()))
            }
            ExitCause::Signaled { signal } => Self::Killed(*signal),
            ExitCause::Seccomp => Self::Killed(libc::SIGSYS),
            ExitCause::Timeout => Self::Ended("wall-clock limit"),
            ExitCause::CpuLimit => Self::Ended("processor-time limit"),
            ExitCause::OutputLimit => Self::Ended("output limit"),
            ExitCause::OutOfMemory => Self::Ended("out of memory"),
            ExitCause::EgressLimit => Self::Ended("egress limit"),
            ExitCause::Cancelled => Self::Ended("cancelled"),
            ExitCause::LaunchFailed { stage, errno } => {
                Self::Nothing(format!("not started: {stage}: {}", io::Error::from_raw_os_error(*errno)))
            }
        }
    }

    /// The results among the lines (`probes/attack.h`). Beside a single one others are not looked at; where there is one for each of
    /// several, a line that is none of them may hide one that is missing.
    fn parse(text: &str) -> Option<Self> {
        let mut each = vec![];
        let mut last = None;
        let mut stray = None;
        for line in text.lines().map(|line| line.trim_matches('\0')).filter(|line| !line.is_empty()) {
            if let Some(seen) = Self::result(line) {
                last = Some(seen);
                stray = Some(line);
            } else if let Some((label, seen)) =
                line.split_once(' ').and_then(|(label, rest)| Some((label, Self::result(rest)?)))
            {
                each.push((label.to_owned(), seen));
            } else {
                stray = Some(line);
            }
        }
        match stray {
            _ if each.is_empty() => last,
            Some(line) => {
                let line = line.chars().take(STRAY_CHARS).collect::<String>();
                Some(Self::Nothing(format!("among its results is the line '{line}'")))
            }
            None => Some(Self::Each(each)),
        }
    }

    /// This, if it has a result for each of those for which `control` has one, and for no other; else no result. An attack that has several
    /// results and was ended as a whole has shown nothing of any of them.
    pub(super) fn compared(self, control: &Self) -> Self {
        let labels = |results: &[(String, Self)]| {
            results.iter().map(|(label, _)| label.clone()).collect::<BTreeSet<_>>()
        };
        let (wanted, found) = match (control, &self) {
            (Self::Each(wanted), Self::Each(found)) => (labels(wanted), labels(found)),
            (Self::Each(_), Self::Nothing(_)) => return self,
            (Self::Each(_), one) => {
                return Self::Nothing(format!("{one}, where its control has several results"));
            }
            (_, Self::Each(_)) => return Self::Nothing("its control has no result for each".to_owned()),
            _ => return self,
        };
        match wanted.symmetric_difference(&found).next() {
            None => self,
            Some(label) if found.contains(label) => {
                Self::Nothing(format!("its control has no result for {label}"))
            }
            Some(label) => Self::Nothing(format!("no result for {label}, which its control has")),
        }
    }

    fn result(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None => (line == "done").then_some(Self::Done),
            Some(("errno", number)) => Some(Self::Errno(number.parse().ok()?)),
            Some(("killed", number)) => Some(Self::Killed(number.parse().ok()?)),
            Some(("said", words)) => Some(Self::Said(words.to_owned().into())),
            Some(_) => None,
        }
    }
}

/// How much of a line that is no result is repeated.
const STRAY_CHARS: usize = 80;
/// How many differing results are spelt out.
const NAMED: usize = 8;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("succeeded"),
            Self::Errno(number) => match errno_name(*number) {
                Some(name) => f.write_str(name),
                None => write!(f, "{}", io::Error::from_raw_os_error(*number)),
            },
            Self::Killed(libc::SIGSYS) => f.write_str("killed by SIGSYS"),
            Self::Killed(libc::SIGXFSZ) => f.write_str("killed by SIGXFSZ"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::Ended(reason) => write!(f, "ended: {reason}"),
            Self::Said(words) => f.write_str(words),
            Self::Nothing(why) => write!(f, "no result ({why})"),
            Self::Each(results) => each(results, f),
        }
    }
}

/// The most frequent result once, then those that differ.
fn each(results: &[(String, Seen)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let count = |seen: &Seen| results.iter().filter(|(_, other)| other == seen).count();
    let Some((_, common)) = results.iter().max_by_key(|(_, seen)| count(seen)) else {
        return f.write_str("no result");
    };
    write!(f, "{} of {}: {common}", count(common), results.len())?;
    let others = results.iter().filter(|(_, seen)| seen != common).collect::<Vec<_>>();
    for (name, seen) in others.iter().take(NAMED) {
        write!(f, ", {name}: {seen}")?;
    }
    if others.len() > NAMED { write!(f, " and {} more", others.len() - NAMED) } else { Ok(()) }
}

/// The names of errors that the table expects or that are usual answers.
fn errno_name(number: i32) -> Option<&'static str> {
    let names = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENXIO, "ENXIO"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ENOKEY, "ENOKEY"),
    ];
    names.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(stdout: &str) -> Seen {
        Seen::of(&ExitCause::Exited { code: 1 }, stdout.as_bytes(), b"")
    }

    #[test]
    fn results_are_read_as_the_attacks_write_them() {
        assert_eq!(exited("done\n"), Seen::Done);
        assert_eq!(exited("errno 13\n"), Seen::Errno(13));
        assert_eq!(exited("said none\n"), Seen::words("none"));
        assert_eq!(
            exited("1 errno 1\n2 killed 31\n"),
            Seen::Each(vec![("1".to_owned(), Seen::Errno(1)), ("2".to_owned(), Seen::Killed(31))])
        );
        assert!(matches!(exited("swapping\n"), Seen::Nothing(_)));
    }

    #[test]
    fn no_result_is_never_what_was_expected() {
        assert!(!exited("").is(&Seen::Done));
        assert!(!Seen::Each(vec![]).is(&Seen::Done));
        let unknown = Seen::of(&ExitCause::Exited { code: 99 }, b"done\n", b"no attack x\n");
        assert_eq!(unknown, Seen::Nothing("exit status 99: no attack x".to_owned()));
    }

    #[test]
    fn of_several_results_each_has_to_be_as_expected() {
        assert!(exited("1 errno 1\n2 errno 1\n").is(&Seen::Errno(1)));
        assert!(!exited("1 errno 1\n2 done\n").is(&Seen::Errno(1)));
        assert_eq!(exited("1 errno 1\n2 errno 1\n3 done\n").to_string(), "2 of 3: EPERM, 3: succeeded");
    }

    #[test]
    fn a_line_among_several_results_that_is_none_of_them_is_no_result() {
        for said in ["1 errno 1\n2 err\n", "1 errno 1\nerrno 11\n", "swapping\n1 errno 1\n"] {
            assert!(matches!(exited(said), Seen::Nothing(_)), "{said}");
        }
        assert_eq!(exited("swapping\ndone\n"), Seen::Done);
    }

    #[test]
    fn several_results_count_only_for_the_same_as_in_the_control() {
        let control = exited("1 done\n2 done\n");
        let check = |inside: Seen, counts: bool| {
            let compared = inside.clone().compared(&control);
            assert_eq!(!matches!(compared, Seen::Nothing(_)), counts, "{inside}");
        };
        check(exited("2 killed 31\n1 killed 31\n"), true);
        check(exited("1 killed 31\n"), false);
        check(exited("1 killed 31\n2 killed 31\n3 killed 31\n"), false);
        check(Seen::Killed(libc::SIGSYS), false);
        assert_eq!(Seen::Killed(31).compared(&Seen::Done), Seen::Killed(31));
        assert!(matches!(control.clone().compared(&Seen::Killed(9)), Seen::Nothing(_)));
    }
}
