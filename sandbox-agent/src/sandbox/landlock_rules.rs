//! Landlock: the same paths as the mounts, TCP as the profile says, no signals or abstract sockets to the outside.
//!
//! Leaves out what Landlock has no right for (metadata, UDP): mounts and the network namespace cover those. Invariant:
//! handles every right that the running kernel's ABI knows, so a right that no rule grants is denied.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

use super::profile::{EGRESS_PORT, Profile};
use super::root::{ACCOUNT_FILES, OwnFiles};

/// The newest ABI there are names for; an older kernel gets what it knows.
const NEWEST: ABI = ABI::V9;

/// What TCP reaches from inside. Decided when the network namespace is there: a profile's word alone opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nothing.
    Nothing,
    /// Any port of the loopback of the sandbox's own network namespace.
    Loopback,
    /// [`EGRESS_PORT`] of it, where the agent's proxy listens.
    Proxy,
}

/// The rights that [`restrict`] asks a kernel with this ABI to handle, as the kernel's bit sets: what no rule grants of them is denied.
pub(super) fn handled(abi: i64, reach: Reach) -> String {
    let abi = ABI::from(i32::try_from(abi).unwrap_or(0)).min(NEWEST);
    let files = AccessFs::from_all(abi).bits();
    // As in `restrict`.
    let net = if reach == Reach::Loopback { 0 } else { AccessNet::from_all(abi).bits() };
    let scope = Scope::from_all(abi).bits();
    format!("asked to handle fs {files:#x}, net {net:#x}, scope {scope:#x}")
}

/// Restricts this process and its descendants for good. `work` is where the work area really is; files that the engine
/// made itself (accounts, `/proc`) are granted only where they are its own and not the host's. `reach` is what
/// TCP there is. Without `no_new_privs` the kernel asks for a capability instead.
pub(super) fn restrict(
    profile: &Profile,
    work: &Path,
    own: OwnFiles,
    reach: Reach,
    no_new_privs: bool,
) -> Result<(), RulesetError> {
    let read_and_run = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    let mut work_rights: BitFlags<AccessFs> = AccessFs::from_all(NEWEST)
        & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev);
    if !profile.work.executable {
        work_rights &= !BitFlags::from(AccessFs::Execute);
    }
    let devices = profile.devices.iter().map(|name| Path::new("/dev").join(name)).collect::<Vec<PathBuf>>();
    let proc = if own.proc { &["/proc"][..] } else { &[] };
    let accounts = if own.root { &ACCOUNT_FILES[..] } else { &[] };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    // On a loopback of its own any port may be bound and connected to.
    if reach != Reach::Loopback {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let proxy = (reach == Reach::Proxy).then_some(EGRESS_PORT);
    ruleset
        .create()?
        .add_rules(path_beneath_rules(&profile.read_only, read_and_run))?
        .add_rules(path_beneath_rules(accounts, read))?
        .add_rules(path_beneath_rules(proc, read))?
        .add_rules(path_beneath_rules(&devices, device))?
        .add_rules(path_beneath_rules([work], work_rights))?
        .add_rules(proxy.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp))))?
        .no_new_privs(no_new_privs)
        .restrict_self()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_that_are_asked_for_are_those_that_the_kernel_knows() {
        let check = |abi, reach, expected: &str| {
            assert_eq!(handled(abi, reach), format!("asked to handle {expected}"));
        };
        check(0, Reach::Nothing, "fs 0x0, net 0x0, scope 0x0");
        check(1, Reach::Nothing, "fs 0x1fff, net 0x0, scope 0x0");
        check(6, Reach::Nothing, "fs 0xffff, net 0x3, scope 0x3");
        check(6, Reach::Loopback, "fs 0xffff, net 0x0, scope 0x3");
    }
}
