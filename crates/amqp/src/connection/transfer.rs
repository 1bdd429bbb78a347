//! Transfers from the peer: windows, credit, messages in pieces (AMQP 2.5.6, 2.6.7, 2.6.14).

use std::borrow::Cow;

use super::event::{Delivery, TAG_MAX, Tag};
use super::session::{Link, LinkState, Partial, SessionState};
use super::{Connection, Event, LinkId};
use crate::error::{ConnectionError, LinkError};
use crate::performatives::{Arriving, Role};

type Handled<'a> = Result<Option<Event<'a>>, ConnectionError>;

/// What became of a transfer on its link.
enum Arrival {
    /// The message is whole, in this frame.
    Whole,
    /// With this frame it is whole.
    Joined(Box<Partial>),
    /// More is to come, or it was given up.
    Nothing,
    /// Against the rules of the link.
    Failed(LinkError),
}

impl Connection {
    #[inline]
    pub(super) fn on_transfer<'a>(
        &mut self,
        remote: u16,
        transfer: &Arriving<'a>,
        payload: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let reassembly_left = self.config.max_reassembly.saturating_sub(self.reassembling) as usize;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state == SessionState::EndSent {
            return Ok(None);
        }
        session.incoming_window = session
            .incoming_window
            .checked_sub(1)
            .ok_or(ConnectionError::WindowViolation)?;
        session.next_incoming_id = session.next_incoming_id.wrapping_add(1);
        let Some(handle) = session.handle_of(transfer.handle) else {
            return Err(ConnectionError::UnattachedHandle(transfer.handle));
        };
        let last_id = session.last_delivery_id;
        let Some(id) = session.link_id(channel, handle) else {
            return Err(ConnectionError::UnattachedHandle(transfer.handle));
        };
        let Some(link) = session.slot(handle) else {
            return Err(ConnectionError::UnattachedHandle(transfer.handle));
        };
        if link.role == Role::Sender {
            return Err(ConnectionError::WrongRole);
        }
        let before = link.partial_len();
        let first = link.partial.is_none();
        let arrival = if link.state == LinkState::DetachSent {
            Arrival::Nothing
        } else if first {
            link.first_transfer(transfer, payload, last_id, reassembly_left)?
        } else {
            link.later_transfer(transfer, payload, reassembly_left)?
        };
        let after = link.partial_len();
        if first && transfer.delivery_id.is_some() {
            session.last_delivery_id = transfer.delivery_id;
        }
        if before != after {
            self.release(before);
            self.reassembling += u32::try_from(after).unwrap_or(u32::MAX);
        }
        let delivery = match arrival {
            Arrival::Whole => Delivery {
                id: transfer.delivery_id.unwrap_or_default(),
                settled: transfer.settled.unwrap_or(false),
                message_format: transfer.message_format.unwrap_or(0),
                tag: Cow::Borrowed(transfer.delivery_tag.unwrap_or_default()),
                payload: Cow::Borrowed(payload),
            },
            Arrival::Joined(partial) => joined(*partial),
            Arrival::Nothing => {
                self.open_window(channel, out);
                return Ok(None);
            }
            Arrival::Failed(error) => {
                let event = self.fail_link(id, error, out);
                self.open_window(channel, out);
                return Ok(Some(event));
            }
        };
        self.note(id, delivery.id, delivery.settled, out);
        self.open_window(channel, out);
        Ok(Some(Event::Transfer { link: id, delivery }))
    }

    /// Notes a message that is whole.
    #[inline]
    fn note(&mut self, id: LinkId, delivery: u32, settled: bool, out: &mut Vec<u8>) {
        let Some(session) = self.session(id.channel) else {
            return;
        };
        if !settled {
            // The window leaves no room for more than `max_received` of them.
            session.incoming.push(delivery, id.handle, ());
        }
        let topped = session.slot(id.handle).is_some_and(|link| {
            link.unsettled += u32::from(!settled);
            settled && link.top_up()
        });
        if topped {
            self.put_link_flow(id.channel, id.handle, out);
        }
    }

    /// Gives the peer its window again, if that is worth a frame and no flow of a link has done so already.
    #[inline]
    pub(super) fn open_window(&mut self, channel: u16, out: &mut Vec<u8>) {
        let session = self.sessions.get(usize::from(channel)).and_then(Option::as_deref);
        if session.is_some_and(|session| session.wants_flow(&self.config)) {
            self.put_flow(channel, out);
        }
    }
}

impl Link {
    #[inline]
    fn first_transfer(
        &mut self,
        transfer: &Arriving<'_>,
        payload: &[u8],
        last_id: Option<u32>,
        room: usize,
    ) -> Result<Arrival, ConnectionError> {
        let (Some(id), Some(tag)) = (transfer.delivery_id, transfer.delivery_tag) else {
            return Err(ConnectionError::DeliveryId);
        };
        // Numbers rise within the session (AMQP 2.7.5); the list of unsettled deliveries relies on it.
        let rises = last_id.is_none_or(|last| id != last && id.wrapping_sub(last) <= i32::MAX as u32);
        if tag.len() > TAG_MAX || !rises {
            return Err(ConnectionError::DeliveryId);
        }
        if !self.use_credit() {
            return Ok(Arrival::Failed(LinkError::TransferLimit));
        }
        self.delivery_count = self.delivery_count.wrapping_add(1);
        if transfer.aborted {
            return Ok(Arrival::Nothing);
        }
        if self.is_too_large(payload.len()) {
            return Ok(Arrival::Failed(LinkError::MessageSize));
        }
        if transfer.more {
            return Ok(match Tag::new(tag) {
                Some(tag) if payload.len() <= room => {
                    self.partial = Some(Box::new(Partial {
                        payload: payload.to_vec(),
                        id,
                        message_format: transfer.message_format.unwrap_or(0),
                        tag,
                        settled: transfer.settled.unwrap_or(false),
                    }));
                    Arrival::Nothing
                }
                _ => Arrival::Failed(LinkError::Reassembly),
            });
        }
        Ok(Arrival::Whole)
    }

    fn later_transfer(
        &mut self,
        transfer: &Arriving<'_>,
        payload: &[u8],
        room: usize,
    ) -> Result<Arrival, ConnectionError> {
        let Some(mut partial) = self.partial.take() else {
            return Ok(Arrival::Nothing);
        };
        if transfer.delivery_id.is_some_and(|id| id != partial.id) {
            return Err(ConnectionError::DeliveryId);
        }
        if transfer.aborted {
            return Ok(Arrival::Nothing);
        }
        if self.is_too_large(partial.payload.len().saturating_add(payload.len())) {
            return Ok(Arrival::Failed(LinkError::MessageSize));
        }
        if payload.len() > room {
            return Ok(Arrival::Failed(LinkError::Reassembly));
        }
        partial.payload.extend_from_slice(payload);
        partial.settled |= transfer.settled.unwrap_or(false);
        if transfer.more {
            self.partial = Some(partial);
            return Ok(Arrival::Nothing);
        }
        Ok(Arrival::Joined(partial))
    }

    fn is_too_large(&self, len: usize) -> bool {
        self.max_message_size > 0 && len as u64 > self.max_message_size
    }
}

/// A message that came in several frames.
fn joined<'a>(partial: Partial) -> Delivery<'a> {
    Delivery {
        id: partial.id,
        settled: partial.settled,
        message_format: partial.message_format,
        tag: Cow::Owned(partial.tag.as_bytes().to_vec()),
        payload: Cow::Owned(partial.payload),
    }
}
