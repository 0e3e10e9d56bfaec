//! The way to a running coordinator.

pub(crate) mod ask;
pub(crate) mod beside;
pub(crate) mod cluster;
pub(crate) mod context;
pub mod embedded;
pub(crate) mod names;
pub mod note;
pub mod profile;
pub(crate) mod said;
pub(crate) mod signals;
pub mod submit;

use crate::client::profile::ProfileArgs;
use crate::exit::{Exit, chain};
use crate::service::ClientPort;
use mezcal_certs::renewal::{ALONE, Renewal};
use mezcal_common::message::client::{ALPN, ToClient, ToService, VERSIONS};
use mezcal_common::model::clock::WallTime;
use mezcal_common::model::duration::{format_duration, parse_duration};
use mezcal_common::model::identity::Role;
use mezcal_common::wire::bulk::{BulkReceiver, CutShort};
use mezcal_common::wire::endpoint::{Connector, Peer, close};
use mezcal_common::wire::enrol;
use mezcal_common::wire::tls::{Credentials, CredentialsError, first_certificate};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait for a first answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause between two tries to reach a lost coordinator; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Shortest time between two renewals.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// What to do about a lost connection.
#[derive(Clone, Debug, clap::Args)]
pub struct ReconnectArgs {
    /// How long to try to reach a lost coordinator again
    #[arg(help_heading = "Cluster", long, value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
    pub reconnect: Duration,
}

/// Connects to the profile's coordinator, has `talk` with it, and leaves.
///
/// # Errors
/// Exit 2 without a profile, 3 without a coordinator, and those of `talk`.
pub fn converse<T>(
    profile: &ProfileArgs,
    talk: impl AsyncFnOnce(&mut Remote) -> Result<T, Exit>,
) -> Result<T, Exit> {
    converse_for(Duration::MAX, profile, talk)
}

/// Like [`converse`], for a limited time.
///
/// # Errors
/// Exit 3 when the time is over, too.
pub fn converse_for<T>(
    limit: Duration,
    profile: &ProfileArgs,
    talk: impl AsyncFnOnce(&mut Remote) -> Result<T, Exit>,
) -> Result<T, Exit> {
    let (address, identity) = profile.remote()?;
    let runtime = mezcal_common::system::runtime::start(None).map_err(Exit::usage)?;
    let talking = async {
        let mut remote = Remote::connect(&address, &identity).await?;
        let result = talk(&mut remote).await?;
        remote.leave().await;
        Ok(result)
    };
    let silent = |_| {
        Exit::unreachable(format!(
            "the coordinator at {address} did not answer within {}",
            format_duration(limit)
        ))
    };
    runtime.block_on(async { tokio::time::timeout(limit, talking).await.map_err(silent)? })
}

/// Renews a user's certificate when half of its life is over, for a client that stays longer than
/// that. Never returns.
pub async fn keep_certificate(address: String, identity: PathBuf) {
    loop {
        let renewal = certificate_in(&identity)
            .map(|certificate| Renewal::of(&certificate, ALONE))
            .unwrap_or_default();
        tokio::time::sleep(renewal.due_in(WallTime::now()).max(RENEWAL_PAUSE)).await;
        match Remote::connect(&address, &identity).await {
            // Leaving renews the certificate.
            Ok(remote) => remote.leave().await,
            Err(e) => tracing::debug!("the certificate is not renewed: {}", e.message),
        }
    }
}

fn certificate_in(identity: &Path) -> Option<Vec<u8>> {
    std::fs::read(identity.join("cert.pem"))
        .ok()
        .and_then(|pem| first_certificate(&pem))
}

/// A connection to a running coordinator.
pub struct Remote {
    /// Requests and answers.
    pub port: ClientPort,
    /// `HOST:PORT` of the coordinator.
    pub address: String,
    /// The version of the protocol that it speaks.
    pub version: u16,
    connector: Connector,
    peer: Peer,
    certificate: Vec<u8>,
    renewal: Renewal,
    identity: PathBuf,
}

impl Remote {
    /// Connects with a user's credentials and waits for the welcome.
    ///
    /// # Errors
    /// Exit 3 saying what is wrong and where.
    pub async fn connect(address: &str, identity: &Path) -> Result<Self, Exit> {
        let credentials = match Credentials::load(identity, Role::User) {
            Err(e @ CredentialsError::Validity { .. }) => {
                // The key of a certificate that ended not long ago is enough to get another one.
                let enrol = format!(
                    "{}:{}",
                    address.rsplit_once(':').map_or(address, |(host, _)| host),
                    enrol::PORT
                );
                let why = |more: String| {
                    Exit::unreachable(format!("{}; it is not renewed: {more}", chain(&e)))
                };
                let renewing = mezcal_certs::renew_expired(&enrol, identity, Role::User);
                renewing.await.map_err(|more| why(chain(&more)))?;
                Credentials::load(identity, Role::User)
            }
            loaded => loaded,
        };
        let credentials = credentials.map_err(|e| Exit::unreachable(chain(&e)))?;
        let connector =
            Connector::new(&credentials, ALPN).map_err(|e| Exit::unreachable(chain(&e)))?;
        let peer = connector
            .connect(address, PATIENCE)
            .await
            .map_err(|e| Exit::unreachable(chain(&e)))?;
        let mut channel = peer
            .open::<ToService, ToClient>()
            .await
            .map_err(Exit::unreachable)?;
        let hello = ToService::Hello {
            versions: VERSIONS,
            program: mezcal_common::VERSION.into(),
        };
        let _ = channel.sender.send(hello).await;
        let first = connector.first_message(address, &peer, &mut channel).await;
        let ToClient::Welcome { version, .. } = first.map_err(|e| Exit::unreachable(chain(&e)))?
        else {
            peer.close(close::PROTOCOL, "the first message must be a welcome");
            return Err(Exit::unreachable(chain(
                &connector.why_lost(address, &peer).await,
            )));
        };
        Ok(Self {
            port: ClientPort {
                requests: channel.sender,
                answers: channel.receiver,
            },
            address: address.into(),
            version,
            connector,
            peer,
            certificate: credentials.certificate().to_vec(),
            renewal: Renewal::of(credentials.certificate(), ALONE),
            identity: identity.into(),
        })
    }

    /// Sends a request and skips answers until `pick` takes one.
    ///
    /// # Errors
    /// Exit 3 when the connection ends before that.
    pub async fn ask<T>(
        &mut self,
        request: ToService,
        pick: impl Fn(ToClient) -> Option<T>,
    ) -> Result<T, Exit> {
        let _ = self.port.requests.send(request).await;
        self.next(pick).await
    }

    /// Skips answers until `pick` takes one.
    ///
    /// # Errors
    /// Exit 3 when the connection ends before that.
    pub async fn next<T>(&mut self, pick: impl Fn(ToClient) -> Option<T>) -> Result<T, Exit> {
        while let Some(said) = self.port.answers.recv().await {
            if let Some(answer) = pick(said) {
                return Ok(answer);
            }
        }
        Err(Exit::unreachable(self.why_lost().await))
    }

    /// The next stream of bulk bytes, with its header.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn bulk<H: serde::de::DeserializeOwned>(
        &self,
    ) -> Result<(H, BulkReceiver), CutShort> {
        self.peer.accept_bulk().await
    }

    /// Whether another try is useless: the coordinator refuses us.
    pub fn is_lost_for_good(&self) -> bool {
        self.peer.was_refused() && !self.has_other_certificate()
    }

    /// Tries for as long as `patience` to reach a lost coordinator. False if all tries failed.
    /// Cancel-safe.
    pub async fn reach_again(&mut self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        while Instant::now() < give_up {
            match Remote::connect(&self.address, &self.identity).await {
                Ok(new) => {
                    *self = new;
                    return true;
                }
                // A restart takes a while, and other faults may pass, too.
                Err(e) => tracing::debug!("{}", e.message),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        false
    }

    /// Whether the identity has a newer certificate than this connection, or this connection's has
    /// expired, so that it can be renewed.
    fn has_other_certificate(&self) -> bool {
        certificate_in(&self.identity).is_some_and(|now| now != self.certificate)
            || self.renewal.is_over(WallTime::now())
    }

    /// Asks for another certificate, if it is time for that, and puts it in place.
    async fn renew_if_due(&mut self) -> Result<(), String> {
        if !self.renewal.is_due(WallTime::now()) {
            return Ok(());
        }
        mezcal_certs::can_replace(&self.identity).map_err(|e| chain(&e))?;
        let (key, csr) = mezcal_certs::request().map_err(|e| chain(&e))?;
        let cert = self.ask_for_certificate(csr).await?;
        mezcal_certs::replace(&self.identity, Role::User, cert, key).map_err(|e| chain(&e))
    }

    async fn ask_for_certificate(&mut self, csr: Vec<u8>) -> Result<String, String> {
        let pick = |said| match said {
            ToClient::Renewed { cert, .. } => Some(cert),
            _ => None,
        };
        let (request, csr) = (1, csr.into());
        let asked = self.ask(ToService::Renew { request, csr }, pick).await;
        asked.map_err(|e| e.message)?
    }

    /// Why the connection ended.
    pub async fn why_lost(&self) -> String {
        chain(&self.connector.why_lost(&self.address, &self.peer).await)
    }

    /// Leaves: we have received the last message, so we close. Renews the certificate first if half
    /// of its life is over.
    pub async fn leave(mut self) {
        if let Ok(Err(why)) = tokio::time::timeout(PATIENCE, self.renew_if_due()).await {
            tracing::debug!("the certificate is not renewed: {why}");
        }
        self.peer.leave(close::DONE, "").await;
    }
}
