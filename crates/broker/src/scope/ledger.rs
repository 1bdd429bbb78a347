//! What is known of the scope, and from which reading of the hub above.
//!
//! Readings overlap: the whole scope is read at the start and when the hub is back, single identities when clients name
//! them, and each answer tells how things were at some time between its question and its arrival. So readings are numbered
//! when they begin, and what was learned by one is never undone by one that began before it: an identity that was found
//! is not taken away, one that is gone does not come back, and new keys stay. Whoever waits for a reading therefore sees at
//! least what the hub had when that reading began, whatever else arrives meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_upstream::port::ScopeIdentity;

use super::{SCOPE_IDENTITIES_MAX, ScopeChange};

/// The number of a reading; those that begin later have higher ones.
pub(super) type Number = u64;
/// Of what is given with the configuration: nothing is later.
const ALWAYS: Number = Number::MAX;

/// An identity, and the reading that it is known by.
struct Known {
    entry: Arc<ScopeIdentity>,
    read: Number,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Ledger {
    known: BTreeMap<Identity, Known>,
    /// Identities that single readings did not find, while older readings are under way that may still name them.
    gone: BTreeMap<Identity, Number>,
    /// The last of the readings of the whole scope that have ended.
    whole: Number,
    /// The last that has begun.
    begun: Number,
    under_way: Vec<Number>,
    /// Raised by every change.
    revision: u64,
}

/// What came of an answer.
#[derive(Default, Debug)]
pub(crate) struct Applied {
    pub(crate) change: ScopeChange,
    /// Part of the answer was not used, since a reading that began later says otherwise.
    pub(crate) overtaken: bool,
}

impl Ledger {
    /// With what was kept, and what always counts.
    pub(super) fn new(kept: Vec<ScopeIdentity>, local: Vec<ScopeIdentity>) -> Self {
        let kept = kept.into_iter().map(|entry| (entry, 0));
        let local = local.into_iter().map(|entry| (entry, ALWAYS));
        let known = kept.chain(local).map(|(entry, read)| {
            let known = Known {
                entry: Arc::new(entry),
                read,
            };
            (known.entry.identity.clone(), known)
        });
        Ledger {
            known: known.collect(),
            ..Ledger::default()
        }
    }

    pub(super) fn get(&self, identity: &Identity) -> Option<&Arc<ScopeIdentity>> {
        self.known.get(identity).map(|known| &known.entry)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<ScopeIdentity>> {
        self.known.values().map(|known| &known.entry)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Another number means that something is not as it was.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// A reading begins: before its first question leaves.
    pub(super) fn begin(&mut self) -> Number {
        self.begun += 1;
        self.under_way.push(self.begun);
        self.begun
    }

    /// A reading has ended, with or without an answer.
    pub(super) fn end(&mut self, number: Number) {
        self.under_way.retain(|other| *other != number);
        let oldest = self.under_way.iter().min().copied().unwrap_or(Number::MAX);
        self.gone.retain(|_, at| oldest < *at);
    }

    /// Takes over the whole scope as a reading has found it.
    pub(super) fn apply_whole(
        &mut self,
        number: Number,
        found: BTreeMap<Identity, ScopeIdentity>,
    ) -> Applied {
        let mut applied = Applied::default();
        let missing: Vec<Identity> = self
            .known
            .keys()
            .filter(|known| !found.contains_key(*known))
            .cloned()
            .collect();
        self.whole = self.whole.max(number);
        for identity in missing {
            self.remove(number, identity, &mut applied);
        }
        for entry in found.into_values() {
            self.insert(number, entry, &mut applied);
        }
        self.note(&applied.change);
        applied
    }

    /// Takes over what a reading of one identity has found. It goes, with all below it, when it `may_go` and was not found.
    /// `None`, and nothing is changed, when there would be more than can be kept.
    pub(super) fn apply_one(
        &mut self,
        number: Number,
        identity: &Identity,
        found: Vec<ScopeIdentity>,
        may_go: bool,
        orphans: impl FnOnce(&Self) -> Vec<Identity>,
    ) -> Option<Applied> {
        let more = found
            .iter()
            .filter(|entry| !self.known.contains_key(&entry.identity))
            .count();
        if more > 0 && self.known.len() + more > SCOPE_IDENTITIES_MAX {
            return None;
        }
        let mut applied = Applied::default();
        if may_go && !found.iter().any(|entry| entry.identity == *identity) {
            self.remove(number, identity.clone(), &mut applied);
            self.note_gone(number, identity.clone());
            if !applied.change.removed.is_empty() {
                for orphan in orphans(self) {
                    self.remove(number, orphan.clone(), &mut applied);
                    self.note_gone(number, orphan);
                }
            }
        }
        for entry in found {
            self.insert(number, entry, &mut applied);
        }
        self.note(&applied.change);
        Some(applied)
    }

    /// Answers come in any order: a later one counts.
    fn note_gone(&mut self, number: Number, identity: Identity) {
        let at = self.gone.entry(identity).or_default();
        *at = number.max(*at);
    }

    fn note(&mut self, change: &ScopeChange) {
        if !change.is_empty() {
            self.revision += 1;
        }
    }

    fn remove(&mut self, number: Number, identity: Identity, applied: &mut Applied) {
        match self.known.get(&identity) {
            None => {}
            Some(known) if known.read > number => applied.overtaken |= known.read != ALWAYS,
            Some(_) => {
                self.known.remove(&identity);
                applied.change.removed.push(identity);
            }
        }
    }

    fn insert(&mut self, number: Number, entry: ScopeIdentity, applied: &mut Applied) {
        let identity = &entry.identity;
        match self.known.get_mut(identity) {
            Some(known) if known.read > number => {
                applied.overtaken |= *known.entry != entry && known.read != ALWAYS;
            }
            Some(known) => {
                known.read = number;
                if *known.entry != entry {
                    applied.change.changed.push(identity.clone());
                    known.entry = Arc::new(entry);
                }
            }
            None if self.whole > number || self.gone.get(identity).is_some_and(|at| *at > number) => {
                applied.overtaken = true;
            }
            None => {
                applied.change.added.push(identity.clone());
                let known = Known {
                    read: number,
                    entry: Arc::new(entry),
                };
                self.known.insert(known.entry.identity.clone(), known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_store::log::sim::Random;
    use holdfast_upstream::port::ScopeAuthentication;

    use super::*;

    fn id(text: &str) -> Identity {
        Identity::parse(text).expect("an id")
    }

    /// An identity whose generation tells one state of it from another.
    fn entry(identity: &str, generation: u64) -> ScopeIdentity {
        ScopeIdentity {
            identity: id(identity),
            generation_id: generation.to_string(),
            enabled: true,
            authentication: ScopeAuthentication::None,
            iot_edge: false,
            device_scope: None,
            parent_scopes: Vec::new(),
        }
    }

    fn one(ledger: &mut Ledger, number: Number, identity: &str, found: Option<u64>) -> Applied {
        let found = found.map(|generation| entry(identity, generation)).into_iter();
        let applied = ledger.apply_one(number, &id(identity), found.collect(), true, |_| Vec::new());
        ledger.end(number);
        applied.expect("room")
    }

    fn whole(ledger: &mut Ledger, number: Number, found: &[(&str, u64)]) -> Applied {
        let entry_of = |(identity, generation): &(&str, u64)| (id(identity), entry(identity, *generation));
        let applied = ledger.apply_whole(number, found.iter().map(entry_of).collect());
        ledger.end(number);
        applied
    }

    fn state(ledger: &Ledger) -> Vec<(&str, &str)> {
        let entries = ledger.entries();
        entries
            .map(|entry| (entry.identity.as_str(), entry.generation_id.as_str()))
            .collect()
    }

    #[test]
    fn an_older_reading_of_all_does_not_take_away_what_a_later_one_has_found() {
        let mut ledger = Ledger::new(vec![entry("old", 1)], Vec::new());
        let all = ledger.begin();
        let single = ledger.begin();
        assert!(!one(&mut ledger, single, "new", Some(1)).overtaken);
        let applied = whole(&mut ledger, all, &[("old", 1)]);
        assert!(applied.overtaken && applied.change.is_empty(), "{applied:?}");
        assert_eq!(state(&ledger), [("new", "1"), ("old", "1")]);
        // The next one may.
        let all = ledger.begin();
        assert_eq!(whole(&mut ledger, all, &[("old", 1)]).change.removed, [id("new")]);
    }

    #[test]
    fn an_older_reading_of_all_brings_back_neither_who_is_gone_nor_old_keys() {
        let mut ledger = Ledger::new(vec![entry("a", 1), entry("b", 1)], Vec::new());
        let all = ledger.begin();
        let single = ledger.begin();
        assert_eq!(one(&mut ledger, single, "a", None).change.removed, [id("a")]);
        let single = ledger.begin();
        assert_eq!(one(&mut ledger, single, "b", Some(2)).change.changed, [id("b")]);
        assert!(whole(&mut ledger, all, &[("a", 1), ("b", 1)]).overtaken);
        assert_eq!(state(&ledger), [("b", "2")]);
        // What is remembered of those who are gone ends with the readings that it is for.
        assert!(ledger.gone.is_empty());
        let all = ledger.begin();
        assert!(!whole(&mut ledger, all, &[("a", 3), ("b", 2)]).overtaken);
        assert_eq!(state(&ledger), [("a", "3"), ("b", "2")]);
    }

    #[test]
    fn a_single_answer_that_comes_late_does_not_undo_a_later_reading_of_all() {
        let mut ledger = Ledger::new(vec![entry("a", 1)], Vec::new());
        let singles = [ledger.begin(), ledger.begin(), ledger.begin()];
        let all = ledger.begin();
        whole(&mut ledger, all, &[("a", 2)]);
        assert!(one(&mut ledger, singles[0], "a", Some(1)).overtaken);
        assert!(one(&mut ledger, singles[1], "b", Some(1)).overtaken);
        assert!(one(&mut ledger, singles[2], "a", None).overtaken);
        assert_eq!(state(&ledger), [("a", "2")]);
    }

    #[test]
    fn what_another_reading_has_found_already_is_no_change_but_another_revision() {
        let mut ledger = Ledger::default();
        let before = ledger.revision();
        let single = ledger.begin();
        let all = ledger.begin();
        whole(&mut ledger, all, &[("new", 1)]);
        let applied = one(&mut ledger, single, "new", Some(1));
        assert!(applied.change.is_empty() && !applied.overtaken);
        assert_ne!(ledger.revision(), before);
    }

    #[test]
    fn a_reading_that_is_given_up_holds_nothing() {
        let mut ledger = Ledger::new(vec![entry("a", 1)], Vec::new());
        let all = ledger.begin();
        let single = ledger.begin();
        one(&mut ledger, single, "a", None);
        assert_eq!(ledger.gone.len(), 1);
        ledger.end(all);
        assert!(ledger.gone.is_empty() && ledger.under_way.is_empty());
    }

    #[test]
    fn what_is_configured_always_counts() {
        let mut ledger = Ledger::new(vec![entry("a", 1)], vec![entry("a", 2)]);
        let all = ledger.begin();
        let applied = whole(&mut ledger, all, &[("a", 3)]);
        assert!(applied.change.is_empty() && !applied.overtaken);
        let single = ledger.begin();
        assert!(!one(&mut ledger, single, "a", None).overtaken);
        assert_eq!(state(&ledger), [("a", "2")]);
    }

    #[test]
    fn more_than_can_be_kept_changes_nothing() {
        let mut ledger = Ledger::new(
            (0..SCOPE_IDENTITIES_MAX)
                .map(|number| entry(&format!("d{number}"), 1))
                .collect(),
            Vec::new(),
        );
        let number = ledger.begin();
        let found = vec![entry("d0", 2), entry("new", 1)];
        assert!(
            ledger
                .apply_one(number, &id("new"), found, true, |_| Vec::new())
                .is_none()
        );
        assert_eq!((ledger.revision(), ledger.known.len()), (0, SCOPE_IDENTITIES_MAX));
    }

    /// The hub with all its states: an identity's generation is the time of its last change, odd ones mean that it is gone.
    #[derive(Default)]
    struct Hub {
        changes: Vec<(u64, usize, bool)>,
    }

    const NAMES: [&str; 3] = ["a", "b", "c"];

    impl Hub {
        /// What is there at a time: generation, or nothing; with the time of that change.
        fn at(&self, time: u64, name: usize) -> (u64, Option<u64>) {
            let last = self
                .changes
                .iter()
                .rfind(|(at, of, _)| *at <= time && *of == name);
            last.map_or((0, None), |(at, _, there)| (*at, there.then_some(*at)))
        }
    }

    /// A reading: each name is read at a time of its own.
    struct Reading {
        number: Number,
        begun: u64,
        names: Vec<usize>,
        read: Vec<(usize, Option<u64>)>,
        whole: bool,
    }

    #[test]
    fn whatever_the_order_of_answers_nothing_goes_back_behind_a_reading_that_has_ended() {
        for seed in 0..20_000 {
            let mut random = Random(seed);
            let (mut hub, mut ledger) = (Hub::default(), Ledger::default());
            let mut readings: Vec<Reading> = Vec::new();
            // For each name, the time since which at least the ledger must know how it is.
            let mut floor = [0; NAMES.len()];
            for time in 1..60 {
                match random.below(6) {
                    0 => hub
                        .changes
                        .push((time, random.below(NAMES.len()), random.below(3) > 0)),
                    1 if readings.len() < 4 => {
                        // A second reading of the whole scope waits for the first.
                        let whole = random.below(2) == 0 && !readings.iter().any(|reading| reading.whole);
                        let names = match whole {
                            true => (0..NAMES.len()).collect(),
                            false => vec![random.below(NAMES.len())],
                        };
                        readings.push(Reading {
                            number: ledger.begin(),
                            begun: time,
                            names,
                            read: Vec::new(),
                            whole,
                        });
                    }
                    _ if !readings.is_empty() => {
                        let at = random.below(readings.len());
                        let reading = &mut readings[at];
                        if let Some(name) = reading.names.pop() {
                            reading.read.push((name, hub.at(time, name).1));
                            continue;
                        }
                        let reading = readings.swap_remove(at);
                        let found = |(name, generation): &(usize, Option<u64>)| {
                            generation.map(|generation| (NAMES[*name], generation))
                        };
                        if reading.whole {
                            let found: Vec<_> = reading.read.iter().filter_map(found).collect();
                            whole(&mut ledger, reading.number, &found);
                        } else {
                            let (name, generation) = reading.read[0];
                            one(&mut ledger, reading.number, NAMES[name], generation);
                        }
                        for (name, _) in reading.read {
                            floor[name] = floor[name].max(hub.at(reading.begun, name).0);
                        }
                    }
                    _ => {}
                }
                for (name, floor) in floor.iter().enumerate() {
                    let known = ledger
                        .get(&id(NAMES[name]))
                        .map(|entry| entry.generation_id.clone());
                    let fits = hub.changes.iter().any(|(at, of, there)| {
                        let generation = there.then(|| at.to_string());
                        *of == name && at >= floor && generation == known
                    });
                    assert!(
                        fits || *floor == 0 && known.is_none(),
                        "seed {seed}, time {time}, {}: {known:?} is older than {floor} in {:?}",
                        NAMES[name],
                        hub.changes
                    );
                }
            }
            for reading in readings {
                ledger.end(reading.number);
            }
            assert!(ledger.gone.is_empty(), "seed {seed}");
        }
    }
}
