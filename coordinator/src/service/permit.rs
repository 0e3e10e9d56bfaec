//! The permissions of users, and whether the coordinator can accept requests at present.

use super::durable::not_stored;
use super::enrol::Enrolment;
use super::state::Service;
use std::sync::Arc;

/// The answer about a batch that was known when the request came.
pub(super) const FORGOTTEN: &str = "that batch was forgotten in the meantime";

/// The answer of a coordinator without a store.
pub(super) const KEEPS_NOTHING: &str =
    "this coordinator belongs to one run and keeps nothing (`coordinator serve` has a store)";

impl Service {
    /// This coordinator is stopping, and another one will go on with the store.
    pub(super) fn has_a_successor(&self) -> bool {
        self.stopping && self.durable.is_some()
    }

    /// Why not even messages about a known batch can be accepted; when the store cannot be written,
    /// those wait instead.
    pub(super) fn is_stopping(&self) -> Option<String> {
        self.stopping.then(|| "the coordinator is stopping".into())
    }

    /// Why nothing can be stored at present.
    pub(super) fn trouble(&self) -> Option<String> {
        let durable = self.durable.as_ref()?;
        durable.trouble().map(ToOwned::to_owned)
    }

    /// Why nothing new can be accepted at present.
    pub(super) fn no_room(&self) -> Option<String> {
        if let Some(stopping) = self.is_stopping() {
            return Some(stopping);
        }
        self.trouble().as_deref().map(not_stored)
    }

    pub(super) fn is_admin(&self, user: &str) -> bool {
        self.admins.iter().any(|admin| admin == user)
    }

    /// An error, in words, unless the user is an admin. `what`: the action.
    pub(super) fn only_admins(&self, user: &str, what: &str) -> Result<(), String> {
        if self.is_admin(user) {
            return Ok(());
        }
        Err(format!(
            "only an admin can {what}, and {user} is not one (see `admins` in coordinator.toml)"
        ))
    }

    /// The list of certificates, for an admin.
    pub(super) fn list_for(&self, user: &str) -> Result<Arc<Enrolment>, String> {
        self.only_admins(user, "do this")?;
        self.enrolment.clone().ok_or_else(|| KEEPS_NOTHING.into())
    }
}
