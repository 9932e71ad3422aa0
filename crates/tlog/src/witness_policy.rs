//! Which witnesses have to have cosigned a checkpoint: a number of them, or a policy file (tlog-policy) with groups.
//!
//! Reading the file is left out. Invariant: every name is defined before it is used and is a member once at most, so a witness
//! contributes to the quorum in one way only.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Cosigned, Policy, SignedCheckpoint, TrustError, VerifiedCheckpoint};
use crate::decimal;
use crate::key::{KeyError, SignatureKind, VerifierKey};

/// The longest policy file, bytes.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;

/// What a checkpoint has to be signed by to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessPolicy {
    logs: Vec<VerifierKey>,
    witnesses: Vec<VerifierKey>,
    quorum: Rule,
}

/// Who has to have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// The witness at this place.
    Witness(usize),
    /// So many of these.
    Group(usize, Vec<Rule>),
}

/// A text or keys that make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is longer than [`MAX_POLICY_BYTES`].
    #[error("the policy is longer than {MAX_POLICY_BYTES} bytes")]
    TooLarge,
    /// A line is wrong.
    #[error("line {line}: {fault}")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// No line says what the quorum is.
    #[error("there is no quorum line")]
    NoQuorum,
    /// More witnesses would have to cosign than there are.
    #[error("a quorum of {needed} out of {got} witnesses")]
    TooFew {
        /// How many would have to.
        needed: usize,
        /// How many there are.
        got: usize,
    },
    /// Two witnesses have the same key or name.
    #[error("the witness {0} is named twice, by its name or its key")]
    Twice(String),
    /// A witness's key is of another kind.
    #[error("the key of {0} is not a witness's (type 04)")]
    NotAWitness(String),
}

/// What is wrong with a line of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The line is none of those that there are.
    #[error(
        "expected `log VKEY [URL]`, `witness NAME VKEY [URL]`, `group NAME all|any|K NAME…` or `quorum NAME`"
    )]
    Form,
    /// It has a control character.
    #[error("a control character")]
    ControlCharacter,
    /// The key can't be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is of the wrong kind.
    #[error("signature type {0:#04x} is not the one for this")]
    Kind(u8),
    /// The key is in the policy already.
    #[error("this key is there already")]
    DuplicateKey,
    /// The name can't be defined, or not again.
    #[error("the name `{0}` is taken")]
    Taken(String),
    /// The name was not defined above.
    #[error("`{0}` is not defined above")]
    Undefined(String),
    /// The name is a member already.
    #[error("`{0}` is a member of a group already")]
    MemberTwice(String),
    /// The threshold is not between 1 and the number of members.
    #[error("`{0}` is not `all`, `any` or a number from 1 to that of the members")]
    Threshold(String),
    /// There is a quorum line already.
    #[error("a second quorum line")]
    SecondQuorum,
}

impl WitnessPolicy {
    /// So many of these witnesses.
    pub fn of(witnesses: Vec<VerifierKey>, needed: usize) -> Result<Self, PolicyError> {
        if needed > witnesses.len() {
            return Err(PolicyError::TooFew { needed, got: witnesses.len() });
        }
        for (place, witness) in witnesses.iter().enumerate() {
            let is_same = |other: &VerifierKey| {
                other.name() == witness.name() || other.public_key() == witness.public_key()
            };
            if witnesses[..place].iter().any(is_same) {
                return Err(PolicyError::Twice(witness.name().to_owned()));
            }
            if witness.kind() != SignatureKind::Cosignature {
                return Err(PolicyError::NotAWitness(witness.name().to_owned()));
            }
        }
        let members = (0..witnesses.len()).map(Rule::Witness).collect();
        Ok(Self { logs: Vec::new(), witnesses, quorum: Rule::Group(needed, members) })
    }

    /// Parses a policy file.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLarge);
        }
        let mut reading = Reading::default();
        for (place, line) in text.split('\n').enumerate() {
            reading.line(line).map_err(|fault| PolicyError::Line { line: place + 1, fault })?;
        }
        let Reading { logs, witnesses, quorum, .. } = reading;
        Ok(Self { logs, witnesses, quorum: quorum.ok_or(PolicyError::NoQuorum)? })
    }

    /// The keys of the logs that are accepted; without any, the log is known from elsewhere.
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// The witnesses' keys.
    pub fn witnesses(&self) -> &[VerifierKey] {
        &self.witnesses
    }

    /// Checks that this log signed the checkpoint and that enough witnesses cosigned it.
    pub fn verify(
        &self,
        signed: &SignedCheckpoint,
        log: &VerifierKey,
    ) -> Result<VerifiedCheckpoint, TrustError> {
        let policy = Policy {
            origin: signed.checkpoint().origin().to_owned(),
            log_keys: vec![log.clone()],
            witnesses: self.witnesses.clone(),
            quorum: 0,
        };
        let verified = signed.verify(&policy)?;
        let got: BTreeSet<usize> = verified.by.iter().filter_map(|by| self.place(by)).collect();
        if self.quorum.holds(&got) {
            Ok(verified)
        } else {
            Err(TrustError::Quorum { needed: self.quorum.least(), got: got.len() })
        }
    }

    fn place(&self, by: &Cosigned) -> Option<usize> {
        self.witnesses.iter().position(|witness| *witness == by.key)
    }
}

impl Rule {
    fn holds(&self, cosigned: &BTreeSet<usize>) -> bool {
        match self {
            Self::Witness(place) => cosigned.contains(place),
            Self::Group(needed, members) => {
                members.iter().filter(|member| member.holds(cosigned)).count() >= *needed
            }
        }
    }

    /// The fewest witnesses by which it can hold.
    fn least(&self) -> usize {
        match self {
            Self::Witness(_) => 1,
            Self::Group(needed, members) => {
                let mut each: Vec<_> = members.iter().map(Self::least).collect();
                each.sort_unstable();
                each.iter().take(*needed).sum()
            }
        }
    }
}

/// A policy file, read so far.
#[derive(Default)]
struct Reading<'a> {
    logs: Vec<VerifierKey>,
    witnesses: Vec<VerifierKey>,
    defined: BTreeMap<&'a str, Rule>,
    members: BTreeSet<&'a str>,
    quorum: Option<Rule>,
}

impl<'a> Reading<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), LineFault> {
        if line.bytes().any(|byte| byte == 0x7f || (byte < b' ' && byte != b'\t')) {
            return Err(LineFault::ControlCharacter);
        }
        let words: Vec<_> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
        match words[..] {
            [] => Ok(()),
            [first, ..] if first.starts_with('#') => Ok(()),
            ["log", key] | ["log", key, _] => add_key(&mut self.logs, key, SignatureKind::Ed25519),
            ["witness", name, key] | ["witness", name, key, _] => {
                add_key(&mut self.witnesses, key, SignatureKind::Cosignature)?;
                self.define(name, Rule::Witness(self.witnesses.len() - 1))
            }
            ["group", name, threshold, ref members @ ..] if !members.is_empty() => {
                let needed = match threshold {
                    "any" => Some(1),
                    "all" => Some(members.len()),
                    number => decimal::parse(number).and_then(|number| usize::try_from(number).ok()),
                };
                let needed = needed.filter(|needed| (1..=members.len()).contains(needed));
                let needed = needed.ok_or_else(|| LineFault::Threshold(threshold.to_owned()))?;
                let members = members.iter().map(|member| self.take(member)).collect::<Result<_, _>>()?;
                self.define(name, Rule::Group(needed, members))
            }
            ["quorum", name] => {
                if self.quorum.is_some() {
                    return Err(LineFault::SecondQuorum);
                }
                let rule = match name {
                    "none" => Rule::Group(0, Vec::new()),
                    name => self.rule(name)?,
                };
                self.quorum = Some(rule);
                Ok(())
            }
            _ => Err(LineFault::Form),
        }
    }

    fn define(&mut self, name: &'a str, rule: Rule) -> Result<(), LineFault> {
        if name == "none" || self.defined.contains_key(name) {
            return Err(LineFault::Taken(name.to_owned()));
        }
        self.defined.insert(name, rule);
        Ok(())
    }

    fn rule(&self, name: &str) -> Result<Rule, LineFault> {
        self.defined.get(name).cloned().ok_or_else(|| LineFault::Undefined(name.to_owned()))
    }

    fn take(&mut self, name: &'a str) -> Result<Rule, LineFault> {
        let rule = self.rule(name)?;
        if self.members.insert(name) { Ok(rule) } else { Err(LineFault::MemberTwice(name.to_owned())) }
    }
}

fn add_key(keys: &mut Vec<VerifierKey>, text: &str, kind: SignatureKind) -> Result<(), LineFault> {
    let key: VerifierKey = text.parse()?;
    if key.kind() != kind {
        return Err(LineFault::Kind(key.kind().byte()));
    }
    if keys.iter().any(|held| held.public_key() == key.public_key()) {
        return Err(LineFault::DuplicateKey);
    }
    keys.push(key);
    Ok(())
}
