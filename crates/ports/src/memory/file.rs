//! File uploads in memory.

use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery, Upload};
use holdfast_model::{Identity, Timestamp};

use super::MemoryStore;
use crate::file::{EXPIRED_UPLOADS_MAX, FILE_NOTIFICATIONS_MAX, FileStore};
use crate::{BoxFuture, StoreError, StoreResult};

#[derive(Default)]
pub(super) struct Files {
    /// Oldest first.
    uploads: Vec<Upload>,
    /// Oldest first.
    notifications: Vec<Queued>,
    last_number: u64,
}

struct Queued {
    number: u64,
    notification: FileNotification,
    delivery_count: u32,
    lock: Option<(LockToken, Timestamp)>,
}

impl Files {
    /// A device goes with its uploads; what was told of them stays.
    pub(super) fn forget(&mut self, device: &Identity) {
        self.uploads.retain(|upload| upload.device != *device);
    }

    fn place(&self, device: &Identity, correlation_id: &str) -> Option<usize> {
        let mut uploads = self.uploads.iter();
        uploads.position(|upload| upload.device == *device && upload.correlation_id == correlation_id)
    }

    fn add(&mut self, upload: Upload, active_max: usize, now: Timestamp) -> StoreResult<()> {
        let of_device = |other: &Upload| other.device == upload.device;
        let active = self
            .uploads
            .iter()
            .filter(|other| of_device(other) && other.expires_at > now);
        if active.count() >= active_max {
            return Err(StoreError::Full);
        }
        let mut expired: Vec<(Timestamp, String)> = (self.uploads.iter())
            .filter(|other| of_device(other) && other.expires_at <= now)
            .map(|other| (other.expires_at, other.correlation_id.clone()))
            .collect();
        expired.sort();
        expired.truncate(expired.len().saturating_sub(EXPIRED_UPLOADS_MAX));
        self.uploads
            .retain(|other| !expired.iter().any(|(_, id)| *id == other.correlation_id));
        self.uploads.push(upload);
        Ok(())
    }

    fn lock(
        &mut self,
        now: Timestamp,
        lock_until: Timestamp,
        nonce: u64,
    ) -> Option<FileNotificationDelivery> {
        self.notifications
            .retain(|queued| queued.notification.expires_at > now);
        for queued in &mut self.notifications {
            if queued.lock.is_some_and(|(_, until)| until <= now) {
                queued.lock = None;
            }
        }
        let queued = self
            .notifications
            .iter_mut()
            .find(|queued| queued.lock.is_none())?;
        let lock = LockToken {
            sequence_number: queued.number,
            nonce,
        };
        queued.lock = Some((lock, lock_until));
        Some(FileNotificationDelivery {
            lock,
            locked_until: lock_until,
            delivery_count: queued.delivery_count,
            notification: queued.notification.clone(),
        })
    }

    fn settle(&mut self, lock: LockToken, settlement: Settlement, count_max: u32) -> StoreResult<()> {
        let held = |queued: &Queued| queued.lock.is_some_and(|(token, _)| token == lock);
        let place = self
            .notifications
            .iter()
            .position(held)
            .ok_or(StoreError::Missing)?;
        let queued = &mut self.notifications[place];
        queued.lock = None;
        if settlement == Settlement::Abandon {
            queued.delivery_count += 1;
        }
        let over = match settlement {
            Settlement::Complete | Settlement::Reject => true,
            Settlement::Abandon => queued.delivery_count >= count_max,
            Settlement::Release => false,
        };
        if over {
            self.notifications.remove(place);
        }
        Ok(())
    }
}

impl FileStore for MemoryStore {
    fn add_upload(
        &self,
        upload: Upload,
        active_max: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            if !state.identities.contains_key(&upload.device) {
                return Err(StoreError::Missing);
            }
            state.files.add(upload, active_max, now)
        })
    }

    fn upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Upload>>> {
        self.run(move |state| {
            let place = state.files.place(device, correlation_id);
            Ok(place.map(|place| state.files.uploads[place].clone()))
        })
    }

    fn end_upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
        notification: Option<FileNotification>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let files = &mut state.files;
            let place = files.place(device, correlation_id).ok_or(StoreError::Missing)?;
            files.uploads.remove(place);
            if let Some(notification) = notification {
                files.last_number += 1;
                files.notifications.push(Queued {
                    number: files.last_number,
                    notification,
                    delivery_count: 0,
                    lock: None,
                });
                let over = files.notifications.len().saturating_sub(FILE_NOTIFICATIONS_MAX);
                files.notifications.drain(..over);
            }
            Ok(())
        })
    }

    fn lock_file_notification(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FileNotificationDelivery>>> {
        self.run(move |state| {
            let nonce = state.nonces.next();
            Ok(state.files.lock(now, lock_until, nonce))
        })
    }

    fn settle_file_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
        delivery_count_max: u32,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| state.files.settle(lock, settlement, delivery_count_max))
    }

    fn expire_files(&self, now: Timestamp, uploads_before: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        self.run(move |state| {
            let files = &mut state.files;
            files.uploads.retain(|upload| upload.expires_at >= uploads_before);
            let before = files.notifications.len();
            files
                .notifications
                .retain(|queued| queued.notification.expires_at > now);
            Ok((before - files.notifications.len()) as u64)
        })
    }
}
