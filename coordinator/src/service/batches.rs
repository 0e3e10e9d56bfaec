//! The batches that a service knows: by their ids, by the beginnings of these, and by their users.
//! It takes no longer to find one when there are more of them.

use super::batch::Batch;
use mezcal_common::model::ids::BatchId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

/// Batches, with their users.
#[derive(Default)]
pub(super) struct Batches {
    all: BTreeMap<BatchId, Batch>,
    by_user: HashMap<String, Own>,
}

#[derive(Default)]
struct Own {
    all: BTreeSet<BatchId>,
    /// Batches that have jobs which are not over.
    running: BTreeSet<BatchId>,
}

impl Batches {
    pub(super) fn insert(&mut self, id: BatchId, batch: Batch) {
        let own = self.by_user.entry(batch.owner().to_owned()).or_default();
        own.all.insert(id);
        if !batch.is_done() {
            own.running.insert(id);
        }
        self.all.insert(id, batch);
    }

    pub(super) fn remove(&mut self, id: BatchId) {
        let Some(batch) = self.all.remove(&id) else {
            return;
        };
        let Some(own) = self.by_user.get_mut(batch.owner()) else {
            return;
        };
        own.all.remove(&id);
        own.running.remove(&id);
        if own.all.is_empty() {
            self.by_user.remove(batch.owner());
        }
    }

    /// All jobs of this batch are over.
    pub(super) fn ended(&mut self, id: BatchId) -> Option<&mut Batch> {
        let batch = self.all.get_mut(&id)?;
        batch.has_ended();
        if let Some(own) = self.by_user.get_mut(batch.owner()) {
            own.running.remove(&id);
        }
        Some(batch)
    }

    pub(super) fn get(&self, id: BatchId) -> Option<&Batch> {
        self.all.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: BatchId) -> Option<&mut Batch> {
        self.all.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&BatchId, &Batch)> {
        self.all.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The batches of a user that have jobs which are not over.
    pub(super) fn running(&self, user: &str) -> impl ExactSizeIterator<Item = BatchId> {
        const NONE: &BTreeSet<BatchId> = &BTreeSet::new();
        self.by_user
            .get(user)
            .map_or(NONE, |own| &own.running)
            .iter()
            .copied()
    }

    /// The batches whose ids begin so, of this user or of everybody.
    pub(super) fn beginning_with(&self, text: &str, user: Option<&str>) -> Vec<BatchId> {
        let Some(range) = ids(text) else {
            return Vec::new();
        };
        match user {
            None => self.all.range(range).map(|(id, _)| *id).collect(),
            Some(user) => self
                .by_user
                .get(user)
                .into_iter()
                .flat_map(|own| own.all.range(range.clone()))
                .copied()
                .collect(),
        }
    }
}

/// The range of ids that begin so: the texts of UUIDs have the order of their values.
fn ids(text: &str) -> Option<RangeInclusive<BatchId>> {
    let filled = |rest: &str| {
        let text = text.to_ascii_lowercase() + rest.get(text.len()..)?;
        // Only the spelling of a UUID that is shown counts.
        let is_one = text.len() == rest.len()
            && text
                .bytes()
                .zip(rest.bytes())
                .all(|(a, b)| (a == b'-') == (b == b'-'));
        let id = uuid::Uuid::try_parse(&text).ok().filter(|_| is_one)?;
        Some(BatchId(id))
    };
    Some(
        filled("00000000-0000-0000-0000-000000000000")?
            ..=filled("ffffffff-ffff-ffff-ffff-ffffffffffff")?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mezcal_common::model::ids::BatchSerial;
    use std::time::{Duration, Instant};

    fn id(n: u128) -> BatchId {
        // Spread, as random ids are.
        BatchId(uuid::Uuid::from_u128(
            n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
        ))
    }

    fn batches(count: u128) -> Batches {
        let mut all = Batches::default();
        for n in 0..count {
            let owner = if n % 2 == 0 { "okazaki" } else { "sato" };
            all.insert(id(n), Batch::new(BatchSerial(n as u32), owner.into(), true));
        }
        all
    }

    #[test]
    fn a_batch_is_found_by_any_beginning_of_its_id_by_whoever_may_see_it() {
        let all = batches(2000);
        for n in [0, 1, 77, 1999] {
            let text = id(n).to_string();
            let (own, other) = if n % 2 == 0 {
                ("okazaki", "sato")
            } else {
                ("sato", "okazaki")
            };
            for length in 0..=text.len() {
                let wanted = |user: Option<&str>| -> Vec<BatchId> {
                    let seen = all
                        .iter()
                        .filter(|(_, batch)| user.is_none_or(|user| batch.owner() == user))
                        .map(|(id, _)| *id);
                    seen.filter(|id| id.to_string().starts_with(&text[..length]))
                        .collect()
                };
                for user in [None, Some(own), Some(other)] {
                    assert_eq!(
                        all.beginning_with(&text[..length].to_uppercase(), user),
                        wanted(user),
                        "{text} {length}"
                    );
                }
            }
        }
        let text = id(4).to_string();
        for no_beginning in [
            "x",
            "-",
            "0000000g",
            &text.replace('-', ""),
            &format!("{text}0"),
            &format!("{{{text}}}"),
            "é",
        ] {
            assert_eq!(all.beginning_with(no_beginning, None), [], "{no_beginning}");
        }
    }

    #[test]
    fn what_is_over_or_gone_is_not_among_those_that_run() {
        let mut all = batches(4);
        assert_eq!(all.running("okazaki").len(), 2);
        all.ended(id(0));
        assert_eq!(all.running("okazaki").collect::<Vec<_>>(), [id(2)]);
        all.remove(id(2));
        assert_eq!(
            (all.running("okazaki").len(), all.running("nobody").len()),
            (0, 0)
        );
        assert_eq!(all.beginning_with("", Some("okazaki")), [id(0)]);
    }

    #[test]
    fn finding_one_among_many_takes_no_longer_than_among_few() {
        let all = batches(100_000);
        let begin = Instant::now();
        for n in 0..20_000 {
            assert_eq!(
                all.beginning_with(
                    &id(n).to_string()[..20],
                    Some(if n % 2 == 0 { "okazaki" } else { "sato" })
                ),
                [id(n)]
            );
        }
        // Checking every batch for each of these would take minutes.
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
    }
}
