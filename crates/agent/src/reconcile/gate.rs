//! Order of issuing: what has a lower `startupOrder` is issued first, although pulls run side by side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Place in the order: group, and within it removals before all else.
pub(super) type Rank = (u32, bool);

#[derive(Default, Clone, Copy)]
struct Count {
    all: usize,
    pulling: usize,
}

/// Knows which commands have not been issued yet.
#[derive(Default)]
pub(super) struct Gate {
    open: Mutex<BTreeMap<Rank, Count>>,
    changed: Notify,
}

impl Gate {
    /// Takes part in the order until the pass is dropped. A command that pulls first does not hold up the mending of
    /// modules that are there.
    pub(super) fn enter(self: &Arc<Self>, rank: Rank, pulls: bool) -> Pass {
        self.change(rank, |count| {
            count.all += 1;
            count.pulling += usize::from(pulls);
        });
        Pass {
            gate: Arc::clone(self),
            rank,
            pulling: pulls,
        }
    }

    fn change(&self, rank: Rank, change: impl FnOnce(&mut Count)) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(rank).or_default();
        change(count);
        if count.all == 0 {
            open.remove(&rank);
        }
        drop(open);
        self.changed.notify_waiters();
    }

    fn is_first(&self, rank: Rank, but_pulling: bool) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.range(..rank).all(|(_, count)| {
            if but_pulling {
                count.all == count.pulling
            } else {
                count.all == 0
            }
        })
    }
}

/// A command's place in the order.
pub(super) struct Pass {
    gate: Arc<Gate>,
    rank: Rank,
    pulling: bool,
}

impl Pass {
    /// The pull is over.
    pub(super) fn pulled(&mut self) {
        if std::mem::take(&mut self.pulling) {
            self.gate.change(self.rank, |count| count.pulling -= 1);
        }
    }

    /// Ready when everything before has been issued, or `longest` has passed: a pull that hangs holds up others so long and
    /// no longer. `but_pulling` does not wait for pulls at all.
    pub(super) async fn turn(&self, longest: Duration, but_pulling: bool) {
        let wait = async {
            loop {
                let changed = self.gate.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.gate.is_first(self.rank, but_pulling) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(longest, wait).await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let pulling = usize::from(self.pulling);
        self.gate.change(self.rank, |count| {
            count.all -= 1;
            count.pulling -= pulling;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lower_ranks_go_first_and_pulls_hold_up_only_so_long() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter((0, false), false);
        let mut second = gate.enter((1, true), true);
        let third = gate.enter((2, true), false);
        let longest = Duration::from_secs(30);
        let begun = tokio::time::Instant::now();
        second.turn(longest, false).await;
        assert_eq!(begun.elapsed(), longest, "a removal was before it");
        drop(first);
        second.turn(longest, false).await;
        assert_eq!(begun.elapsed(), longest);
        third.turn(longest, true).await;
        assert_eq!(begun.elapsed(), longest, "mending does not wait for pulls");
        third.turn(longest, false).await;
        assert_eq!(begun.elapsed(), 2 * longest, "making does");
        second.pulled();
        drop(second);
        third.turn(longest, false).await;
        assert_eq!(begun.elapsed(), 2 * longest);
        drop(third);
        assert!(gate.open.lock().unwrap().is_empty());
    }
}
