//! QUIC's settings: windows, timers, sockets.

use super::IDLE_TIMEOUT;
use super::error::ListenError;
use crate::wire::tls::Credentials;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, TransportConfig};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Interval of keep-alives, which the connecting side sends.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// First guess of the round trip: on a LAN a lost first packet is sent again after three times
/// this.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Streams a peer may open; memory is paid for each in advance.
const MAX_STREAMS: u32 = 16;

/// Streams of bulk bytes: two for each of the readers that an agent admits.
const MAX_BULK_STREAMS: u32 = 256;

/// Bytes in flight per stream (about two of the largest frames); below, per connection.
const STREAM_WINDOW: u32 = 2 << 20;

const WINDOW: u32 = 8 << 20;

/// Socket buffers asked of the kernel, which clamps them to net.core.{r,w}mem_max.
const SOCKET_BUFFER: usize = 4 << 20;

/// Handshakes that may be under way at a listener; beyond this half of them, addresses are
/// validated first (stateless retry).
pub(super) const MAX_HANDSHAKES: usize = 1024;

pub(in crate::wire) fn server_config(tls: rustls::ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls)
        .expect("the provider has TLS13_AES_128_GCM_SHA256, which QUIC needs");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .migration(false)
        .max_incoming(MAX_HANDSHAKES)
        .transport_config(Arc::new(transport(None)));
    config
}

/// An endpoint that accepts connections.
pub(in crate::wire) fn server_endpoint(
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
    // All agents of a restarted coordinator need their reset at once.
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

/// A socket for connecting, over IPv4 and IPv6.
pub(in crate::wire) fn udp_any() -> std::io::Result<std::net::UdpSocket> {
    let any6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    udp_socket(any6).or_else(|_| udp_socket(SocketAddr::from(([0, 0, 0, 0], 0))))
}

pub(super) fn udp_socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel clamps without an error, so the size is read back.
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

pub(in crate::wire) fn transport(keep_alive: Option<Duration>) -> TransportConfig {
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
