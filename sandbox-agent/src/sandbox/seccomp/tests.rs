//! The filters, interpreted: for both architectures, whichever runs the tests.

use super::*;
use crate::sandbox::syscalls::Condition;

const ARCHS: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

fn sets() -> impl Iterator<Item = Vec<Group>> {
    (0..1_usize << BESIDE_BASE.len()).map(|set| {
        BESIDE_BASE
            .iter()
            .enumerate()
            .filter(|(bit, _)| set >> bit & 1 == 1)
            .map(|(_, group)| *group)
            .collect()
    })
}

/// What the kernel would make of a call, and in how many instructions. Panics where it would refuse the program.
fn interpret(code: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
    let mut data = vec![number, arch, 0, 0];
    for arg in args {
        let bytes = arg.to_le_bytes();
        data.extend([&bytes[..4], &bytes[4..]].map(|word| u32::from_le_bytes(word.try_into().unwrap())));
    }
    let (mut accumulator, mut at) = (0, 0);
    for steps in 1.. {
        let sock_filter { code: operation, jt, jf, k } = code[at];
        at += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
        match operation {
            LOAD_WORD => {
                assert_eq!(k % 4, 0);
                accumulator = data[k as usize / 4];
            }
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_IF_EQUAL => branch(accumulator == k),
            JUMP_IF_AT_LEAST => branch(accumulator >= k),
            RETURN => return (k, steps),
            other => panic!("operation {other:#x} is not one of ours"),
        }
    }
    unreachable!()
}

fn answer(arch: Arch, groups: &[Group], number: u32, args: [u64; 6]) -> u32 {
    interpret(&program(arch, groups), mark(arch), number, args).0
}

/// What the lists say, found without the compiler: a group's word counts before the base's, that before the hostile list's.
fn listed(arch: Arch, groups: &[Group], number: u32, args: [u64; 6]) -> u32 {
    let lists = groups.iter().map(|group| group.calls()).chain([Group::Base.calls(), hostile()]);
    let Some(call) = lists.flatten().find(|call| call.number(arch) == Some(number)) else { return EPERM };
    let low = |argument: u32| u32::try_from(args[argument as usize] & 0xffff_ffff).unwrap();
    let verdict = |verdict| match verdict {
        Verdict::Refuse(error) => libc::SECCOMP_RET_ERRNO | error,
        Verdict::Kill => KILL,
    };
    match call.answer {
        Answer::Allow => ALLOW,
        Answer::Refuse(error) => verdict(Verdict::Refuse(error)),
        Answer::Kill => KILL,
        Answer::When { cases, otherwise } => {
            let holds = |condition: &Condition| low(condition.argument) & condition.mask == condition.value;
            let allowed = cases.iter().any(|case| case.0.iter().all(holds));
            if allowed { ALLOW } else { verdict(otherwise) }
        }
    }
}

/// Arguments that fulfil each case of a call, and those with one condition of it broken; with high bits set and not.
fn telling_arguments(arch: Arch, number: u32) -> Vec<[u64; 6]> {
    let lists =
        Group::ALL.into_iter().flat_map(Group::calls).filter(|call| call.number(arch) == Some(number));
    let mut all = vec![[0; 6], [u64::MAX; 6], [1; 6]];
    for call in lists {
        let Answer::When { cases, .. } = call.answer else { continue };
        for case in cases {
            for background in [0, u64::MAX << 32, u64::MAX] {
                let mut fits = [background; 6];
                for Condition { argument, mask, value } in case.0 {
                    let arg = &mut fits[*argument as usize];
                    *arg = *arg & !u64::from(*mask) | u64::from(*value);
                }
                all.push(fits);
                for Condition { argument, mask, .. } in case.0 {
                    for bit in (0..32).filter(|bit| mask >> bit & 1 == 1) {
                        let mut broken = fits;
                        broken[*argument as usize] ^= 1 << bit;
                        all.push(broken);
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_number_is_answered_as_listed_on_both_architectures_in_every_set_of_groups() {
    for arch in ARCHS {
        for groups in sets() {
            let code = program(arch, &groups);
            assert!(code.len() <= 4096, "the kernel takes no longer program");
            for number in (0..1024).chain([0x3fff_ffff]) {
                for args in telling_arguments(arch, number) {
                    assert_eq!(
                        interpret(&code, mark(arch), number, args).0,
                        listed(arch, &groups, number, args),
                        "{arch:?} {groups:?} {number} {args:x?}"
                    );
                }
            }
        }
    }
}

#[test]
fn other_architectures_and_the_x32_table_kill() {
    const I386: u32 = 0x4000_0003;
    const ARM: u32 = 0x4000_0028;
    const BIG_ENDIAN_AARCH64: u32 = 0x8000_00b7;
    for arch in ARCHS {
        let other = ARCHS.into_iter().find(|other| *other != arch).unwrap();
        let code = program(arch, &BESIDE_BASE);
        for number in 0..1024 {
            for foreign in [I386, ARM, BIG_ENDIAN_AARCH64, mark(other), 0] {
                assert_eq!(
                    interpret(&code, foreign, number, [0; 6]).0,
                    KILL,
                    "{arch:?} {foreign:#x} {number}"
                );
            }
        }
    }
    for number in (0..1024).map(|number| number | X32_BIT).chain([u32::MAX]) {
        assert_eq!(answer(Arch::X86_64, &BESIDE_BASE, number, [0; 6]), KILL, "{number:#x}");
        assert_ne!(answer(Arch::Aarch64, &BESIDE_BASE, number, [0; 6]), ALLOW, "{number:#x}");
    }
}

#[test]
fn a_number_is_found_by_halving() {
    for arch in ARCHS {
        for groups in sets() {
            let code = program(arch, &groups);
            let steps = (0..512)
                .map(|number| interpret(&code, mark(arch), number, [0; 6]))
                .filter(|(to, _)| *to == ALLOW);
            let most = steps.map(|(_, steps)| steps).max().unwrap();
            assert!(most <= 40, "{arch:?} {groups:?}: {most} instructions");
        }
    }
}

/// Number, arguments, groups, answer.
type Fact = (&'static str, u32, [u64; 6], &'static [Group], u32);

/// What must hold however the lists are written. x86-64.
const FACTS: &[Fact] = &[
    ("read", 0, [0; 6], &[], ALLOW),
    ("execve", 59, [0; 6], &[], ALLOW),
    ("ptrace", 101, [0; 6], &BESIDE_BASE, KILL),
    ("mount", 165, [0; 6], &BESIDE_BASE, KILL),
    ("unshare", 272, [0; 6], &BESIDE_BASE, KILL),
    ("bpf", 321, [0; 6], &BESIDE_BASE, KILL),
    ("userfaultfd", 323, [0; 6], &BESIDE_BASE, KILL),
    ("add_key", 248, [0; 6], &BESIDE_BASE, KILL),
    ("request_key", 249, [0; 6], &BESIDE_BASE, KILL),
    ("keyctl", 250, [0; 6], &BESIDE_BASE, KILL),
    ("kcmp", 312, [0; 6], &BESIDE_BASE, KILL),
    ("process_madvise", 440, [0; 6], &BESIDE_BASE, KILL),
    ("seccomp", 317, [0; 6], &BESIDE_BASE, EPERM),
    ("memfd_create", 319, [0; 6], &BESIDE_BASE, EPERM),
    ("memfd_secret", 447, [0; 6], &BESIDE_BASE, EPERM),
    ("vmsplice", 278, [0; 6], &BESIDE_BASE, EPERM),
    ("landlock_create_ruleset", 444, [0; 6], &BESIDE_BASE, EPERM),
    ("a call of the future", 500, [0; 6], &BESIDE_BASE, EPERM),
    ("clone3", 435, [0; 6], &BESIDE_BASE, ENOSYS),
    ("io_uring_setup", 425, [0; 6], &[], KILL),
    ("io_uring_setup", 425, [0; 6], &[Group::Threads], ENOSYS),
    ("io_uring_enter", 426, [0; 6], &BESIDE_BASE, KILL),
    ("clone for a thread", 56, [0x003d_0f00, 0, 0, 0, 0, 0], &[], ALLOW),
    ("clone of a user namespace", 56, [0x1000_0011, 0, 0, 0, 0, 0], &BESIDE_BASE, KILL),
    ("clone of a net namespace", 56, [0x4000_0011, 0, 0, 0, 0, 0], &BESIDE_BASE, KILL),
    ("TIOCSTI", 16, [0, 0x5412, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("TIOCSTI in disguise", 16, [0, 0x1_0000_5412, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("PR_SET_DUMPABLE", 157, [4, 0, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("PR_SET_PDEATHSIG", 157, [1, 0, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("a limit of init", 302, [1, 0, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("a device", 133, [0, 0x2000, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("a fifo", 133, [0, 0x11a4, 0, 0, 0, 0], &[], ALLOW),
    ("socket without a network", 41, [2, 1, 0, 0, 0, 0], &[Group::Threads, Group::Build], EPERM),
    ("TCP", 41, [2, 1, 0, 0, 0, 0], &[Group::Network], ALLOW),
    ("TCP, flags in the type", 41, [10, 0x8_0801, 6, 0, 0, 0], &[Group::Network], ALLOW),
    ("UDP", 41, [2, 2, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("UDP, flags in the type", 41, [2, 0x8_0802, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("multipath TCP", 41, [2, 1, 262, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("raw", 41, [2, 3, 255, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("AF_UNIX", 41, [1, 1, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("AF_NETLINK", 41, [16, 3, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("AF_PACKET", 41, [17, 3, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("AF_VSOCK", 41, [40, 1, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("socketpair AF_UNIX", 53, [1, 1, 0, 0, 0, 0], &[], ALLOW),
    ("socketpair AF_UNIX, packets, close-on-exec", 53, [1, 0o2_000_005, 0, 0, 0, 0], &[], ALLOW),
    ("socketpair AF_UNIX, datagrams", 53, [1, 2, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("socketpair AF_INET", 53, [2, 1, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("SO_ATTACH_FILTER", 54, [3, 1, 26, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("TCP_ULP", 54, [3, 6, 31, 0, 0, 0], &BESIDE_BASE, EPERM),
    ("TCP_NODELAY", 54, [3, 6, 1, 0, 0, 0], &[Group::Network], ALLOW),
    ("sendto", 44, [3, 0, 0, 0, 0, 0], &[Group::Network], ALLOW),
    ("sendto with MSG_FASTOPEN", 44, [3, 0, 0, 0x2000_0000, 0, 0], &[Group::Network], EPERM),
    ("personality, asked for", 135, [0xffff_ffff, 0, 0, 0, 0, 0], &[Group::Build], ALLOW),
    ("READ_IMPLIES_EXEC", 135, [0x0040_0000, 0, 0, 0, 0, 0], &BESIDE_BASE, EPERM),
];

#[test]
fn what_programs_may_never_do_is_refused_and_what_they_need_is_not() {
    for (what, number, args, groups, expected) in FACTS {
        assert_eq!(answer(Arch::X86_64, groups, *number, *args), *expected, "{what} {groups:?}");
    }
}

#[test]
fn a_profile_gets_the_filter_of_its_groups() {
    let Some(filters) = Filters::compile() else { panic!("no numbers for this architecture") };
    let arch = Arch::HOST.unwrap();
    let mut profile = Profile::strict();
    assert_eq!(filters.of(&profile, Reach::Loopback).0, program(arch, &[]));
    profile.seccomp = vec![Group::Build];
    assert_eq!(filters.of(&profile, Reach::Loopback).0, program(arch, &[Group::Build]));
    profile.network = crate::sandbox::Network::Loopback;
    assert_eq!(filters.of(&profile, Reach::Loopback).0, program(arch, &[Group::Network, Group::Build]));
    // The namespace could not be had.
    assert_eq!(filters.of(&profile, Reach::Nothing).0, program(arch, &[Group::Build]));
    profile.seccomp = vec![Group::Threads, Group::Build];
    assert_eq!(filters.of(&profile, Reach::Loopback).0, program(arch, &BESIDE_BASE));
}
