//! Packets over local `SOCK_SEQPACKET` pairs, with descriptors attached where needed; the blocking half, used by
//! helper, supervisor, init and payload.
//!
//! Leaves out the agent's asynchronous half ([`super::client`]). Invariant: every descriptor received is close-on-exec,
//! and a packet is whole or an error.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::spec::MAX_FILES;
use super::wire::WANTED_FDS;

/// Largest packet: a specification, its JSON escapes included in the common case.
pub(super) const MAX_PACKET_BYTES: usize = 160 << 10;
/// Most descriptors in one packet: an execution's input or output files, and what comes with the former.
pub(super) const MAX_FDS: usize = MAX_FILES + WANTED_FDS;

/// A pair of connected ends, both close-on-exec.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Room for the largest packet beside another, where a system's default has less. What the kernel refuses shows when a
    // packet does not fit.
    for end in [&ends.0, &ends.1] {
        let _ = sockopt::set_socket_send_buffer_size(end, 2 * MAX_PACKET_BYTES);
    }
    Ok(ends)
}

/// Asks the kernel to attach the sender's process id to what `end` receives.
pub(super) fn identify_senders(end: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_socket_passcred(end, true)?)
}

/// A packet as received. Empty and without descriptors: the other end is closed.
#[derive(Default)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// The sender's process id as seen from here, if asked for by [`identify_senders`].
    pub(super) sender: Option<i32>,
}

/// Receives one packet, waiting for it unless the socket is non-blocking.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Packet> {
    // Asked for first: a buffer for the largest packet would cost more to make than all the rest of a small one.
    let mut bytes = vec![0; next_length(socket)?];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
    let (received, mut packet) = loop {
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut into, &mut attached, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                let mut packet = Packet::default();
                for part in attached.drain() {
                    match part {
                        RecvAncillaryMessage::ScmRights(fds) => packet.fds.extend(fds),
                        RecvAncillaryMessage::ScmCredentials(peer) => {
                            packet.sender = Some(peer.pid.as_raw_nonzero().get());
                        }
                        _ => {}
                    }
                }
                if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                    return Err(io::Error::from(Errno::MSGSIZE));
                }
                break (message.bytes, packet);
            }
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(other) => return Err(other.into()),
        }
    };
    bytes.truncate(received);
    packet.bytes = bytes;
    Ok(packet)
}

/// The length of the next packet, waiting for it; 0 at the end.
fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        match recv(socket, &mut [0_u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, length)) if length > MAX_PACKET_BYTES => {
                // Taken off the queue: it would be found there again for ever.
                recv(socket, &mut [0_u8; 0][..], RecvFlags::empty())?;
                return Err(io::Error::from(Errno::MSGSIZE));
            }
            Ok((_, length)) => return Ok(length),
            // The other end closed without having read everything, which is told once: what it sent before is still to be read, then its end.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(other) => return Err(other.into()),
        }
    }
}

/// Sends one packet with descriptors.
pub(super) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !attached.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(Errno::INVAL));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut attached, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            // The other end closed without having read everything is told once, to whoever calls first; after that it is a broken pipe.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(other) => return Err(other.into()),
        }
    }
}

/// Sends one message.
pub(super) fn send<M: Serialize>(socket: impl AsFd, message: &M) -> io::Result<()> {
    send_files(socket, message, &[])
}

/// Sends one message with descriptors.
pub(super) fn send_files<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET_BYTES {
        return Err(io::Error::from(Errno::MSGSIZE));
    }
    send_with(socket.as_fd(), &bytes, fds)
}

/// Reads a packet as a message.
pub(super) fn parse<M: DeserializeOwned>(packet: &Packet) -> io::Result<M> {
    Ok(serde_json::from_slice(&packet.bytes)?)
}
