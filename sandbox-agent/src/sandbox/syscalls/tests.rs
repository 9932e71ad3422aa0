//! The lists, against the kernel's headers and the agent container's own list.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::*;

fn all() -> impl Iterator<Item = &'static Call> {
    Group::ALL.into_iter().flat_map(Group::calls).chain(hostile())
}

/// From here on a new call has the same number on every architecture.
const COMMON_FROM: u32 = 424;

/// The numbers that C programs are compiled with, by name.
fn numbers(program: &str) -> BTreeMap<String, u32> {
    let made = tempfile::tempdir().unwrap();
    let source = made.path().join("numbers.c");
    std::fs::write(&source, program).unwrap();
    let output = Command::new("cc").args(["-E", "-dM"]).arg(source).output();
    let output = output.expect("a C compiler is needed: apt-get install gcc libc6-dev");
    assert!(output.status.success(), "the kernel's headers are needed: apt-get install linux-libc-dev");
    let text = String::from_utf8(output.stdout).unwrap();
    let defined = text.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
    let defined = defined.collect::<BTreeMap<_, _>>();
    let resolve = |name: &str| {
        let mut text = *defined.get(name)?;
        while let Some(further) = defined.get(text) {
            text = further;
        }
        text.parse().ok()
    };
    let names = defined.keys().filter_map(|name| Some((name.strip_prefix("__NR_")?, *name)));
    names.filter_map(|(name, full)| Some((name.to_owned(), resolve(full)?))).collect()
}

fn check(arch: Arch, kernel: &BTreeMap<String, u32>) {
    assert!(kernel.len() > 250, "these are no headers of the kernel");
    let newest = kernel.values().max().copied().unwrap_or(0);
    for call in all() {
        match (call.number(arch), kernel.get(call.name)) {
            (own, Some(number)) => assert_eq!(own, Some(*number), "{} on {arch:?}", call.name),
            // Younger than the headers: at least it must be one of the numbers that all architectures share.
            (Some(own), None) => {
                assert!(own > newest && own >= COMMON_FROM, "{} on {arch:?} is {own}", call.name);
                assert_eq!(call.x86_64, call.aarch64, "{}", call.name);
            }
            (None, None) => {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn numbers_of_x86_64_are_the_kernels() {
    check(Arch::X86_64, &numbers("#include <asm/unistd_64.h>\n"));
}

#[test]
fn numbers_of_aarch64_are_the_kernels() {
    // As the kernel's arch/arm64/include/uapi/asm/unistd.h has it.
    let wanted = ["RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "TIME32_SYSCALLS", "SYS_CLONE3", "MEMFD_SECRET"];
    let wanted = wanted.map(|name| format!("#define __ARCH_WANT_{name}\n")).concat();
    let program = format!("#define __BITS_PER_LONG 64\n{wanted}#include <asm-generic/unistd.h>\n");
    check(Arch::Aarch64, &numbers(&program));
}

#[test]
fn each_list_has_a_call_once_and_groups_share_none() {
    let names = |calls: &[Call]| calls.iter().map(|call| call.name).collect::<Vec<_>>();
    for calls in Group::ALL.map(Group::calls).into_iter().chain([hostile()]) {
        let names = names(calls);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }
    let beside = [Group::Threads, Group::Network, Group::Build].map(|group| names(group.calls())).concat();
    assert_eq!(beside.iter().collect::<BTreeSet<_>>().len(), beside.len(), "{beside:?}");
}

#[test]
fn no_group_lets_a_hostile_call_through() {
    for call in hostile() {
        assert!(matches!(call.answer, Answer::Kill), "{}", call.name);
        for group in Group::ALL {
            let same = group.calls().iter().find(|other| other.name == call.name);
            assert!(same.is_none_or(|other| matches!(other.answer, Answer::Refuse(_))), "{}", call.name);
        }
    }
}

#[test]
fn every_call_has_a_reason_and_a_number() {
    for call in all() {
        assert!(
            !call.reason.is_empty() && (call.x86_64.is_some() || call.aarch64.is_some()),
            "{}",
            call.name
        );
        if let Answer::When { cases, .. } = call.answer {
            assert!(cases.iter().all(|case| !case.0.is_empty() && !case.1.is_empty()), "{}", call.name);
            let asked = cases.iter().flat_map(|case| case.0);
            assert!(asked.clone().all(|one| one.argument < 6 && one.value & !one.mask == 0), "{}", call.name);
        }
    }
}

/// Filters stack: a call that the container refuses never reaches the sandbox's list, and a program would fail in the container
/// that runs elsewhere.
#[test]
fn the_agents_container_lets_through_what_the_lists_allow() {
    let container = include_str!("../../../../docker/seccomp.json");
    let allowed = Group::ALL.into_iter().flat_map(Group::calls);
    let refused = allowed.filter(|call| !matches!(call.answer, Answer::Refuse(_)));
    let refused = refused.map(|call| call.name).filter(|name| !container.contains(&format!("\"{name}\"")));
    assert_eq!(refused.collect::<Vec<_>>(), [""; 0], "are not in docker/seccomp.json");
}
