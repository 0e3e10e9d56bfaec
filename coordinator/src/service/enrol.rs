//! How hosts and users join: a port of its own, open only while there are tokens for them.

mod guesses;

use crate::exit::chain;
use crate::service::versions::common_version;
use crate::store::{Refusal, Registry, way_back};
use guesses::{Guesses, network};
use mezcal_certs::Authority;
use mezcal_common::model::identity::{Identity, Role, has_signed};
use mezcal_common::wire::endpoint::ListenError;
use mezcal_common::wire::enrol::{Applicant, EnrolListener, FromEnroller, ToEnroller, VERSIONS};
use mezcal_common::wire::tls::Credentials;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, watch};

/// Life of the certificates that it makes, unless coordinator.toml says otherwise.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Peers that may join at a time; others wait.
const AT_A_TIME: usize = 64;
/// How many of these may be from one network: if they begin and do not go on, others have places.
const OF_ONE_NETWORK: usize = AT_A_TIME / 4;
/// Time between two checks whether a certificate has expired that can be renewed.
const EXPIRY_LOOK: Duration = Duration::from_secs(10);
/// Time between two tries to open the port.
const RETRY: Duration = Duration::from_secs(10);
/// The same while the port may still be in use by the socket with which it was closed.
const RETRY_OWN: Duration = Duration::from_millis(50);
/// How long that socket stays at most: until its connections have drained, three times the probe
/// timeout (RFC 9000 §10.2).
const OWN: Duration = Duration::from_secs(5);

/// The hosts and users that may join or have joined, and the issuer of their certificates.
pub struct Enrolment {
    /// The list of tokens and certificates.
    pub registry: Registry,
    issuer: Option<Issuer>,
    guesses: Mutex<Guesses>,
}

/// The issuer of certificates.
pub struct Issuer {
    /// The issuer's key, or the root's.
    pub authority: Authority,
    /// SHA-256 of the root's public key.
    pub root: [u8; 32],
    /// Life of the certificates that it makes.
    pub life: Duration,
    /// The port on which agents and clients are served.
    pub port: u16,
}

impl Issuer {
    /// Makes a certificate for the key of a request, in PEM form.
    fn sign(&self, role: Role, name: &str, request: &[u8]) -> Result<String, String> {
        self.authority
            .sign(role, name, self.life, request)
            .map(|signed| signed.cert)
            .map_err(|e| chain(&e))
    }
}

impl Enrolment {
    /// Without an issuer nobody can join.
    pub fn new(registry: Registry, issuer: Option<Issuer>) -> Self {
        Self {
            registry,
            issuer,
            guesses: Mutex::default(),
        }
    }

    /// When the issuer's own certificate ends, in seconds since the Unix epoch.
    pub fn issuer_until(&self) -> Option<i64> {
        self.issuer.as_ref().map(|issuer| issuer.authority.until())
    }

    /// Makes one token for each name, `(name, token)`.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn create_tokens(
        &self,
        role: Role,
        names: &[String],
        ttl: Duration,
        replace: bool,
    ) -> Result<Vec<(String, String)>, String> {
        let issuer = self.issuer.as_ref().ok_or(
            "this coordinator has no issuer, so nobody can join: `mezcal certs issue issuer` makes one, and `issuer` in coordinator.toml names it",
        )?;
        let meant = match role {
            Role::Agent => self.registry.hosts_meant(names),
            Role::User | Role::Coordinator => names.iter().cloned().map(Ok).collect(),
        };
        let meant = names.iter().zip(meant).map(|(name, meant)| match meant {
            // A new host may have a full name of which a known host has the short name: only a host
            // that is replaced is known for sure.
            Ok(meant) if !replace && mezcal_common::model::hosts::short(name) == Some(&meant) => {
                Ok(name.clone())
            }
            meant => meant,
        });
        let names = &meant.collect::<Result<Vec<String>, String>>()?;
        for name in names {
            Identity::new(issuer.authority.cluster(), role, name)
                .map_err(|e| format!("{name:?}: {e}"))?;
        }
        let tokens = self
            .registry
            .create_tokens(issuer.root, role, names, ttl, replace)
            .map_err(|e| chain(&e))?;
        Ok(names
            .iter()
            .cloned()
            .zip(
                tokens
                    .iter()
                    .map(mezcal_common::model::token::Token::reveal),
            )
            .collect())
    }

    /// Makes another certificate for the holder of this one (DER), in PEM form.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn renew(&self, old: &[u8], holder: &Identity, request: &[u8]) -> Result<String, String> {
        let issuer = self
            .issuer
            .as_ref()
            .ok_or("this coordinator has no issuer: `mezcal certs issue` makes new certificates")?;
        self.registry
            .renew(old, holder, |role, name| issuer.sign(role, name, request))
            .map_err(|e| chain(&e))
    }

    /// Listens on `address` whenever there is a token, for ever, with the newest of these
    /// credentials.
    pub async fn run(
        self: Arc<Self>,
        address: SocketAddr,
        mut credentials: watch::Receiver<Arc<Credentials>>,
    ) {
        let mut changes = self.registry.changes();
        let mut closed = None::<Instant>;
        loop {
            changes.mark_unchanged();
            if self.open_for().is_none() {
                // A certificate that expires is not a change of the list.
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
                    self.serve(&listener, &mut changes, &mut credentials).await;
                    listener.close();
                    tracing::info!("nobody can join any more");
                    closed = Some(Instant::now());
                    continue;
                }
                Err(ListenError::Bind { source, .. })
                    if source.kind() == ErrorKind::AddrInUse
                        && closed.is_some_and(|at| at.elapsed() < OWN) =>
                {
                    RETRY_OWN
                }
                Err(e @ (ListenError::Bind { .. } | ListenError::Credentials(_))) => {
                    tracing::error!("nobody can join: {}", chain(&e));
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// For how long the port stays open.
    fn open_for(&self) -> Option<Duration> {
        let until = self.registry.alive_until().unwrap_or_else(|e| {
            tracing::error!("cannot read the tokens: {}", chain(&e));
            None
        });
        let Some(until) = until else {
            // For hosts and users who were away when their certificates expired.
            return self
                .registry
                .any_renewable()
                .unwrap_or(false)
                .then_some(EXPIRY_LOOK);
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Some(
            Duration::from_secs(until.max(0) as u64)
                .saturating_sub(now)
                .max(Duration::from_secs(1)),
        )
    }

    fn guesses(&self) -> std::sync::MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until there is no token any more and the last answers have left.
    async fn serve(
        self: &Arc<Self>,
        listener: &EnrolListener,
        changes: &mut watch::Receiver<u64>,
        credentials: &mut watch::Receiver<Arc<Credentials>>,
    ) {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut of_networks = HashMap::<IpAddr, Arc<Semaphore>>::new();
        loop {
            let open_for = self.open_for();
            let is_over = async {
                match open_for {
                    Some(open_for) => tokio::time::sleep(open_for).await,
                    None => listener.answered().await,
                }
                open_for.is_none()
            };
            tokio::select! {
                biased;
                // A token that was made in the last moment keeps the port open.
                changed = changes.changed() => if changed.is_err() { return },
                Ok(()) = credentials.changed() => {
                    let own = credentials.borrow_and_update().clone();
                    if let Err(e) = listener.present(&own) {
                        tracing::error!("the port for joining goes on with the old certificate: {}", chain(&e));
                    }
                }
                applicant = listener.accept() => {
                    let Some(applicant) = applicant else { return };
                    of_networks.retain(|_, places| places.available_permits() < OF_ONE_NETWORK);
                    let from_there = of_networks.entry(network(applicant.from.ip()));
                    let from_there = from_there.or_insert_with(|| Arc::new(Semaphore::new(OF_ONE_NETWORK))).clone();
                    let Ok(of_its_network) = from_there.try_acquire_owned() else {
                        // A peer that is not answered asks again, until there is a place.
                        applicant.ignore();
                        continue;
                    };
                    let (me, places) = (self.clone(), places.clone());
                    tokio::spawn(async move {
                        let Ok(_place) = places.acquire().await else { return };
                        me.hear(applicant).await;
                        drop(of_its_network);
                    });
                }
                is_over = is_over => if is_over { return },
            }
        }
    }

    async fn hear(self: Arc<Self>, applicant: Applicant) {
        let from = applicant.from;
        let served = applicant.serve(async |asked| {
            let me = self.clone();
            // The decision writes to the store, and waits until that is safe.
            let decided =
                tokio::task::spawn_blocking(move || me.decide(asked, from, Instant::now())).await;
            decided.unwrap_or_else(|e| FromEnroller::Refused {
                reason: e.to_string(),
            })
        });
        if let Err(why) = served.await {
            tracing::warn!(%from, "a connection to the port for joining has failed: {why}");
        }
    }

    fn renew_expired(
        &self,
        certificate: &[u8],
        request: &[u8],
        signature: &[u8],
    ) -> Result<String, Refusal> {
        let holder = Identity::from_der(certificate).map_err(|e| {
            Refusal::No(format!(
                "the certificate to renew is not a host's or user's: {e}"
            ))
        })?;
        if !has_signed(certificate, request, signature) {
            return Err(Refusal::No(format!(
                "the request is not signed with the key of the certificate of the {holder}: {}",
                way_back(&holder)
            )));
        }
        // The list has its key, so it was this cluster's certificate; its own dates do not matter
        // any more.
        self.registry.is_renewable(certificate, &holder)?;
        // The holder may never have come with this certificate, but this is the one that it has.
        self.registry.used(certificate)?;
        let cert = self
            .renew(certificate, &holder, request)
            .map_err(Refusal::No)?;
        tracing::info!("a new certificate for the {holder}, whose old one had expired");
        Ok(cert)
    }

    /// The answer. A network that has shown tokens which do not exist gets no answer about tokens
    /// for a while; about certificates it does.
    fn decide(&self, asked: ToEnroller, from: SocketAddr, now: Instant) -> FromEnroller {
        let (ToEnroller::Join { versions, .. } | ToEnroller::Renew { versions, .. }) = &asked;
        let refused = |reason: String| FromEnroller::Refused { reason };
        if let Err(reason) = common_version(*versions, VERSIONS) {
            return refused(reason);
        }
        let Some(issuer) = &self.issuer else {
            return refused("this coordinator has no issuer".into());
        };
        let joined = |cert: String| FromEnroller::Joined {
            cert,
            ca: issuer.authority.root().to_owned(),
            port: issuer.port,
        };
        let (token, secret, host, request) = match asked {
            ToEnroller::Join {
                token,
                secret,
                host,
                request,
                ..
            } => (token, secret, host, request),
            ToEnroller::Renew {
                certificate,
                request,
                signature,
                ..
            } => {
                return match self.renew_expired(&certificate, &request, &signature) {
                    Ok(cert) => joined(cert),
                    Err(e) => {
                        tracing::warn!(%from, "no new certificate for an expired one: {}", chain(&e));
                        refused(chain(&e))
                    }
                };
            }
        };
        if let Some(left) = self.guesses().wait(from.ip(), now) {
            let left = left.as_secs() + 1;
            return refused(format!(
                "tokens that do not exist were shown from this address: try again in {left} s"
            ));
        }
        match self
            .registry
            .join(token, secret, host.as_deref(), |role, name| {
                issuer.sign(role, name, &request)
            }) {
            Ok((role, name, cert)) => {
                tracing::info!(%from, role = role.as_str(), name, "joined");
                joined(cert)
            }
            Err(e) => {
                tracing::warn!(%from, token = mezcal_common::model::token::hex(&token), "may not join: {}", chain(&e));
                if matches!(e, Refusal::Unknown) && self.guesses().bad(from.ip(), now) {
                    tracing::error!(network = %network(from.ip()), "tokens are guessed from there; \
                        such requests are answered once a minute at most");
                }
                refused(chain(&e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn join(
        host: &str,
        token: &mezcal_common::model::token::Token,
        secret: [u8; 16],
    ) -> ToEnroller {
        let (_, request) = mezcal_certs::request().expect("a key");
        let (token, program) = (token.id, String::new());
        ToEnroller::Join {
            versions: VERSIONS,
            program,
            token,
            secret,
            host: Some(host.into()),
            request: request.into(),
        }
    }

    fn refusal(answer: FromEnroller) -> Option<String> {
        match answer {
            FromEnroller::Joined { .. } => None,
            FromEnroller::Refused { reason } => Some(reason),
        }
    }

    #[test]
    fn whoever_guesses_waits_and_others_join_and_renew_meanwhile() {
        let dir = tempfile::tempdir().expect("a directory");
        let (authority, _) = Authority::create("mezcal").expect("created");
        let expired = authority.issue(Role::Agent, "h9", 1).expect("issued");
        let store = Store::open(dir.path()).expect("a store");
        let issuer = Issuer {
            authority,
            root: [7; 32],
            life: LEAF_LIFE,
            port: 7433,
        };
        let me = Enrolment::new(store.registry(true).expect("a registry"), Some(issuer));
        let tokens = me
            .create_tokens(
                Role::Agent,
                &["h1".into(), "h2".into()],
                Duration::from_secs(3600),
                false,
            )
            .expect("made");
        let tokens: Vec<_> = tokens
            .iter()
            .map(|(_, token)| mezcal_common::model::token::Token::parse(token).expect("a token"))
            .collect();
        let address = |text: &str| SocketAddr::new(text.parse().expect("an address"), 1);
        let (bad, good, begin) = (address("192.0.2.1"), address("192.0.2.2"), Instant::now());
        let mut now = begin;
        for _ in 0..20 {
            let why = refusal(me.decide(join("h1", &tokens[0], [0; 16]), bad, now))
                .expect("there is no such token");
            assert!(why.contains("no such token"), "{why}");
            // Tried again at once, it is not even checked, right or wrong.
            let why = refusal(me.decide(join("h1", &tokens[0], tokens[0].secret), bad, now))
                .expect("not now");
            assert!(why.contains("try again in"), "{why}");
            now += Duration::from_secs(60);
        }
        assert!(now - begin > Duration::from_secs(600));
        let why = refusal(me.decide(join("h1", &tokens[0], [0; 16]), bad, now))
            .expect("there is no such token");
        assert!(why.contains("no such token"), "{why}");
        assert_eq!(
            refusal(me.decide(join("h1", &tokens[0], tokens[0].secret), good, now)),
            None,
            "elsewhere it is as good as ever"
        );
        // A certificate that has expired is checked, wherever it comes from, and the answer is
        // about that.
        let renew = |certificate: Vec<u8>, key: &str| {
            let (_, request) = mezcal_certs::request().expect("a key");
            let signature = mezcal_certs::sign(key, &request).expect("signed").into();
            let (certificate, request, program) =
                (certificate.into(), request.into(), String::new());
            let asked = ToEnroller::Renew {
                versions: VERSIONS,
                program,
                certificate,
                request,
                signature,
            };
            refusal(me.decide(asked, bad, now))
        };
        let certificate = mezcal_certs::der_of(&expired.cert).expect("a certificate");
        let (other, _) = mezcal_certs::request().expect("a key");
        let back = "`coordinator token create --host h9 --replace`";
        let why = renew(certificate.clone(), &other).expect("of another key");
        assert!(
            why.contains("not signed with the key of the certificate of the agent h9")
                && why.contains(back),
            "{why}"
        );
        let why = renew(vec![1, 2, 3], &expired.key).expect("no certificate");
        assert!(why.contains("not a host's or user's:"), "{why}");
        let why = renew(certificate.clone(), &expired.key).expect("unknown");
        assert!(
            why.contains("not on this coordinator's list") && why.contains(back),
            "{why}"
        );
        // A minute later they may join, too.
        assert_eq!(
            refusal(me.decide(
                join("h2", &tokens[1], tokens[1].secret),
                bad,
                now + Duration::from_secs(60)
            )),
            None
        );
    }
}
