//! In-memory double of the event log.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::event::{EventBlock, Origin, Run};
use parking_lot::Mutex;

use crate::BoxFuture;
use crate::event_log::{AppendTicket, EventLog, LogError, PartitionInfo};

/// An event log that forgets everything when dropped. An append is durable at once, unless the test holds it back with
/// [`MemoryLog::hold`].
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    held: bool,
    busy: bool,
    failure: Option<String>,
    /// Everybody who waits for anything; all are woken on every change, since speed does not matter here.
    waiting: Vec<Waker>,
}

#[derive(Debug)]
struct Partition {
    blocks: Vec<EventBlock>,
    first: u64,
    next: u64,
    durable: u64,
    enqueued: Timestamp,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        let empty = |_| Partition {
            blocks: Vec::new(),
            first: 0,
            next: 0,
            durable: 0,
            enqueued: Timestamp::NEVER,
        };
        MemoryLog {
            state: Mutex::new(State {
                partitions: (0..partitions).map(empty).collect(),
                held: false,
                busy: false,
                failure: None,
                waiting: Vec::new(),
            }),
        }
    }

    /// From now on appends are accepted but do not become durable, as with a slow disk.
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Makes everything held back durable, and later appends at once.
    pub fn release(&self) {
        self.change(|state| {
            state.held = false;
            for partition in &mut state.partitions {
                partition.durable = partition.next;
            }
        });
    }

    /// Lets appends be refused with [`LogError::Busy`], or accepted again.
    pub fn set_busy(&self, busy: bool) {
        self.state.lock().busy = busy;
    }

    /// The log fails: nothing more is accepted or becomes durable.
    pub fn fail(&self, reason: &str) {
        self.change(|state| state.failure = Some(reason.to_owned()));
    }

    /// Forgets events before `first`, in whole blocks, as retention does.
    pub fn forget_before(&self, partition: u16, first: u64) {
        let mut state = self.state.lock();
        if let Some(partition) = state.partitions.get_mut(usize::from(partition)) {
            let end = first.min(partition.durable);
            partition.blocks.retain(|block| block.end_sequence_number() > end);
            partition.first = partition
                .blocks
                .first()
                .map_or(partition.next, |block| block.first_sequence_number);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.state.lock();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn poll(
        &self,
        partition: u16,
        reached: impl Fn(&Partition) -> bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), LogError>> {
        let mut state = self.state.lock();
        if reached(state.partition(partition)?) {
            return Poll::Ready(Ok(()));
        }
        if let Some(reason) = &state.failure {
            return Poll::Ready(Err(LogError::Failed(reason.clone())));
        }
        let waker = context.waker();
        if !state.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            state.waiting.push(waker.clone());
        }
        Poll::Pending
    }
}

impl State {
    fn partition(&self, index: u16) -> Result<&Partition, LogError> {
        self.partitions
            .get(usize::from(index))
            .ok_or(LogError::NoSuchPartition(index))
    }
}

impl Partition {
    fn durable_blocks(&self) -> impl Iterator<Item = &EventBlock> {
        let durable = self.durable;
        self.blocks
            .iter()
            .take_while(move |block| block.end_sequence_number() <= durable)
    }
}

impl EventLog for MemoryLog {
    fn partitions(&self) -> u16 {
        self.state.lock().partitions.len() as u16
    }

    fn append_runs(
        &self,
        partition: u16,
        origin: &Origin,
        runs: &[Run<'_>],
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        let (end, waiting) = {
            let mut state = self.state.lock();
            let (held, busy) = (state.held, state.busy);
            state.partition(partition)?;
            if let Some(reason) = &state.failure {
                return Err(LogError::Failed(reason.clone()));
            }
            if busy {
                return Err(LogError::Busy);
            }
            let log = &mut state.partitions[usize::from(partition)];
            log.enqueued = log.enqueued.max(now);
            for run in runs {
                let mut data = Vec::new();
                origin.encode(run.endpoints, &mut data);
                data.extend_from_slice(run.bytes);
                log.blocks.push(EventBlock {
                    partition,
                    first_sequence_number: log.next,
                    count: run.count,
                    enqueued_at: log.enqueued,
                    data: Bytes::from(data),
                });
                log.next += u64::from(run.count);
            }
            let end = log.next;
            if held {
                (end, Vec::new())
            } else {
                log.durable = end;
                (end, std::mem::take(&mut state.waiting))
            }
        };
        waiting.into_iter().for_each(Waker::wake);
        Ok(AppendTicket { partition, end })
    }

    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        self.poll(ticket.partition, |log| log.durable >= ticket.end, context)
    }

    fn read(
        &self,
        partition: u16,
        from: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<EventBlock>, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            let mut taken = 0;
            let blocks = state
                .partition(partition)?
                .durable_blocks()
                .filter(|block| block.end_sequence_number() > from)
                .take_while(|block| {
                    let enough = taken > 0 && taken >= max_bytes;
                    taken += block.data.len();
                    !enough
                });
            Ok(blocks.cloned().collect())
        })
    }

    fn find(&self, partition: u16, time: Timestamp) -> BoxFuture<'_, Result<u64, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            let log = state.partition(partition)?;
            Ok(log
                .durable_blocks()
                .find(|block| block.enqueued_at >= time)
                .map_or(log.durable, |block| block.first_sequence_number))
        })
    }

    fn info(&self, partition: u16) -> Result<PartitionInfo, LogError> {
        let state = self.state.lock();
        let log = state.partition(partition)?;
        let newest = log.durable_blocks().last().map(|block| block.enqueued_at);
        Ok(PartitionInfo {
            first: log.first.min(log.durable),
            next: log.durable,
            // With nothing kept, the newest there was; with something held back, the newest durable one.
            last_enqueued_at: match newest {
                Some(time) => time,
                None if log.durable > 0 => log.enqueued,
                None => Timestamp::NEVER,
            },
        })
    }

    fn poll_readable(
        &self,
        partition: u16,
        from: u64,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), LogError>> {
        self.poll(partition, |log| log.durable > from, context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use holdfast_model::Identity;
    use holdfast_model::event::{AuthMethod, EventSource, Records};

    use super::*;
    use crate::event_log::durable;

    #[tokio::test]
    async fn passes_the_suite() {
        crate::suite::event_log::all(async || Arc::new(MemoryLog::new(2))).await;
    }

    #[test]
    fn obeys_the_test() {
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::parse("d1").expect("an identity"),
            generation_id: 1,
            auth: AuthMethod::IdentityKey,
        };
        let mut records = Records::new();
        let _ = records.record().finish(b"x");
        let log = MemoryLog::new(1);
        let append = || log.append(0, &origin, &records, Timestamp::from_seconds(1));
        log.hold();
        let ticket = append().expect("appended");
        assert_eq!(durable(&log, ticket).now_or_never(), None);
        assert!(
            log.read(0, 0, 1)
                .now_or_never()
                .expect("ready")
                .expect("read")
                .is_empty()
        );
        log.release();
        assert_eq!(durable(&log, ticket).now_or_never(), Some(Ok(())));
        log.set_busy(true);
        assert_eq!(append(), Err(LogError::Busy));
        log.set_busy(false);
        append().expect("appended");
        log.forget_before(0, 1);
        assert_eq!(log.info(0).expect("info").first, 1);
        log.hold();
        let ticket = append().expect("appended");
        log.fail("no disk");
        let failed = LogError::Failed("no disk".to_owned());
        assert_eq!(durable(&log, ticket).now_or_never(), Some(Err(failed.clone())));
        assert_eq!(append(), Err(failed));
    }
}
