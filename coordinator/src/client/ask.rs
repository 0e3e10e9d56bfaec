//! Questions to a running coordinator, and their answers: each passes over whatever else is said.

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

/// Makes a request, and takes what `pick` does of the answers.
pub(crate) fn once<T>(
    profile: &ProfileArgs,
    request: ToService,
    pick: impl Fn(ToClient) -> Option<T>,
) -> Result<T, Exit> {
    converse(profile, async |remote| remote.ask(request, pick).await)
}

/// Makes a request that has no answer but that it is done.
pub(crate) fn done(profile: &ProfileArgs, request: ToService) -> Result<u8, Exit> {
    let result = once(profile, request, |said| match said {
        ToClient::Done { result, .. } => Some(result),
        _ => None,
    });
    result?.map(|()| 0).map_err(Exit::usage)
}

/// Asks for what comes in several messages.
pub(crate) fn pages<T>(
    profile: &ProfileArgs,
    request: ToService,
    pick: impl Fn(ToClient) -> Option<(Result<Vec<T>, String>, bool)>,
) -> Result<Vec<T>, Exit> {
    converse(profile, async |remote| {
        let (mut all, mut message) = (Vec::new(), remote.ask(request, &pick).await?);
        loop {
            all.extend(message.0.map_err(Exit::usage)?);
            if !message.1 {
                return Ok(all);
            }
            message = remote.next(&pick).await?;
        }
    })
}

/// Asks for the hosts, passing over whatever else is said.
pub(crate) async fn hosts(remote: &mut Remote) -> Result<Vec<HostStatus>, Exit> {
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Hosts(hosts) => Some((hosts, false)),
        ToClient::HostsPage { hosts, more } => Some((hosts, more)),
        _ => None,
    };
    let asking = async {
        let (mut hosts, mut more) = remote.ask(ToService::Hosts, pick).await?;
        while more {
            let next;
            (next, more) = remote.next(pick).await?;
            hosts.extend(next);
        }
        Ok(hosts)
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or(Err(silent))
}

/// A host, a user whose jobs it does not run at present, and why.
pub(crate) type Unserved = (String, String, String);

/// Asks whom hosts do not serve. A coordinator of an earlier version does not know.
pub(crate) async fn unserved(remote: &mut Remote) -> Result<Vec<Unserved>, Exit> {
    if remote.version < UNSERVED {
        return Ok(Vec::new());
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Unserved { users, .. } => Some(users),
        _ => None,
    };
    tokio::time::timeout(
        PATIENCE,
        remote.ask(ToService::Unserved { request: 0 }, pick),
    )
    .await
    .unwrap_or(Err(silent))
}

/// What is known of hosts beside their status, by their names.
pub(crate) type Standings = HashMap<String, HostStanding>;

/// Asks which hosts were revoked or have not been seen, by name. A coordinator of an earlier
/// version does not know.
pub(crate) async fn standings(remote: &mut Remote) -> Result<Standings, Exit> {
    let mut all = Standings::new();
    if remote.version < STANDINGS {
        return Ok(all);
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Standings { hosts, more, .. } => Some((hosts, more)),
        _ => None,
    };
    let asking = async {
        let (mut hosts, mut more) = remote
            .ask(ToService::Standings { request: 0 }, pick)
            .await?;
        loop {
            all.extend(
                hosts
                    .map_err(Exit::unreachable)?
                    .into_iter()
                    .map(|host| (host.name.clone(), host)),
            );
            if !more {
                return Ok(all);
            }
            (hosts, more) = remote.next(pick).await?;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or(Err(silent))
}

/// Asks which hosts have engines that do not start. A coordinator of an earlier version does not
/// know.
pub(crate) async fn failing(remote: &mut Remote) -> Result<Vec<FailingHost>, Exit> {
    if remote.version < SAYS_FAILING {
        return Ok(Vec::new());
    }
    let silent = Exit::unreachable(format!(
        "the coordinator at {} does not answer",
        remote.address
    ));
    let pick = |said| match said {
        ToClient::Failing { hosts, .. } => Some(hosts),
        _ => None,
    };
    tokio::time::timeout(
        PATIENCE,
        remote.ask(ToService::Failing { request: 0 }, pick),
    )
    .await
    .unwrap_or(Err(silent))
}

/// Versions of engines that are not their agent's: empty where one is too old to say.
pub(crate) fn others<'a>(
    host: &'a HostStatus,
    engines: &'a [(String, u16)],
) -> impl Iterator<Item = &'a str> {
    engines
        .iter()
        .map(|(version, _)| version.as_str())
        .filter(|version| *version != host.program)
}

/// Asks for the batches, passing over whatever else is said.
pub(crate) async fn batches(remote: &mut Remote, all: bool) -> Result<Vec<BatchStatus>, Exit> {
    let _ = remote
        .port
        .requests
        .send(ToService::Batches { request: 1, all })
        .await;
    let mut batches = Vec::new();
    loop {
        match remote.port.answers.recv().await {
            Some(
                ToClient::Batches {
                    batches: part,
                    more,
                    ..
                }
                | ToClient::BatchesApart {
                    batches: part,
                    more,
                    ..
                },
            ) => {
                batches.extend(part.map_err(Exit::usage)?);
                if !more {
                    return Ok(batches);
                }
            }
            Some(_) => {}
            None => return Err(Exit::unreachable(remote.why_lost().await)),
        }
    }
}

/// The coordinator's list.
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
