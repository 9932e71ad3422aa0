//! Whose checkpoints are this log's: those of the keys that are given, and of the keys that the log itself holds, if one of the given is
//! among them.
//!
//! Left out: which tree they have to be of. Invariant: a key of the log counts only for the sizes at which the log lets it sign.

use std::path::Path;

use exchequer_auth::keys;
use exchequer_event::{accept::KeyState, v1::KeyRole};
use exchequer_tlog::{NoteSigner, Policy, SignedCheckpoint, VerifierKey};

use super::CouldNotCheck;
use crate::store::{LogKeys, Places, split_frame};

/// The keys of one log.
pub(super) struct Trust {
    given: Policy,
    held: Option<LogKeys>,
}

impl Trust {
    /// The keys that are given, or that of `ledger.key` in the data directory.
    pub(super) fn new(
        (data, given): (&Path, &[VerifierKey]),
        places: &Places,
        mirrored: Option<&[u8]>,
    ) -> Result<Self, CouldNotCheck> {
        let trust = |log_keys: Vec<VerifierKey>| {
            let origin = log_keys.first().map(|key| key.name().to_owned()).unwrap_or_default();
            Self { given: Policy { origin, log_keys, witnesses: Vec::new(), quorum: 0 }, held: None }
        };
        if !given.is_empty() {
            return Ok(trust(given.to_vec()));
        }
        let key =
            keys::load(data.join("ledger.key")).map_err(|error| CouldNotCheck::NoKey(error.to_string()))?;
        // The origin is not in the key's file. That of a checkpoint which the key signed is right; any other is a guess.
        let state = std::fs::read_to_string(&places.state).unwrap_or_default();
        let stated = state.lines().nth(1).and_then(|line| line.strip_prefix("origin ")).map(str::to_owned);
        let served = std::fs::read(&places.checkpoint).unwrap_or_default();
        let history = std::fs::read(places.history.join("00000000")).unwrap_or_default();
        let first = split_frame(&history).map(|(note, _)| note.to_vec()).unwrap_or_default();
        let notes = [served, first, mirrored.unwrap_or_default().to_vec()];
        let notes: Vec<SignedCheckpoint> =
            notes.iter().filter_map(|note| SignedCheckpoint::parse(note).ok()).collect();
        let of_origin =
            |origin: &str| Some(trust(vec![NoteSigner::new(origin, key.clone()).ok()?.verifier().clone()]));
        let signed = notes.iter().find_map(|note| {
            of_origin(note.checkpoint().origin()).filter(|trust| note.verify(&trust.given).is_ok())
        });
        let guessed = || stated.or_else(|| Some(notes.first()?.checkpoint().origin().to_owned()));
        signed
            .or_else(|| of_origin(&guessed()?))
            .ok_or_else(|| CouldNotCheck::NoKey("nothing here names the log's origin".to_owned()))
    }

    /// The log's origin.
    pub(super) fn origin(&self) -> &str {
        &self.given.origin
    }

    /// Takes up the keys that the log's entries hold; an error if none of the given is among them.
    pub(super) fn learn(&mut self, states: &[KeyState]) -> Result<(), CouldNotCheck> {
        let is_given = |state: &&KeyState| {
            state.role == KeyRole::Ledger
                && self.given.log_keys.iter().any(|given| *given.public_key() == state.key)
        };
        if states.iter().find(is_given).is_none() {
            let reason = "the log holds other ledger keys than the given one".to_owned();
            return Err(CouldNotCheck::NoKey(reason));
        }
        self.held = Some(LogKeys::new(&self.given.origin, states));
        Ok(())
    }

    /// A note as a checkpoint of this log; the error says what is wrong.
    pub(super) fn verified(&self, note: &[u8]) -> Result<SignedCheckpoint, String> {
        let signed = SignedCheckpoint::parse(note).map_err(|error| error.to_string())?;
        let held = self.held.as_ref().map(|held| held.policy(signed.checkpoint().size()));
        let is_held = held.is_some_and(|policy| signed.verify(&policy).is_ok());
        if !is_held {
            signed.verify(&self.given).map_err(|error| error.to_string())?;
        }
        Ok(signed)
    }
}
