//! Where a call belongs: to the instance that owns its tenant's or its hold's partition.
//!
//! An instance that is asked for another's partition hands the call on by gRPC, with the caller's own token; the owner checks it like
//! any other. A call is handed on once: where owners are just changing, the caller is told to try again. Left out: what a call does.
//! Invariant: [`Route::Here`] is said only while the partition's lease is held and its writer serves.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use exchequer_budget::{HoldId, TenantId};
use exchequer_event::v1::metering_service_client::MeteringServiceClient;
use exchequer_stream::Lease;
use tokio::sync::watch;
use tonic::{
    Code, Request, Status,
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::{
    api::unavailable,
    lease::LeaseState,
    metrics::Metrics,
    partition,
    service::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES},
};

/// The metadata of a call that was handed on.
pub const FORWARDED: &str = "x-exchequer-forwarded";
/// How long a connection to a peer may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Connections to peers kept at most: owners change addresses rarely.
const MAX_CHANNELS: usize = 256;

/// Where a call belongs.
#[derive(Clone, Debug)]
pub enum Route {
    /// To this instance.
    Here,
    /// To another.
    There(Peer),
    /// To nobody at the moment; why.
    Nobody(String),
}

/// Another instance.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: String,
    channel: Channel,
    patience: Duration,
}

impl Peer {
    /// A client of it.
    pub fn client(&self) -> MeteringServiceClient<Channel> {
        MeteringServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_RESPONSE_BYTES)
            .max_encoding_message_size(MAX_REQUEST_BYTES)
    }

    /// The request as it is handed on: with the caller's token, and marked.
    pub fn request<M>(&self, message: M, metadata: &MetadataMap) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.patience);
        let handed_on = request.metadata_mut();
        if let Some(token) = metadata.get("authorization") {
            handed_on.insert("authorization", token.clone());
        }
        handed_on.insert(FORWARDED, MetadataValue::from_static("1"));
        let mut trace = Vec::new();
        exchequer_telemetry::inject(&mut trace);
        for (name, value) in trace {
            if let (Ok(name), Ok(value)) = (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
                handed_on.insert(name, value);
            }
        }
        request
    }

    /// What the caller is told where the peer failed: its own word, or that it could not be reached.
    pub fn failed(&self, status: Status) -> Status {
        match status.code() {
            // A connection that broke says one of these; what became of the call is not known.
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => self.unreachable(),
            Code::Unavailable if status.details().is_empty() => self.unreachable(),
            _ => status,
        }
    }

    fn unreachable(&self) -> Status {
        let address = &self.address;
        unavailable(&format!(
            "the partition's owner at {address} gave no answer; ask again with the same idempotency key"
        ))
    }
}

/// Whose a partition is, as far as known.
#[derive(Clone, Debug)]
enum Owner {
    Us(Lease),
    Another(String),
    Nobody(String),
}

/// Knows the partitions' owners.
#[derive(Clone, Debug)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    owners: Mutex<Vec<Owner>>,
    /// Whether this instance's writer serves each partition.
    serving: watch::Sender<Vec<Result<u64, String>>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// Our own address: who holds a lease there and is not us was here before.
    advertise: Option<String>,
    patience: Duration,
    metrics: Arc<Metrics>,
}

impl Router {
    pub(crate) fn new(
        partitions: u16,
        advertise: Option<String>,
        patience: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let starting = || "starting".to_owned();
        Self(Arc::new(Inner {
            owners: Mutex::new((0..partitions).map(|_| Owner::Nobody(starting())).collect()),
            serving: watch::Sender::new((0..partitions).map(|_| Err(starting())).collect()),
            channels: Mutex::default(),
            advertise,
            patience,
            metrics,
        }))
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        u16::try_from(self.0.serving.borrow().len()).unwrap_or(u16::MAX)
    }

    /// A tenant's partition.
    pub fn partition_of_tenant(&self, tenant: &TenantId) -> u16 {
        partition::of_tenant(tenant, self.partitions())
    }

    /// A hold's partition, if its id can be one.
    pub fn partition_of_hold(&self, hold_id: &HoldId) -> Option<u16> {
        partition::of_hold(hold_id, self.partitions())
    }

    /// An id for a new hold of a tenant.
    pub fn draw_hold(&self, tenant: &TenantId) -> HoldId {
        partition::hold_id(self.partition_of_tenant(tenant), &Uuid::now_v7().to_string())
    }

    /// Where calls for a partition belong.
    pub fn route(&self, partition: u16) -> Route {
        let owner = self.owners().get(usize::from(partition)).cloned();
        match owner {
            // Its clock is looked at as well, in case the process was stopped for a while.
            Some(Owner::Us(lease)) if lease.remaining().is_zero() => {
                Route::Nobody("the lease has run out".to_owned())
            }
            Some(Owner::Us(_)) => match self.serving(partition) {
                Ok(_) => Route::Here,
                Err(reason) => Route::Nobody(reason),
            },
            Some(Owner::Another(holder)) => self.peer(&holder),
            Some(Owner::Nobody(reason)) => Route::Nobody(reason),
            None => Route::Nobody(format!("there is no partition {partition}")),
        }
    }

    /// What a handler asks: the peer that its call is to be handed on to, or nothing if it is to be answered here. The error is for the
    /// caller.
    pub fn elsewhere(&self, metadata: &MetadataMap, partition: u16) -> Result<Option<Peer>, Status> {
        match self.route(partition) {
            Route::Here => Ok(None),
            Route::There(peer) if metadata.contains_key(FORWARDED) => {
                Err(unavailable(&format!("partition {partition} has just gone to {}", peer.address)))
            }
            Route::There(peer) => {
                self.0.metrics.forwarded.add(1, &[]);
                Ok(Some(peer))
            }
            Route::Nobody(reason) => Err(unavailable(&reason)),
        }
    }

    /// The instance that owns a partition: its name and address, or why none does.
    pub fn owner(&self, partition: u16) -> Result<String, String> {
        match self.owners().get(usize::from(partition)) {
            Some(Owner::Us(lease)) => Ok(lease.holder.clone()),
            Some(Owner::Another(holder)) => Ok(holder.clone()),
            Some(Owner::Nobody(reason)) => Err(reason.clone()),
            None => Err(format!("there is no partition {partition}")),
        }
    }

    /// The partitions that this instance serves.
    pub fn owned(&self) -> Vec<u16> {
        (0..self.partitions()).filter(|partition| matches!(self.route(*partition), Route::Here)).collect()
    }

    /// The epoch under which this instance's writer serves a partition, or why it does not.
    pub fn serving(&self, partition: u16) -> Result<u64, String> {
        let serving = self.0.serving.borrow();
        let unknown = || Err(format!("there is no partition {partition}"));
        serving.get(usize::from(partition)).cloned().unwrap_or_else(unknown)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<Result<u64, String>>> {
        self.0.serving.subscribe()
    }

    pub(crate) fn set_serving(&self, partition: u16, status: Result<u64, String>) {
        self.0.serving.send_modify(|serving| {
            if let Some(serving) = serving.get_mut(usize::from(partition)) {
                *serving = status;
            }
        });
    }

    pub(crate) fn set_owner(&self, partition: u16, state: LeaseState) {
        let owner = match state {
            LeaseState::Held(lease) => Owner::Us(lease),
            LeaseState::HeldBy(holder) => Owner::Another(holder),
            LeaseState::Absent(reason) => Owner::Nobody(reason),
        };
        if let Some(known) = self.owners().get_mut(usize::from(partition)) {
            *known = owner;
        }
        // Whoever waits for a partition to be somewhere looks again.
        self.0.serving.send_modify(|_| {});
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, Vec<Owner>> {
        self.0.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, holder: &str) -> Route {
        let Some((_, address)) = holder.split_once('@') else {
            return Route::Nobody(format!(
                "the partition's lease is held by {holder}, which advertises no address"
            ));
        };
        if self.0.advertise.as_deref() == Some(address) {
            return Route::Nobody("the lease of this instance before its restart runs out".to_owned());
        }
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return self.there(address, channel.clone());
        }
        match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => {
                if channels.len() >= MAX_CHANNELS {
                    channels.clear();
                }
                let channel = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect_lazy();
                channels.insert(address.to_owned(), channel.clone());
                self.there(address, channel)
            }
            Err(error) => Route::Nobody(format!("the partition's owner advertises {address}: {error}")),
        }
    }

    fn there(&self, address: &str, channel: Channel) -> Route {
        Route::There(Peer { address: address.to_owned(), channel, patience: self.0.patience })
    }
}

/// The holder's name under which an instance takes leases.
pub(crate) fn holder(advertise: Option<&str>) -> String {
    let name = format!("metering-{}", Uuid::now_v7());
    match advertise {
        Some(address) => format!("{name}@{address}"),
        None => name,
    }
}
