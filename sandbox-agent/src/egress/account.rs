//! What one execution sent, received and was refused, target by target, and how much it may still send.
//!
//! Left out: what is charged for it. Invariants: nothing is written to the outside but within [`Account::send`], so that the limit holds
//! exactly for all connections together; targets are bounded, and what was not kept apart is in the sum.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::rule::Asked;
use crate::sandbox::{ExitCause, Outcome};

/// Targets that are told apart; everything else is summed in one more without a host.
pub const MAX_TARGETS: usize = 63;
/// Among them, those that were only refused: a program that tries many must not hide where it went.
const MAX_REFUSED_TARGETS: usize = 31;

/// One target, and what went there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Name or address as asked for; empty for all that is not told apart, requests that name no target included.
    pub host: String,
    /// Port; 0 where the host is empty.
    pub port: u16,
    /// Connections that were made.
    pub connections: u64,
    /// Bytes sent out.
    pub sent: u64,
    /// Bytes that came in.
    pub received: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// What went through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Bytes sent out.
    pub sent: u64,
    /// Bytes that came in.
    pub received: u64,
    /// Whether more was to be sent than may be.
    pub limit_reached: bool,
    /// By target, in order of host and port.
    pub targets: Vec<Target>,
}

impl Egress {
    /// Completes an outcome, which the engine knows without the network.
    pub fn add_to(&self, outcome: &mut Outcome) {
        outcome.usage.egress_bytes = self.sent;
        outcome.usage.ingress_bytes = self.received;
        // It may have ended by itself before the kill reached it, its last bytes unsent all the same.
        if self.limit_reached && matches!(outcome.cause, ExitCause::Exited { .. }) {
            outcome.cause = ExitCause::EgressLimit;
        }
    }
}

type OnLimit = Box<dyn FnOnce() + Send>;

struct State {
    left: u64,
    sent: u64,
    received: u64,
    /// Taken when the limit is reached.
    on_limit: Option<OnLimit>,
    limit_reached: bool,
    targets: BTreeMap<Asked, Target>,
    others: Target,
}

/// The account of one execution.
pub(super) struct Account(Mutex<State>);

/// What became of some bytes.
#[derive(Debug)]
pub(super) enum Sent {
    /// So many were sent.
    Some(usize),
    /// No byte may be sent any more.
    LimitReached,
}

impl Account {
    pub(super) fn new(limit: u64, on_limit: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(State {
            left: limit,
            sent: 0,
            received: 0,
            on_limit: Some(Box::new(on_limit)),
            limit_reached: false,
            targets: BTreeMap::new(),
            others: Target::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to a target was made.
    pub(super) fn connected(&self, to: &Asked) {
        self.state().target(to, false).connections += 1;
    }

    /// A request was refused; what it named, if it named something.
    pub(super) fn refused(&self, what: Option<&Asked>) {
        let mut state = self.state();
        match what {
            Some(asked) => state.target(asked, true).refused += 1,
            None => state.others.refused += 1,
        }
    }

    /// Bytes came in.
    pub(super) fn received(&self, from: &Asked, bytes: usize) {
        let mut state = self.state();
        state.received += bytes as u64;
        state.target(from, false).received += bytes as u64;
    }

    /// Sends as many of these bytes as may be sent, by `write`, which must not wait: no other connection sends meanwhile.
    pub(super) fn send(
        &self,
        to: &Asked,
        bytes: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Sent> {
        let mut state = self.state();
        let may = bytes.len().min(usize::try_from(state.left).unwrap_or(usize::MAX));
        if may == 0 && !bytes.is_empty() {
            state.limit_reached = true;
            if let Some(on_limit) = state.on_limit.take() {
                on_limit();
            }
            return Ok(Sent::LimitReached);
        }
        let written = write(&bytes[..may])?;
        state.left -= written as u64;
        state.sent += written as u64;
        state.target(to, false).sent += written as u64;
        Ok(Sent::Some(written))
    }

    /// The account, which is at its end.
    pub(super) fn close(&self) -> Egress {
        let mut state = self.state();
        let targets = std::mem::take(&mut state.targets);
        let others = std::mem::take(&mut state.others);
        let others = (others != Target::default()).then_some(others);
        Egress {
            sent: state.sent,
            received: state.received,
            limit_reached: state.limit_reached,
            targets: targets.into_values().chain(others).collect(),
        }
    }
}

impl State {
    fn target(&mut self, asked: &Asked, is_refusal: bool) -> &mut Target {
        let only_refused = || self.targets.values().filter(|target| target.connections == 0).count();
        let is_full =
            self.targets.len() >= MAX_TARGETS || (is_refusal && only_refused() >= MAX_REFUSED_TARGETS);
        if is_full && !self.targets.contains_key(asked) {
            return &mut self.others;
        }
        self.targets.entry(asked.clone()).or_insert_with(|| Target {
            host: asked.host.to_string(),
            port: asked.port,
            ..Target::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    fn asked(host: &str) -> Asked {
        Asked::parse(&format!("{host}:443"), None).unwrap()
    }

    #[test]
    fn what_the_kernel_did_not_take_may_still_be_sent_and_the_limit_is_told_once() {
        let told = Arc::new(AtomicU64::new(0));
        let tell = Arc::clone(&told);
        let account = Account::new(10, move || {
            tell.fetch_add(1, Ordering::Relaxed);
        });
        let to = asked("a.org");
        let sent = |bytes: &[u8], takes: usize| {
            account.send(&to, bytes, |bytes| Ok(bytes.len().min(takes))).unwrap()
        };
        assert!(matches!(sent(b"123456", 4), Sent::Some(4)));
        assert!(account.send(&to, b"1", |_| Err(io::ErrorKind::WouldBlock.into())).is_err());
        assert!(matches!(sent(b"12345678", 9), Sent::Some(6)));
        assert!(matches!(sent(b"", 9), Sent::Some(0)));
        assert_eq!(told.load(Ordering::Relaxed), 0, "exactly the limit is within it");
        for _ in 0..2 {
            assert!(matches!(sent(b"1", 9), Sent::LimitReached));
        }
        assert_eq!(told.load(Ordering::Relaxed), 1);
        let closed = account.close();
        assert_eq!((closed.sent, closed.limit_reached), (10, true));
    }

    #[test]
    fn targets_are_bounded_and_refusals_do_not_hide_connections() {
        let account = Account::new(u64::MAX, || {});
        for n in 0..100 {
            account.refused(Some(&asked(&format!("refused{n}.org"))));
        }
        for n in 0..100 {
            account.connected(&asked(&format!("open{n}.org")));
            account.received(&asked(&format!("open{n}.org")), 2);
        }
        account.refused(None);
        let egress = account.close();
        assert_eq!(egress.targets.len(), MAX_TARGETS + 1);
        let made = egress.targets.iter().filter(|target| !target.host.is_empty() && target.connections > 0);
        assert_eq!(made.count(), MAX_TARGETS - MAX_REFUSED_TARGETS);
        let sum = |of: fn(&Target) -> u64| egress.targets.iter().map(of).sum::<u64>();
        assert_eq!((sum(|t| t.connections), sum(|t| t.refused), sum(|t| t.received)), (100, 101, 200));
        let others = egress.targets.last().unwrap();
        assert_eq!((others.host.as_str(), others.port, others.refused), ("", 0, 70));
    }
}
