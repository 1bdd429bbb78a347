//! Cloud-to-device messages of leaf devices: passed on under the hub's own locks, never stored here (edge.md 7.7).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken, Settlement};
use holdfast_model::limits::{C2D_LOCK_SECONDS, C2D_QUEUE_MAX};
use holdfast_model::message::SystemProperty;
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::session::{Downlink, SessionHandle};
use holdfast_upstream::port::{CloudMessage, Settle};
use parking_lot::Mutex;

use crate::Broker;
use crate::links::{Link, takes_c2d};

/// Messages of the hub above that devices have not settled.
#[derive(Default)]
pub(crate) struct Relayed {
    devices: Mutex<HashMap<Identity, VecDeque<Entry>>>,
    next: AtomicU64,
}

struct Entry {
    number: u64,
    link: Arc<Link>,
    message: CloudMessage,
    /// Session that has it, and the nonce of its lock.
    held: Option<(u64, u64)>,
}

impl Broker {
    /// Takes a message for a device; gives it back at once when the device is not there for it.
    pub(crate) fn relay(&self, link: &Arc<Link>, message: CloudMessage) {
        let session = self
            .sessions
            .get(&link.identity)
            .filter(|session| takes_c2d(session));
        let token = message.token;
        let taken = session.is_some() && {
            let mut devices = self.relayed.devices.lock();
            let waiting = devices.entry(link.identity.clone()).or_default();
            let room = waiting.len() < C2D_QUEUE_MAX;
            if room {
                waiting.push_back(Entry {
                    number: self.relayed.next.fetch_add(1, Ordering::Relaxed) + 1,
                    link: Arc::clone(link),
                    message,
                    held: None,
                });
            }
            room
        };
        if taken {
            self.sessions
                .push(&link.identity, Channel::CloudToDevice, Downlink::CloudToDevice);
        } else {
            link.client.settle(token, Settle::Abandon);
        }
    }

    /// Hands out waiting messages to a session.
    pub(crate) fn receive_relayed(&self, session: &SessionHandle, max: usize) -> Vec<C2dDelivery> {
        let now = self.clock.now();
        let mut devices = self.relayed.devices.lock();
        let Some(waiting) = devices.get_mut(session.identity()) else {
            return Vec::new();
        };
        waiting
            .iter_mut()
            .filter(|entry| entry.held.is_none())
            .take(max)
            .map(|entry| {
                let nonce = self.relayed.next.fetch_add(1, Ordering::Relaxed);
                entry.held = Some((session.epoch, nonce));
                C2dDelivery {
                    lock: LockToken {
                        sequence_number: entry.number,
                        nonce,
                    },
                    locked_until: now.plus(Duration::from_secs(C2D_LOCK_SECONDS)),
                    delivery_count: 0,
                    redelivered: false,
                    message: c2d_message(session.identity(), &entry.message, now),
                }
            })
            .collect()
    }

    /// Passes a device's answer on. What is given back comes again from the hub.
    pub(crate) fn settle_relayed(
        &self,
        device: &Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let mut devices = self.relayed.devices.lock();
        let found = devices.get_mut(device).and_then(|waiting| {
            let at = waiting.iter().position(|entry| {
                entry.number == lock.sequence_number
                    && entry.held.is_some_and(|(_, nonce)| nonce == lock.nonce)
            })?;
            waiting.remove(at)
        });
        drop_empty(&mut devices, device);
        drop(devices);
        let entry = found.ok_or_else(|| {
            Error::new(
                ErrorCode::DeviceMessageLockLost,
                "the lock token is unknown or its lock has ended",
            )
        })?;
        let how = match settlement {
            Settlement::Complete => Settle::Complete,
            Settlement::Reject => Settle::Reject,
            Settlement::Abandon | Settlement::Release => Settle::Abandon,
        };
        entry.link.client.settle(entry.message.token, how);
        Ok(())
    }

    /// A session has ended: what it did not settle goes back to the hub, unless a newer session is there for it.
    pub(crate) fn release_relayed(&self, session: &SessionHandle) {
        let identity = session.identity();
        let newer = self.sessions.get(identity).is_some_and(|newer| takes_c2d(&newer));
        let mut back = Vec::new();
        {
            let mut devices = self.relayed.devices.lock();
            if let Some(waiting) = devices.get_mut(identity) {
                for entry in waiting.iter_mut() {
                    if entry.held.is_some_and(|(epoch, _)| epoch == session.epoch) {
                        entry.held = None;
                    }
                }
                if !newer {
                    back = std::mem::take(waiting).into();
                }
            }
            drop_empty(&mut devices, identity);
        }
        for entry in back {
            entry.link.client.settle(entry.message.token, Settle::Abandon);
        }
        if newer {
            self.sessions
                .push(identity, Channel::CloudToDevice, Downlink::CloudToDevice);
        }
    }

    /// The connection by which they came is gone, and with it the hub's locks.
    pub(crate) fn drop_relayed(&self, device: &Identity) {
        self.relayed.devices.lock().remove(device);
    }
}

fn drop_empty(devices: &mut HashMap<Identity, VecDeque<Entry>>, device: &Identity) {
    if devices.get(device).is_some_and(VecDeque::is_empty) {
        devices.remove(device);
    }
}

fn c2d_message(device: &Identity, message: &CloudMessage, now: Timestamp) -> C2dMessage {
    let mut content = message.message.clone();
    let mut take = |property| {
        let at = content.system.iter().position(|(known, _)| *known == property)?;
        Some(content.system.remove(at).1)
    };
    let ack = take(SystemProperty::Ack).and_then(|ack| AckMode::parse(&ack));
    let expires_at = take(SystemProperty::ExpiryTimeUtc).and_then(|text| Timestamp::parse(&text));
    take(SystemProperty::To);
    C2dMessage {
        device: device.clone(),
        generation_id: 0,
        message: content,
        ack: ack.unwrap_or_default(),
        enqueued_at: now,
        expires_at: expires_at.unwrap_or(Timestamp::MAX),
        input: None,
    }
}
