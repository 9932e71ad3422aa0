//! Whether the servers that hold the stream sync every write, asked from their monitoring ports (`/varz`).
//!
//! Left out: TLS and authentication of that port, which is meant for a private network. Invariant: "synced" is said only if every
//! server that holds the stream was asked and said so; anything else is a reason.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::JetStream;

const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer.
const MAX_ANSWER: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct Varz {
    server_name: String,
    jetstream: Jetstream,
}

#[derive(Deserialize)]
struct Jetstream {
    config: Option<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    sync_always: bool,
    #[serde(default)]
    sync_interval: u64,
}

impl JetStream {
    pub(super) async fn check_sync(&self) -> Result<(), String> {
        if self.options.monitor_urls.is_empty() {
            return Err("unverified: no monitor url".into());
        }
        let info = self.stream.get_info().await.map_err(|e| format!("unverified: {e}"))?;
        let mut holders: Vec<String> = Vec::new();
        if let Some(cluster) = info.cluster {
            holders.extend(cluster.leader);
            holders.extend(cluster.replicas.into_iter().map(|r| r.name));
        }
        if holders.is_empty() {
            holders.push(self.client.server_info().server_name);
        }
        let asked = futures::future::join_all(self.options.monitor_urls.iter().map(|url| varz(url))).await;
        for (url, answer) in self.options.monitor_urls.iter().zip(asked) {
            let varz = answer.map_err(|e| format!("unverified: {url}: {e}"))?;
            let config =
                varz.jetstream.config.ok_or_else(|| format!("unverified: {url} has no JetStream"))?;
            if !config.sync_always {
                let every = Duration::from_nanos(config.sync_interval);
                return Err(format!(
                    "server {} syncs to disk only every {every:?}; set sync_interval: always",
                    varz.server_name
                ));
            }
            holders.retain(|name| *name != varz.server_name);
        }
        if holders.is_empty() {
            Ok(())
        } else {
            Err(format!("unverified: no monitor url of server {}", holders.join(", ")))
        }
    }
}

async fn varz(url: &str) -> Result<Varz, String> {
    let address = url.strip_prefix("http://").ok_or("not an http:// address")?.trim_end_matches('/');
    let answer = tokio::time::timeout(TIMEOUT, get(address, "/varz")).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or("not an HTTP answer")?;
    let head = String::from_utf8_lossy(&answer[..split]);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("answered {status:?}"));
    }
    serde_json::from_slice(&answer[split + 4..]).map_err(|e| e.to_string())
}

/// HTTP/1.0, so that the answer is the plain body up to the end of the connection.
async fn get(address: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    connection.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}
