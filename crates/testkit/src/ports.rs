//! Ports that stay free while whoever has them is down.
//!
//! Left out: holding on to them. Invariant: a process is handed no port twice; that another process takes one before it is used can't be
//! excluded, so what listens there has to be ready to be given another.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering},
};

/// Ports handed out so far, to begin behind them.
static HANDED_OUT: AtomicU32 = AtomicU32::new(0);

/// Free ports on loopback below those that the system hands to outgoing connections: while a server is down, nobody else takes its port.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end: u32 = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    let begin = if end > 12_000 { 10_000 } else { 1_025 };
    // Different processes begin at different places.
    let offset = std::process::id().wrapping_mul(37) % (end - begin);
    let candidates = (0..end - begin).map(|_| {
        let step = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        begin + (offset + step) % (end - begin)
    });
    let mut free =
        candidates.filter_map(|port| TcpListener::bind(("127.0.0.1", u16::try_from(port).ok()?)).ok());
    let listeners: [TcpListener; N] = std::array::from_fn(|_| free.next().expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("the address of a listener").port())
}
