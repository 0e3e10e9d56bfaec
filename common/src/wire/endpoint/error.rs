//! Why there is no connection, in words that name the other end, and whether waiting helps.

use super::listen::HANDSHAKE_TIMEOUT;
use super::transport::explain;
use crate::model::identity::IdentityError;
use crate::wire::tls::CredentialsError;
use quinn::ConnectionError;
use std::net::SocketAddr;

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
