//! The certificate of a running agent: another one in its place, and a new one for one that has
//! expired.

use crate::config::AgentConfig;
use crate::supervisor::renewal::{self, now};
use mezcal_certs::renewal::{Effect, Event, Renewal};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::escape::chain;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::system::service_manager;
use mezcal_common::wire::tls::{Credentials, CredentialsError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time between two looks at whether somebody has put another certificate in place.
const LOOK: Duration = Duration::from_secs(2);
/// A service manager hears this often that an agent waits for its certificate.
const ALIVE: Duration = Duration::from_secs(5);

/// The facts that tell one certificate file from another: inode, and seconds and nanoseconds of its
/// last change.
type Stamp = Option<(u64, i64, i64)>;

/// The certificate that is in use, and the files that it is from.
pub(super) struct Certificate {
    files: PathBuf,
    credentials: Credentials,
    renewal: Renewal,
    /// The stamp of the files that were looked at last, whatever came of that: files that are put
    /// there while the agent sees to something else count as new.
    seen: Stamp,
}

impl Certificate {
    /// Loads the certificate. One that has expired is renewed first, for as long as that takes.
    pub(super) async fn load(config: &AgentConfig) -> anyhow::Result<Self> {
        let files = config.identity.clone();
        let mut seen = stamp(&files);
        let credentials = match Credentials::load(&files, Role::Agent) {
            Err(CredentialsError::Validity { .. }) => {
                let new = renewed(config, &mut Renewal::default(), None).await?;
                seen = stamp(&files);
                new
            }
            loaded => loaded?,
        };
        Ok(Self {
            renewal: renewal::of(credentials.certificate()),
            files,
            credentials,
            seen,
        })
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The schedule of the certificate's renewal from here on.
    pub(super) fn renewal(&self) -> Renewal {
        self.renewal.clone()
    }

    /// Completes when the files are others: somebody has let the host join again.
    pub(super) async fn replaced(&self) {
        other_certificate(&self.files, self.seen).await;
    }

    /// Takes the certificate that somebody has put in place. False: nobody has, or it cannot be
    /// used.
    pub(super) fn take_replaced(&mut self) -> bool {
        let stamp = stamp(&self.files);
        if stamp == self.seen {
            return false;
        }
        self.seen = stamp;
        let new = put_in_place(&self.files, Some(self.credentials.identity()));
        let taken = new.is_some();
        if let Some(new) = new {
            self.is_now(new);
        }
        taken
    }

    /// The certificate has expired: tries to get another one, until there is one.
    pub(super) async fn renew(&mut self, config: &AgentConfig) -> anyhow::Result<()> {
        let of = self.credentials.identity();
        let new = renewed(config, &mut self.renewal, Some(of)).await?;
        self.seen = stamp(&self.files);
        self.is_now(new);
        Ok(())
    }

    /// Puts another certificate in its place, if it can be used.
    pub(super) fn install(&mut self, cert: String, key: String) {
        // The new certificate is tried before it takes the place of one that works.
        let renewed = mezcal_certs::replace(&self.files, Role::Agent, cert, key);
        self.seen = stamp(&self.files);
        match renewed.and_then(|()| Ok(Credentials::load(&self.files, Role::Agent)?)) {
            Ok(new) => {
                self.is_now(new);
                tracing::info!("a new certificate is in use");
            }
            Err(e) => {
                tracing::error!("the new certificate is not used: {}", chain(&e));
                self.renewal.handle(Event::Useless, now());
            }
        }
    }

    fn is_now(&mut self, credentials: Credentials) {
        self.renewal = renewal::of(credentials.certificate());
        self.credentials = credentials;
    }
}

fn stamp(files: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(files.join("cert.pem"))
        .ok()
        .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

async fn other_certificate(files: &Path, known: Stamp) {
    while stamp(files) == known {
        tokio::time::sleep(LOOK).await;
    }
}

/// Has an expired certificate renewed: the key says which host this is. Tries for as long as it
/// takes, or until somebody has put another certificate in place, `of` the same host if that is
/// known.
async fn renewed(
    config: &AgentConfig,
    renewal: &mut Renewal,
    of: Option<&Identity>,
) -> anyhow::Result<Credentials> {
    let (address, files) = (config.enrol(), &config.identity);
    renewal.handle(Event::Expired, now());
    loop {
        let tried = stamp(files);
        while let Some(effect) = renewal.poll_effect() {
            match effect {
                Effect::AskByKey => {
                    match mezcal_certs::renew_expired(&address, files, Role::Agent).await {
                        Ok(()) => {
                            tracing::info!("the certificate had expired; a new one is in use");
                            return Ok(Credentials::load(files, Role::Agent)?);
                        }
                        Err(e) => {
                            let (why, needs_a_person) = (chain(&e), e.needs_a_person());
                            let failed = Event::Failed {
                                why,
                                needs_a_person,
                            };
                            renewal.handle(failed, now());
                        }
                    }
                }
                Effect::Say { urgent, text } => renewal::say(urgent, &text),
                // These are for a certificate that is in use.
                Effect::Ask | Effect::Install { .. } => {}
            }
        }
        if wait(renewal, files, tried).await {
            renewal.handle(Event::Looked { reachable: false }, now());
        } else if let Some(new) = put_in_place(files, of) {
            return Ok(new);
        } else {
            renewal.handle(Event::Expired, now());
        }
    }
}

/// Waits until it is time to try again. False: another certificate is in place before.
async fn wait(renewal: &Renewal, files: &Path, tried: Stamp) -> bool {
    // A host that cannot get a certificate is up all the same, and says why.
    let status = format!("the certificate has expired: {}", renewal.complaint());
    service_manager::ready(&status);
    service_manager::alive(&status);
    let again = renewal.poll_timeout().unwrap_or_default();
    let until = tokio::time::Instant::now() + again.since(BootInstant::now());
    // The service manager has to hear from the agent more often than that.
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return true,
            () = tokio::time::sleep(ALIVE) => service_manager::alive(&status),
            () = other_certificate(files, tried) => return false,
        }
    }
}

/// The certificate that somebody has put in place of another, if it can be used: it has to be of
/// the same host, if that is known.
fn put_in_place(files: &Path, of: Option<&Identity>) -> Option<Credentials> {
    match Credentials::load(files, Role::Agent) {
        Ok(new) if of.is_none_or(|of| of == new.identity()) => {
            tracing::info!("another certificate was put in place, and is used");
            return Some(new);
        }
        Ok(new) => tracing::error!(
            "the certificate is now that of the {}: restart this agent to use it",
            new.identity()
        ),
        Err(e) => tracing::error!("the certificate has changed and is not used: {}", chain(&e)),
    }
    None
}
