//! The minor versions of the protocol, and the additions of each.

/// The minor versions that this build speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 3);

/// From this version on a coordinator reports the users whose jobs a host does not run at present
/// ([`super::ToService::Unserved`]).
pub const UNSERVED: u16 = 2;

/// From this version on a coordinator reports the attempts that a cancel waits for
/// ([`super::ToService::CancelWaits`]), and answers each message that a batch is complete, also a
/// repeated one.
pub const SAYS_MORE: u16 = 2;

/// From this version on a client understands [`super::ToClient::HostsPage`].
pub const HOSTS_IN_PAGES: u16 = 2;

/// From this version on a client understands [`super::ToClient::CountedResults`].
pub const COUNTS_OUTPUT: u16 = 3;

/// From this version on a coordinator reports the hosts that it has not seen, and those that were
/// revoked ([`super::ToService::Standings`]).
pub const STANDINGS: u16 = 3;

/// From this version on a client understands [`super::ToClient::BatchesApart`].
pub const COUNTS_APART: u16 = 3;

/// From this version on a coordinator reports the hosts whose engines do not start
/// ([`super::ToService::Failing`]).
pub const SAYS_FAILING: u16 = 3;
