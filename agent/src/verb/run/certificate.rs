//! The certificate of an agent that runs: another one in its place, and a new one for one that has
//! expired.

use crate::config::AgentConfig;
use crate::supervisor::pauses::Pauses;
use mezcal_common::model::identity::{Identity, Role};
use mezcal_common::system::service_manager;
use mezcal_common::wire::tls::Credentials;
use std::path::Path;
use std::time::Duration;

/// Between two looks at whether somebody has put another certificate in place.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(2);

/// Pause between two tries to renew a certificate that has expired, while nobody answers.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// What tells one certificate file from another.
pub(super) fn stamp(identity: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(identity.join("cert.pem"))
        .ok()
        .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// Completes when another certificate is there than this one: somebody has let the host join again.
pub(super) async fn other_certificate(identity: &Path, known: Option<(u64, i64, i64)>) {
    while stamp(identity) == known {
        tokio::time::sleep(CERTIFICATE_LOOK).await;
    }
}

/// Has an expired certificate renewed: whoever has its key is known. Tries for as long as it takes,
/// or until somebody has put another one in place, `of` the same host if that is known.
pub(super) async fn renewed(
    config: &AgentConfig,
    of: Option<&Identity>,
) -> anyhow::Result<Credentials> {
    let address = config.enrol();
    let mut said = String::new();
    let mut pauses = Pauses::default();
    loop {
        let tried = stamp(&config.identity);
        let pause;
        match mezcal_certs::renew_expired(&address, &config.identity, Role::Agent).await {
            Ok(()) => {
                tracing::info!("the certificate had expired; a new one is in use");
                return Ok(Credentials::load(&config.identity, Role::Agent)?);
            }
            Err(e) => {
                let text = mezcal_common::model::escape::chain(&e);
                if text != said {
                    tracing::error!(
                        "the certificate has expired and is not renewed: {text}; trying again"
                    );
                    said = text;
                }
                pause = pauses.failed(e.needs_a_person()).max(RENEWAL_PAUSE);
            }
        }
        // A host that cannot get one is up all the same, and says why.
        let status = format!("the certificate has expired: {said}");
        service_manager::ready(&status);
        service_manager::alive(&status);
        // The service manager wants to hear more often than that.
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                () = tokio::time::sleep(RENEWAL_PAUSE) => service_manager::alive(&status),
                () = other_certificate(&config.identity, tried) => {
                    if let Some(new) = put_in_place(&config.identity, of) {
                        return Ok(new);
                    }
                    break;
                }
            }
        }
    }
}

/// What somebody has put in place of a certificate, if it can be used: it has to be of the same
/// host, if that is known.
pub(super) fn put_in_place(identity: &Path, of: Option<&Identity>) -> Option<Credentials> {
    match Credentials::load(identity, Role::Agent) {
        Ok(new) if of.is_none_or(|of| of == new.identity()) => {
            tracing::info!("another certificate was put in place, and is used");
            return Some(new);
        }
        Ok(new) => tracing::error!(
            "the certificate is now that of the {}: restart this agent to be that",
            new.identity()
        ),
        Err(e) => tracing::error!(
            "the certificate has changed and is not used: {}",
            mezcal_common::model::escape::chain(&e)
        ),
    }
    None
}
