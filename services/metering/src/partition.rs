//! Partitions: which one a tenant and a hold belong to.
//!
//! Pure. Left out: how many there are, which the instances of a stream agree on (`crate::agreement`), and who owns one. Invariant:
//! a tenant's partition never changes, and a hold's id says which partition it is of; for the number is fixed for a stream's life.

use exchequer_budget::{HoldId, TenantId};
use uuid::Uuid;

/// BLAKE3 `derive_key` context of a tenant's partition.
pub const PARTITION_CONTEXT: &str = "exchequer.v1 metering partition";
/// Most partitions of a stream.
pub const MAX_PARTITIONS: u16 = 64;

/// The name of a partition: its number.
pub fn name(partition: u16) -> String {
    partition.to_string()
}

/// The partition of a tenant, among `count`.
pub fn of_tenant(tenant: &TenantId, count: u16) -> u16 {
    let digest = blake3::derive_key(PARTITION_CONTEXT, tenant.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    let place = u64::from_be_bytes(first) % u64::from(count.max(1));
    u16::try_from(place).unwrap_or(0)
}

/// The partition of a hold, among `count`; none if its id was not drawn for one of them. Where there is one only, it is that one's.
pub fn of_hold(hold_id: &HoldId, count: u16) -> Option<u16> {
    if count <= 1 {
        return Some(0);
    }
    let (prefix, _) = hold_id.as_str().split_once('_')?;
    let partition = prefix.parse().ok().filter(|partition| *partition < count)?;
    // One spelling each.
    (name(partition) == prefix).then_some(partition)
}

/// The id of a new hold: the partition, and what makes it unique.
pub fn hold_id(partition: u16, unique: &str) -> HoldId {
    HoldId::parse(&format!("{partition}_{unique}")).expect("a number and a UUID can name a hold")
}

/// When the id of a hold was drawn, in milliseconds since the Unix epoch, if what makes it unique says so: a UUID of version 7 does.
pub(crate) fn drawn_ms(hold_id: &HoldId) -> Option<u64> {
    let (_, unique) = hold_id.as_str().split_once('_')?;
    let (seconds, nanos) = Uuid::parse_str(unique).ok()?.get_timestamp()?.to_unix();
    Some(seconds * 1_000 + u64::from(nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holds_id_says_which_partition_it_is_of() {
        let of = |id: &str, count| of_hold(&HoldId::parse(id).unwrap(), count);
        let drawn = hold_id(3, "0190b2a4-0000-7000-8000-00000000000f");
        assert_eq!(of_hold(&drawn, 4), Some(3));
        assert_eq!(of_hold(&drawn, 3), None);
        for (id, want) in [("0_x", Some(0)), ("00_x", None), ("x", None), ("-1_x", None), ("4_x", None)] {
            assert_eq!(of(id, 4), want, "{id}");
        }
        assert_eq!(of("whatever", 1), Some(0));
        assert_eq!(drawn_ms(&drawn), Some(0x0190_b2a4_0000));
        assert_eq!(drawn_ms(&HoldId::parse("0_x").unwrap()), None);
    }

    #[test]
    fn a_tenants_partition_is_fixed_and_tenants_spread() {
        let of = |tenant: &str, count| of_tenant(&TenantId::parse(tenant).unwrap(), count);
        // Known answers: a change of these is another protocol.
        assert_eq!(["acme", "zeta", "tenant-1"].map(|tenant| of(tenant, 64)), KNOWN);
        let mut tenants = [0; 4];
        for n in 0..4000 {
            tenants[usize::from(of(&format!("tenant-{n}"), 4))] += 1;
        }
        assert!(tenants.iter().all(|tenants| (900..1100).contains(tenants)), "{tenants:?}");
        assert_eq!(of("acme", 1), 0);
    }

    const KNOWN: [u16; 3] = [52, 9, 30];
}
