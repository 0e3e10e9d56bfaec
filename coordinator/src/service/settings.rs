//! Settings of a service.

use super::enrol::Enrolment;
use crate::scheduler::Aliases;
use std::sync::Arc;
use std::time::Duration;

/// Default lease of agents.
pub const LEASE: Duration = Duration::from_secs(600);
/// Default locality wait: a few heartbeats of a busy queue, and little beside the length of a job
/// that is worth moving to its data (Spark's `spark.locality.wait` is the same).
pub const LOCALITY_WAIT: Duration = Duration::from_secs(3);
/// Default client lease: time enough to reconnect after any outage that is noticed and repaired at
/// once.
pub const CLIENT_LEASE: Duration = Duration::from_secs(600);

/// Settings that may change while a service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustable {
    /// How long a slot is idle before it gets a job that prefers another host.
    pub locality_wait: Duration,
    /// Users who may see and cancel everybody's batches.
    pub admins: Vec<String>,
    /// The highest priority that counts before other users' jobs. Admins' priorities always count.
    pub max_priority: i32,
    /// Names of hosts beside those in their certificates.
    pub aliases: Aliases,
    /// When the listener's certificate ends, in seconds since the Unix epoch; for the dashboard and
    /// the metrics.
    pub certificate_until: Option<i64>,
}

impl Default for Adjustable {
    fn default() -> Self {
        Self {
            locality_wait: LOCALITY_WAIT,
            admins: Vec::new(),
            max_priority: 0,
            aliases: Aliases::default(),
            certificate_until: None,
        }
    }
}

/// The settings with which a service starts.
#[derive(Clone)]
pub struct Settings {
    /// How long agents may run attempts without a heartbeat; none: they share its fate.
    pub lease: Option<Duration>,
    /// Settings that may change meanwhile.
    pub adjustable: Adjustable,
    /// How long a batch goes on when its client is gone, unless it is detached.
    pub client_lease: Duration,
    /// Whether data for the dashboard and the metrics is kept.
    pub observed: bool,
    /// The list of certificates that count; none: all certificates of the cluster count.
    pub enrolment: Option<Arc<Enrolment>>,
}

impl Settings {
    /// The settings of a coordinator without a configuration.
    pub fn new(lease: Option<Duration>) -> Self {
        Self {
            lease,
            adjustable: Adjustable::default(),
            client_lease: CLIENT_LEASE,
            observed: false,
            enrolment: None,
        }
    }
}
