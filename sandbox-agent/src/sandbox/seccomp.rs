//! The strict profile's filters, compiled from the lists in [`super::syscalls`].
//!
//! Four filters, of whose answers the kernel takes the severest: foreign entry points kill; hostile calls kill; `clone3`
//! (whose flags a filter can't see) answers ENOSYS; everything outside the allow-list answers EPERM. The allow-list is
//! installed last, since it also forbids installing filters.
//!
//! Leaves out profiles with other lists. Invariant: [`Filters::install`] allocates nothing, so it can run under a
//! memory limit smaller than the installing process.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::sys;
use super::syscalls::{ALLOWED, ALLOWED_LEGACY, HOSTILE, IOCTLS, NAMESPACE_FLAGS, PRCTLS};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The compiled filters, in the order of installation.
pub(super) struct Filters(Vec<BpfProgram>);

impl Filters {
    pub(super) fn strict() -> Result<Self, seccompiler::BackendError> {
        let kill = SeccompAction::KillProcess;
        let not_implemented = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let not_permitted = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        Ok(Self(vec![
            foreign_entries(),
            compile(hostile()?, SeccompAction::Allow, kill)?,
            compile(Rules::from([(libc::SYS_clone3, vec![])]), SeccompAction::Allow, not_implemented)?,
            compile(allowed()?, not_permitted, SeccompAction::Allow)?,
        ]))
    }

    /// How many filters the kernel must show for a process in addition to those it had.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Installs all of them on this process, for good; it has `no_new_privs` or the capability instead.
    pub(super) fn install(&self) -> Result<(), i32> {
        for program in &self.0 {
            sys::install_filter(program)?;
        }
        Ok(())
    }
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::try_from(ARCH)?)?.try_into()
}

/// Kills whoever enters by the x32 table, which shares the architecture mark of x86-64 and renumbers the calls. Other
/// architectures' entries are killed by the first instructions of the compiled filters.
fn foreign_entries() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const OFFSET_OF_NUMBER: u32 = 0;
    const X32_BIT: u32 = 0x4000_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_WORD, 0, 0, OFFSET_OF_NUMBER),
        step(JUMP_IF_AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn when(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
}

fn hostile() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = HOSTILE.iter().map(|(number, _)| (*number, vec![])).collect::<Rules>();
    let namespaces = NAMESPACE_FLAGS
        .iter()
        .map(|flag| {
            let bit = u64::from(flag.unsigned_abs());
            when(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)
        })
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_clone, namespaces);
    Ok(rules)
}

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules =
        ALLOWED.iter().chain(ALLOWED_LEGACY).map(|(number, _)| (*number, vec![])).collect::<Rules>();
    let namespaces = NAMESPACE_FLAGS.iter().fold(0, |mask, flag| mask | u64::from(flag.unsigned_abs()));
    rules.insert(libc::SYS_clone, vec![when(0, Qword, MaskedEq(namespaces), 0)?]);
    // The kernel reads the request and the operation as 32 bits: comparing more would let a high bit through.
    let requests =
        IOCTLS.iter().map(|(request, _)| when(1, Dword, Eq, *request)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, requests);
    let operations = PRCTLS
        .iter()
        .map(|(operation, _)| when(0, Dword, Eq, u64::from(operation.unsigned_abs())))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_prctl, operations);
    // Pairs of local sockets between own processes; nothing with an address.
    rules.insert(libc::SYS_socketpair, vec![when(0, Dword, Eq, u64::from(libc::AF_UNIX.unsigned_abs()))?]);
    // Own limits only: init shares the user id, and its limits must stay.
    rules.insert(libc::SYS_prlimit64, vec![when(0, Dword, Eq, 0)?]);
    // Fifos, no devices and no sockets with an address.
    let fifo = |argument| when(argument, Dword, MaskedEq(u64::from(libc::S_IFMT)), u64::from(libc::S_IFIFO));
    rules.insert(libc::SYS_mknodat, vec![fifo(2)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_mknod, vec![fifo(1)?]);
    Ok(rules)
}
