//! When connections may be attempted: shared by all clients of one upstream, so that a hundred of them do not storm.
//!
//! While the hub can be reached, a few attempts run at a time. After a failure there is one probe at a time, with
//! doubling waits and jitter; when a probe comes through, the others follow, a few at a time again.

use std::sync::Arc;
use std::time::Duration;

use holdfast_ports::clock::Clock;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::config::Tuning;
use crate::port::Reach;

pub(crate) struct Gate {
    state: Mutex<State>,
    /// Told when `state` has changed so that waiting clients look again.
    changed: Notify,
    slots: Semaphore,
    reach: watch::Sender<Reach>,
    nudges: watch::Sender<()>,
    clock: Arc<dyn Clock>,
    first: Duration,
    max: Duration,
}

struct State {
    failures: u32,
    /// Raised by every outcome, so that attempts which ran together count as one failure.
    generation: u64,
    next_probe: Instant,
    probing: bool,
    /// Connections that live.
    live: usize,
}

impl Gate {
    pub(crate) fn new(tuning: &Tuning, clock: Arc<dyn Clock>) -> Self {
        Gate {
            state: Mutex::new(State {
                failures: 0,
                generation: 0,
                next_probe: Instant::now(),
                probing: false,
                live: 0,
            }),
            changed: Notify::new(),
            slots: Semaphore::new(tuning.attempts_max.max(1)),
            reach: watch::Sender::new(Reach::Unknown),
            nudges: watch::Sender::new(()),
            clock,
            first: tuning.retry_first,
            max: tuning.retry_max,
        }
    }

    pub(crate) fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    /// Whether the last attempt failed and none is known to live.
    pub(crate) fn is_offline(&self) -> bool {
        self.state.lock().failures > 0
    }

    /// The next attempt is due now.
    pub(crate) fn nudge(&self) {
        self.state.lock().next_probe = Instant::now();
        self.changed.notify_waiters();
        self.nudges.send_replace(());
    }

    /// Changes with every nudge.
    pub(crate) fn nudges(&self) -> watch::Receiver<()> {
        self.nudges.subscribe()
    }

    /// Waits for the turn to attempt a connection.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = {
                let mut state = self.state.lock();
                if state.failures == 0 {
                    None
                } else if state.probing {
                    Some(None)
                } else if Instant::now() >= state.next_probe {
                    state.probing = true;
                    return Turn {
                        gate: self,
                        generation: state.generation,
                        probe: true,
                        _slot: None,
                    };
                } else {
                    Some(Some(state.next_probe))
                }
            };
            match wait {
                None => {
                    // The semaphore is never closed.
                    let slot = self.slots.acquire().await.ok();
                    let state = self.state.lock();
                    if state.failures == 0 {
                        return Turn {
                            gate: self,
                            generation: state.generation,
                            probe: false,
                            _slot: slot,
                        };
                    }
                }
                Some(None) => changed.await,
                Some(Some(due)) => {
                    // Who wakes first probes; the others find that out.
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
            }
        }
    }

    /// A connection of the kind that lasts is up, until the guard goes.
    pub(crate) fn live(self: &Arc<Self>) -> Live {
        self.state.lock().live += 1;
        Live(Arc::clone(self))
    }

    fn succeeded(&self) {
        {
            let mut state = self.state.lock();
            state.failures = 0;
            state.generation += 1;
        }
        self.reach.send_if_modified(|reach| {
            let changed = *reach != Reach::Online;
            *reach = Reach::Online;
            changed
        });
        self.changed.notify_waiters();
    }

    /// A connection that lasted fell silent, and its guard is gone: as far as it can tell nobody gets through. The next
    /// attempt follows soon, and may hang for long.
    pub(crate) fn fell_silent(&self) {
        let generation = self.state.lock().generation;
        self.failed(generation);
    }

    fn failed(&self, generation: u64) {
        let offline = {
            let mut state = self.state.lock();
            // One client's trouble is not the network's as long as others are connected.
            if state.live > 0 && state.failures == 0 {
                return;
            }
            if state.generation == generation {
                state.generation += 1;
                state.next_probe = Instant::now() + jittered(backoff(self.first, self.max, state.failures));
                state.failures = state.failures.saturating_add(1);
            }
            state.failures > 0
        };
        if offline {
            let now = self.clock.now();
            self.reach.send_if_modified(|reach| {
                let changed = !matches!(reach, Reach::Offline { .. });
                if changed {
                    *reach = Reach::Offline { since: now };
                }
                changed
            });
        }
        self.changed.notify_waiters();
    }
}

/// The right to attempt one connection. Dropped without an outcome, it counts as not taken.
pub(crate) struct Turn<'a> {
    gate: &'a Gate,
    generation: u64,
    probe: bool,
    _slot: Option<SemaphorePermit<'a>>,
}

impl Turn<'_> {
    /// The hub answered, be it with a refusal of this identity.
    pub(crate) fn succeeded(self) {
        self.gate.succeeded();
    }

    /// The hub could not be reached.
    pub(crate) fn failed(self) {
        self.gate.failed(self.generation);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.gate.state.lock().probing = false;
            self.gate.changed.notify_waiters();
        }
    }
}

/// Counts a connection that lives.
pub(crate) struct Live(Arc<Gate>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.state.lock().live -= 1;
    }
}

/// `first` doubled `failures` times, at most `max`.
pub(crate) fn backoff(first: Duration, max: Duration, failures: u32) -> Duration {
    first.saturating_mul(1u32 << failures.min(16)).min(max)
}

/// Between half of `duration` and all of it, so that many who wait do not come at once.
#[must_use]
pub fn jittered(duration: Duration) -> Duration {
    // Without a random source everybody waits the whole time.
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    duration.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use holdfast_ports::clock::SystemClock;

    use super::*;

    fn gate() -> Arc<Gate> {
        let tuning = Tuning {
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(2),
            attempts_max: 3,
            ..Tuning::default()
        };
        Arc::new(Gate::new(&tuning, Arc::new(SystemClock::new())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_clients_probe_one_at_a_time_and_come_back_a_few_at_a_time() {
        let gate = gate();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, is_up) = watch::channel(false);
        let start = Instant::now();
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let (gate, attempts, is_up) = (Arc::clone(&gate), Arc::clone(&attempts), is_up.clone());
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                tokio::spawn(async move {
                    loop {
                        let turn = gate.turn().await;
                        attempts.fetch_add(1, Ordering::SeqCst);
                        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        running.fetch_sub(1, Ordering::SeqCst);
                        if *is_up.borrow() {
                            turn.succeeded();
                            return;
                        }
                        turn.failed();
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let while_down = attempts.load(Ordering::SeqCst);
        assert!(
            (30..120).contains(&while_down),
            "{while_down} attempts in a minute"
        );
        assert!(matches!(*gate.reach().borrow(), Reach::Offline { .. }));
        most.store(0, Ordering::SeqCst);
        up.send(true).expect("clients listen");
        let came_back = Instant::now();
        for client in clients {
            client.await.expect("connected");
        }
        assert!(
            came_back.elapsed() < Duration::from_secs(4),
            "{:?}",
            came_back.elapsed()
        );
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(*gate.reach().borrow(), Reach::Online);
        assert!(start.elapsed() < Duration::from_secs(70));
    }

    #[tokio::test(start_paused = true)]
    async fn one_clients_trouble_is_not_the_networks() {
        let gate = gate();
        gate.turn().await.succeeded();
        let _live = gate.live();
        gate.turn().await.failed();
        assert!(!gate.is_offline());
        assert_eq!(*gate.reach().borrow(), Reach::Online);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_the_last_connection_is_the_networks() {
        let gate = gate();
        gate.turn().await.succeeded();
        let (first, second) = (gate.live(), gate.live());
        drop(first);
        gate.fell_silent();
        assert_eq!(*gate.reach().borrow(), Reach::Online, "another one lives");
        drop(second);
        gate.fell_silent();
        assert!(matches!(*gate.reach().borrow(), Reach::Offline { .. }));
        // One attempt follows at once, as after any failure.
        let start = Instant::now();
        gate.turn().await.succeeded();
        assert!(start.elapsed() <= Duration::from_millis(100));
        assert_eq!(*gate.reach().borrow(), Reach::Online);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_makes_the_next_attempt_now() {
        let gate = gate();
        for _ in 0..10 {
            gate.turn().await.failed();
        }
        let start = Instant::now();
        gate.nudge();
        gate.turn().await.succeeded();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_lets_others_probe() {
        let gate = gate();
        gate.turn().await.failed();
        let turn = gate.turn().await;
        drop(turn);
        gate.turn().await.succeeded();
        assert!(!gate.is_offline());
    }
}
