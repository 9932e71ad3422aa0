//! Three real nats-servers with JetStream as one cluster, on loopback.
//!
//! Left out: networks that fail (its nodes die whole). Invariant: a node, its store and its ports stay the same across
//! [`NatsCluster::kill9`] and [`NatsCluster::restart`]; the processes end with the value.

use std::process::Child;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{eventually, free_ports};

const NODES: usize = 3;
/// Attempts to start with ports that another process took before the servers did.
const ATTEMPTS: usize = 5;
/// How long nodes may take to find each other, to elect leaders and to catch up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take to say how it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster of running (or killed) nats-servers that sync always.
#[derive(Debug)]
pub struct NatsCluster {
    dir: TempDir,
    nodes: [Node; NODES],
}

#[derive(Debug)]
struct Node {
    child: Option<Child>,
    client_port: u16,
    monitor_port: u16,
    route_port: u16,
}

impl NatsCluster {
    /// Starts the three servers; returns once each of them takes part in JetStream, so that streams of three replicas can be made.
    /// Panics, saying what to do, if there is no nats-server.
    pub async fn start() -> Self {
        for _ in 1..ATTEMPTS {
            if let Ok(cluster) = Self::try_start().await {
                return cluster;
            }
        }
        Self::try_start().await.unwrap_or_else(|why| panic!("{why}"))
    }

    async fn try_start() -> Result<Self, String> {
        let ports = free_ports::<{ 3 * NODES }>();
        let node = |place: usize| Node {
            child: None,
            client_port: ports[3 * place],
            monitor_port: ports[3 * place + 1],
            route_port: ports[3 * place + 2],
        };
        let mut cluster = Self { dir: crate::temp_dir(), nodes: std::array::from_fn(node) };
        for node in 0..NODES {
            cluster.launch(node)?;
        }
        for node in 0..NODES {
            cluster.healthy(node).await;
        }
        Ok(cluster)
    }

    /// For clients: the URLs of all nodes, separated by commas.
    pub fn urls(&self) -> String {
        let urls: Vec<_> = (0..NODES).map(|node| self.url(node)).collect();
        urls.join(",")
    }

    /// For clients: the URL of one node.
    pub fn url(&self, node: usize) -> String {
        format!("nats://127.0.0.1:{}", self.nodes[node].client_port)
    }

    /// For monitoring, of each node.
    pub fn monitor_urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.monitor_port)).collect()
    }

    /// The node that goes by this name, as in what the servers say of a stream's leader and replicas.
    pub fn named(&self, name: &str) -> Option<usize> {
        (0..NODES).find(|node| node_name(*node) == name)
    }

    /// Whether the node's process runs.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].child.is_some()
    }

    /// Kills a node with SIGKILL and waits until its process is gone.
    pub fn kill9(&mut self, node: usize) {
        super::kill9(&mut self.nodes[node].child);
    }

    /// Starts a node over its store, if it does not run; returns once it accepts clients. See [`NatsCluster::healthy`].
    pub fn restart(&mut self, node: usize) {
        if !self.runs(node) {
            self.launch(node).unwrap_or_else(|why| panic!("{why}"));
        }
    }

    /// Waits until a node knows the cluster's leader and has caught up with every stream that it holds: then another may be killed without
    /// the streams losing their majority.
    pub async fn healthy(&self, node: usize) {
        eventually(PATIENCE, || self.is_healthy(node)).await;
    }

    async fn is_healthy(&self, node: usize) -> bool {
        let port = self.nodes[node].monitor_port;
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, get(port, "/healthz")).await;
        matches!(asked, Ok(Ok(answer)) if answer.lines().next().is_some_and(|status| status.contains(" 200 ")))
    }

    fn launch(&mut self, node: usize) -> Result<(), String> {
        let dir = self.dir.path().join(node_name(node));
        std::fs::create_dir_all(&dir).expect("the node's directory");
        let routes: Vec<_> =
            self.nodes.iter().map(|node| format!("nats://127.0.0.1:{}", node.route_port)).collect();
        let Node { client_port, monitor_port, route_port, .. } = &self.nodes[node];
        let config = format!(
            "server_name: {}\nhost: 127.0.0.1\nport: {client_port}\nhttp: \"127.0.0.1:{monitor_port}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
             cluster {{ name: exchequer, host: 127.0.0.1, port: {route_port}, routes: [{}] }}\n",
            node_name(node),
            dir.join("store").display(),
            routes.join(", "),
        );
        self.nodes[node].child = Some(super::launch(&dir, &config)?.0);
        Ok(())
    }
}

impl Drop for NatsCluster {
    fn drop(&mut self) {
        (0..NODES).for_each(|node| self.kill9(node));
    }
}

fn node_name(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// HTTP/1.0, so that the answer is everything up to the end of the connection.
async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}
