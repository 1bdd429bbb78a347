//! Which publishes of a client may be acknowledged: in the order received, and only when durable.
//!
//! The MQTT machine keeps the packet identifiers; here stands, for each run of them, what they wait for. A run is what
//! one read brought, so there is one step per read and not one per message.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use holdfast_ports::event_log::{AppendTicket, LogError};
use holdfast_ports::gateway::DeviceGateway;

/// What a run waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// The log.
    Durable(AppendTicket),
    /// Its records have not been taken by the log yet.
    Unsent,
}

#[derive(Debug)]
struct Step {
    gate: Gate,
    /// Packet identifiers.
    ids: u32,
    bytes: u32,
}

/// The runs of one connection that are not acknowledged.
#[derive(Default)]
pub(super) struct Acks {
    steps: VecDeque<Step>,
    bytes: usize,
    ids: usize,
    /// Publishes received and acknowledged since this was made: a reply waits for the number of its request.
    received: u64,
    acknowledged: u64,
    signal: Option<Signal>,
    /// The signal is registered with the log and has not fired.
    registered: bool,
}

/// A waker of our own between log and task. Without it every wake-up of the task for another reason would register its
/// waker with the log once more.
struct Signal {
    fired: Arc<Fired>,
    waker: Waker,
}

struct Fired {
    fired: AtomicBool,
    task: Waker,
}

impl Wake for Fired {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fired.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl Signal {
    fn new(task: &Waker) -> Self {
        let fired = Arc::new(Fired {
            fired: AtomicBool::new(false),
            task: task.clone(),
        });
        Signal {
            waker: Waker::from(Arc::clone(&fired)),
            fired,
        }
    }

    fn take(&self) -> bool {
        self.fired.fired.swap(false, Ordering::Acquire)
    }
}

impl Acks {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Publishes that wait.
    pub(super) fn ids(&self) -> usize {
        self.ids
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of the newest publish received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the publish with that number is acknowledged.
    pub(super) fn has_acknowledged(&self, number: u64) -> bool {
        self.acknowledged >= number
    }

    /// Adds a run.
    pub(super) fn push(&mut self, gate: Gate, ids: u32, bytes: usize) {
        if ids == 0 {
            return;
        }
        self.received += u64::from(ids);
        self.ids += ids as usize;
        self.bytes += bytes;
        self.steps.push_back(Step {
            gate,
            ids,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        });
    }

    /// The log has taken the records of the unsent run.
    pub(super) fn sent(&mut self, ticket: AppendTicket) {
        for step in &mut self.steps {
            if step.gate == Gate::Unsent {
                step.gate = Gate::Durable(ticket);
            }
        }
    }

    /// Number of the oldest publishes that may be acknowledged now. They count as acknowledged. Registers the task
    /// for the next.
    ///
    /// # Errors
    /// Some will never be durable.
    pub(super) fn take_ready(
        &mut self,
        gateway: &dyn DeviceGateway,
        task: &Waker,
    ) -> Result<usize, LogError> {
        let mut ready = 0;
        while let Some(step) = self.steps.front() {
            match step.gate {
                Gate::Open => {}
                Gate::Unsent => break,
                Gate::Durable(ticket) => {
                    let signal = self.signal.get_or_insert_with(|| Signal::new(task));
                    if self.registered && !signal.take() {
                        break;
                    }
                    match gateway.poll_durable(ticket, &mut Context::from_waker(&signal.waker)) {
                        Poll::Ready(outcome) => {
                            self.registered = false;
                            outcome?;
                        }
                        Poll::Pending => {
                            self.registered = true;
                            break;
                        }
                    }
                }
            }
            self.bytes = self.bytes.saturating_sub(step.bytes as usize);
            ready += step.ids as usize;
            self.steps.pop_front();
        }
        self.ids -= ready;
        self.acknowledged += ready as u64;
        Ok(ready)
    }
}
