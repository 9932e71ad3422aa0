//! One connection of a program to the proxy: its request, the decision, the way there and back.
//!
//! Left out: a second request on the same connection; each is closed after one. Invariant: a name is resolved once, and what is connected
//! to is an address out of that answer, all of which were checked.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};

use super::{
    Shared,
    account::Sent,
    address,
    head::{self, Head, Malformed},
    rule::{Asked, Host},
};
use crate::metrics;

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Bytes that are passed on at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// How long, and for how many bytes, a refused program may go on before its connection is cut: cut at once, it might not see why.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// Why a program gets no connection.
struct Refusal {
    status: &'static str,
    reason: String,
    /// What it asked for, if that is known.
    asked: Option<Asked>,
    /// Whether it was the policy's decision, and no failure on the way.
    is_policy: bool,
}

impl Refusal {
    fn malformed(status: &'static str, reason: &str) -> Self {
        Self { status, reason: reason.to_owned(), asked: None, is_policy: true }
    }

    fn forbidden(asked: &Asked, reason: String) -> Self {
        Self { status: "403 Forbidden", reason, asked: Some(asked.clone()), is_policy: true }
    }

    fn failed(status: &'static str, asked: &Asked, reason: String) -> Self {
        Self { status, reason, asked: Some(asked.clone()), is_policy: false }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(mut client: TcpStream, shared: &Shared) {
    let mut bytes = Vec::new();
    let opened = match read_head(&mut client, &mut bytes, shared).await {
        // The program went away.
        Ok(None) => return,
        Ok(Some(head)) => open(&head.asked, shared).await.map(|target| (head, target)),
        Err(refusal) => Err(refusal),
    };
    match opened {
        Ok((head, target)) => {
            metrics::count_egress("made");
            shared.account.connected(&head.asked);
            // Either side may end it in any way; what went through is counted.
            let _ = pass(client, target, head, bytes, shared).await;
        }
        Err(refusal) => {
            metrics::count_egress(if refusal.is_policy { "refused" } else { "failed" });
            if refusal.is_policy {
                shared.account.refused(refusal.asked.as_ref());
            }
            let _ = timeout(LINGER.0, refuse(client, &refusal)).await;
        }
    }
}

async fn refuse(mut client: TcpStream, refusal: &Refusal) -> io::Result<()> {
    let Refusal { status, reason, .. } = refusal;
    let length = reason.len() + 1;
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{reason}\n"
    );
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await?;
    tokio::io::copy(&mut client.take(LINGER.1), &mut tokio::io::sink()).await.map(drop)
}

/// Reads a head into `bytes`, and maybe what follows it. `None`: the program closed the connection before it had asked.
async fn read_head(
    client: &mut TcpStream,
    bytes: &mut Vec<u8>,
    shared: &Shared,
) -> Result<Option<Head>, Refusal> {
    let bounds = shared.policy.bounds;
    let read = async {
        loop {
            let before = bytes.len();
            let room = bounds.head_bytes.saturating_sub(before) as u64;
            if room == 0 {
                let reason = format!("the request's head is longer than {} bytes", bounds.head_bytes);
                return Err(Refusal::malformed("431 Request Header Fields Too Large", &reason));
            }
            if !matches!((&mut *client).take(room).read_buf(bytes).await, Ok(1..)) {
                return Ok(None);
            }
            let malformed = |Malformed(reason)| Refusal::malformed("400 Bad Request", reason);
            if let Some(head) = head::read(bytes, before).map_err(malformed)? {
                return Ok(Some(head));
            }
        }
    };
    let late = |_| Refusal::malformed("408 Request Timeout", "the request's head did not come in time");
    timeout(bounds.head_time, read).await.map_err(late)?
}

/// Connects to what was asked for, if it may be reached.
async fn open(asked: &Asked, shared: &Shared) -> Result<TcpStream, Refusal> {
    let policy = &shared.policy;
    if !policy.rules.iter().any(|rule| rule.admits(asked)) {
        return Err(Refusal::forbidden(asked, format!("{asked} is not on the list of what may be reached")));
    }
    let addresses = match &asked.host {
        // A rule names it.
        Host::Address(address) => vec![SocketAddr::new(*address, asked.port)],
        Host::Name(name) => {
            let found =
                timeout(policy.bounds.connect_time, policy.resolver.resolve(name.clone(), asked.port));
            let found = found.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let found = found.map_err(|error| {
                Refusal::failed("502 Bad Gateway", asked, format!("{name} can't be resolved: {error}"))
            })?;
            checked(asked, found, shared)?
        }
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        match timeout(policy.bounds.connect_time, TcpStream::connect(address)).await {
            Ok(Ok(target)) => return Ok(target),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Refusal::failed("502 Bad Gateway", asked, format!("{asked} can't be reached: {last}")))
}

/// The addresses of a name, if all of them may be connected to: a name with one that may not is not to be trusted with the others.
fn checked(asked: &Asked, found: Vec<SocketAddr>, shared: &Shared) -> Result<Vec<SocketAddr>, Refusal> {
    for address in &found {
        let address = address.ip().to_canonical();
        if let Some(what) = address::not_public(address)
            && !names(shared, address, asked.port)
        {
            let reason =
                format!("{asked} leads to {address}, which is {what}, and no rule names that address");
            return Err(Refusal::forbidden(asked, reason));
        }
    }
    // Whatever the resolver makes of the port.
    Ok(found.into_iter().map(|address| SocketAddr::new(address.ip(), asked.port)).collect())
}

/// Whether a rule names exactly this address: then the program could have asked for it right away.
fn names(shared: &Shared, address: IpAddr, port: u16) -> bool {
    let asked = Asked { host: Host::Address(address), port };
    shared.policy.rules.iter().any(|rule| rule.admits(&asked))
}

/// Passes bytes on both ways, until both are done, one fails, or nothing moves any more.
async fn pass(
    mut client: TcpStream,
    mut target: TcpStream,
    head: Head,
    bytes: Vec<u8>,
    shared: &Shared,
) -> io::Result<()> {
    // Small writes are the program's business.
    let _ = (client.set_nodelay(true), target.set_nodelay(true));
    let Head { asked, forwarded, length } = head;
    if forwarded.is_none() {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    }
    let mut first = forwarded.unwrap_or_default();
    first.extend_from_slice(&bytes[length..]);
    drop(bytes);
    let moved = AtomicU64::new(0);
    let (from_client, to_client) = client.split();
    let (from_target, to_target) = target.split();
    let lane = Lane { asked: &asked, shared, moved: &moved };
    let both = async {
        tokio::try_join!(lane.out(first, from_client, to_target), lane.back(from_target, to_client))
    };
    tokio::select! {
        done = both => done.map(drop),
        () = stands_still(&moved, shared.policy.bounds.idle_time) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn stands_still(moved: &AtomicU64, time: Duration) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        tokio::time::sleep(time).await;
        if moved.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// What both directions of a connection share.
struct Lane<'a> {
    asked: &'a Asked,
    shared: &'a Shared,
    moved: &'a AtomicU64,
}

impl Lane<'_> {
    /// From the program to the target, within the limit.
    async fn out(&self, first: Vec<u8>, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        self.send(&first, &to).await?;
        drop(first);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            self.send(&buffer[..count], &to).await?;
        }
    }

    async fn send(&self, mut bytes: &[u8], to: &WriteHalf<'_>) -> io::Result<()> {
        while !bytes.is_empty() {
            to.writable().await?;
            match self.shared.account.send(self.asked, bytes, |bytes| to.try_write(bytes)) {
                Ok(Sent::Some(count)) => {
                    bytes = &bytes[count..];
                    self.moved.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Sent::LimitReached) => return Err(io::ErrorKind::QuotaExceeded.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// From the target to the program.
    async fn back(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            self.shared.account.received(self.asked, count);
            self.moved.fetch_add(1, Ordering::Relaxed);
            to.write_all(&buffer[..count]).await?;
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}
