//! A listener that bounds what strangers can hold: so many connections at once, each only as long as something moves on it.
//!
//! Left out: who connects; that is found out per request. Invariant: a connection beyond the bound is not accepted, it waits in the
//! kernel's queue; one on which nothing was read or written for a while is closed and makes room.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener as _;
use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Connections of one listener at one time.
const MAX_CONNECTIONS: usize = 1024;
/// How long nothing may move on a connection. Living gRPC clients answer a ping more often than that.
const IDLE: Duration = Duration::from_secs(75);

/// A listener with room for so many connections.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    room: Arc<Semaphore>,
    idle: Duration,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    idle: Duration,
    /// Ends when nothing moved for too long.
    deadline: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    pub(crate) fn new(socket: TcpListener) -> Self {
        Self::with_bounds(socket, MAX_CONNECTIONS, IDLE)
    }

    fn with_bounds(socket: TcpListener, connections: usize, idle: Duration) -> Self {
        Self { socket, room: Arc::new(Semaphore::new(connections)), idle }
    }

    /// The connections as they are accepted.
    pub(crate) fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, async |mut listener| {
            let (connection, _) = listener.accept().await;
            Some((Ok(connection), listener))
        })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        // Axum's own waits out the faults that pass, such as too many open files.
        let (stream, from) = axum::serve::Listener::accept(&mut self.socket).await;
        // Else an answer waits until the one before it on the connection is acknowledged, which its reader delays. A connection for which
        // that can't be set is gone already.
        let _ = stream.set_nodelay(true);
        let deadline = Box::pin(sleep(self.idle));
        (Connection { stream, idle: self.idle, deadline, _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl Connection {
    /// Passes progress on and counts it; what waits for too long fails.
    fn timed<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            ready!(self.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let deadline = Instant::now() + self.idle;
        self.deadline.as_mut().reset(deadline);
        polled
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.timed(cx, polled)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.timed(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.timed(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TCP has nothing to flush: this is no progress.
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::{FutureExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn bound(connections: usize, idle: Duration) -> (Listener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        (Listener::with_bounds(listener, connections, idle), at)
    }

    #[tokio::test]
    async fn beyond_the_bound_a_connection_waits_until_another_ends() {
        let (listener, at) = bound(1, IDLE).await;
        let mut incoming = pin!(listener.incoming());
        let (_first, _second) =
            (TcpStream::connect(at).await.unwrap(), TcpStream::connect(at).await.unwrap());
        let held = incoming.next().await.unwrap().unwrap();
        assert!(incoming.next().now_or_never().is_none());
        drop(held);
        incoming.next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_does_not_wait_for_the_one_before_it() {
        let (listener, at) = bound(1, IDLE).await;
        let mut incoming = pin!(listener.incoming());
        let _client = TcpStream::connect(at).await.unwrap();
        assert!(incoming.next().await.unwrap().unwrap().stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_connection_ends_when_nothing_moves_and_not_before() {
        let (listener, at) = bound(1, Duration::from_millis(200)).await;
        let mut incoming = pin!(listener.incoming());
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut held = incoming.next().await.unwrap().unwrap();
        let accepted = Instant::now();
        client.write_all(b"x").await.unwrap();
        assert_eq!(held.read_u8().await.unwrap(), b'x');
        let ended = tokio::time::timeout(Duration::from_secs(30), held.read_u8()).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(accepted.elapsed() >= Duration::from_millis(200));
    }
}
