//! Who reads which partition for which consumer group, over all connections of the head: owner levels, and the bound on
//! receivers without one (AMQP contract, section 5.5).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Key = (String, u16);

/// One receiver.
struct Reader {
    id: u64,
    /// Fires when another takes its place.
    stolen: oneshot::Sender<()>,
}

#[derive(Default)]
struct Place {
    /// Owner level of the only receiver; without one, all are equal.
    epoch: Option<i64>,
    readers: Vec<Reader>,
}

#[derive(Default)]
struct State {
    places: HashMap<Key, Place>,
    last_id: u64,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Readers {
    state: Arc<Mutex<State>>,
}

/// Why a receiver may not begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// One with a higher owner level, or with any, is there.
    Owned,
    /// As many as may be without owner level.
    Full,
}

/// A receiver's place; leaves when dropped.
pub(super) struct ReaderPlace {
    readers: Readers,
    key: Key,
    id: u64,
}

impl std::fmt::Debug for ReaderPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReaderPlace").field(&self.key).finish()
    }
}

impl Readers {
    /// Takes a place; those with a lower or equal owner level, or none, lose theirs.
    pub(super) fn enter(
        &self,
        group: &str,
        partition: u16,
        epoch: Option<i64>,
        without_epoch_max: usize,
    ) -> Result<(ReaderPlace, oneshot::Receiver<()>), Taken> {
        let key = (group.to_ascii_lowercase(), partition);
        let (stolen, signal) = oneshot::channel();
        let losers = {
            let mut state = self.state.lock();
            state.last_id += 1;
            let id = state.last_id;
            let place = state.places.entry(key.clone()).or_default();
            let losers = match (place.epoch, epoch) {
                (Some(held), Some(new)) if new < held => return Err(Taken::Owned),
                (Some(_), None) => return Err(Taken::Owned),
                (None, None) if place.readers.len() >= without_epoch_max => return Err(Taken::Full),
                (None, None) => Vec::new(),
                (_, Some(_)) => std::mem::take(&mut place.readers),
            };
            place.epoch = epoch;
            place.readers.push(Reader { id, stolen });
            (losers, id)
        };
        let (losers, id) = losers;
        for loser in losers {
            // One that has just left need not be told.
            let _ = loser.stolen.send(());
        }
        let readers = self.clone();
        Ok((ReaderPlace { readers, key, id }, signal))
    }
}

impl Drop for ReaderPlace {
    fn drop(&mut self) {
        let mut state = self.readers.state.lock();
        let Some(place) = state.places.get_mut(&self.key) else {
            return;
        };
        place.readers.retain(|reader| reader.id != self.id);
        if place.readers.is_empty() {
            state.places.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(held: &[Option<i64>], new: Option<i64>, expected: Result<&[bool], Taken>) {
        let readers = Readers::default();
        let mut places: Vec<_> = held
            .iter()
            .map(|epoch| readers.enter("$Default", 0, *epoch, 5).expect("a place"))
            .collect();
        let entered = readers.enter("$default", 0, new, 5);
        let lost: Vec<bool> = places
            .iter_mut()
            .map(|(_, signal)| signal.try_recv().is_ok())
            .collect();
        match (entered, expected) {
            (Ok(_), Ok(expected)) => assert_eq!(lost, expected, "{held:?} {new:?}"),
            (Err(taken), Err(expected)) => {
                assert_eq!(taken, expected, "{held:?} {new:?}");
                assert!(lost.iter().all(|lost| !lost));
            }
            (Ok(_), Err(_)) => panic!("{held:?} {new:?}: entered"),
            (Err(taken), Ok(_)) => panic!("{held:?} {new:?}: {taken:?}"),
        }
    }

    #[test]
    fn owner_levels() {
        check(&[], None, Ok(&[]));
        check(&[], Some(0), Ok(&[]));
        check(&[Some(1)], Some(2), Ok(&[true]));
        check(&[Some(1)], Some(1), Ok(&[true]));
        check(&[Some(1)], Some(0), Err(Taken::Owned));
        check(&[Some(1)], None, Err(Taken::Owned));
        check(&[None, None], Some(0), Ok(&[true, true]));
        check(&[None; 4], None, Ok(&[false; 4]));
        check(&[None; 5], None, Err(Taken::Full));
    }

    #[test]
    fn places_are_free_again() {
        let readers = Readers::default();
        let (place, _signal) = readers.enter("g", 1, Some(7), 5).expect("a place");
        assert!(readers.enter("g", 2, None, 5).is_ok());
        assert!(readers.enter("other", 1, None, 5).is_ok());
        drop(place);
        assert!(readers.enter("g", 1, None, 5).is_ok());
        assert!(readers.state.lock().places.is_empty());
    }
}
