//! What a witness answers to a request (tlog-witness, "add-checkpoint"): a function of the request and of what it holds.
//!
//! Left out: holding it, signing, HTTP. Invariant: only a tree that continues the held one, under a checkpoint that the log signed,
//! is not refused.

use exchequer_tlog::{
    AddCheckpoint, AddCheckpointError, Checkpoint, EMPTY_ROOT, Hash, Policy, ProofInvalid, TrustError,
    verify_consistency,
};

/// The newest tree head of a log that was cosigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) size: u64,
    pub(super) root: Hash,
}

impl Head {
    /// Of a log of which nothing was cosigned yet.
    pub(super) const EMPTY: Self = Self { size: 0, root: EMPTY_ROOT };

    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        Self { size: checkpoint.size(), root: *checkpoint.root() }
    }
}

/// Why nothing is cosigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("malformed request: {0}")]
    Malformed(#[from] AddCheckpointError),
    #[error("this log is not witnessed here")]
    UnknownLog,
    #[error("{0}")]
    NotSigned(TrustError),
    #[error("the old size {old} is above the checkpoint's {size}")]
    OldAboveNew { old: u64, size: u64 },
    /// The request starts from another size than the held one, which the log needs to know.
    #[error("{held}")]
    Stale { held: u64 },
    /// The log signed two trees of one size.
    #[error("a checkpoint of {size} entries with another root was cosigned")]
    Fork { size: u64 },
    #[error("the consistency proof does not hold: {0}")]
    Inconsistent(ProofInvalid),
    /// What was to be cosigned could not be made durable.
    #[error("the witness can't keep its state")]
    NotKept,
}

impl Refusal {
    /// The HTTP status.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::OldAboveNew { .. } => 400,
            Self::NotSigned(_) => 403,
            Self::UnknownLog => 404,
            Self::Stale { .. } | Self::Fork { .. } => 409,
            Self::Inconsistent(_) => 422,
            Self::NotKept => 503,
        }
    }
}

/// Whether this is a well-formed request by one of the logs: nothing else may wait for a log's state. The place of the log among them.
pub(super) fn admit(logs: &[Policy], body: &[u8]) -> Result<(usize, AddCheckpoint), Refusal> {
    let request = AddCheckpoint::parse(body)?;
    let origin = request.signed.checkpoint().origin();
    let log = logs.iter().position(|log| log.origin == origin).ok_or(Refusal::UnknownLog)?;
    request.signed.verify(&logs[log]).map_err(Refusal::NotSigned)?;
    Ok((log, request))
}

/// Whether the checkpoint of an admitted request may take the place of the held one.
pub(super) fn decide(held: &Head, request: &AddCheckpoint) -> Result<Head, Refusal> {
    let new = Head::of(request.signed.checkpoint());
    if request.old > new.size {
        return Err(Refusal::OldAboveNew { old: request.old, size: new.size });
    }
    if request.old != held.size {
        return Err(Refusal::Stale { held: held.size });
    }
    if new.size == held.size && new.root != held.root {
        return Err(Refusal::Fork { size: new.size });
    }
    verify_consistency(held.size, &held.root, new.size, &new.root, &request.proof)
        .map_err(Refusal::Inconsistent)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use exchequer_tlog::{
        Checkpoint, NoteSigner, SignedCheckpoint, TILE_WIDTH, TileId, TileReader, VerifierKey,
        consistency_proof, leaf_hash, node_hash,
    };

    use super::*;

    const ORIGIN: &str = "log.example/a";

    fn signer(origin: &str, seed: u8) -> NoteSigner {
        NoteSigner::new(origin, SigningKey::from_bytes(&[seed; 32])).unwrap()
    }

    fn logs() -> Vec<Policy> {
        let policy = |origin: &str, seeds: &[u8]| Policy {
            origin: origin.to_owned(),
            log_keys: seeds
                .iter()
                .map(|seed| signer(origin, *seed).verifier().clone())
                .collect::<Vec<VerifierKey>>(),
            witnesses: Vec::new(),
            quorum: 0,
        };
        vec![policy("log.example/other", &[9]), policy(ORIGIN, &[1, 2])]
    }

    /// The leaves of a tree that is smaller than a tile; `fork` tells trees apart.
    struct Leaves(Vec<Hash>);

    fn leaves(size: u64, fork: u8) -> Leaves {
        Leaves((0..size).map(|index| leaf_hash(&[index.to_le_bytes()[0], fork])).collect())
    }

    impl TileReader for Leaves {
        type Tile = Vec<Hash>;
        type Error = std::convert::Infallible;

        fn tile(&self, id: TileId) -> Result<Vec<Hash>, Self::Error> {
            assert!(id.level() == 0 && self.0.len() < usize::from(TILE_WIDTH));
            Ok(self.0.clone())
        }
    }

    fn root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => EMPTY_ROOT,
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(&root(left), &root(right))
            }
        }
    }

    fn signed(origin: &str, seed: u8, size: u64, fork: u8) -> SignedCheckpoint {
        Checkpoint::new(origin, size, root(&leaves(size, fork).0)).unwrap().sign(&signer(origin, seed))
    }

    fn request(old: u64, size: u64, fork: u8) -> AddCheckpoint {
        let proof =
            if old > size { Vec::new() } else { consistency_proof(old, size, &leaves(size, fork)).unwrap() };
        AddCheckpoint { old, proof, signed: signed(ORIGIN, 1, size, fork) }
    }

    fn held(size: u64) -> Head {
        Head { size, root: root(&leaves(size, 0).0) }
    }

    /// What a witness that holds the tree of `size` answers: the status, 200 for a cosignature.
    fn check(size: u64, body: impl AsRef<[u8]>, expected: u16) {
        let answer = admit(&logs(), body.as_ref()).and_then(|(log, request)| {
            assert_eq!(logs()[log].origin, ORIGIN);
            decide(&held(size), &request)
        });
        let status = answer.as_ref().map_or_else(Refusal::status, |_| 200);
        assert_eq!(status, expected, "{answer:?}");
    }

    #[test]
    fn whatever_continues_the_held_tree_is_cosigned() {
        for (old, new) in
            [(0, 0), (0, 1), (0, 200), (1, 1), (1, 2), (7, 8), (8, 9), (8, 200), (199, 200), (200, 200)]
        {
            check(old, request(old, new, 0).to_string(), 200);
        }
        // Either key of the log, and signatures of strangers beside it.
        check(0, AddCheckpoint { signed: signed(ORIGIN, 2, 5, 0), ..request(0, 5, 0) }.to_string(), 200);
        let mut with_stranger = request(3, 5, 0);
        let stranger = signer("stranger", 7).sign(with_stranger.signed.note().text());
        with_stranger.signed.add(stranger).unwrap();
        check(3, with_stranger.to_string(), 200);
    }

    #[test]
    fn each_refusal_has_the_status_of_the_specification() {
        let with = |change: &dyn Fn(&mut AddCheckpoint)| {
            let mut request = request(3, 5, 0);
            change(&mut request);
            request.to_string()
        };
        check(3, with(&|_| {}), 200);
        // Who signed.
        check(3, with(&|request| request.signed = signed("log.example/b", 1, 5, 0)), 404);
        check(3, with(&|request| request.signed = signed(ORIGIN, 3, 5, 0)), 403);
        check(3, with(&|_| {}).replace("\n5\n", "\n6\n"), 403);
        // Where it starts.
        check(3, request(6, 5, 0).to_string(), 400);
        check(6, request(6, 5, 0).to_string(), 400);
        check(2, with(&|_| {}), 409);
        check(4, with(&|_| {}), 409);
        check(9, request(0, 5, 0).to_string(), 409);
        assert_eq!(decide(&held(4), &request(3, 5, 0)), Err(Refusal::Stale { held: 4 }));
        // The same size, another tree; and a larger one that is no continuation.
        check(5, request(5, 5, 1).to_string(), 409);
        assert_eq!(decide(&held(5), &request(5, 5, 1)), Err(Refusal::Fork { size: 5 }));
        check(3, request(3, 5, 1).to_string(), 422);
        check(0, with(&|request| request.old = 0), 422);
        check(5, with(&|request| (request.old, request.signed) = (5, signed(ORIGIN, 1, 5, 0))), 422);
        check(3, with(&|request| request.proof.truncate(1)), 422);
        check(3, with(&|request| request.proof.push(EMPTY_ROOT)), 422);
        check(3, with(&|request| request.proof.swap(0, 1)), 422);
    }

    #[test]
    fn a_malformed_request_is_refused_before_anything_else() {
        let whole = request(3, 5, 0).to_string();
        let line = format!("{EMPTY_ROOT}\n");
        for malformed in [
            String::new(),
            "old 3".into(),
            "old 3\n".into(),
            "old 3\n\n".into(),
            whole.replace("old 3", "old 03"),
            whole.replace("old 3", "old +3"),
            whole.replace("old 3", "Old 3"),
            whole.replace("old 3\n", "old 3\nAAAA\n"),
            whole.replace("old 3\n", &format!("old 3\n{}", line.repeat(64))),
            whole.replace("old 3\n", "old 3\r\n"),
            whole.trim_end().to_owned(),
            whole[..whole.rfind("—").unwrap()].to_owned(),
        ] {
            check(3, &malformed, 400);
        }
        check(3, b"old 3\n\xff\n\n", 400);
        // As many lines as are allowed are read, and do not prove anything.
        check(3, whole.replace("old 3\n", &format!("old 3\n{}", line.repeat(59))), 422);
    }
}
