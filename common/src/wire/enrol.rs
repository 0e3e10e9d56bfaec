//! Between a joining host or user and the coordinator: `mezcal-enrol/1`, on a port of its own. One
//! request, one answer.
//!
//! An applicant has no certificate yet, and knows the coordinator by the pin in the token: the
//! handshake ends in an error, and no secret is sent, unless the coordinator's certificate descends
//! from the root with that key.

use super::endpoint::{
    Channel, ConnectError, ListenError, NO_APPLICATION_PROTOCOL, alert, explain, resolve,
    server_config, server_endpoint, transport, udp_any,
};
use super::tls::{Credentials, CredentialsError, pinned_client_config};
use crate::model::identity::Identity;
use crate::model::token::Token;
use bytes::Bytes;
use quinn::VarInt;
use quinn::crypto::rustls::QuicClientConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The protocol's name in TLS (ALPN).
pub const ALPN: &[u8] = b"mezcal-enrol/1";
/// The default port.
pub const PORT: u16 = 7434;
/// The minor versions that this build speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 1);
/// How long one side waits for the other's message.
const PATIENCE: Duration = Duration::from_secs(10);

/// From the applicant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEnroller {
    /// Requests a certificate with a token.
    Join {
        /// Range of minor protocol versions.
        versions: (u16, u16),
        /// Version of the program.
        program: String,
        /// The token's id.
        token: [u8; 4],
        /// The token's secret.
        secret: [u8; 16],
        /// The name that a host gives itself; `None` for users. The token's name counts, and a host
        /// with another name is told so.
        host: Option<String>,
        /// A certificate signing request (PKCS #10, DER). Only its key counts.
        request: Bytes,
    },
    /// Requests another certificate in the place of an expired one whose key is still there.
    Renew {
        /// Range of minor protocol versions.
        versions: (u16, u16),
        /// Version of the program.
        program: String,
        /// The old certificate (DER).
        certificate: Bytes,
        /// A certificate signing request for a new key.
        request: Bytes,
        /// Signature of the request by the old key.
        signature: Bytes,
    },
}

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromEnroller {
    /// The applicant has joined.
    Joined {
        /// The certificate and those between it and the root, in PEM form.
        cert: String,
        /// The root, in PEM form.
        ca: String,
        /// The coordinator's port for agents and clients, at the same address.
        port: u16,
    },
    /// The applicant is refused.
    Refused {
        /// The reason, for people.
        reason: String,
    },
}

/// Accepts applicants.
pub struct EnrolListener {
    endpoint: quinn::Endpoint,
}

impl EnrolListener {
    /// Listens with a coordinator's credentials.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(address: SocketAddr, credentials: &Credentials) -> Result<Self, ListenError> {
        Ok(Self {
            endpoint: server_endpoint(address, credentials, credentials.enrol_config(ALPN)?)?,
        })
    }

    /// The address in use.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next applicant, with a proven address; `None` after the end.
    pub async fn accept(&self) -> Option<Applicant> {
        loop {
            let incoming = self.endpoint.accept().await?;
            // There is no hurry here: every address has to prove that it can receive (RFC 9000
            // §8.1.2).
            if incoming.may_retry() && !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            return Some(Applicant {
                from: incoming.remote_address(),
                incoming,
            });
        }
    }

    /// Presents these credentials in handshakes from now on.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub fn present(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        let config = server_config(credentials.enrol_config(ALPN)?);
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// Waits until the last answers have left, for a second at most.
    pub async fn answered(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    /// Closes the port. The kernel may have its socket for some moments more.
    pub fn close(self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

/// A host or user who requests a certificate.
pub struct Applicant {
    /// Its address.
    pub from: SocketAddr,
    incoming: quinn::Incoming,
}

impl Applicant {
    /// Drops the connection without an answer.
    pub fn ignore(self) {
        self.incoming.ignore();
    }

    /// Reads the request and sends the answer of `decide`.
    ///
    /// # Errors
    /// Why the connection has ended, in words.
    pub async fn serve(
        self,
        decide: impl AsyncFnOnce(ToEnroller) -> FromEnroller,
    ) -> Result<(), String> {
        let late = |_| "too slow".to_owned();
        let connection = tokio::time::timeout(PATIENCE, self.incoming)
            .await
            .map_err(late)?
            .map_err(|e| explain(&e))?;
        let (send, receive) = tokio::time::timeout(PATIENCE, connection.accept_bi())
            .await
            .map_err(late)?
            .map_err(|e| explain(&e))?;
        let mut channel =
            Channel::<FromEnroller, ToEnroller>::start(send, receive, connection.clone());
        let asked = tokio::time::timeout(PATIENCE, channel.receiver.recv())
            .await
            .map_err(late)?;
        let Some(asked) = asked else {
            return Err(explain(&connection.closed().await));
        };
        let _ = channel.sender.send(decide(asked).await).await;
        // The applicant closes when it has read the answer.
        let _ = tokio::time::timeout(PATIENCE, connection.closed()).await;
        Ok(())
    }
}

/// Sends a token to the coordinator at `address`.
///
/// # Errors
/// [`ConnectError::Unpinned`] before anything is sent, if the token is for another coordinator; the
/// others of [`ConnectError`].
pub async fn join(
    address: &str,
    token: &Token,
    host: Option<String>,
    request: Vec<u8>,
) -> Result<FromEnroller, ConnectError> {
    let ask = ToEnroller::Join {
        versions: VERSIONS,
        program: crate::VERSION.into(),
        token: token.id,
        secret: token.secret,
        host,
        request: request.into(),
    };
    converse(address, token.root, ask).await
}

/// Sends to the coordinator at `address`, whose root has this key hash, a certificate that has
/// expired, and proof that its key is there.
///
/// # Errors
/// Those of [`join`].
pub async fn renew(
    address: &str,
    root: [u8; 32],
    certificate: Vec<u8>,
    request: Vec<u8>,
    signature: Vec<u8>,
) -> Result<FromEnroller, ConnectError> {
    let ask = ToEnroller::Renew {
        versions: VERSIONS,
        program: crate::VERSION.into(),
        certificate: certificate.into(),
        request: request.into(),
        signature: signature.into(),
    };
    converse(address, root, ask).await
}

async fn converse(
    address: &str,
    root: [u8; 32],
    ask: ToEnroller,
) -> Result<FromEnroller, ConnectError> {
    let crypto = QuicClientConfig::try_from(pinned_client_config(root, ALPN))
        .expect("the provider has TLS13_AES_128_GCM_SHA256, which QUIC needs");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(None)));
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        None,
        udp_any().map_err(ConnectError::Socket)?,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(ConnectError::Socket)?;
    let target = resolve(&endpoint, address).await?;
    let lost = |reason: String| ConnectError::Lost {
        address: address.into(),
        reason,
    };
    // The verifier looks for the name that belongs to the pinned root.
    let connecting = endpoint
        .connect_with(config, target, &Identity::coordinator_dns("any"))
        .map_err(|e| lost(e.to_string()))?;
    let connection = match tokio::time::timeout(PATIENCE, connecting).await {
        Err(_) | Ok(Err(quinn::ConnectionError::TimedOut)) => {
            return Err(ConnectError::NotEnrolling(address.into()));
        }
        Ok(Err(quinn::ConnectionError::TransportError(e))) if u64::from(e.code) & 0x100 != 0 => {
            return Err(ConnectError::Unpinned {
                address: address.into(),
                reason: e.reason,
            });
        }
        // The coordinator's other port, which serves members.
        Ok(Err(quinn::ConnectionError::ConnectionClosed(c)))
            if alert(c.error_code) == Some(NO_APPLICATION_PROTOCOL) =>
        {
            return Err(ConnectError::ForMembers {
                address: address.into(),
                port: PORT,
            });
        }
        Ok(Err(e)) => return Err(lost(explain(&e))),
        Ok(Ok(connection)) => connection,
    };
    let (send, receive) = connection.open_bi().await.map_err(|e| lost(explain(&e)))?;
    let mut channel = Channel::<ToEnroller, FromEnroller>::start(send, receive, connection.clone());
    let _ = channel.sender.send(ask).await;
    let answer = tokio::time::timeout(PATIENCE, channel.receiver.recv())
        .await
        .map_err(|_| lost("no answer in time".into()))?;
    let answer = match answer {
        Some(answer) => answer,
        None => return Err(lost(explain(&connection.closed().await))),
    };
    connection.close(VarInt::from_u32(0), b"");
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    Ok(answer)
}
