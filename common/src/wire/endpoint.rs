//! QUIC endpoints and the framed channel on them.
//!
//! One long-lived bidirectional stream per connection carries frames both ways. A reader and a
//! writer task stand between it and two bounded channels; the writer puts all waiting messages into
//! one write, which makes small messages cheap.

mod channel;
mod connect;
mod error;
mod listen;
mod loopback;
mod transport;

pub use channel::Channel;
pub use connect::Connector;
pub use error::{AcceptError, ConnectError, ListenError};
pub use listen::{Handshake, Listener};
pub use loopback::{LoopbackError, try_loopback};

pub(super) use connect::resolve;
pub(super) use error::{NO_APPLICATION_PROTOCOL, alert, explain};
pub(super) use transport::{server_config, server_endpoint, transport, udp_any};

use error::is_alert;

use crate::model::identity::Identity;
use quinn::{ConnectionError, VarInt};
use serde::{Serialize, de::DeserializeOwned};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A connection with no packet for this long is lost. Four keep-alives fit.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Messages that may wait on one side of a channel.
const CHANNEL_DEPTH: usize = 1024;
/// Time limit of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first message to or from the accepting side may take. A peer that dies in the
/// middle of a handshake and comes back answers nothing (stateless resets are for complete ones,
/// RFC 9000 §10.3): without this, its end is noticed after [`IDLE_TIMEOUT`].
pub const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long the last packet may take to leave.
const LAST_PACKETS: Duration = Duration::from_millis(10);
/// How long a connection may outlive its channel.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// An address of this host, with a port that the kernel chooses.
pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Application close codes.
pub mod close {
    /// The work is done.
    pub const DONE: u32 = 0;
    /// The peer sent bytes that are not of the protocol.
    pub const PROTOCOL: u32 = 1;
    /// The peer's identity lacks a right; the reason names it.
    pub const REFUSED: u32 = 2;
    /// The peer did not read or answer.
    pub const STALLED: u32 = 3;
    /// This side is going away and may come back.
    pub const GOING: u32 = 4;
    /// This side has no room for the peer at present.
    pub const BUSY: u32 = 5;
}

/// An authenticated connection. Dropping the last clone closes it.
#[derive(Clone)]
pub struct Peer {
    pub(super) connection: quinn::Connection,
    identity: Identity,
    certificate: bytes::Bytes,
    protocol: Vec<u8>,
}

impl Peer {
    /// The other side's identity, from its certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The other side's certificate, as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The ALPN protocol agreed on.
    pub fn protocol(&self) -> &[u8] {
        &self.protocol
    }

    /// The present address of the other side.
    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Measurements of the path: the round trip, and the largest datagram that has arrived (RFC
    /// 8899).
    pub fn path(&self) -> (Duration, u16) {
        let path = self.connection.stats().path;
        (self.connection.rtt(), path.current_mtu)
    }

    /// Opens the control stream; the first message sent makes the peer see it.
    ///
    /// # Errors
    /// Why the connection has ended, in words.
    pub async fn open<S, R>(&self) -> Result<Channel<S, R>, String>
    where
        S: Serialize + Send + 'static,
        R: DeserializeOwned + Send + 'static,
    {
        let (send, recv) = self.connection.open_bi().await.map_err(|e| explain(&e))?;
        Ok(Channel::start(send, recv, self.connection.clone()))
    }

    /// Waits for the peer to open the control stream.
    ///
    /// # Errors
    /// Why the connection has ended, in words.
    pub async fn accept<S, R>(&self) -> Result<Channel<S, R>, String>
    where
        S: Serialize + Send + 'static,
        R: DeserializeOwned + Send + 'static,
    {
        let (send, recv) = self.connection.accept_bi().await.map_err(|e| explain(&e))?;
        Ok(Channel::start(send, recv, self.connection.clone()))
    }

    /// Ends the connection, if it has not ended already; the peer sees `reason`.
    pub fn close(&self, code: u32, reason: &str) {
        // quinn would replace the peer's reason by ours.
        if self.connection.close_reason().is_none() {
            self.connection
                .close(VarInt::from_u32(code), reason.as_bytes());
        }
    }

    /// Closes, unless the peer has, and waits until the packet with the reason has left, for at
    /// most 10 ms.
    pub async fn leave(&self, code: u32, reason: &str) {
        if self.connection.close_reason().is_some() {
            return;
        }
        self.close(code, reason);
        // A closed connection sends no other packets.
        let before = self.connection.stats().udp_tx.datagrams;
        let gone = async {
            while self.connection.stats().udp_tx.datagrams == before {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(LAST_PACKETS, gone).await;
    }

    /// Waits for the end of the connection and returns its reason, in words.
    pub async fn closed(&self) -> String {
        explain(&self.connection.closed().await)
    }

    /// Whether the peer ended the connection because our identity lacks a right.
    pub fn was_refused(&self) -> bool {
        matches!(self.connection.close_reason(),
            Some(ConnectionError::ApplicationClosed(c)) if c.error_code == VarInt::from_u32(close::REFUSED))
            || matches!(self.connection.close_reason(), Some(ConnectionError::ConnectionClosed(c)) if is_alert(c.error_code))
    }
}
