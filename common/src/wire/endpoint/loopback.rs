//! Whether QUIC works at all on this host: a check before a run that is all in one process.

use super::LOOPBACK;
use super::connect::as_seen_from;
use super::transport::{udp_any, udp_socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Bytes of the packets that begin a connection: the size that every path must take (RFC 9000 §14),
/// and the headers of IPv4 and UDP.
const DATAGRAM: usize = 1200;

const HEADERS: usize = 28;

/// How long a packet to this host may take.
const ARRIVAL: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Why no packet gets from this host to itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// No sockets are available.
    #[error("no UDP socket on loopback")]
    Socket(#[source] std::io::Error),
    /// The interface is down.
    #[error(
        "127.0.0.1 cannot be reached: the loopback interface of this network namespace is down, as `unshare --net` and sandboxes leave it; `ip link set lo up` (as root there) helps"
    )]
    Down(#[source] std::io::Error),
    /// Its MTU is too small.
    #[error(
        "the loopback interface does not take the packets of {} bytes that QUIC needs; `ip link set lo mtu 65536` (as root) helps",
        DATAGRAM + HEADERS
    )]
    Small(#[source] std::io::Error),
    /// Sending is forbidden.
    #[error(
        "a packet filter or a sandbox forbids UDP to 127.0.0.1; let UDP on the loopback interface (lo) through there"
    )]
    Forbidden(#[source] std::io::Error),
    /// Another error of sending.
    #[error(
        "nothing can be sent to 127.0.0.1 by UDP; check `ip address show lo` and `ip route get \
         127.0.0.1`"
    )]
    Sending(#[source] std::io::Error),
    /// It was sent, and does not arrive.
    #[error(
        "packets that are sent to 127.0.0.1 by UDP do not arrive; does a packet filter drop it? It \
         must let UDP on the loopback interface (lo) through"
    )]
    Dropped,
}

/// Sends one packet of the size that QUIC needs from a socket of this process to another over
/// 127.0.0.1, and waits for its arrival: no time where it gets through, two seconds where it is
/// dropped.
///
/// # Errors
/// [`LoopbackError`].
pub fn try_loopback() -> Result<(), LoopbackError> {
    let near = udp_any().map_err(LoopbackError::Socket)?;
    let far = udp_socket(LOOPBACK).map_err(LoopbackError::Socket)?;
    for socket in [&near, &far] {
        // With the options of QUIC's sockets: no fragments (RFC 9000 §14).
        quinn::udp::UdpSocketState::new(socket.into()).map_err(LoopbackError::Socket)?;
    }
    let (from, to) = (
        near.local_addr().map_err(LoopbackError::Socket)?,
        far.local_addr().map_err(LoopbackError::Socket)?,
    );
    near.send_to(&[0; DATAGRAM], as_seen_from(from, to))
        .map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL) => {
                LoopbackError::Down(e)
            }
            Some(Errno::MSGSIZE) => LoopbackError::Small(e),
            Some(Errno::PERM | Errno::ACCESS) => LoopbackError::Forbidden(e),
            _ => LoopbackError::Sending(e),
        })?;
    let mut arrival = [PollFd::new(&far, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut arrival, Some(&ARRIVAL))) {
        Ok(0) => Err(LoopbackError::Dropped),
        Ok(_) => Ok(()),
        Err(e) => Err(LoopbackError::Socket(e.into())),
    }
}
