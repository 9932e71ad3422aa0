//! The baseline of `ingest`: the same bytes, unsigned and unhashed, each as a message of its own through async-nats into a stream on a
//! nats-server with its default sync. What a user has who writes events to JetStream and calls that an audit log.
//!
//! Left out: everything that makes it one. Invariant: every message counted was acknowledged.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::{self, stream::StorageType};
use exchequer_testkit::{NatsServer, Sync};
use futures::{StreamExt as _, stream::FuturesUnordered};
use prost::bytes::Bytes;

/// Messages in flight: more made it no faster when this was chosen.
const IN_FLIGHT: usize = 1024;

/// Acknowledged messages per second.
pub(crate) async fn publish_per_s(events: &[Bytes], time: Duration) -> anyhow::Result<f64> {
    let server = NatsServer::start_with(Sync::Default);
    let client = async_nats::connect(server.url()).await?;
    let context = jetstream::ContextBuilder::new().max_ack_inflight(IN_FLIGHT * 2).build(client);
    let config = jetstream::stream::Config {
        name: "BASELINE".to_owned(),
        subjects: vec!["baseline".to_owned()],
        storage: StorageType::File,
        ..jetstream::stream::Config::default()
    };
    context.create_stream(config).await?;
    let started = Instant::now();
    let mut acks = FuturesUnordered::new();
    let mut acknowledged = 0_u64;
    for event in events.iter().cycle() {
        if started.elapsed() >= time {
            break;
        }
        let ack = context.publish("baseline", event.clone()).await?;
        acks.push(ack.into_future());
        while acks.len() >= IN_FLIGHT {
            acks.next().await.context("no acknowledgement")??;
            acknowledged += 1;
        }
    }
    while let Some(ack) = acks.next().await {
        ack?;
        acknowledged += 1;
    }
    Ok(crate::rate(acknowledged, started.elapsed()))
}
