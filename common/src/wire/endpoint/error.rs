//! Why there is no connection, in words that name the other end, and whether waiting helps; and why
//! one has ended.

use super::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT};
use crate::model::identity::IdentityError;
use crate::wire::tls::CredentialsError;
use quinn::ConnectionError;
use std::net::SocketAddr;

/// Why there is no connection. Messages name the address and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("cannot resolve {0:?}; give HOST:PORT")]
    Resolve(String, #[source] std::io::Error),
    /// The socket cannot be made.
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::io::Error),
    /// Our own credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No peer answers.
    #[error("no answer from {0}; is a coordinator listening there, and does UDP get through?")]
    NoAnswer(String),
    /// The peer is of another cluster, or not a coordinator.
    #[error(
        "the coordinator at {address} is not of our cluster: its certificate does not descend from {origin}/ca.pem ({reason})"
    )]
    Stranger {
        /// The address.
        address: String,
        /// Our credentials' directory.
        origin: String,
        /// The message of TLS.
        reason: String,
    },
    /// The peer refuses our certificate or our request.
    #[error("the coordinator at {address} refused the certificate in {origin}: {reason}")]
    Refused {
        /// The address.
        address: String,
        /// Our credentials' directory.
        origin: String,
        /// The peer's message.
        reason: String,
    },
    /// The peer speaks other protocols.
    #[error(
        "the peer at {address} speaks none of our protocol versions ({reason}); the older of the \
         two sides needs an upgrade"
    )]
    Protocol {
        /// The address.
        address: String,
        /// The message of TLS.
        reason: String,
    },
    /// No enrolment port answers.
    #[error(
        "nobody answers at {0}: a coordinator lets hosts and users join only while it has tokens for them (`coordinator token list`); does UDP get through?"
    )]
    NotEnrolling(String),
    /// The address serves members only.
    #[error(
        "nobody can join at {address}: that port is for hosts and users who have joined already; \
         joining uses port {port}, unless `enrol` in the coordinator's coordinator.toml names \
         another one"
    )]
    ForMembers {
        /// The address.
        address: String,
        /// The default port for joining.
        port: u16,
    },
    /// The coordinator is not the one that a token is for.
    #[error(
        "the coordinator at {address} is not the one that this token is for ({reason}); nothing was sent to it"
    )]
    Unpinned {
        /// The address.
        address: String,
        /// The message of TLS.
        reason: String,
    },
    /// We refuse this coordinator.
    #[error("the coordinator at {address} is not accepted: {why}")]
    Unfit {
        /// The address.
        address: String,
        /// The reason and the remedy.
        why: String,
    },
    /// The connection existed and ended.
    #[error("connection to {address} lost: {reason}")]
    Lost {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
}

impl ConnectError {
    /// Whether waiting does not help, because a person has to change something first.
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
    /// The address is in use, not on this host, or privileged.
    #[error("cannot listen on udp {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// Our own credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Why an incoming connection failed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// An error of TLS or the transport.
    #[error("handshake failed: {}", explain(.0))]
    Handshake(#[from] ConnectionError),
    /// The peer gave up waiting; it will try again.
    #[error("the peer gave up during the handshake")]
    Abandoned,
    /// The handshake took too long.
    #[error("handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    Slow,
    /// A certificate below the right root that has no usable identity.
    #[error("the peer's certificate gives no identity")]
    Identity(#[from] IdentityError),
}

/// The alert of a side that speaks none of the offered protocols (ALPN, RFC 7301 §3.2).
pub(in crate::wire) const NO_APPLICATION_PROTOCOL: u8 = 120;

/// The TLS alert in a QUIC crypto error code (RFC 9001 §4.8: 0x0100 + alert).
pub(in crate::wire) fn alert(code: quinn_proto::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some(code as u8)
}

pub(super) fn is_alert(code: quinn_proto::TransportErrorCode) -> bool {
    alert(code).is_some()
}

/// The reason of a connection's end in words. Alert numbers are those of RFC 8446 §6.
pub(in crate::wire) fn explain(error: &ConnectionError) -> String {
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
