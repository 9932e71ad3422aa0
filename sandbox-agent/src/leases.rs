//! Leases on budgets: obtained, extended, looked after and given back, so that most executions are admitted without asking metering.
//!
//! One lease a scope at a time. An execution that its slice does not admit has the lease extended first, or reserves a hold of its own,
//! so metering itself says every no. While metering is away, executions go on within what is leased and are refused beyond it.
//!
//! Left out: the arithmetic ([`slice`](crate::slice)) and the wire ([`holds`](crate::holds)). Invariant: slices live in memory only: a new
//! life of the agent never uses an old one, and what a dead agent held is held until it runs out. A lease is given back only when
//! metering has charged everything that was drawn from it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use exchequer_event::{metered::Metered, v1};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinHandle;

use crate::{
    holds::{ExtendError, HoldError, Holds},
    metrics,
    slice::Slice,
};

/// Scopes that can have a slice at one time; executions in further ones reserve holds of their own.
const MAX_SCOPES: usize = 1024;
/// How long a scope does without a lease, or without an extension, after metering could not be asked.
const REST_AWAY_MS: u64 = 1_000;
/// The same after the budget refused: each refusal is recorded.
const REST_DENIED_MS: u64 = 10_000;
/// How often a lease that is being given back is looked at when the agent stops.
const CLOSE_INTERVAL: Duration = Duration::from_millis(100);

/// How leases are taken: section `[agent.lease]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseOptions {
    /// What a slice holds when it is full.
    pub amounts: Metered,
    /// How long a lease lives without being extended.
    pub ttl: Duration,
    /// A slice is filled up, in the background, when less than this share of it is left, percent.
    pub renew_below: u64,
    /// How often metering is asked whether leases still stand.
    pub check_interval: Duration,
}

/// The agent's leases.
#[derive(Debug)]
pub struct Leases {
    holds: Holds,
    options: LeaseOptions,
    ttl_ms: u64,
    margin_ms: u64,
    scopes: Mutex<BTreeMap<String, Arc<Place>>>,
}

/// A scope that has, or may get, a slice.
#[derive(Debug)]
struct Place {
    scope: String,
    /// Held during a call that obtains or extends this scope's lease.
    calls: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last may admit; those before it are closed.
    slices: Vec<Slice>,
    /// Metering is not asked for this scope's lease before then.
    rests_until_ms: u64,
}

/// What is reserved of a slice for one execution. If it is neither finished nor given back, it stays reserved for the lease's life.
#[derive(Debug)]
pub struct Share {
    place: Arc<Place>,
    hold_id: String,
    need: Metered,
}

impl Share {
    /// The lease.
    pub fn hold_id(&self) -> &str {
        &self.hold_id
    }

    /// What is reserved.
    pub fn reserved(&self) -> Vec<v1::MeterAmount> {
        self.need.amounts()
    }

    /// The execution's outcome is recorded: it is charged `used`, and the rest is left again. `None` keeps all of it reserved.
    pub fn finish(self, used: Option<Metered>) {
        let Some(used) = used else { return };
        let mut state = self.place.state();
        if let Some(slice) = state.slices.iter_mut().find(|slice| slice.hold_id() == self.hold_id) {
            slice.finish(&self.need, &used);
        }
    }

    /// The execution never ran, and nothing that is recorded says that it did.
    pub fn give_back(self) {
        self.finish(Some(Metered::default()));
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves, if the slice admits it.
    fn reserve(self: &Arc<Self>, need: &Metered, until_ms: u64) -> Option<Share> {
        let mut state = self.state();
        let slice = state.slices.last_mut()?;
        slice.admit(need, until_ms).ok()?;
        Some(Share { place: Arc::clone(self), hold_id: slice.hold_id().to_owned(), need: *need })
    }
}

impl State {
    /// The slice that may be extended.
    fn current(&mut self, now_ms: u64) -> Option<&mut Slice> {
        self.slices.last_mut().filter(|slice| !slice.is_closed() && slice.ends_ms() > now_ms)
    }

    fn find(&mut self, hold_id: &str) -> Option<&mut Slice> {
        self.slices.iter_mut().find(|slice| slice.hold_id() == hold_id)
    }

    /// Ends a lease that may not be extended any more. The scope does without one until it would have run out: whoever revoked it wanted
    /// its amounts back.
    fn close(&mut self, hold_id: &str) {
        let Some(slice) = self.find(hold_id) else { return };
        slice.close();
        let ends_ms = slice.ends_ms();
        self.rests_until_ms = self.rests_until_ms.max(ends_ms);
    }
}

impl Leases {
    /// Leases by these options; `margin` is the time in which an outcome has to reach metering.
    pub fn new(holds: Holds, options: LeaseOptions, margin: Duration) -> Arc<Self> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (ttl_ms, margin_ms) = (millis(options.ttl), millis(margin));
        Arc::new(Self { holds, options, ttl_ms, margin_ms, scopes: Mutex::default() })
    }

    /// Reserves what an execution needs from its scope's slice; `None`, if it has to reserve a hold of its own.
    pub async fn admit(self: &Arc<Self>, scope: &str, limits: &v1::Limits) -> Option<Share> {
        let need = Metered::at_most(limits);
        let life_ms = limits.wall_ms.saturating_add(self.margin_ms);
        if life_ms >= self.ttl_ms {
            return None;
        }
        let place = self.place(scope)?;
        let reserve = || place.reserve(&need, now_ms().saturating_add(life_ms));
        if let Some(share) = reserve() {
            self.renew_if_low(&place, life_ms);
            return Some(share);
        }
        let _call = place.calls.lock().await;
        if let Some(share) = reserve() {
            return Some(share);
        }
        self.call(&place, &need, life_ms).await;
        reserve()
    }

    fn place(&self, scope: &str) -> Option<Arc<Place>> {
        let mut scopes = self.scopes();
        if let Some(place) = scopes.get(scope) {
            return Some(Arc::clone(place));
        }
        if scopes.len() >= MAX_SCOPES {
            return None;
        }
        let place = Place { scope: scope.to_owned(), calls: Arc::default(), state: Mutex::default() };
        let place = Arc::new(place);
        scopes.insert(scope.to_owned(), Arc::clone(&place));
        Some(place)
    }

    fn scopes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Place>>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> Vec<Arc<Place>> {
        self.scopes().values().map(Arc::clone).collect()
    }

    /// Fills a slice up in the background before it runs short, in amounts or in time.
    fn renew_if_low(self: &Arc<Self>, place: &Arc<Place>, life_ms: u64) {
        let Ok(call) = Arc::clone(&place.calls).try_lock_owned() else { return };
        let now_ms = now_ms();
        let usable_ms = self.ttl_ms.saturating_sub(life_ms).saturating_mul(self.options.renew_below) / 100;
        let soon_ms = now_ms.saturating_add(life_ms).saturating_add(usable_ms);
        let is_low = {
            let mut state = place.state();
            let low = state.rests_until_ms <= now_ms;
            low && state.current(now_ms).is_some_and(|slice| {
                slice.ends_ms() < soon_ms || slice.is_low(&self.options.amounts, self.options.renew_below)
            })
        };
        if is_low {
            let (leases, place) = (Arc::clone(self), Arc::clone(place));
            tokio::spawn(async move {
                leases.call(&place, &Metered::default(), life_ms).await;
                drop(call);
            });
        }
    }

    /// Extends the scope's lease so that it covers `need` for `life_ms`, or obtains one. The caller holds `calls`.
    async fn call(&self, place: &Place, need: &Metered, life_ms: u64) {
        let now_ms = now_ms();
        let full = self.options.amounts.zip(need, u64::max);
        let current = {
            let mut state = place.state();
            if state.rests_until_ms > now_ms {
                return;
            }
            let is_short = |slice: &Slice| slice.ends_ms() < now_ms.saturating_add(life_ms);
            state
                .current(now_ms)
                .map(|slice| (slice.hold_id().to_owned(), slice.missing(&full), is_short(slice)))
        };
        let Some((hold_id, missing, is_short)) = current else {
            return self.obtain(place, &full, need).await;
        };
        let is_denied = self.extend(place, &hold_id, &missing).await;
        // The budget has no more, but what is left of the slice can live on.
        if is_denied && is_short {
            self.extend(place, &hold_id, &Metered::default()).await;
        }
    }

    async fn obtain(&self, place: &Place, full: &Metered, need: &Metered) {
        let request = v1::ReserveRequest {
            scope: place.scope.clone(),
            amounts: full.amounts(),
            at_least: need.amounts(),
            ttl_ms: self.ttl_ms,
            idempotency_key: uuid::Uuid::now_v7().to_string(),
            lease: true,
            ..v1::ReserveRequest::default()
        };
        let sent_ms = now_ms();
        let outcome = self.holds.reserve(request).await;
        let mut state = place.state();
        match outcome {
            Ok(hold) => {
                metrics::count_lease_call("granted");
                let slice = Slice::new(hold.hold_id, Metered::among(&hold.amounts), sent_ms, self.ttl_ms);
                tracing::info!(
                    hold_id = slice.hold_id(),
                    scope = place.scope,
                    "a slice of the budget is leased"
                );
                state.slices.push(slice);
            }
            Err(HoldError::Denied(_) | HoldError::Refused(_)) => {
                metrics::count_lease_call("denied");
                state.rests_until_ms = now_ms().saturating_add(REST_DENIED_MS);
            }
            Err(HoldError::Unavailable(_)) => {
                metrics::count_lease_call("unavailable");
                state.rests_until_ms = now_ms().saturating_add(REST_AWAY_MS);
            }
        }
    }

    /// Whether the budget refused. An answer that never came changes nothing here: what metering may have added stays unused.
    async fn extend(&self, place: &Place, hold_id: &str, added: &Metered) -> bool {
        let request = v1::ExtendRequest {
            hold_id: hold_id.to_owned(),
            amounts: added.amounts(),
            ttl_ms: self.ttl_ms,
            idempotency_key: uuid::Uuid::now_v7().to_string(),
        };
        let sent_ms = now_ms();
        let outcome = self.holds.extend(request).await;
        let mut state = place.state();
        match outcome {
            Ok(extended) => {
                metrics::count_lease_call("extended");
                if let Some(slice) = state.find(hold_id) {
                    slice.extend(&Metered::among(&extended.added), sent_ms, self.ttl_ms);
                }
                false
            }
            Err(ExtendError::Denied) => {
                metrics::count_lease_call("denied");
                state.rests_until_ms = now_ms().saturating_add(REST_DENIED_MS);
                true
            }
            Err(ExtendError::Ended(status)) => {
                metrics::count_lease_call("ended");
                tracing::warn!(%status, hold_id, scope = place.scope, "a lease has ended: executions reserve holds of their own");
                state.close(hold_id);
                false
            }
            Err(ExtendError::Unavailable) => {
                metrics::count_lease_call("unavailable");
                state.rests_until_ms = now_ms().saturating_add(REST_AWAY_MS);
                false
            }
        }
    }

    /// Looks after the leases until it is aborted.
    pub fn keep(self: &Arc<Self>) -> JoinHandle<()> {
        let leases = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(leases.options.check_interval).await;
                leases.look().await;
            }
        })
    }

    /// Learns of revocations, gives back what is closed and charged, and forgets what has run out.
    async fn look(&self) {
        for place in self.places() {
            let slices: Vec<_> = {
                let mut state = place.state();
                let now_ms = now_ms();
                state.slices.retain(|slice| slice.ends_ms() > now_ms);
                state.slices.iter().map(|slice| slice.hold_id().to_owned()).collect()
            };
            for hold_id in slices {
                self.look_at(&place, &hold_id).await;
            }
        }
        let now_ms = now_ms();
        self.scopes().retain(|_, place| {
            let state = place.state();
            let is_kept = !state.slices.is_empty() || state.rests_until_ms > now_ms;
            drop(state);
            // Beside the map, only who holds the map's lock can make a place known.
            is_kept || Arc::strong_count(place) > 1
        });
    }

    async fn look_at(&self, place: &Place, hold_id: &str) {
        let Some(hold) = self.holds.hold(hold_id).await else { return };
        let is_over = hold.state() != v1::HoldState::Open;
        let is_settled = {
            let mut state = place.state();
            if (hold.revoked || is_over) && state.find(hold_id).is_some_and(|slice| !slice.is_closed()) {
                tracing::warn!(hold_id, scope = place.scope, "a lease was revoked or has ended");
                state.close(hold_id);
            }
            state.find(hold_id).is_some_and(|slice| slice.is_settled(&Metered::among(&hold.used)))
        };
        if is_settled && (is_over || self.holds.close(hold_id).await) {
            metrics::count_lease_call("returned");
            place.state().slices.retain(|slice| slice.hold_id() != hold_id);
        }
    }

    /// Admits nothing more and gives back what can be given back within `patience`; the rest runs out.
    pub async fn close(&self, patience: Duration) {
        for place in self.places() {
            let mut state = place.state();
            let open: Vec<_> = state.slices.iter().map(|slice| slice.hold_id().to_owned()).collect();
            for hold_id in open {
                state.close(&hold_id);
            }
        }
        let given_back = async {
            loop {
                self.look().await;
                if self.list().is_empty() {
                    return;
                }
                tokio::time::sleep(CLOSE_INTERVAL).await;
            }
        };
        if tokio::time::timeout(patience, given_back).await.is_err() {
            tracing::info!("leases are not given back yet; they run out");
        }
    }

    /// The slices, in order of scope.
    pub fn list(&self) -> Vec<v1::Slice> {
        let now_ms = now_ms();
        let mut listed = Vec::new();
        for place in self.places() {
            let state = place.state();
            let live = state.slices.iter().filter(|slice| slice.ends_ms() > now_ms);
            listed.extend(live.map(|slice| v1::Slice {
                hold_id: slice.hold_id().to_owned(),
                scope: place.scope.clone(),
                leased: slice.leased().amounts(),
                reserved: slice.reserved().amounts(),
                drawn: slice.drawn().amounts(),
                left: slice.left().amounts(),
                running: slice.running(),
                expires_in_ms: slice.ends_ms().saturating_sub(now_ms),
                closed: slice.is_closed(),
            }));
        }
        listed
    }
}

/// Milliseconds since the host started, those in which it was suspended included: metering's clock goes on then, too.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000)
}
