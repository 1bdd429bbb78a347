//! Deleting what is old.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::Timestamp;
use holdfast_observe::Event;

use super::events::SegmentDeleted;
use super::partition::{Partition, WriterState};
use super::segment::Segment;
use super::writer::micros;

/// What retention has deleted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Deleted {
    /// Segments.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Deleted {
    fn add(&mut self, bytes: u64) {
        self.segments += 1;
        self.bytes += bytes;
    }
}

/// Deletes by age, then by size. Only closed segments go, oldest first.
pub(super) fn enforce(partitions: &[Arc<Partition>], now: Timestamp) -> Deleted {
    let mut deleted = Deleted::default();
    for partition in partitions {
        partition.close_old_active(now);
        while partition.oldest_is_expired(now) {
            match partition.delete_oldest() {
                Some(bytes) => deleted.add(bytes),
                None => break,
            }
        }
    }
    let Some(bytes_max) = partitions
        .first()
        .and_then(|partition| partition.common.config.retention_bytes)
    else {
        return deleted;
    };
    let mut total: u64 = partitions.iter().map(|partition| partition.bytes()).sum();
    while total > bytes_max {
        // The one whose newest event is oldest.
        let oldest = partitions
            .iter()
            .filter_map(|partition| Some((partition.oldest_end_time()?, partition)))
            .min_by_key(|(time, _)| *time);
        let Some(bytes) = oldest.and_then(|(_, partition)| partition.delete_oldest()) else {
            break;
        };
        deleted.add(bytes);
        total = total.saturating_sub(bytes);
    }
    deleted
}

impl Partition {
    /// Has the writer close the active segment when its first event is old enough.
    fn close_old_active(&self, now: Timestamp) {
        let active = self.segments.read().last().map(Arc::clone);
        let Some(started) = active.and_then(|active| active.first_enqueued()) else {
            return;
        };
        let age = now.as_micros().saturating_sub(started);
        let limit = self
            .common
            .config
            .segment_age
            .min(self.common.config.retention_age);
        if age < micros(limit) {
            return;
        }
        let mut pending = self.pending.lock();
        pending.roll = true;
        let wake = pending.writer == WriterState::Idle;
        drop(pending);
        if wake {
            self.work.notify_one();
        }
    }

    /// Enqueued time of the newest event of the oldest segment, if that is a closed one.
    fn oldest_end_time(&self) -> Option<i64> {
        let segments = self.segments.read().clone();
        let common = &self.common;
        if segments.len() < 2 {
            return None;
        }
        // The next segment's header says it; where that is damaged, a later one is late enough.
        let time = segments[1..]
            .iter()
            .find_map(|next| next.base_time(common.disk.as_ref(), common.salt).ok().flatten());
        Some(time.unwrap_or_else(|| self.last_enqueued.load(Ordering::Acquire)))
    }

    fn oldest_is_expired(&self, now: Timestamp) -> bool {
        let age = |time| now.as_micros().saturating_sub(time);
        self.oldest_end_time()
            .is_some_and(|time| age(time) > micros(self.common.config.retention_age))
    }

    /// Forgets whatever keeps deleted segments in memory and their files open.
    pub(super) fn forget_removed(&self) {
        let first = self.first();
        self.cursors.forget_before(first);
        self.indexed.lock().retain(|segment| segment.first >= first);
    }

    fn delete_oldest(self: &Arc<Self>) -> Option<u64> {
        let oldest = {
            let mut segments = self.segments.write();
            if segments.len() < 2 {
                return None;
            }
            segments.remove(0)
        };
        self.forget_removed();
        let bytes = self.segment_bytes(&oldest);
        SegmentDeleted {
            file: &oldest.path,
            bytes,
        }
        .emit(&self.common.metrics);
        self.common.remover.remove(oldest, self);
        Some(bytes)
    }

    fn bytes(&self) -> u64 {
        let segments = self.segments.read().clone();
        segments.iter().map(|segment| self.segment_bytes(segment)).sum()
    }

    fn segment_bytes(&self, segment: &Segment) -> u64 {
        segment
            .known_length()
            .or_else(|| Some(segment.open(self.common.disk.as_ref()).ok()?.1))
            .unwrap_or(0)
    }
}
