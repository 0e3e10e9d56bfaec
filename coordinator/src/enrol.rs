//! Letting hosts and users join: a port of its own, open only while there are tokens for them.

use crate::exit::chain;
use crate::service::common_version;
use crate::store::{Refusal, Registry};
use mezcal_certs::Authority;
use mezcal_common::identity::{Identity, Role, has_signed};
use mezcal_common::wire::endpoint::ListenError;
use mezcal_common::wire::enrol::{Applicant, EnrolListener, FromEnroller, ToEnroller, VERSIONS};
use mezcal_common::wire::tls::Credentials;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, mpsc, watch};

/// Life of the certificates that it makes, unless coordinator.toml says otherwise.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Who joins at a time; others wait.
const AT_A_TIME: usize = 64;
/// How long an address is not heard after a token that does not exist.
const PENALTY: Duration = Duration::from_secs(1);
/// After so many of those the port closes, and for how long. A secret has 128 bits: this is against noise, and for the log.
const MAX_BAD: usize = 10;
const CLOSED: Duration = Duration::from_secs(60);
/// Between two looks at whether a certificate has expired that can be renewed.
const EXPIRY_LOOK: Duration = Duration::from_secs(10);
/// Between two tries to open the port.
const RETRY: Duration = Duration::from_secs(10);

/// Who may join and who has, and what makes their certificates.
pub struct Enrolment {
    /// Tokens and certificates.
    pub registry: Registry,
    issuer: Option<Issuer>,
}

/// What makes certificates.
pub struct Issuer {
    /// The issuer's key, or the root's.
    pub authority: Authority,
    /// SHA-256 of the root's public key.
    pub root: [u8; 32],
    /// Life of what it makes.
    pub life: Duration,
    /// Where agents and clients are served.
    pub port: u16,
}

impl Issuer {
    /// A certificate for the key of a request, in PEM form.
    fn sign(&self, role: Role, name: &str, request: &[u8]) -> Result<String, String> {
        self.authority.sign(role, name, self.life, request).map(|signed| signed.cert).map_err(|e| chain(&e))
    }
}

impl Enrolment {
    /// Without an issuer nobody can join.
    pub fn new(registry: Registry, issuer: Option<Issuer>) -> Self {
        Self { registry, issuer }
    }

    /// When the issuer's own certificate ends, in seconds since the Unix epoch.
    pub fn issuer_until(&self) -> Option<i64> {
        self.issuer.as_ref().map(|issuer| issuer.authority.until())
    }

    /// One token for each name, `(name, token)`.
    ///
    /// # Errors
    /// In words.
    pub fn create_tokens(
        &self,
        role: Role,
        names: &[String],
        ttl: Duration,
        replace: bool,
    ) -> Result<Vec<(String, String)>, String> {
        let issuer = self.issuer.as_ref().ok_or(
            "this coordinator has no issuer, so nobody can join: `certs issue issuer` makes one, and `issuer` in coordinator.toml names it",
        )?;
        for name in names {
            Identity::new(issuer.authority.cluster(), role, name).map_err(|e| format!("{name:?}: {e}"))?;
        }
        let tokens = self.registry.create_tokens(issuer.root, role, names, ttl, replace).map_err(|e| chain(&e))?;
        Ok(names.iter().cloned().zip(tokens.iter().map(mezcal_common::token::Token::reveal)).collect())
    }

    /// Another certificate for the holder of this one (DER), in PEM form.
    ///
    /// # Errors
    /// In words.
    pub fn renew(&self, old: &[u8], holder: &Identity, request: &[u8]) -> Result<String, String> {
        let issuer = self.issuer.as_ref().ok_or("this coordinator has no issuer: `certs issue` makes new certificates")?;
        self.registry.renew(old, holder, |role, name| issuer.sign(role, name, request)).map_err(|e| chain(&e))
    }

    /// Listens on `address` whenever there is a token, for ever, with the newest of these credentials.
    pub async fn run(self: Arc<Self>, address: SocketAddr, mut credentials: watch::Receiver<Arc<Credentials>>) {
        let mut changes = self.registry.changes();
        loop {
            changes.mark_unchanged();
            if self.open_for().is_none() {
                // A certificate that expires changes nothing here.
                let changed = tokio::time::timeout(EXPIRY_LOOK, changes.changed()).await;
                if changed.is_ok_and(|changed| changed.is_err()) {
                    return;
                }
                continue;
            }
            let own = credentials.borrow_and_update().clone();
            let pause = match EnrolListener::bind(address, &own) {
                Ok(listener) => {
                    tracing::info!(address = %listener.local_addr().unwrap_or(address), "hosts and users with tokens can join");
                    let pause = self.serve(&listener, &mut changes, &mut credentials).await;
                    listener.close().await;
                    tracing::info!("nobody can join any more");
                    pause
                }
                Err(e @ (ListenError::Bind { .. } | ListenError::Credentials(_))) => {
                    tracing::error!("nobody can join: {}", chain(&e));
                    Some(RETRY)
                }
            };
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// How long somebody can join.
    fn open_for(&self) -> Option<Duration> {
        let until = self.registry.alive_until().unwrap_or_else(|e| {
            tracing::error!("cannot read the tokens: {}", chain(&e));
            None
        });
        let Some(until) = until else {
            // For those who were away when their certificates expired.
            return self.registry.any_renewable().unwrap_or(false).then_some(EXPIRY_LOOK);
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(Duration::from_secs(until.max(0) as u64).saturating_sub(now).max(Duration::from_secs(1)))
    }

    /// Serves until there is no token any more; or gives back how long to be closed.
    async fn serve(
        self: &Arc<Self>,
        listener: &EnrolListener,
        changes: &mut watch::Receiver<u64>,
        credentials: &mut watch::Receiver<Arc<Credentials>>,
    ) -> Option<Duration> {
        let (bad, mut bad_tokens) = mpsc::channel(AT_A_TIME);
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let (mut count, mut penalties) = (0, HashMap::<IpAddr, Instant>::new());
        loop {
            let open_for = self.open_for()?;
            tokio::select! {
                applicant = listener.accept() => {
                    let applicant = applicant?;
                    penalties.retain(|_, until| *until > Instant::now());
                    if penalties.contains_key(&applicant.from.ip()) {
                        applicant.ignore();
                        continue;
                    }
                    let (me, places, bad) = (self.clone(), places.clone(), bad.clone());
                    tokio::spawn(async move {
                        let Ok(_place) = places.acquire().await else { return };
                        me.hear(applicant, bad).await;
                    });
                }
                Some(from) = bad_tokens.recv() => {
                    penalties.insert(from, Instant::now() + PENALTY);
                    count += 1;
                    if count >= MAX_BAD {
                        tracing::error!(%from, "{MAX_BAD} tokens were shown that do not exist; nobody can join for {CLOSED:?}");
                        return Some(CLOSED);
                    }
                }
                changed = changes.changed() => changed.ok()?,
                Ok(()) = credentials.changed() => return Some(Duration::ZERO),
                () = tokio::time::sleep(open_for) => {}
            }
        }
    }

    async fn hear(self: Arc<Self>, applicant: Applicant, bad: mpsc::Sender<IpAddr>) {
        let from = applicant.from;
        let served = applicant.serve(async |asked| {
            let me = self.clone();
            // It writes to the store, and waits until that is safe.
            let decided = tokio::task::spawn_blocking(move || me.decide(asked, from)).await;
            let (answer, unknown) = decided.unwrap_or_else(|e| (FromEnroller::Refused { reason: e.to_string() }, false));
            if unknown {
                let _ = bad.send(from.ip()).await;
            }
            answer
        });
        if let Err(why) = served.await {
            tracing::warn!(%from, "somebody who wants to join: {why}");
        }
    }

    fn renew_expired(&self, certificate: &[u8], request: &[u8], signature: &[u8]) -> Result<String, Refusal> {
        let holder = Identity::from_der(certificate).map_err(|_| Refusal::Unknown)?;
        if !has_signed(certificate, request, signature) {
            return Err(Refusal::Unknown);
        }
        // That it was the list's key says that it was this cluster's certificate; its own dates say nothing any more.
        self.registry.is_renewable(certificate, &holder)?;
        let cert = self.renew(certificate, &holder, request).map_err(Refusal::No)?;
        tracing::info!("a new certificate for the {holder}, whose old one had expired");
        Ok(cert)
    }

    /// The answer, and whether the token does not exist.
    fn decide(&self, asked: ToEnroller, from: SocketAddr) -> (FromEnroller, bool) {
        let (ToEnroller::Join { versions, .. } | ToEnroller::Renew { versions, .. }) = &asked;
        let refused = |reason: String| FromEnroller::Refused { reason };
        if let Err(reason) = common_version(*versions, VERSIONS) {
            return (refused(reason), false);
        }
        let Some(issuer) = &self.issuer else { return (refused("this coordinator has no issuer".into()), false) };
        let joined = |cert: String| FromEnroller::Joined { cert, ca: issuer.authority.root().to_owned(), port: issuer.port };
        let (token, secret, host, request) = match asked {
            ToEnroller::Join { token, secret, host, request, .. } => (token, secret, host, request),
            ToEnroller::Renew { certificate, request, signature, .. } => {
                return match self.renew_expired(&certificate, &request, &signature) {
                    Ok(cert) => (joined(cert), false),
                    Err(e) => {
                        tracing::warn!(%from, "no new certificate for an expired one: {}", chain(&e));
                        let unknown = matches!(e, Refusal::Unknown);
                        (refused(chain(&e)), unknown)
                    }
                };
            }
        };
        match self.registry.join(token, secret, host.as_deref(), |role, name| issuer.sign(role, name, &request)) {
            Ok((role, name, cert)) => {
                tracing::info!(%from, role = role.as_str(), name, "joined");
                (joined(cert), false)
            }
            Err(e) => {
                tracing::warn!(%from, token = mezcal_common::token::hex(&token), "may not join: {}", chain(&e));
                let unknown = matches!(e, Refusal::Unknown);
                (refused(chain(&e)), unknown)
            }
        }
    }
}
