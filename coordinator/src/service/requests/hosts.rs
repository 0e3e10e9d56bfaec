//! What clients are shown of hosts.

use crate::service::state::Service;
use mezcal_common::message::client::HostStatus;
use mezcal_common::model::clock::BootInstant;
use mezcal_common::wire::codec;
use std::collections::HashMap;

impl Service {
    /// All hosts ever seen, with what is known of the way to them.
    pub(super) fn hosts(&self, now: BootInstant) -> Vec<HostStatus> {
        let mut hosts = self.scheduler.host_status(now);
        let ways: HashMap<&str, u16> = self
            .agents
            .values()
            .map(|link| (link.peer.identity().name.as_str(), link.peer.path().1))
            .collect();
        for host in hosts.iter_mut().filter(|host| host.connected) {
            host.datagram = ways.get(host.name.as_str()).copied();
        }
        hosts
    }
}

/// Those of the hosts that one message has room for. A client of an earlier version knows no other
/// answer than one.
pub(super) fn that_fit(mut hosts: Vec<HostStatus>) -> Vec<HostStatus> {
    let all = hosts.len();
    let mut bytes = 0;
    let fits = |host: &&HostStatus| {
        bytes += codec::encode_body(*host).map_or(codec::MAX_FRAME, |body| body.len());
        bytes < codec::MAX_FRAME / 2
    };
    let fit = hosts.iter().take_while(fits).count();
    if fit < all {
        tracing::warn!(
            "a client of an earlier version is shown {fit} of {all} hosts; more do not fit its one message"
        );
        hosts.truncate(fit);
    }
    hosts
}
