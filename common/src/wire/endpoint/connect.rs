//! The connecting end: the addresses that are tried, the first message, and why a connection was
//! lost.

use super::channel::Channel;
use super::error::{ConnectError, NO_APPLICATION_PROTOCOL, alert, explain, is_alert};
use super::listen::peer_of;
use super::transport::{KEEP_ALIVE, transport, udp_any};
use super::{FIRST_MESSAGE, HANDSHAKE_TIMEOUT, LAST_WORDS, Peer, close};
use crate::model::identity::Identity;
use crate::wire::tls::Credentials;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, VarInt};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

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

    /// Connects, waiting `patience` for a first answer. The peer may not have judged our
    /// certificate yet when this returns: only its first message proves that it did.
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

    /// The first message of the peer at `address`, which proves that it accepts us.
    ///
    /// # Errors
    /// Why none comes.
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

    /// Waits until `peer`, whose channel has ended, has ended too, and returns the reason as a
    /// [`ConnectError`].
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
            // A transport error is our verdict on the peer; a close is the peer's verdict on us.
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

/// Resolves HOST:PORT to an address in the form that a socket of this endpoint needs.
pub(in crate::wire) async fn resolve(
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

/// An address in the form that a socket with the address `ours` needs.
pub(super) fn as_seen_from(ours: SocketAddr, address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if ours.is_ipv6() => {
            SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
        }
        other => other,
    }
}
