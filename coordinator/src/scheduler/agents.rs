//! Sessions of agents: how they begin and end, and the messages in them.

use super::losses::LOSS_GRACE;
use super::{Effect, Record, Scheduler, Timer, Welcome};
use mezcal_common::message::agent::{Hello, Load, ToAgent, ToCoordinator, VERSIONS};
use mezcal_common::model::clock::BootInstant;
use mezcal_common::model::ids::{AttemptId, Generation, SessionId};
use mezcal_common::model::outcome::Containment;
use mezcal_common::wire::endpoint::IDLE_TIMEOUT;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A connected host counts as absent when its agent has not sent its inventory for so long: engines
/// answer within milliseconds, and an agent that knows that they will not come says so much sooner.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// The minor version of the agents' protocol from which agents understand generations.
const GENERATIONS: u16 = 2;

impl Scheduler {
    pub(super) fn agent_hello(
        &mut self,
        session: SessionId,
        name: &str,
        hello: Hello,
        now: BootInstant,
    ) {
        if self.refuses_a_second_agent(session, name, &hello, now) {
            return;
        }
        let known = self.hosts.get(name);
        let rebooted = known.is_some_and(|h| h.seen && h.hello().boot_id != hello.boot_id);
        let kept = known
            .filter(|h| h.hello().slots >= hello.slots)
            .map(|h| h.first_engine);
        let name: Arc<str> = known.map_or_else(|| name.into(), |h| h.name.clone());
        let first_engine = kept.unwrap_or_else(|| self.hosts.number_engines(hello.slots));
        if kept.is_none() {
            self.persist(|| Record::Engines {
                host: name.clone(),
                first: first_engine,
                slots: hello.slots,
            });
        }
        if rebooted {
            self.lose_attempts(&name, |_| true, "its host was restarted", now);
        }
        self.host_becomes_known(&name, now);
        // Without a session the host is in none of the indices.
        let Some(known) = self.hosts.remove(&name) else {
            return;
        };
        self.timers.clear(Timer::Loss(known.index));
        self.timers
            .set(Timer::Ready(known.index), now + READY_WITHIN);
        self.hosts.session_begins(session, name.clone());
        if self.generation != Generation::default() && hello.versions.1 >= GENERATIONS {
            // The generation goes before any message about a lease.
            let generation = self.generation;
            let restored = ToAgent::Generation { generation };
            self.effects.push_back(Effect::ToAgent(session, restored));
        }
        let welcome = Welcome {
            version: VERSIONS.1.min(hello.versions.1),
            store: self.store,
            lease: self.lease,
            first_engine,
            has_news: kept.is_none() || self.leases_grow,
        };
        self.effects.push_back(Effect::Welcome(session, welcome));
        self.lease_begins(now);
        self.hosts
            .put_back(known.connected(session, hello, first_engine, now));
        self.look_at_presence(&name);
    }

    /// Lets a new agent of a host replace the one that is connected, if there is one. Returns true
    /// if it refuses the new one instead: another agent with the same certificate.
    fn refuses_a_second_agent(
        &mut self,
        session: SessionId,
        name: &str,
        hello: &Hello,
        now: BootInstant,
    ) -> bool {
        let Some(host) = self.hosts.get(name) else {
            return false;
        };
        let Some(old) = host.session else {
            return false;
        };
        let rebooted = host.hello().boot_id != hello.boot_id;
        // With the same keeper it is the agent of that host, reconnected or restarted: a keeper
        // serves only the newest one. Otherwise the certificate has been copied.
        if !rebooted && host.hello().keeper == hello.keeper {
            self.end_session(old, "the agent of this host has connected again".to_owned());
            self.hosts.session_ends(old);
            self.agent_gone(name, true, now);
            return false;
        }
        let way_out = if rebooted {
            let silence = IDLE_TIMEOUT.as_secs();
            format!(
                "if {name} was restarted, it is let in when its old connection has been silent for {silence} s; else stop one"
            )
        } else {
            "stop one of them".to_owned()
        };
        tracing::warn!(
            host = name,
            rebooted,
            "a second agent with the certificate of {name} is refused"
        );
        self.effects.push_back(Effect::CloseSession {
            session,
            refused: !rebooted,
            reason: format!("another agent is connected with the certificate of {name}; {way_out}"),
        });
        true
    }

    /// A message in a session that has begun.
    // Long: an arm for each message.
    pub(super) fn agent_message(
        &mut self,
        name: &Arc<str>,
        message: ToCoordinator,
        now: BootInstant,
    ) {
        match message {
            ToCoordinator::Hello(_) => self.close_session(name, "a second hello"),
            ToCoordinator::Inventory {
                queued,
                running,
                unacknowledged,
                containment,
                clock_offset,
            } => {
                self.heard(name, clock_offset, now);
                self.inventory(name, None, &queued, &running, &unacknowledged, now);
                self.is_known(name, containment, now);
            }
            ToCoordinator::Pull { credit, idle } => self.pull(name, credit, idle, now),
            ToCoordinator::Reports(reports) => self.reports(name, None, reports, now),
            ToCoordinator::ReportsOf { user, reports } => {
                self.reports(name, Some(&user), reports, now)
            }
            ToCoordinator::UserInventory {
                user,
                queued,
                running,
                unacknowledged,
            } => {
                self.inventory(name, Some(&user), &queued, &running, &unacknowledged, now);
                self.tell_known(name, user, &running);
            }
            ToCoordinator::Served {
                users,
                unheard,
                containment,
                clock_offset,
            } => {
                self.heard(name, clock_offset, now);
                self.serves_only(name, users, unheard, now);
                self.is_known(name, containment, now);
            }
            ToCoordinator::Engines {
                versions,
                replacing,
            } => self.engines_said(name, versions, replacing),
            ToCoordinator::Absent { attempts } => {
                let absent: BTreeSet<AttemptId> = attempts.into_iter().collect();
                let gone = |attempt| absent.contains(&attempt);
                self.lose_attempts(name, gone, "it vanished from its host", now);
            }
            ToCoordinator::Heartbeat {
                sent,
                load,
                clock_offset,
            } => self.heartbeat(name, sent, load, clock_offset, now),
            ToCoordinator::Output {
                attempt,
                stream,
                data,
            } => self.output(name, attempt, stream, data),
            ToCoordinator::Goodbye => self.goodbye(name, now),
            ToCoordinator::UsableEngines { ready, failing } => {
                self.usable_engines(name, ready, failing)
            }
            // The agent's connection handles this one.
            ToCoordinator::Renew { .. } => {}
            ToCoordinator::LogsAnswer { request, streams } => self
                .effects
                .push_back(Effect::LogsAnswer { request, streams }),
        }
    }

    fn heartbeat(
        &mut self,
        name: &str,
        sent: BootInstant,
        load: Load,
        clock_offset: Option<f64>,
        now: BootInstant,
    ) {
        if let Some(host) = self.hosts.get_mut(name) {
            (host.heard, host.load, host.clock_offset) = (now, load, clock_offset);
            let seen = |session| Effect::HeartbeatSeen { session, sent };
            self.effects.extend(host.session.map(seen));
        }
    }

    /// An agent has sent its inventory, and can be given jobs.
    fn is_known(&mut self, name: &Arc<str>, containment: Containment, now: BootInstant) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.containment = containment;
        let index = host.index;
        self.set_known(name, true);
        // It may ask for nothing more, and hosts with idle slots may have asked long ago.
        self.look_for_prefetched(now);
        self.evict_overdue(index);
    }

    fn pull(&mut self, name: &Arc<str>, credit: u64, idle: u16, now: BootInstant) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.credit.pull(credit, idle, now);
            self.reindex(name);
            self.serve(name, usize::MAX, now);
            self.look_for_prefetched(now);
        }
    }

    fn goodbye(&mut self, name: &Arc<str>, now: BootInstant) {
        // The jobs that it gives back must not be placed there again.
        if let Some(host) = self.hosts.get_mut(name) {
            host.credit.end();
        }
        self.set_known(name, false);
        self.give_back(name, now);
        self.close_session(name, "goodbye");
    }

    /// The agent has said what its host has, which renews its lease.
    pub(super) fn heard(&mut self, name: &str, clock_offset: Option<f64>, now: BootInstant) {
        if let Some(host) = self.hosts.get_mut(name) {
            (host.heard, host.clock_offset) = (now, clock_offset);
        }
    }

    /// A session has ended. If another one has `replaced` it already, nothing is out of reach.
    pub(super) fn agent_gone(&mut self, name: &str, replaced: bool, now: BootInstant) {
        let host = self.hosts.get_mut(name);
        let Some(host) = host.filter(|host| host.session.is_some()) else {
            return;
        };
        host.disconnected(now);
        let (name, index) = (host.name.clone(), host.index);
        self.timers.clear(Timer::Ready(index));
        self.keep_nothing(&name);
        self.look_at_presence(&name);
        self.reindex(&name);
        match self.lease {
            None => self.lose_attempts(&name, |_| true, "its agent is gone", now),
            Some(_) if replaced => {}
            Some(_) => self.timers.set(Timer::Loss(index), now + LOSS_GRACE),
        }
    }

    pub(super) fn tell_agent(&mut self, name: &str, message: ToAgent) {
        if let Some(session) = self.hosts.get(name).and_then(|h| h.session) {
            self.effects.push_back(Effect::ToAgent(session, message));
        }
    }

    fn close_session(&mut self, name: &str, reason: &str) {
        if let Some(session) = self.hosts.get(name).and_then(|h| h.session) {
            self.end_session(session, reason.into());
        }
    }

    /// Ends a session of an agent; the agent may come back.
    pub(super) fn end_session(&mut self, session: SessionId, reason: String) {
        self.effects.push_back(Effect::CloseSession {
            session,
            refused: false,
            reason,
        });
    }
}
