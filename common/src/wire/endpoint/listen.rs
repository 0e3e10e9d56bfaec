//! The accepting end: handshakes, and the peers' identities.

use super::error::{AcceptError, ListenError};
use super::transport::{MAX_HANDSHAKES, server_config, server_endpoint};
use super::{HANDSHAKE_TIMEOUT, Peer, close};
use crate::model::identity::{Identity, IdentityError};
use crate::wire::tls::{Credentials, CredentialsError};
use quinn::crypto::rustls::HandshakeData;
use quinn::{ConnectionError, TransportErrorCode, VarInt};
use std::net::SocketAddr;
use std::time::Duration;

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

    /// Presents these credentials in handshakes from now on.
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
    /// Those of getsockname(2).
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
                // Unvalidated addresses under load have to prove that they can receive (RFC 9000
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
    /// Its address.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// Completes TLS and reads the peer's identity.
    ///
    /// # Errors
    /// [`AcceptError`]; the peer has been told the reason.
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

pub(super) fn peer_of(connection: quinn::Connection) -> Result<Peer, IdentityError> {
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
