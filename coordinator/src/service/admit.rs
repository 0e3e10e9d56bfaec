//! Whose certificates count: which peers are let in, for how long, and with which next certificate.

use crate::exit::chain;
use crate::service::enrol::Enrolment;
use crate::store::Refusal;
use mezcal_common::model::identity;
use mezcal_common::wire::endpoint::{Peer, close};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Longest wait between two checks of the clock, which may have been set.
const LOOK: Duration = Duration::from_secs(60);
/// Time between two checks whether users who have revoked their own certificate have read the
/// answer.
const LEAVING_LOOK: Duration = Duration::from_millis(100);

/// Lets in a peer whose certificate counts. The list says so, and is read beside the loop. A peer
/// that comes while the list cannot be read may come again.
pub(super) async fn admit(enrolment: Option<Arc<Enrolment>>, peer: Peer) -> Result<(), String> {
    let Some(enrolment) = enrolment else {
        return Ok(());
    };
    let admits = move || {
        let (registry, der) = (&enrolment.registry, peer.certificate());
        let Err(refusal) = registry.admits(der, peer.identity()) else {
            return Ok(());
        };
        let code = if matches!(refusal, Refusal::Store(_)) {
            close::GOING
        } else {
            close::REFUSED
        };
        let reason = chain(&refusal);
        peer.close(code, &reason);
        // A certificate that is not remembered now comes again.
        drop(registry.was_refused(der, peer.identity()));
        Err(reason)
    };
    let admitted = tokio::task::spawn_blocking(admits).await;
    admitted.map_err(|e| e.to_string())?
}

/// Whether a peer's certificate has ended since it was admitted, as far as is known without reading
/// the store. If so, the connection ends.
pub(super) fn has_ended(enrolment: Option<&Arc<Enrolment>>, peer: &Peer) -> bool {
    let has_ended = enrolment.is_some_and(|e| e.registry.has_ended(peer.certificate()));
    if has_ended {
        peer.close(close::REFUSED, &no_more(peer));
    }
    has_ended
}

fn no_more(peer: &Peer) -> String {
    format!(
        "the certificate of the {} was revoked or replaced",
        peer.identity()
    )
}

/// Makes another certificate for a peer, beside the loop.
pub(super) async fn renew(
    enrolment: Option<Arc<Enrolment>>,
    peer: Peer,
    request: bytes::Bytes,
) -> Result<String, String> {
    let enrolment = enrolment.ok_or("this coordinator issues no certificates")?;
    let renewing = tokio::task::spawn_blocking(move || {
        let cert = enrolment.renew(peer.certificate(), peer.identity(), &request);
        match &cert {
            Ok(_) => tracing::info!("a new certificate for the {}", peer.identity()),
            Err(why) => tracing::warn!("no new certificate for the {}: {why}", peer.identity()),
        }
        cert
    });
    renewing.await.map_err(|e| e.to_string())?
}

/// A certificate is in use: the certificate that it replaces counts no more.
pub(super) async fn used(enrolment: Option<Arc<Enrolment>>, peer: Peer) {
    let Some(enrolment) = enrolment else { return };
    let told =
        tokio::task::spawn_blocking(move || enrolment.registry.used(peer.certificate())).await;
    if let Ok(Err(e)) = told {
        tracing::error!(
            "a replaced certificate is valid for longer than it should be: {}",
            chain(&e)
        );
    }
}

/// Ends a connection as soon as its certificate is over or does not count any more.
pub(super) async fn guard(enrolment: Option<Arc<Enrolment>>, peer: Peer) {
    let until = identity::validity(peer.certificate()).map_or(0, |(_, until)| until);
    let serial = crate::store::serial(peer.certificate()).unwrap_or_default();
    let mut ended = enrolment.as_ref().map(|e| e.registry.ended());
    // The certificate may have been revoked since the peer was admitted.
    ended
        .iter_mut()
        .for_each(tokio::sync::watch::Receiver::mark_changed);
    loop {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let left = Duration::from_secs(until.max(0) as u64).saturating_sub(now);
        if left.is_zero() {
            let reason = format!("the certificate of the {} has expired", peer.identity());
            tracing::warn!(from = %peer.remote_addr(), "{reason}");
            return peer.close(close::REFUSED, &reason);
        }
        // Each connection has one of these, on the coordinator's thread: it must not read the
        // store.
        let has_ended = async {
            if let Some(ended) = &mut ended
                && ended.changed().await.is_ok()
            {
                return ended.borrow_and_update().contains(&serial);
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = peer.closed() => return,
            () = tokio::time::sleep(left.min(LOOK)) => {}
            has_ended = has_ended => {
                if has_ended {
                    // Users who revoke their own certificate still get the answer.
                    while enrolment.as_ref().is_some_and(|e| e.registry.is_leaving(peer.certificate())) {
                        tokio::select! {
                            _ = peer.closed() => return,
                            () = tokio::time::sleep(LEAVING_LOOK) => {}
                        }
                    }
                    let reason = no_more(&peer);
                    tracing::warn!(from = %peer.remote_addr(), "{reason}");
                    return peer.close(close::REFUSED, &reason);
                }
            }
        }
    }
}
