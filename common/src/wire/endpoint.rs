//! QUIC endpoints and the framed channel on them.
//!
//! One long-lived bidirectional stream per connection carries frames both ways. A reader and a
//! writer task stand between it and two bounded channels; the writer puts everything that waits
//! into one write, which is what makes small messages cheap.

use super::codec::{self, CodecError};
use super::tls::{Credentials, CredentialsError};
use crate::model::identity::{Identity, IdentityError};
use bytes::BytesMut;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, TransportErrorCode, VarInt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A connection with no packet for this long is lost. Four keep-alives fit.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The side that connected keeps the connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// First guess of the round trip: on a LAN a lost first packet is sent again after three times
/// this.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Streams a peer may open; memory is paid for each in advance.
const MAX_STREAMS: u32 = 16;
/// Streams of bulk bytes: two for each of the readers that an agent admits.
const MAX_BULK_STREAMS: u32 = 256;
/// Bytes in flight per stream and per connection: a frame and a half of the largest, times two.
const STREAM_WINDOW: u32 = 2 << 20;
const WINDOW: u32 = 8 << 20;
/// Socket buffers asked of the kernel, which clamps them to net.core.{r,w}mem_max.
const SOCKET_BUFFER: usize = 4 << 20;
/// Handshakes that may be under way at a listener; beyond this half of them, addresses are
/// validated first (stateless retry).
const MAX_HANDSHAKES: usize = 1024;
/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait on one side of a channel.
const CHANNEL_DEPTH: usize = 1024;
/// Bytes of their frames on the side that receives, before no more is read: two of the largest, or
/// eight with as many jobs as clients put into one. One that is larger waits alone.
const CHANNEL_BYTES: usize = 2 << 20;
/// How long the first message of the side that was connected to, or to it, may take. A peer that
/// dies in the middle of a handshake and comes back answers nothing (stateless resets are for
/// complete ones, RFC 9000 §10.3): without this, it is missed after [`IDLE_TIMEOUT`].
pub const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long the last packet may take to leave.
const LAST_PACKETS: Duration = Duration::from_millis(10);
/// How long a connection may outlive its channel.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// This host, at a port that the kernel chooses.
pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Bytes of the packets that begin a connection: what every path must take (RFC 9000 §14), and what
/// IPv4 and UDP put before them.
const DATAGRAM: usize = 1200;
const HEADERS: usize = 28;
/// How long a packet may take to itself.
const ARRIVAL: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};
/// Bytes gathered into one write.
const WRITE_BATCH: usize = 256 * 1024;

/// Application close codes.
pub mod close {
    /// All done.
    pub const DONE: u32 = 0;
    /// The peer sent something that is not of the protocol.
    pub const PROTOCOL: u32 = 1;
    /// The peer's identity may not do this; the reason says what.
    pub const REFUSED: u32 = 2;
    /// The peer did not read or answer.
    pub const STALLED: u32 = 3;
    /// This side is going away and may come back.
    pub const GOING: u32 = 4;
    /// This side has no room for the peer at present.
    pub const BUSY: u32 = 5;
}

/// Why there is no connection. Messages name the address and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("cannot resolve {0:?}; give HOST:PORT")]
    Resolve(String, #[source] std::io::Error),
    /// The socket cannot be made.
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::io::Error),
    /// Our own credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Nobody answers.
    #[error("no answer from {0}; is a coordinator listening there, and does UDP get through?")]
    NoAnswer(String),
    /// The peer is of another cluster, or not a coordinator.
    #[error(
        "the coordinator at {address} is not of our cluster: its certificate does not descend from {origin}/ca.pem ({reason})"
    )]
    Stranger {
        /// Where.
        address: String,
        /// Our credentials' directory.
        origin: String,
        /// What TLS said.
        reason: String,
    },
    /// The peer does not accept our certificate or what it says.
    #[error("the coordinator at {address} refused the certificate in {origin}: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// Our credentials' directory.
        origin: String,
        /// What it said.
        reason: String,
    },
    /// The peer speaks another protocol.
    #[error(
        "the peer at {address} speaks no protocol of ours ({reason}); the older of the two sides needs an upgrade"
    )]
    Protocol {
        /// Where.
        address: String,
        /// What TLS said.
        reason: String,
    },
    /// Nobody answers whoever wants to join.
    #[error(
        "nobody answers at {0}: a coordinator lets hosts and users join only while it has tokens for them (`coordinator token list`); does UDP get through?"
    )]
    NotEnrolling(String),
    /// That is where members come in.
    #[error(
        "nobody joins at {address}: that port is for hosts and users who have joined already; joining goes to port {port}, unless `enrol` in the \
         coordinator's coordinator.toml names another one"
    )]
    ForMembers {
        /// Where.
        address: String,
        /// Where it goes on without being configured.
        port: u16,
    },
    /// Not the coordinator that a token is for.
    #[error(
        "the coordinator at {address} is not the one that this token is for ({reason}); nothing was sent to it"
    )]
    Unpinned {
        /// Where.
        address: String,
        /// What TLS said.
        reason: String,
    },
    /// We do not want it.
    #[error("the coordinator at {address} is not worked for: {why}")]
    Unfit {
        /// Where.
        address: String,
        /// Why not, and the way out.
        why: String,
    },
    /// It was there and went.
    #[error("connection to {address} lost: {reason}")]
    Lost {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

impl ConnectError {
    /// True if waiting will not help: a person has to change something first.
    pub fn needs_a_person(&self) -> bool {
        match self {
            ConnectError::Credentials(_)
            | ConnectError::Stranger { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Unpinned { .. }
            | ConnectError::Unfit { .. }
            | ConnectError::ForMembers { .. }
            | ConnectError::Protocol { .. } => true,
            ConnectError::Resolve(..)
            | ConnectError::Socket(_)
            | ConnectError::NoAnswer(_)
            | ConnectError::NotEnrolling(_)
            | ConnectError::Lost { .. } => false,
        }
    }
}

/// Why a listener cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or privileged.
    #[error("cannot listen on udp {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Our own credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Why no packet gets from this host to itself.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// There are no sockets to be had.
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
    /// Something else is wrong with sending.
    #[error(
        "nothing can be sent to 127.0.0.1 by UDP; look at `ip address show lo` and `ip route get 127.0.0.1`"
    )]
    Sending(#[source] std::io::Error),
    /// It has been sent, and does not come.
    #[error(
        "what is sent to 127.0.0.1 by UDP does not arrive; does a packet filter drop it? It must let UDP on the loopback interface (lo) through"
    )]
    Dropped,
}

/// Sends one packet of the size that QUIC needs from a socket of this process to another over
/// 127.0.0.1, and waits until it is there, which takes no time where it gets through, and two
/// seconds where something drops it.
///
/// # Errors
/// [`LoopbackError`].
pub fn try_loopback() -> Result<(), LoopbackError> {
    let near = udp_any().map_err(LoopbackError::Socket)?;
    let far = udp_socket(LOOPBACK).map_err(LoopbackError::Socket)?;
    for socket in [&near, &far] {
        // As QUIC has its sockets: nothing is sent in fragments (RFC 9000 §14).
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

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS or transport.
    #[error("handshake failed: {}", explain(.0))]
    Handshake(#[from] ConnectionError),
    /// The peer gave up waiting for us; it will try again.
    #[error("the peer gave up during the handshake")]
    Abandoned,
    /// Too slow.
    #[error("handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    Slow,
    /// A certificate of the right root that says nothing usable.
    #[error("the peer's certificate gives no identity")]
    Identity(#[from] IdentityError),
}

/// Accepts connections.
pub struct Listener {
    endpoint: quinn::Endpoint,
}

impl Listener {
    /// Listens on `address` for `protocols` (ALPN names), presenting a coordinator's credentials.
    ///
    /// Reset and connection-id keys derive from the private key, so peers of a coordinator that
    /// died and came back with the same key notice at their next packet instead of after the idle
    /// timeout.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        protocols: &[&[u8]],
    ) -> Result<Self, ListenError> {
        Ok(Self {
            endpoint: server_endpoint(address, credentials, credentials.server_config(protocols)?)?,
        })
    }

    /// Presents these credentials to whoever connects from now on.
    pub fn present(
        &self,
        credentials: &Credentials,
        protocols: &[&[u8]],
    ) -> Result<(), CredentialsError> {
        self.endpoint
            .set_server_config(Some(server_config(credentials.server_config(protocols)?)));
        Ok(())
    }

    /// The address in use, with the port that the kernel chose if none was given.
    ///
    /// # Errors
    /// getsockname(2)'s.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next connection attempt; `None` after [`Listener::close`]. Run its handshake in a task
    /// of its own.
    pub async fn accept(&self) -> Option<Handshake> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if self.endpoint.open_connections() > MAX_HANDSHAKES / 2
                && incoming.may_retry()
                && !incoming.remote_address_validated()
            {
                // Unvalidated addresses under load: make them prove that they can receive (RFC 9000
                // §8.1.2).
                let _ = incoming.retry();
                continue;
            }
            return Some(Handshake(incoming));
        }
    }

    /// Closes all connections with a reason and gives the packets a moment to leave.
    pub async fn close(&self, reason: &str) {
        self.endpoint
            .close(VarInt::from_u32(close::GOING), reason.as_bytes());
        let _ = tokio::time::timeout(Duration::from_millis(20), self.endpoint.wait_idle()).await;
    }
}

/// A connection attempt at a listener.
pub struct Handshake(quinn::Incoming);

impl Handshake {
    /// Where it comes from.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// Completes TLS and reads who the peer is.
    ///
    /// # Errors
    /// [`AcceptError`]; the peer has been told.
    pub async fn complete(self) -> Result<Peer, AcceptError> {
        let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.0).await {
            Err(_) => return Err(AcceptError::Slow),
            Ok(Err(ConnectionError::ConnectionClosed(c)))
                if c.error_code == TransportErrorCode::APPLICATION_ERROR =>
            {
                return Err(AcceptError::Abandoned);
            }
            Ok(connected) => connected?,
        };
        match peer_of(connection.clone()) {
            Ok(peer) => Ok(peer),
            Err(e) => {
                connection.close(VarInt::from_u32(close::REFUSED), e.to_string().as_bytes());
                Err(e.into())
            }
        }
    }
}

fn peer_of(connection: quinn::Connection) -> Result<Peer, IdentityError> {
    let chain = connection.peer_identity().and_then(|any| {
        any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .ok()
    });
    let certificate = chain
        .and_then(|chain| chain.first().cloned())
        .ok_or(IdentityError::NotACertificate)?;
    let identity = Identity::from_der(&certificate)?;
    let protocol = connection
        .handshake_data()
        .and_then(|any| any.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .unwrap_or_default();
    Ok(Peer {
        connection,
        identity,
        certificate: certificate.to_vec().into(),
        protocol,
    })
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
    /// Who the other side is, from its certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its certificate, as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The ALPN protocol agreed on.
    pub fn protocol(&self) -> &[u8] {
        &self.protocol
    }

    /// Where the other side is now.
    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// What is known of the way there: the round trip, and the largest datagram that has got
    /// through (RFC 8899).
    pub fn path(&self) -> (Duration, u16) {
        let path = self.connection.stats().path;
        (self.connection.rtt(), path.current_mtu)
    }

    /// Opens the control stream; the first message sent makes the peer see it.
    ///
    /// # Errors
    /// The connection's end, in words.
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
    /// The connection's end, in words.
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

    /// Closes, unless the peer has, and waits until the packet that says so has left, for at most
    /// 10 ms.
    pub async fn leave(&self, code: u32, reason: &str) {
        if self.connection.close_reason().is_some() {
            return;
        }
        self.close(code, reason);
        // A closed connection sends nothing else.
        let before = self.connection.stats().udp_tx.datagrams;
        let gone = async {
            while self.connection.stats().udp_tx.datagrams == before {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(LAST_PACKETS, gone).await;
    }

    /// Waits for the end of the connection and says why, in words.
    pub async fn closed(&self) -> String {
        explain(&self.connection.closed().await)
    }

    /// True if the peer ended the connection saying that our identity may not do this.
    pub fn was_refused(&self) -> bool {
        matches!(self.connection.close_reason(),
            Some(ConnectionError::ApplicationClosed(c)) if c.error_code == VarInt::from_u32(close::REFUSED))
            || matches!(self.connection.close_reason(), Some(ConnectionError::ConnectionClosed(c)) if is_alert(c.error_code))
    }
}

/// Messages both ways over one stream.
pub struct Channel<S, R> {
    /// To the peer.
    pub sender: mpsc::Sender<S>,
    /// From the peer. Ends with the stream; the reason is in [`Peer::closed`].
    pub receiver: mpsc::Receiver<R>,
}

impl<S, R> Channel<S, R>
where
    S: Serialize + Send + 'static,
    R: DeserializeOwned + Send + 'static,
{
    pub(super) fn start(
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        connection: quinn::Connection,
    ) -> Self {
        let (sender, outgoing) = mpsc::channel(CHANNEL_DEPTH);
        let (incoming, receiver) = mpsc::channel(CHANNEL_DEPTH);
        tokio::spawn(write_frames(send, outgoing, connection.clone()));
        tokio::spawn(read_frames(recv, incoming, connection));
        Self { sender, receiver }
    }
}

async fn write_frames<S: Serialize>(
    mut stream: quinn::SendStream,
    mut outgoing: mpsc::Receiver<S>,
    connection: quinn::Connection,
) {
    let mut buffer = Vec::new();
    while let Some(mut message) = outgoing.recv().await {
        buffer.clear();
        loop {
            if let Err(e) = codec::encode_frame(&mut buffer, &message) {
                // Our own fault: senders bound what they send. Say it loudly, and end the
                // connection rather than skip a message.
                tracing::error!(error = %e, "message cannot be sent");
                connection.close(VarInt::from_u32(close::PROTOCOL), b"message cannot be sent");
                return;
            }
            match outgoing.try_recv() {
                Ok(next) if buffer.len() < WRITE_BATCH => message = next,
                Ok(next) => {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                    buffer.clear();
                    message = next;
                }
                Err(_) => break,
            }
        }
        if stream.write_all(&buffer).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
    let _ = stream.stopped().await;
}

async fn read_frames<R: DeserializeOwned>(
    mut stream: quinn::RecvStream,
    incoming: mpsc::Sender<R>,
    connection: quinn::Connection,
) {
    let (mut buffer, mut waiting) = (BytesMut::new(), Waiting::default());
    let refused = |e: CodecError| {
        tracing::warn!(peer = %connection.remote_address(), error = %e, "peer breaks the protocol; closing");
        connection.close(VarInt::from_u32(close::PROTOCOL), e.to_string().as_bytes());
    };
    while let Ok(Some(chunk)) = stream.read_chunk(WRITE_BATCH, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        loop {
            let before = buffer.len();
            match codec::decode_frame(&mut buffer) {
                Ok(Some(message)) => {
                    waiting.make_room(&incoming, before - buffer.len()).await;
                    if incoming.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(e) => return refused(e),
            }
        }
    }
}

/// The sizes of messages in a channel that has one sender.
#[derive(Default)]
struct Waiting {
    /// Oldest first, and their sum.
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Waiting {
    /// Waits until a message of this size may follow those that are in the channel, and counts it.
    async fn make_room<R>(&mut self, channel: &mpsc::Sender<R>, size: usize) {
        let places = channel.max_capacity();
        self.taken(places - channel.capacity());
        let (mut bytes, mut in_the_way) = (self.bytes, 0);
        while let Some(oldest) = self
            .sizes
            .get(in_the_way)
            .filter(|_| bytes + size > CHANNEL_BYTES)
        {
            bytes -= oldest;
            in_the_way += 1;
        }
        if in_the_way > 0 {
            let left = self.sizes.len() - in_the_way;
            // The places are given back at once: this only waits. A receiver that has gone is
            // noticed by whoever sends.
            let _ = channel.reserve_many(places - left).await.map(drop);
            self.taken(left);
        }
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// So many are left in the channel.
    fn taken(&mut self, left: usize) {
        while self.sizes.len() > left {
            self.bytes -= self.sizes.pop_front().unwrap_or(0);
        }
    }
}

/// Connects to coordinators.
pub struct Connector {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    server_name: String,
    cluster: String,
    origin: String,
}

impl Connector {
    /// A connector for one protocol with a user's or an agent's credentials. It serves IPv4 and
    /// IPv6.
    ///
    /// # Errors
    /// [`ConnectError::Socket`], [`ConnectError::Credentials`].
    pub fn new(credentials: &Credentials, protocol: &[u8]) -> Result<Self, ConnectError> {
        let crypto = QuicClientConfig::try_from(credentials.client_config(protocol)?)
            .expect("the provider has TLS13_AES_128_GCM_SHA256, which QUIC needs");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(Some(KEEP_ALIVE))));
        let endpoint = udp_any()
            .and_then(|socket| {
                quinn::Endpoint::new(
                    quinn::EndpointConfig::default(),
                    None,
                    socket,
                    Arc::new(quinn::TokioRuntime),
                )
            })
            .map_err(ConnectError::Socket)?;
        let cluster = credentials.identity().cluster.clone();
        Ok(Self {
            endpoint,
            config,
            server_name: Identity::coordinator_dns(&cluster),
            cluster,
            origin: credentials.origin().into(),
        })
    }

    /// Connects, waiting `patience` for a first answer. The peer has not judged our certificate yet
    /// when this returns: only its first message proves that it did.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, address: &str, patience: Duration) -> Result<Peer, ConnectError> {
        let target = resolve(&self.endpoint, address).await?;
        let mut connecting = self
            .endpoint
            .connect_with(self.config.clone(), target, &self.server_name)
            .map_err(|e| ConnectError::Lost {
                address: address.into(),
                reason: e.to_string(),
            })?;
        match tokio::time::timeout(patience, connecting.handshake_data()).await {
            Err(_) => return Err(ConnectError::NoAnswer(address.into())),
            Ok(Err(e)) => return Err(self.classify(address, &e)),
            Ok(Ok(_)) => {}
        }
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| ConnectError::NoAnswer(address.into()))?
            .map_err(|e| self.classify(address, &e))?;
        let peer = peer_of(connection).map_err(|e| self.stranger(address, e.to_string()))?;
        if peer.identity.role != crate::model::identity::Role::Coordinator
            || peer.identity.cluster != self.cluster
        {
            return Err(self.stranger(address, format!("it is the {}", peer.identity)));
        }
        Ok(peer)
    }

    /// The first message of the peer at `address`, which proves that it wants us.
    ///
    /// # Errors
    /// Why it does not come.
    pub async fn first_message<S, R>(
        &self,
        address: &str,
        peer: &Peer,
        channel: &mut Channel<S, R>,
    ) -> Result<R, ConnectError> {
        match tokio::time::timeout(FIRST_MESSAGE, channel.receiver.recv()).await {
            Ok(Some(first)) => Ok(first),
            Ok(None) => Err(self.why_lost(address, peer).await),
            Err(_) => {
                peer.close(close::STALLED, "no first message");
                Err(ConnectError::Lost {
                    address: address.into(),
                    reason: format!("no message within {FIRST_MESSAGE:?}"),
                })
            }
        }
    }

    /// Waits until `peer`, whose channel has ended, has ended too, and says why as an error of
    /// ours.
    pub async fn why_lost(&self, address: &str, peer: &Peer) -> ConnectError {
        if tokio::time::timeout(LAST_WORDS, peer.closed())
            .await
            .is_err()
        {
            peer.close(close::PROTOCOL, "the channel has ended");
        }
        self.classify(address, &peer.connection.closed().await)
    }

    fn stranger(&self, address: &str, reason: String) -> ConnectError {
        ConnectError::Stranger {
            address: address.into(),
            origin: self.origin.clone(),
            reason,
        }
    }

    fn classify(&self, address: &str, error: &ConnectionError) -> ConnectError {
        let (address, origin, reason) = (address.to_owned(), self.origin.clone(), explain(error));
        match error {
            // A transport error is our own verdict on the peer; a close is the peer's verdict on
            // us.
            ConnectionError::TransportError(e) if is_alert(e.code) => ConnectError::Stranger {
                address,
                origin,
                reason,
            },
            ConnectionError::ConnectionClosed(c)
                if alert(c.error_code) == Some(NO_APPLICATION_PROTOCOL) =>
            {
                ConnectError::Protocol { address, reason }
            }
            ConnectionError::ConnectionClosed(c) if is_alert(c.error_code) => {
                ConnectError::Refused {
                    address,
                    origin,
                    reason,
                }
            }
            ConnectionError::ApplicationClosed(c)
                if c.error_code == VarInt::from_u32(close::REFUSED) =>
            {
                ConnectError::Refused {
                    address,
                    origin,
                    reason,
                }
            }
            ConnectionError::VersionMismatch => ConnectError::Protocol { address, reason },
            _ => ConnectError::Lost { address, reason },
        }
    }
}

/// Finds HOST:PORT, as a socket of this endpoint has to be told it.
pub(super) async fn resolve(
    endpoint: &quinn::Endpoint,
    address: &str,
) -> Result<SocketAddr, ConnectError> {
    let failed = |e| ConnectError::Resolve(address.into(), e);
    let mut found: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(failed)?
        .collect();
    found.sort_by_key(|a| a.is_ipv6());
    let first = *found
        .first()
        .ok_or_else(|| failed(std::io::Error::other("no address")))?;
    Ok(endpoint
        .local_addr()
        .map_or(first, |ours| as_seen_from(ours, first)))
}

/// An address as a socket that has the address `ours` has to be told it.
fn as_seen_from(ours: SocketAddr, address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if ours.is_ipv6() => {
            SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
        }
        other => other,
    }
}

fn server_config(tls: rustls::ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls)
        .expect("the provider has TLS13_AES_128_GCM_SHA256, which QUIC needs");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .migration(false)
        .max_incoming(MAX_HANDSHAKES)
        .transport_config(Arc::new(transport(None)));
    config
}

/// An endpoint that listens.
pub(super) fn server_endpoint(
    address: SocketAddr,
    credentials: &Credentials,
    tls: rustls::ServerConfig,
) -> Result<quinn::Endpoint, ListenError> {
    let config = server_config(tls);
    let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(
        ring::hmac::HMAC_SHA256,
        &credentials.derived_secret("mezcal reset key"),
    )));
    let cid = credentials.derived_secret("mezcal connection id key");
    let cid = u64::from_le_bytes([
        cid[0], cid[1], cid[2], cid[3], cid[4], cid[5], cid[6], cid[7],
    ]);
    endpoint_config
        .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(cid)));
    // Every agent of a restarted coordinator wants its reset at once.
    endpoint_config.min_reset_interval(Duration::from_millis(1));
    let bind = |source| ListenError::Bind { address, source };
    let socket = udp_socket(address).map_err(bind)?;
    quinn::Endpoint::new(
        endpoint_config,
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(bind)
}

/// A socket for whoever connects, to IPv4 and IPv6.
pub(super) fn udp_any() -> std::io::Result<std::net::UdpSocket> {
    let any6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    udp_socket(any6).or_else(|_| udp_socket(SocketAddr::from(([0, 0, 0, 0], 0))))
}

fn udp_socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel clamps without an error, so the answer is read back.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let got = socket.recv_buffer_size()?;
    if got < SOCKET_BUFFER {
        tracing::debug!(
            wanted = SOCKET_BUFFER,
            got,
            "UDP receive buffer is clamped by net.core.rmem_max; bursts may be lost"
        );
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

pub(super) fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut t = TransportConfig::default();
    t.max_idle_timeout(Some(
        IdleTimeout::try_from(IDLE_TIMEOUT).expect("20 s fit a VarInt"),
    ))
    .keep_alive_interval(keep_alive)
    .max_concurrent_bidi_streams(MAX_STREAMS.into())
    .max_concurrent_uni_streams(MAX_BULK_STREAMS.into())
    .stream_receive_window(STREAM_WINDOW.into())
    .receive_window(WINDOW.into())
    .send_window(u64::from(WINDOW))
    .send_fairness(false)
    .datagram_receive_buffer_size(None)
    .initial_rtt(INITIAL_RTT);
    t
}

/// The alert of a side that speaks none of the protocols that it is offered (ALPN, RFC 7301 §3.2).
pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;

/// The TLS alert in a QUIC crypto error code (RFC 9001 §4.8: 0x0100 + alert).
pub(super) fn alert(code: quinn_proto::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some(code as u8)
}

fn is_alert(code: quinn_proto::TransportErrorCode) -> bool {
    alert(code).is_some()
}

/// The end of a connection in words. Alert numbers are those of RFC 8446 §6.
pub(super) fn explain(error: &ConnectionError) -> String {
    let alert_text = |code| match alert(code)? {
        40 => Some("no common TLS parameters"),
        42 => Some("bad certificate"),
        43 => Some("unsupported certificate: its key usage does not fit the role"),
        44 => Some("certificate revoked"),
        45 => Some("certificate expired"),
        46 => Some("certificate not accepted"),
        48 => Some("unknown certificate authority: it is of another cluster"),
        116 => Some("a certificate is required"),
        NO_APPLICATION_PROTOCOL => Some("no common protocol version"),
        _ => None,
    };
    match error {
        ConnectionError::ApplicationClosed(c) => match std::str::from_utf8(&c.reason) {
            Ok("") | Err(_) => format!("closed by the peer (code {})", c.error_code),
            Ok(reason) => crate::model::escape::for_terminal(reason).into_owned(),
        },
        ConnectionError::ConnectionClosed(c) => {
            alert_text(c.error_code).map_or_else(|| c.to_string(), str::to_owned)
        }
        ConnectionError::TransportError(e) => e.reason.clone(),
        ConnectionError::TimedOut => format!("no packet for {} s", IDLE_TIMEOUT.as_secs()),
        ConnectionError::Reset => "the peer was restarted".into(),
        ConnectionError::LocallyClosed => "closed by this side".into(),
        ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_channel_holds_so_many_bytes_however_few_messages_they_are() {
        let (sender, mut receiver) = mpsc::channel(CHANNEL_DEPTH);
        let mut waiting = Waiting::default();
        let half = CHANNEL_BYTES / 2;
        for n in 0..2 {
            waiting.make_room(&sender, half).await;
            sender.send(n).await.expect("it is there");
        }
        let patience = Duration::from_millis(20);
        assert!(
            tokio::time::timeout(patience, waiting.make_room(&sender, 1))
                .await
                .is_err(),
            "those two are all that fits"
        );
        assert_eq!(receiver.recv().await, Some(0));
        waiting.make_room(&sender, 1).await;
        sender.send(2).await.expect("it is there");
        // One that is larger than all of it waits until it is alone.
        let large = tokio::spawn(async move {
            waiting.make_room(&sender, 2 * CHANNEL_BYTES).await;
            sender.send(3).await.expect("it is there");
        });
        for n in [1, 2] {
            tokio::task::yield_now().await;
            assert!(!large.is_finished());
            assert_eq!(receiver.recv().await, Some(n));
        }
        large.await.expect("it waits for nothing else");
        assert_eq!(receiver.recv().await, Some(3));
    }
}
