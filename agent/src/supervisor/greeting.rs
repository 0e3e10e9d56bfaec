//! Whether the coordinator answers and takes a certificate: a connection that says nothing, and
//! leaves.

use mezcal_common::message::agent::ALPN;
use mezcal_common::model::escape::chain;
use mezcal_common::wire::endpoint::{ConnectError, Connector, close};
use mezcal_common::wire::tls::Credentials;
use std::time::Duration;

/// How long the coordinator may take to answer, and to say that it does not want us.
const PATIENCE: Duration = Duration::from_secs(5);
const VERDICT: Duration = Duration::from_millis(500);

/// The way to a coordinator that takes the certificate.
pub(crate) struct Path {
    pub(crate) round_trip: Duration,
    /// The size in bytes of the datagrams that get through.
    pub(crate) datagram: u16,
}

/// The reasons why the greeting has failed, each with a text.
#[derive(Debug)]
pub(crate) enum Greeting {
    /// The coordinator answers, and does not take the certificate.
    Refused(String),
    /// The other side is not our coordinator, or speaks another protocol.
    Other(String),
    /// The coordinator does not answer.
    Lost(String),
}

/// Connects to `HOST:PORT`.
pub(crate) fn greet(address: &str, credentials: &Credentials) -> Result<Path, Greeting> {
    let judge = |e: ConnectError| match e {
        ConnectError::Refused { .. } => Greeting::Refused(chain(&e)),
        e if e.needs_a_person() => Greeting::Other(chain(&e)),
        e => Greeting::Lost(chain(&e)),
    };
    let runtime = mezcal_common::system::runtime::start(None)
        .map_err(|e| Greeting::Lost(format!("{e}: raise that limit")))?;
    runtime.block_on(async {
        let connector =
            Connector::new(credentials, ALPN).map_err(|e| Greeting::Other(chain(&e)))?;
        let peer = connector.connect(address, PATIENCE).await.map_err(judge)?;
        // A handshake that is complete here may still be refused there.
        if tokio::time::timeout(VERDICT, peer.closed()).await.is_ok() {
            return Err(judge(connector.why_lost(address, &peer).await));
        }
        let (round_trip, datagram) = peer.path();
        peer.leave(close::DONE, "").await;
        Ok(Path {
            round_trip,
            datagram,
        })
    })
}
