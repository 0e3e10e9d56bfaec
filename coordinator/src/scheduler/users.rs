//! Users: their numbers, how many slots each has, and how far their priorities count.

use super::Scheduler;
use std::collections::{HashMap, HashSet};

/// Users by number, which are given in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Users {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
    /// How many slots each user has.
    slots: Vec<u64>,
    /// The highest priority that counts before other users' jobs, and the users without this limit.
    max_priority: i32,
    admins: Vec<String>,
}

impl Users {
    /// The number of a user; true if the user is new.
    pub(super) fn add(&mut self, name: String) -> (u32, bool) {
        let next = self.names.len() as u32;
        let number = *self.numbers.entry(name).or_insert_with_key(|name| {
            self.names.push(name.clone());
            self.slots.push(0);
            next
        });
        (number, number == next)
    }

    /// The number of a known user.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The name of the user with a number.
    pub(super) fn name(&self, user: u32) -> &String {
        &self.names[user as usize]
    }

    /// How many slots a user has.
    pub(super) fn slots(&self, user: u32) -> u64 {
        self.slots[user as usize]
    }

    /// Adds to the slots that a user has.
    pub(super) fn take(&mut self, user: u32, slots: u16) {
        self.slots[user as usize] += u64::from(slots);
    }

    /// Subtracts from the slots that a user has.
    pub(super) fn give_back(&mut self, user: u32, slots: u16) {
        self.slots[user as usize] -= u64::from(slots);
    }

    /// The numbers of all users.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        0..self.names.len() as u32
    }
}

impl Scheduler {
    /// From now on the part of a priority above `most` counts only among the jobs of its own user;
    /// the priorities of `admins` always count in full.
    pub fn set_max_priority(&mut self, most: i32, admins: &[String]) {
        (self.users.max_priority, self.users.admins) = (most, admins.to_vec());
        self.limit_priorities();
    }

    pub(super) fn limit_priorities(&mut self) {
        let users = &self.users;
        let unlimited: HashSet<u32> = users
            .admins
            .iter()
            .filter_map(|name| users.number(name))
            .collect();
        self.queues.limit(users.max_priority, unlimited);
    }
}
