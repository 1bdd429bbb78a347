//! Cloud-to-device messages and their feedback (rest.md sections 8 and 15.3, mqtt.md 6.1).

use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, FeedbackBatch, LockToken, Settlement};
use holdfast_model::limits::C2D_BYTES_MAX;
use holdfast_model::message::Message;
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::StoreError;
use holdfast_ports::session::{Downlink, SessionHandle};

use crate::Hub;
use crate::events::C2dSettled;
use crate::failure::{invalid, not_found};

/// Owner of locks taken by requests without a session; epochs are never zero.
const NO_SESSION: u64 = 0;

/// A cloud-to-device message as a service sends it.
#[derive(Clone, Debug, Default)]
pub struct C2dSend {
    /// Content, without `to`, `ack` and expiry.
    pub message: Message,
    /// Which outcomes make feedback.
    pub ack: AckMode,
    /// When it dies; `None`: after `HubConfig::c2d_ttl`. Cut to `HubConfig::c2d_ttl_max` from now.
    pub expires_at: Option<Timestamp>,
}

impl Hub {
    /// Queues a message for a device, durably; returns its sequence number.
    ///
    /// # Errors
    /// `MessageTooLarge` above 64 KiB; `DeviceNotFound`; `DeviceMaximumQueueDepthExceeded`; `ArgumentInvalid` for a
    /// module.
    pub async fn send_c2d(&self, device: &Identity, send: C2dSend) -> Result<u64, Error> {
        if device.is_module() {
            return Err(invalid(
                "cloud-to-device messages can be sent to devices, not to modules",
            ));
        }
        let size = send.message.size();
        if size > C2D_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::MessageTooLarge,
                format!("the message has {size} bytes; at most {C2D_BYTES_MAX} are allowed"),
            ));
        }
        let record = self.stored_identity(device).await?;
        let now = self.now();
        let latest = now.plus(self.config.c2d_ttl_max);
        let message = C2dMessage {
            device: device.clone(),
            generation_id: record.generation_id,
            message: send.message,
            ack: send.ack,
            enqueued_at: now,
            expires_at: send
                .expires_at
                .unwrap_or_else(|| now.plus(self.config.c2d_ttl))
                .min(latest),
            input: None,
        };
        let sequence_number = self
            .stores
            .c2d
            .enqueue(message, self.c2d_limits())
            .await
            .map_err(|error| match error {
                StoreError::Missing => not_found(device),
                StoreError::Full => Error::new(
                    ErrorCode::DeviceMaximumQueueDepthExceeded,
                    format!(
                        "{} cloud-to-device messages are waiting for {device}; no more are taken",
                        self.config.c2d_depth_max
                    ),
                ),
                other => self.store_error("queue cloud-to-device message", other),
            })?;
        self.metrics.c2d_enqueued.inc();
        self.hint_c2d(device);
        Ok(sequence_number)
    }

    /// Removes all cloud-to-device messages of a device; returns how many.
    ///
    /// # Errors
    /// `DeviceNotFound`.
    pub async fn purge_c2d(&self, device: &Identity) -> Result<u64, Error> {
        self.check_exists(device).await?;
        self.stores
            .c2d
            .purge(device, self.now())
            .await
            .map_err(|error| self.store_error("purge cloud-to-device messages", error))
    }

    /// Number of cloud-to-device messages waiting for an identity; always zero for a module.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn c2d_depth(&self, identity: &Identity) -> Result<u64, Error> {
        if identity.is_module() {
            return Ok(0);
        }
        self.stores
            .c2d
            .depth(identity)
            .await
            .map_err(|error| self.store_error("count cloud-to-device messages", error))
    }

    /// Locks a batch of feedback records: 64, or fewer when the oldest is older than `HubConfig::feedback_ripe_after`.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn receive_feedback(&self) -> Result<Option<FeedbackBatch>, Error> {
        let now = self.now();
        self.stores
            .c2d
            .lock_feedback(
                now,
                now.plus(self.config.feedback_lock),
                now.minus(self.config.feedback_ripe_after),
            )
            .await
            .map_err(|error| self.store_error("read feedback", error))
    }

    /// Removes (`complete`) or gives back (otherwise) a locked feedback batch.
    ///
    /// # Errors
    /// `DeviceMessageLockLost` for an unknown or ended lock.
    pub async fn settle_feedback(&self, lock: LockToken, complete: bool) -> Result<(), Error> {
        self.stores
            .c2d
            .settle_feedback(lock, complete)
            .await
            .map_err(|error| match error {
                StoreError::Missing => lock_lost(),
                other => self.store_error("settle feedback", other),
            })
    }

    /// See `DeviceGateway::receive_c2d`.
    pub(crate) async fn lock_c2d(
        &self,
        device: &Identity,
        session: Option<&SessionHandle>,
        max: usize,
    ) -> Result<Vec<C2dDelivery>, Error> {
        if device.is_module() || session.is_some_and(SessionHandle::is_ended) {
            return Ok(Vec::new());
        }
        let now = self.now();
        let owner = session.map_or(NO_SESSION, |session| session.epoch);
        let deliveries = self
            .stores
            .c2d
            .lock_next(device, max, owner, now, now.plus(self.config.c2d_lock))
            .await
            .map_err(|error| self.store_error("lock cloud-to-device messages", error))?;
        if let Some(session) = session.filter(|session| session.is_ended()) {
            // The session ended while the store worked, after its locks were given back.
            self.release_owner(device, session.epoch).await;
            return Ok(Vec::new());
        }
        self.metrics.c2d_delivered.add(deliveries.len() as u64);
        Ok(deliveries)
    }

    /// See `DeviceGateway::settle_c2d`.
    pub(crate) async fn settle_delivery(
        &self,
        device: &Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let settled = self
            .stores
            .c2d
            .settle(device, lock, settlement, self.c2d_limits(), self.now())
            .await;
        let outcome = match (&settled, settlement) {
            (Ok(()), Settlement::Complete) => C2dSettled::Completed,
            (Ok(()), Settlement::Abandon) => C2dSettled::Abandoned,
            (Ok(()), Settlement::Reject) => C2dSettled::Rejected,
            (Ok(()), Settlement::Release) => C2dSettled::Released,
            (Err(_), _) => C2dSettled::LockLost,
        };
        match settled {
            Ok(()) => {}
            Err(StoreError::Missing) => {
                self.metrics.c2d_settled.of(outcome).inc();
                return Err(lock_lost());
            }
            Err(other) => return Err(self.store_error("settle cloud-to-device message", other)),
        }
        self.metrics.c2d_settled.of(outcome).inc();
        if settlement == Settlement::Abandon {
            // Somebody else may take it; the delivery count bounds how often.
            self.hint_c2d(device);
        }
        Ok(())
    }

    /// Tells the session to look into its queue if something waits there.
    pub(crate) async fn hint_waiting_c2d(&self, session: &SessionHandle) {
        if session.identity().is_module() {
            return;
        }
        match self.stores.c2d.depth(session.identity()).await {
            Ok(0) => {}
            // When the store cannot tell, the session's own look will.
            Ok(_) | Err(_) => {
                let _ = session.push(Downlink::CloudToDevice);
            }
        }
    }

    /// Gives back what an ended session holds locked.
    pub(crate) async fn release_c2d(&self, session: &SessionHandle) {
        if !session.identity().is_module() && session.subscribed(Channel::CloudToDevice) {
            self.release_owner(session.identity(), session.epoch).await;
        }
    }

    async fn release_owner(&self, device: &Identity, owner: u64) {
        // Looking is cheaper than a write, and mostly nothing waits.
        if matches!(self.stores.c2d.depth(device).await, Ok(0)) {
            return;
        }
        if let Err(error) = self.stores.c2d.release(device, owner).await {
            // The locks end by themselves; the failure itself is worth a line.
            let _ = self.store_error("release cloud-to-device messages", error);
        }
    }

    /// Dead-letters messages whose time is over.
    pub(crate) async fn expire_c2d(&self) {
        match self.stores.c2d.expire(self.now()).await {
            Ok(count) => self.metrics.c2d_expired.add(count),
            Err(error) => drop(self.store_error("expire cloud-to-device messages", error)),
        }
    }

    fn hint_c2d(&self, device: &Identity) {
        self.push_to(
            device,
            Channel::CloudToDevice,
            "cloud-to-device hint",
            Downlink::CloudToDevice,
        );
    }
}

fn lock_lost() -> Error {
    Error::new(
        ErrorCode::DeviceMessageLockLost,
        "the lock token is unknown or its lock has ended",
    )
}
