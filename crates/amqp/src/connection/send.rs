//! Messages to the peer (AMQP 2.6.12), cut into frames it takes.

use super::session::{LinkState, Session, SessionState, Unsent};
use super::{Connection, LinkId, SessionId};
use crate::error::SendError;
use crate::frame::{self, FrameType};
use crate::performatives::{DeliveryState, Disposition, Role, Transfer};

/// What goes with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outgoing<'a> {
    /// Name of the delivery, at most 32 bytes, different from others of the link that are not settled.
    pub tag: &'a [u8],
    /// [`FORMAT`](crate::message::FORMAT) or [`BATCH_FORMAT`](crate::message::BATCH_FORMAT).
    pub message_format: u32,
    /// Send it and forget it.
    pub settled: bool,
    /// Comes back in [`Event::Outcome`](super::Event::Outcome). Unused if settled.
    pub token: u64,
    /// The receiver need not hurry with its answer.
    pub batchable: bool,
}

impl Connection {
    /// Sends a message that is encoded already. Returns its number within the session.
    ///
    /// A message that the session's window cuts is taken all the same: the rest goes out as the window opens, and until
    /// then the session says [`SendError::WindowFull`].
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended.
    #[inline]
    pub fn send(
        &mut self,
        link: LinkId,
        outgoing: &Outgoing<'_>,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<u32, SendError> {
        self.send_with(link, outgoing, |out| out.extend_from_slice(payload), out)
    }

    /// Sends the message that `write` appends: straight into the output, without a copy unless it has to be cut.
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended.
    pub fn send_with(
        &mut self,
        link: LinkId,
        outgoing: &Outgoing<'_>,
        write: impl FnOnce(&mut Vec<u8>),
        out: &mut Vec<u8>,
    ) -> Result<u32, SendError> {
        let frame_max = self.frame_max();
        let max_unsettled = self.config.max_unsettled;
        let session = self.session(link.channel).ok_or(SendError::NotAttached)?;
        let max_message_size = session.ready(link, outgoing, max_unsettled)?;
        let delivery_id = session.next_delivery_id;
        let transfer = Transfer {
            handle: link.handle.into(),
            delivery_id: Some(delivery_id),
            delivery_tag: Some(outgoing.tag),
            message_format: Some(outgoing.message_format),
            settled: Some(outgoing.settled),
            batchable: outgoing.batchable,
            ..Transfer::default()
        };
        let start = frame::begin(out, FrameType::Amqp, link.channel);
        transfer.encode(out);
        let head = out.len() - start;
        write(out);
        let size = out.len() - start - head;
        if max_message_size > 0 && size as u64 > max_message_size {
            out.truncate(start);
            return Err(SendError::TooLarge {
                size,
                limit: max_message_size,
            });
        }
        session.next_delivery_id = delivery_id.wrapping_add(1);
        if !outgoing.settled {
            session.outgoing.push(delivery_id, link.handle, outgoing.token);
        }
        if let Some(link) = session.slot(link.handle) {
            link.credit -= 1;
            link.delivery_count = link.delivery_count.wrapping_add(1);
        }
        if head + size <= frame_max {
            frame::finish(out, start);
            session.sent_transfer();
        } else {
            let payload = out.split_off(start + head);
            out.truncate(start);
            session.send_cut(link, &transfer, payload, frame_max - head, frame_max, out);
        }
        self.wrote = true;
        Ok(delivery_id)
    }

    /// Goes on with a message that the window had cut.
    pub(super) fn continue_unsent(&mut self, channel: u16, out: &mut Vec<u8>) {
        let frame_max = self.frame_max();
        let Some(session) = self.session(channel) else {
            return;
        };
        if session.unsent.is_some() {
            session.continue_unsent(channel, frame_max, out);
            self.wrote = true;
        }
    }

    /// Messages that can be sent on a link right now, as far as credit and window go.
    #[must_use]
    pub fn can_send(&self, link: LinkId) -> u32 {
        self.peek(link).map_or(0, |(session, state)| {
            if session.unsent.is_some() || state.role != Role::Sender {
                0
            } else {
                state.credit.min(session.remote_incoming_window)
            }
        })
    }

    /// Asks for [`Event::WindowOpen`](super::Event::WindowOpen) as a send that finds the window full does, for a caller that
    /// looked with [`can_send`](Self::can_send) instead.
    pub fn notify_window(&mut self, session: SessionId) {
        if let Some(state) = self.session(session.channel)
            && state.serial == session.serial
            && (state.remote_incoming_window == 0 || state.unsent.is_some())
        {
            state.blocked = true;
        }
    }

    /// Credit of a link: what may still be sent, or what the peer may still send.
    #[must_use]
    pub fn credit(&self, link: LinkId) -> u32 {
        self.peek(link).map_or(0, |(_, link)| link.credit)
    }

    fn peek(&self, id: LinkId) -> Option<(&Session, &super::session::Link)> {
        let session = self.sessions.get(usize::from(id.channel))?.as_deref()?;
        let link = session.links.get(usize::from(id.handle))?.as_deref()?;
        let live = link.serial == id.serial && link.state == LinkState::Attached;
        live.then_some((session, link))
    }

    /// Settles a message we sent, after an [`Event::Outcome`](super::Event::Outcome) that was not settled. `state` is what
    /// the receiver is to know: the hub says Accepted whatever the receiver chose, because .NET clients want that.
    pub fn settle_sent(
        &mut self,
        link: LinkId,
        delivery_id: u32,
        state: Option<&DeliveryState<'_>>,
        out: &mut Vec<u8>,
    ) {
        let known = self.session(link.channel).is_some_and(|session| {
            session.link(link).is_some() && session.outgoing.remove(delivery_id).is_some()
        });
        if known {
            let disposition = Disposition {
                role: Role::Sender,
                first: delivery_id,
                last: Some(delivery_id),
                settled: true,
                state: state.copied(),
                batchable: false,
            };
            self.put(out, link.channel, |out| disposition.encode(out));
        }
    }
}

impl Session {
    /// That a message can be sent now. Returns the largest the peer takes.
    #[inline]
    fn ready(&mut self, id: LinkId, outgoing: &Outgoing<'_>, max_unsettled: u32) -> Result<u64, SendError> {
        if self.state != SessionState::Mapped {
            return Err(SendError::NotAttached);
        }
        let window = self.remote_incoming_window > 0 && self.unsent.is_none();
        let full = !outgoing.settled && self.outgoing.len() >= max_unsettled as usize;
        let link = self.link(id).ok_or(SendError::NotAttached)?;
        if link.state != LinkState::Attached || link.role != Role::Sender {
            return Err(SendError::NotAttached);
        }
        if link.credit == 0 {
            return Err(SendError::NoCredit);
        }
        let max_message_size = link.max_message_size;
        if outgoing.tag.len() > 32 {
            return Err(SendError::Tag);
        }
        if !window {
            self.blocked = true;
            return Err(SendError::WindowFull);
        }
        if full {
            return Err(SendError::TooManyUnsettled);
        }
        Ok(max_message_size)
    }

    #[inline]
    fn sent_transfer(&mut self) {
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
        self.remote_incoming_window -= 1;
    }

    /// Sends a message in pieces: the first with the whole transfer, the others as far as the window allows.
    #[cold]
    fn send_cut(
        &mut self,
        link: LinkId,
        transfer: &Transfer<'_>,
        payload: Vec<u8>,
        first: usize,
        frame_max: usize,
        out: &mut Vec<u8>,
    ) {
        let transfer = Transfer {
            more: true,
            ..*transfer
        };
        frame::encode(out, FrameType::Amqp, link.channel, |out| {
            transfer.encode(out);
            out.extend_from_slice(&payload[..first]);
        });
        self.sent_transfer();
        self.unsent = Some(Box::new(Unsent {
            payload,
            sent: first,
            handle: link.handle,
            settled: transfer.settled.unwrap_or(false),
        }));
        self.continue_unsent(link.channel, frame_max, out);
    }

    fn continue_unsent(&mut self, channel: u16, frame_max: usize, out: &mut Vec<u8>) {
        let Some(mut unsent) = self.unsent.take() else {
            return;
        };
        while self.remote_incoming_window > 0 {
            let start = frame::begin(out, FrameType::Amqp, channel);
            let mut transfer = Transfer {
                handle: unsent.handle.into(),
                settled: Some(unsent.settled),
                more: true,
                ..Transfer::default()
            };
            transfer.encode(out);
            let room = frame_max - (out.len() - start);
            let end = unsent.payload.len().min(unsent.sent + room);
            if end == unsent.payload.len() {
                // `more` takes one byte whatever its value, so the room stays the same.
                out.truncate(start + 8);
                transfer.more = false;
                transfer.encode(out);
            }
            out.extend_from_slice(&unsent.payload[unsent.sent..end]);
            frame::finish(out, start);
            self.sent_transfer();
            unsent.sent = end;
            if end == unsent.payload.len() {
                return;
            }
        }
        self.unsent = Some(unsent);
    }
}
