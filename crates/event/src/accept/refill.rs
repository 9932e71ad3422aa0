//! What stands in the stream for a message that the broker lost: the entries which that message became.
//!
//! Left out: putting them there, which is the ledger's. Invariant: a ledger key can state that a message was refused or became
//! nothing, which nobody can check once the message is gone; it can't state events that their agent did not sign at this point of
//! its chain.

use ed25519_dalek::VerifyingKey;
use prost::Message;

use super::{Acceptor, Incoming, KeyState, Kinds, Outcome};
use crate::{
    audit,
    control::{self, MAX_KEY_CHAIN, OpenControl},
    entry,
    name::{MAX_BATCH_EVENTS, Subject},
    seal::{Refusal, malformed, mismatch},
    v1::{self, KeyRole, RejectionReason, control_record::Kind as ControlKind, entry::Kind},
};

impl Acceptor {
    /// Whether the message stands for the lost one of its own sequence, by the word of a ledger key. To who has folded the lost one,
    /// that is the same.
    pub fn stands_for_lost(&self, message: &Incoming<'_>) -> bool {
        let stated = self.stated(message);
        matches!(stated, Some(ControlKind::StreamRefilled(refilled)) if refilled.seq == message.stream_seq)
    }

    /// The loss that the message records, by the word of a ledger key.
    pub fn stated_loss(&self, message: &Incoming<'_>) -> Option<v1::StreamLost> {
        match self.stated(message) {
            Some(ControlKind::StreamLost(lost)) if message.stream_seq > lost.to => Some(lost),
            _ => None,
        }
    }

    fn stated(&self, message: &Incoming<'_>) -> Option<ControlKind> {
        let Some(Subject::Control(_)) = Subject::parse(message.subject) else { return None };
        let (_, open) = control::open_control_message(&message.payload).ok()?;
        self.check_control(&open).ok().map(|()| open.kind)
    }

    /// Whether an enrolled ledger key signed it. What stands for a lost message may be signed by one that was enrolled only behind its
    /// place: the records with it lead there from a key that is enrolled here.
    pub(super) fn is_ledgers(&self, open: &OpenControl) -> bool {
        let keys = self.valid_keys(KeyRole::Ledger, "");
        if keys.contains(&open.signer) {
            return true;
        }
        let ControlKind::StreamRefilled(refilled) = &open.kind else { return false };
        // What is revoked here leads nowhere.
        let is_revoked = |signer: &[u8]| {
            let is_it =
                |key: &KeyState| key.role == KeyRole::Ledger && key.revoked && key.key.as_bytes() == signer;
            self.keys().iter().any(is_it)
        };
        if refilled.key_chain.len() > MAX_KEY_CHAIN || is_revoked(open.signer.as_bytes()) {
            return false;
        }
        let chain: Vec<_> =
            refilled.key_chain.iter().filter(|signed| !is_revoked(&signed.public_key)).cloned().collect();
        let leads = |key: &VerifyingKey| {
            control::followed_keys(key, &chain).is_ok_and(|led| led.contains(&open.signer))
        };
        keys.iter().any(leads)
    }

    /// The entries that a refilled message yields, if they are such as one lost message can have become here.
    pub(super) fn decide_refilled(
        &self,
        stream_seq: u64,
        refilled: &v1::StreamRefilled,
    ) -> Result<Kinds, Refusal> {
        if refilled.seq != stream_seq {
            return Err(mismatch(format!("it stands for message {} and is {stream_seq}", refilled.seq)));
        }
        if refilled.entries.len() > MAX_BATCH_EVENTS + 1 {
            return Err(malformed(format!("{} entries of one message", refilled.entries.len())));
        }
        let mut entries = Vec::with_capacity(refilled.entries.len());
        for bytes in &refilled.entries {
            let entry = entry::decode(bytes)?;
            if entry.stream_seq != stream_seq {
                return Err(mismatch(format!("an entry of message {}", entry.stream_seq)));
            }
            // The tree is over these bytes, and whoever integrates them encodes them again.
            if entry.encode_to_vec() != *bytes {
                return Err(malformed("an entry is not encoded as the log encodes it"));
            }
            entries.push(entry);
        }
        let kinds: Vec<_> = entries.iter().filter_map(|entry| entry.kind.as_ref()).collect();
        let outcome = match kinds.as_slice() {
            [] => Outcome::Refilled,
            [Kind::Rejection(rejection)] if rejection.reason() != RejectionReason::Unspecified => {
                let agent_id = match Subject::parse(&rejection.subject) {
                    Some(Subject::Events(agent_id)) => Some(agent_id.to_owned()),
                    _ => None,
                };
                Outcome::Rejected { agent_id, reason: rejection.reason() }
            }
            [Kind::Equivocation(equivocation)] => {
                audit::judge_equivocation(self, equivocation)?;
                Outcome::Equivocation { agent_id: equivocation.agent_id.clone() }
            }
            [Kind::BatchSealed(_), events @ ..] => {
                let agent_id = audit::judge_batch_message(self, &entries)?;
                Outcome::Batch { agent_id, new_events: events.len() }
            }
            _ => return Err(malformed("the entries are not of one message that can't be put back itself")),
        };
        let kinds = entries.into_iter().filter_map(|entry| entry.kind).collect();
        Ok((kinds, outcome, Vec::new()))
    }
}
