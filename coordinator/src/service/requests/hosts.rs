//! Requests of clients about hosts.

use crate::service::pages::paged;
use crate::service::peers::ClientId;
use crate::service::state::Service;
use mezcal_common::message::client::{HOSTS_IN_PAGES, HostStatus, ToClient};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::wire::codec;
use std::collections::HashMap;
use std::time::Duration;

impl Service {
    pub(super) fn show_hosts(&mut self, id: ClientId, now: BootInstant) {
        let hosts = self.hosts(now);
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.version() < HOSTS_IN_PAGES {
            return client.tell(ToClient::Hosts(that_fit(hosts)));
        }
        let page = |page: Result<Vec<HostStatus>, String>, more| ToClient::HostsPage {
            hosts: page.unwrap_or_default(),
            more,
        };
        for message in paged(Ok(hosts), HostStatus::clone, page) {
            client.tell(message);
        }
    }

    pub(super) fn drain(
        &mut self,
        user: &str,
        hosts: &[String],
        reason: Option<&str>,
        deadline: Option<Duration>,
        now: BootInstant,
    ) -> Result<(), String> {
        // Without room in the store, the drain would be forgotten at the next start.
        if let Some(why) = self.no_room() {
            return Err(why);
        }
        self.only_admins(user, "do this")?;
        let drained = self.scheduler.drain(hosts, reason, deadline, now);
        drained.map_err(|unknown| unknown.join("\n"))
    }

    /// All hosts ever seen, with the network paths to them as far as known.
    fn hosts(&self, now: BootInstant) -> Vec<HostStatus> {
        let ways: HashMap<&str, u16> = self
            .agents
            .values()
            .map(|link| (link.peer.identity().name.as_str(), link.peer.path().1))
            .collect();
        self.scheduler
            .host_status(now, |host| ways.get(host).copied())
    }
}

/// The hosts that one message has room for. A client of an earlier version understands no answer in
/// several messages.
fn that_fit(mut hosts: Vec<HostStatus>) -> Vec<HostStatus> {
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
