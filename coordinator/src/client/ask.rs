//! Requests to a running coordinator, and their answers; each request skips other messages.

use crate::client::profile::ProfileArgs;
use crate::client::{Remote, converse};
use crate::exit::Exit;
use mezcal_common::message::client::{
    BatchStatus, CertificateStatus, FailingHost, HostStanding, HostStatus, SAYS_FAILING, STANDINGS,
    ToClient, ToService, UNSERVED,
};
use std::collections::HashMap;
use std::time::Duration;

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a request, and returns the answer that `pick` takes.
pub(crate) fn once<T>(
    profile: &ProfileArgs,
    request: ToService,
    pick: impl Fn(ToClient) -> Option<T>,
) -> Result<T, Exit> {
    converse(profile, async |remote| remote.ask(request, pick).await)
}

/// Makes a request whose only answer is that it is done.
pub(crate) fn done(profile: &ProfileArgs, request: ToService) -> Result<u8, Exit> {
    let result = once(profile, request, |said| match said {
        ToClient::Done { result, .. } => Some(result),
        _ => None,
    });
    result?.map(|()| 0).map_err(Exit::usage)
}

/// Makes a request whose answer takes several messages.
pub(crate) fn pages<T>(
    profile: &ProfileArgs,
    request: ToService,
    pick: impl Fn(ToClient) -> Option<(Result<Vec<T>, String>, bool)>,
) -> Result<Vec<T>, Exit> {
    converse(profile, async |remote| {
        gather(remote, request, pick, Exit::usage).await
    })
}

/// Like [`pages`], over an open connection. `refused` makes the error of a refusal.
async fn gather<T>(
    remote: &mut Remote,
    request: ToService,
    pick: impl Fn(ToClient) -> Option<(Result<Vec<T>, String>, bool)>,
    refused: impl Fn(String) -> Exit,
) -> Result<Vec<T>, Exit> {
    let (mut all, mut message) = (Vec::new(), remote.ask(request, &pick).await?);
    loop {
        all.extend(message.0.map_err(&refused)?);
        if !message.1 {
            return Ok(all);
        }
        message = remote.next(&pick).await?;
    }
}

/// Gives up when the coordinator at `address` does not answer.
async fn patiently<T>(
    address: String,
    asking: impl Future<Output = Result<T, Exit>>,
) -> Result<T, Exit> {
    let silent = |_| {
        Err(Exit::unreachable(format!(
            "the coordinator at {address} does not answer"
        )))
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(silent)
}

/// Asks for the hosts.
pub(crate) async fn hosts(remote: &mut Remote) -> Result<Vec<HostStatus>, Exit> {
    let pick = |said| match said {
        ToClient::Hosts(hosts) => Some((Ok(hosts), false)),
        ToClient::HostsPage { hosts, more } => Some((Ok(hosts), more)),
        _ => None,
    };
    let address = remote.address.clone();
    patiently(
        address,
        gather(remote, ToService::Hosts, pick, Exit::unreachable),
    )
    .await
}

/// A host, a user whose jobs the host does not run at present, and why.
pub(crate) type Unserved = (String, String, String);

/// Asks which users the hosts do not serve. A coordinator of an earlier version does not know.
pub(crate) async fn unserved(remote: &mut Remote) -> Result<Vec<Unserved>, Exit> {
    if remote.version < UNSERVED {
        return Ok(Vec::new());
    }
    let pick = |said| match said {
        ToClient::Unserved { users, .. } => Some(users),
        _ => None,
    };
    let address = remote.address.clone();
    patiently(
        address,
        remote.ask(ToService::Unserved { request: 0 }, pick),
    )
    .await
}

/// Facts about hosts that their status does not have, by host name.
pub(crate) type Standings = HashMap<String, HostStanding>;

/// Asks which hosts were revoked or have not been seen, by name. A coordinator of an earlier
/// version does not know.
pub(crate) async fn standings(remote: &mut Remote) -> Result<Standings, Exit> {
    if remote.version < STANDINGS {
        return Ok(Standings::new());
    }
    let pick = |said| match said {
        ToClient::Standings { hosts, more, .. } => Some((hosts, more)),
        _ => None,
    };
    let request = ToService::Standings { request: 0 };
    let address = remote.address.clone();
    let all = patiently(address, gather(remote, request, pick, Exit::unreachable)).await?;
    Ok(all
        .into_iter()
        .map(|host| (host.name.clone(), host))
        .collect())
}

/// Asks which hosts have engines that do not start. A coordinator of an earlier version does not
/// know.
pub(crate) async fn failing(remote: &mut Remote) -> Result<Vec<FailingHost>, Exit> {
    if remote.version < SAYS_FAILING {
        return Ok(Vec::new());
    }
    let pick = |said| match said {
        ToClient::Failing { hosts, .. } => Some(hosts),
        _ => None,
    };
    let address = remote.address.clone();
    patiently(address, remote.ask(ToService::Failing { request: 0 }, pick)).await
}

/// Versions of engines that differ from their agent; empty for an agent too old to say.
pub(crate) fn others<'a>(
    host: &'a HostStatus,
    engines: &'a [(String, u16)],
) -> impl Iterator<Item = &'a str> {
    engines
        .iter()
        .map(|(version, _)| version.as_str())
        .filter(|version| *version != host.program)
}

/// Asks for the batches.
pub(crate) async fn batches(remote: &mut Remote, all: bool) -> Result<Vec<BatchStatus>, Exit> {
    let pick = |said| match said {
        ToClient::Batches { batches, more, .. } | ToClient::BatchesApart { batches, more, .. } => {
            Some((batches, more))
        }
        _ => None,
    };
    let request = ToService::Batches { request: 1, all };
    gather(remote, request, pick, Exit::usage).await
}

/// Asks for the coordinator's list of certificates.
pub(crate) fn certificates(profile: &ProfileArgs) -> Result<Vec<CertificateStatus>, Exit> {
    pages(
        profile,
        ToService::Certificates { request: 1 },
        |said| match said {
            ToClient::Certificates {
                certificates, more, ..
            } => Some((certificates, more)),
            _ => None,
        },
    )
}
