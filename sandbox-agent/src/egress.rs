//! The egress proxy: the one way out of a sandbox whose profile names hosts. One per execution, within the agent, ended with it.
//!
//! The engine hands over a listener on the loopback of the sandbox's own network namespace ([`open`]); programs find it by the environment ([`environment`]). It speaks HTTP/1.1 `CONNECT host:port` and requests for `http://…`, to targets that a
//! [`Rule`] names. The agent resolves names, checks every address ([`address`]), and connects to an address that it checked.
//!
//! - [`rule`]: what may be reached. [`address`]: addresses that a name must not lead to. `head`: what is asked.
//! - `connection`: one connection of the program. `account`: what was sent, received and refused, and the limit.
//!
//! Left out: what is said inside a tunnel: TLS is not opened, so a rule admits a host, not what that host forwards. Invariants: never one
//! byte more than the limit is sent to anybody outside; nothing is connected to before a rule admitted it and its address was
//! checked; when [`Proxy::finish`] has returned, listener and connections are closed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

mod account;
pub mod address;
mod connection;
mod head;
pub mod rule;

#[cfg(test)]
mod tests;

pub use account::{Egress, MAX_TARGETS, Target};
#[doc(hidden)]
pub use head::MAX_FIELDS;
pub use rule::Rule;

use self::account::Account;
use crate::sandbox::{Prepared, client::KillReason, profile::EGRESS_PORT};

/// Lookups of names at one time, of all executions: each takes a thread until the system's resolver answers.
const MAX_LOOKUPS: usize = 16;
/// How long a listener that fails is left alone: descriptors may be short for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Lookups of one execution at one time: what it looks up must not keep the others waiting.
const MAX_OWN_LOOKUPS: usize = 4;

static LOOKUPS: Semaphore = Semaphore::const_new(MAX_LOOKUPS);

/// What one execution's proxy takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at one time; more wait in the listener's backlog.
    pub at_once: usize,
    /// Connections in all; after them the listener is closed.
    pub in_all: u64,
    /// Largest head of a request, bytes.
    pub head_bytes: usize,
    /// How long a head may take.
    pub head_time: Duration,
    /// How long looking a name up and connecting may take, each.
    pub connect_time: Duration,
    /// How long a connection may stand still before it is closed; it is noticed before twice that.
    pub idle_time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            at_once: 64,
            in_all: 4096,
            head_bytes: 16 << 10,
            head_time: Duration::from_secs(10),
            connect_time: Duration::from_secs(10),
            // As long as a service may think before it answers.
            idle_time: Duration::from_secs(300),
        }
    }
}

/// What the head of a request asks for, what is passed on instead of it, and how long it is; `None` if its end has not come. In the first
/// `from` bytes, at most all, it had not. Public for the crate `fuzz` alone: a program in a sandbox writes these bytes, and only the proxy
/// has a use for what they mean.
#[doc(hidden)]
pub fn read_head(bytes: &[u8], from: usize) -> Result<Option<ReadHead>, &'static str> {
    let read = head::read(bytes, from).map_err(|head::Malformed(reason)| reason)?;
    Ok(read.map(|head| (head.asked, head.forwarded, head.length)))
}

/// Of [`read_head`].
#[doc(hidden)]
pub type ReadHead = (rule::Asked, Option<Vec<u8>>, usize);

/// Finds the addresses of a name.
pub trait Resolve: Send + Sync {
    /// All addresses, with this port.
    fn resolve(&self, name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver, as one execution may use it.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    own: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { own: Arc::new(Semaphore::new(MAX_OWN_LOOKUPS)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let own = Arc::clone(&self.own);
        Box::pin(async move {
            // Whoever gives up while waiting leaves both queues; its own first, so that it waits in the common one with few.
            let own = own.acquire_owned().await.map_err(io::Error::other)?;
            let one = LOOKUPS.acquire().await.map_err(io::Error::other)?;
            // A task of its own: whoever asked may give up, the thread goes on until the system's resolver does.
            let lookup = tokio::spawn(async move {
                let _until_answered = (own, one);
                Ok::<Vec<_>, io::Error>(tokio::net::lookup_host((name, port)).await?.collect())
            });
            lookup.await.map_err(io::Error::other)?
        })
    }
}

/// What an execution may send where.
pub struct Policy {
    /// What may be reached; nothing without any.
    pub rules: Vec<Rule>,
    /// Bytes that may be sent in all.
    pub limit: u64,
    /// What the proxy takes on.
    pub bounds: Bounds,
    /// How names are found.
    pub resolver: Arc<dyn Resolve>,
}

impl Policy {
    /// By the system's resolver, with the default bounds.
    pub fn new(rules: Vec<Rule>, limit: u64) -> Self {
        Self { rules, limit, bounds: Bounds::default(), resolver: Arc::new(SystemResolver::default()) }
    }
}

/// The environment by which programs find the proxy.
pub fn environment() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{EGRESS_PORT}");
    let mut environment = Vec::new();
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
        environment.push((name.to_owned(), proxy.clone()));
        environment.push((name.to_lowercase(), proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        environment.push((name.to_owned(), "localhost,127.0.0.1,::1".to_owned()));
    }
    environment
}

/// The proxy of an execution that is about to be released, if its profile has one. Where it can't be, nothing listens any more inside.
pub fn open(prepared: &mut Prepared, rules: &[Rule], limit: u64) -> Option<Proxy> {
    let listener = prepared.take_listener()?;
    let killer = prepared.killer();
    let policy = Policy::new(rules.to_vec(), limit);
    let started = Proxy::start(listener, policy, move || killer.kill(KillReason::EgressLimit));
    started.inspect_err(|error| tracing::error!(%error, "an egress proxy can't be started")).ok()
}

/// What all connections of a proxy have in common.
struct Shared {
    policy: Policy,
    account: Account,
}

/// A running proxy. Dropping it ends it, too, but does not wait for that.
pub struct Proxy {
    shared: Arc<Shared>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Serves a listener. `on_limit` is called once, when a byte was to be sent beyond the limit. Within a tokio runtime.
    pub fn start(
        listener: std::net::TcpListener,
        policy: Policy,
        on_limit: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let account = Account::new(policy.limit, on_limit);
        let shared = Arc::new(Shared { policy, account });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(&shared), stop.clone()));
        Ok(Self { shared, stop: stop.drop_guard(), task })
    }

    /// Ends it, with all its connections; what went through it.
    pub async fn finish(self) -> Egress {
        let Self { shared, stop, task } = self;
        drop(stop);
        if let Err(error) = task.await {
            tracing::error!(%error, "an egress proxy ended early");
        }
        shared.account.close()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = accept(listener, &shared, &mut connections) => {}
    }
    connections.shutdown().await;
}

/// Takes connections on until there have been as many as there may be, and waits for the last.
async fn accept(listener: TcpListener, shared: &Arc<Shared>, connections: &mut JoinSet<()>) {
    let bounds = shared.policy.bounds;
    let mut taken = 0;
    while taken < bounds.in_all {
        let accepted = tokio::select! {
            _ = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept(), if connections.len() < bounds.at_once => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                taken += 1;
                let shared = Arc::clone(shared);
                connections.spawn(async move { connection::serve(client, &shared).await });
            }
            Err(error) => {
                tracing::warn!(%error, "an egress proxy can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
