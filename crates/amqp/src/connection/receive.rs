//! What the peer's performatives do, transfers apart (AMQP 2.5, 2.6, 2.7).
//!
//! A frame that tells of several deliveries gives one event each: `again` then leaves it in the input, and it is decoded
//! anew for the next one. So events can borrow from the frame, and nothing is queued.

use super::session::{Link, LinkState, Session, SessionState};
use super::{Connection, Event, LinkId, Phase};
use crate::error::{ConnectionError, DecodeError, LinkError};
use crate::performatives::{
    Arriving, Attach, Begin, Close, Detach, Disposition, End, Error, Fields, Flow, Role, composite,
    descriptor,
};
use crate::types::Reader;

type Handled<'a> = Result<Option<Event<'a>>, ConnectionError>;

impl Connection {
    #[inline]
    pub(super) fn on_frame<'a>(&mut self, channel: u16, body: &'a [u8], out: &mut Vec<u8>) -> Handled<'a> {
        if body.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader::new(body);
        let (code, fields) = composite(&mut reader)?;
        match code {
            descriptor::TRANSFER => {
                let transfer = Arriving::read(fields)?;
                self.on_transfer(channel, &transfer, reader.rest(), out)
            }
            descriptor::DISPOSITION => self.on_disposition(channel, &Disposition::read(fields)?, out),
            descriptor::FLOW => self.on_flow(channel, &Flow::read(fields)?, out),
            _ => self.on_rare_frame(channel, code, fields, out),
        }
    }

    /// After our close only the peer's matters (AMQP 2.4.6).
    pub(super) fn on_frame_while_closing<'a>(&mut self, body: &'a [u8]) -> Handled<'a> {
        if body.is_empty() {
            return Ok(None);
        }
        let (code, fields) = composite(&mut Reader::new(body))?;
        if code != descriptor::CLOSE {
            return Ok(None);
        }
        let Close { error } = Close::read(fields)?;
        self.phase = Phase::Closed;
        Ok(Some(Event::Close { error }))
    }

    fn on_rare_frame<'a>(
        &mut self,
        channel: u16,
        code: u8,
        fields: Fields<'a>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        match code {
            descriptor::BEGIN => self.on_begin(channel, Begin::read(fields)?, out),
            descriptor::ATTACH => self.on_attach(channel, Attach::read(fields)?, out),
            descriptor::DETACH => self.on_detach(channel, Detach::read(fields)?, out),
            descriptor::END => self.on_end(channel, End::read(fields)?, out),
            descriptor::CLOSE => {
                let Close { error } = Close::read(fields)?;
                self.write_close(None, out);
                self.phase = Phase::Closed;
                Ok(Some(Event::Close { error }))
            }
            descriptor::OPEN => Err(ConnectionError::OutOfOrder(code)),
            other => Err(ConnectionError::Decode(DecodeError::Descriptor(other.into()))),
        }
    }

    /// Our channel for the peer's.
    #[inline]
    pub(super) fn local_channel(&self, remote: u16) -> Result<u16, ConnectionError> {
        match self.channels.binary_search_by_key(&remote, |(remote, _)| *remote) {
            Ok(at) => Ok(self.channels[at].1),
            Err(_) => Err(ConnectionError::NoSession(remote)),
        }
    }

    fn map_channel(&mut self, remote: u16, local: u16) -> Result<(), ConnectionError> {
        if remote > self.config.channel_max {
            return Err(ConnectionError::ChannelMax(remote));
        }
        match self.channels.binary_search_by_key(&remote, |(remote, _)| *remote) {
            Ok(_) => Err(ConnectionError::Begin(remote)),
            Err(at) => {
                self.channels.insert(at, (remote, local));
                Ok(())
            }
        }
    }

    fn on_begin<'a>(&mut self, channel: u16, begin: Begin<'a>, out: &mut Vec<u8>) -> Handled<'a> {
        let answer = begin.remote_channel.is_none();
        let local = match begin.remote_channel {
            Some(local) => {
                let waiting = self
                    .session(local)
                    .is_some_and(|session| session.remote_channel.is_none());
                if !waiting {
                    return Err(ConnectionError::Begin(channel));
                }
                local
            }
            None => self.free_channel().ok_or(ConnectionError::ChannelMax(channel))?,
        };
        self.map_channel(channel, local)?;
        if answer {
            let serial = self.next_serial();
            self.sessions[usize::from(local)] = Some(Box::new(Session::new(serial, &self.config)));
        }
        let config = self.config.clone();
        let Some(session) = self.session(local) else {
            return Err(ConnectionError::Begin(channel));
        };
        if session.state == SessionState::EndSent {
            // We ended it before the peer answered.
            session.remote_channel = Some(channel);
            return Ok(None);
        }
        session.map(channel, &begin);
        let id = session.id(local);
        if answer {
            let reply = session.begin(&config);
            self.put(out, local, |out| reply.encode(out));
        }
        let begin = Box::new(begin);
        Ok(Some(Event::Begin { session: id, begin }))
    }

    /// A free channel that the peer accepts, with a place in the list.
    pub(super) fn free_channel(&mut self) -> Option<u16> {
        let free = self.sessions.iter().position(Option::is_none);
        let at = free.unwrap_or(self.sessions.len());
        let channel = u16::try_from(at).ok()?;
        if channel > self.peer_channel_max {
            return None;
        }
        if free.is_none() {
            self.sessions.push(None);
        }
        Some(channel)
    }

    fn on_end<'a>(&mut self, remote: u16, end: End<'a>, out: &mut Vec<u8>) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state == SessionState::EndSent {
            self.remove_session(channel);
            return Ok(None);
        }
        while let Some(entry) = session.outgoing.pop() {
            if let Some(link) = session.link_id(channel, entry.handle) {
                self.again = true;
                return Ok(Some(lost(link, entry.id, entry.item)));
            }
        }
        let session = session.id(channel);
        self.remove_session(channel);
        self.put(out, channel, |out| End::default().encode(out));
        Ok(Some(Event::End {
            session,
            error: end.error,
        }))
    }

    fn remove_session(&mut self, channel: u16) {
        let Some(session) = self.sessions.get_mut(usize::from(channel)).and_then(Option::take) else {
            return;
        };
        self.channels.retain(|(_, local)| *local != channel);
        for link in session.links.iter().flatten() {
            self.links -= 1;
            self.release(link.partial_len());
        }
        while matches!(self.sessions.last(), Some(None)) {
            self.sessions.pop();
        }
        if self.sessions.is_empty() {
            self.sessions = Vec::new();
            self.channels = Vec::new();
        }
    }

    /// Bytes of an unfinished message are gone.
    pub(super) fn release(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.reassembling = self.reassembling.saturating_sub(bytes);
    }

    fn on_attach<'a>(&mut self, remote: u16, attach: Attach<'a>, out: &mut Vec<u8>) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let handle_max = self.config.handle_max;
        let full = self.links >= self.config.max_links;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state == SessionState::EndSent {
            return Ok(None);
        }
        if attach.handle > handle_max.into() {
            return Err(ConnectionError::HandleMax(attach.handle));
        }
        if session.handle_of(attach.handle).is_some() {
            return Err(ConnectionError::HandleInUse(attach.handle));
        }
        if let Some(handle) = session.named(attach.name, attach.role.peer()) {
            let ours = session.slot(handle).map(|link| link.state);
            return match ours {
                Some(LinkState::AttachSent) => self.on_attach_answer(channel, handle, attach, out),
                _ => self.steal(channel, handle, out),
            };
        }
        if let Some(handle) = session.abandoned(attach.name, attach.role.peer()) {
            // We detached before the peer answered our attach: its detach is still to come.
            session.map_handle(attach.handle, handle);
            if let Some(link) = session.slot(handle) {
                link.remote_handle = Some(attach.handle);
            }
            return Ok(None);
        }
        if full {
            return Err(ConnectionError::TooManyLinks);
        }
        self.on_new_link(channel, attach)
    }

    fn on_new_link<'a>(&mut self, channel: u16, attach: Attach<'a>) -> Handled<'a> {
        let serial = self.next_serial();
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        let mut link = Link::new(attach.name, attach.role.peer(), serial, LinkState::AttachReceived);
        link.remote_handle = Some(attach.handle);
        match link.role {
            Role::Receiver => link.delivery_count = attach.initial_delivery_count.unwrap_or(0),
            Role::Sender => link.max_message_size = attach.max_message_size.unwrap_or(0),
        }
        let Some(handle) = session.insert(link) else {
            return Err(ConnectionError::TooManyLinks);
        };
        session.map_handle(attach.handle, handle);
        let link = session.link_id(channel, handle);
        self.links += 1;
        let attach = Box::new(attach);
        Ok(link.map(|link| Event::Attach { link, attach }))
    }

    fn on_attach_answer<'a>(
        &mut self,
        channel: u16,
        handle: u16,
        attach: Attach<'a>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        session.map_handle(attach.handle, handle);
        let Some(id) = session.link_id(channel, handle) else {
            return Ok(None);
        };
        let Some(link) = session.slot(handle) else {
            return Ok(None);
        };
        link.remote_handle = Some(attach.handle);
        link.state = LinkState::Attached;
        match link.role {
            Role::Receiver => link.delivery_count = attach.initial_delivery_count.unwrap_or(0),
            Role::Sender => link.max_message_size = attach.max_message_size.unwrap_or(0),
        }
        // A refusal is announced by a missing terminus (AMQP 2.6.3); credit would be out of place then.
        let terminus = match link.role {
            Role::Receiver => attach.source.is_some(),
            Role::Sender => attach.target.is_some(),
        };
        if terminus && link.top_up() {
            self.put_link_flow(channel, handle, out);
        }
        let attach = Box::new(attach);
        Ok(Some(Event::Attached { link: id, attach }))
    }

    /// A link of the same name takes the place of this one (AMQP 2.6.1). The attach is looked at again afterwards.
    fn steal<'a>(&mut self, channel: u16, handle: u16, out: &mut Vec<u8>) -> Handled<'a> {
        self.again = true;
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        let Some(link) = session.link_id(channel, handle) else {
            return Ok(None);
        };
        if let Some(entry) = session.outgoing.take_of(handle) {
            return Ok(Some(lost(link, entry.id, entry.item)));
        }
        Ok(Some(self.fail_link(link, LinkError::Stolen, out)))
    }

    /// Detaches a link whose rules the peer broke.
    pub(super) fn fail_link<'a>(&mut self, link: LinkId, error: LinkError, out: &mut Vec<u8>) -> Event<'a> {
        let description = error.to_string();
        self.detach(link, Some(&Error::new(error.condition(), &description)), out);
        Event::LinkFailed { link, error }
    }

    fn on_detach<'a>(&mut self, remote: u16, detach: Detach<'a>, out: &mut Vec<u8>) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state == SessionState::EndSent {
            return Ok(None);
        }
        let Some(handle) = session.handle_of(detach.handle) else {
            return Err(ConnectionError::UnattachedHandle(detach.handle));
        };
        let Some(id) = session.link_id(channel, handle) else {
            return Ok(None);
        };
        let state = session.slot(handle).map(|link| link.state);
        if state != Some(LinkState::DetachSent)
            && let Some(entry) = session.outgoing.take_of(handle)
        {
            self.again = true;
            return Ok(Some(lost(id, entry.id, entry.item)));
        }
        let Some(link) = session.remove(handle) else {
            return Ok(None);
        };
        self.links -= 1;
        self.release(link.partial_len());
        if state == Some(LinkState::DetachSent) {
            return Ok(None);
        }
        if state == Some(LinkState::AttachReceived) {
            let refusal = Attach {
                handle: handle.into(),
                initial_delivery_count: (link.role == Role::Sender).then_some(0),
                ..Attach::new(&link.name, link.role)
            };
            self.put(out, channel, |out| refusal.encode(out));
        }
        let answer = Detach {
            handle: handle.into(),
            closed: detach.closed,
            error: None,
        };
        self.put(out, channel, |out| answer.encode(out));
        self.open_window(channel, out);
        Ok(Some(Event::Detach {
            link: id,
            closed: detach.closed,
            error: detach.error,
        }))
    }

    fn on_flow<'a>(&mut self, remote: u16, flow: &Flow<'a>, out: &mut Vec<u8>) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state != SessionState::Mapped {
            return Ok(None);
        }
        self.answers |= self.asked && flow.handle.is_none();
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        // AMQP 2.5.6; a peer that has not seen our begin counts from our first id, 0.
        session.remote_incoming_window = flow
            .next_incoming_id
            .unwrap_or(0)
            .wrapping_add(flow.incoming_window)
            .wrapping_sub(session.next_outgoing_id);
        if session.remote_incoming_window > i32::MAX as u32 && flow.incoming_window <= i32::MAX as u32 {
            // More is under way than the peer takes.
            session.remote_incoming_window = 0;
        }
        self.continue_unsent(channel, out);
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        if session.blocked && session.unsent.is_none() && session.remote_incoming_window > 0 {
            session.blocked = false;
            let session = session.id(channel);
            self.again = true;
            return Ok(Some(Event::WindowOpen { session }));
        }
        match flow.handle {
            Some(handle) => self.on_link_flow(channel, handle, flow, out),
            None => {
                if flow.echo {
                    self.put_flow(channel, out);
                }
                Ok(None)
            }
        }
    }

    fn on_link_flow<'a>(
        &mut self,
        channel: u16,
        remote: u32,
        flow: &Flow<'a>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        let Some(handle) = session.handle_of(remote) else {
            return Err(ConnectionError::UnattachedHandle(remote));
        };
        let Some(id) = session.link_id(channel, handle) else {
            return Ok(None);
        };
        let Some(link) = session.slot(handle) else {
            return Ok(None);
        };
        if link.state == LinkState::DetachSent {
            return Ok(None);
        }
        let event = match link.role {
            Role::Sender => credit_given(link, flow).then_some(Event::Credit {
                link: id,
                credit: link.credit,
                drain: link.drain,
            }),
            Role::Receiver => credit_used(link, flow).then_some(Event::Drained { link: id }),
        };
        let attached = link.state == LinkState::Attached;
        if flow.echo && attached {
            self.put_link_flow(channel, handle, out);
        }
        Ok(event.filter(|_| attached))
    }

    fn on_disposition<'a>(
        &mut self,
        remote: u16,
        disposition: &Disposition<'a>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let channel = self.local_channel(remote)?;
        let cursor = self.cursor;
        let Some(session) = self.session(channel) else {
            return Err(ConnectionError::NoSession(remote));
        };
        if session.state == SessionState::EndSent {
            return Ok(None);
        }
        let first = cursor.unwrap_or(disposition.first);
        let last = disposition.last.unwrap_or(disposition.first);
        match disposition.role {
            Role::Receiver => self.on_outcome(channel, first, last, disposition),
            Role::Sender => self.on_settled(channel, first, last, disposition, out),
        }
    }

    /// The receiver tells of our deliveries.
    fn on_outcome<'a>(
        &mut self,
        channel: u16,
        first: u32,
        last: u32,
        disposition: &Disposition<'a>,
    ) -> Handled<'a> {
        let Disposition { settled, state, .. } = *disposition;
        let tells = settled || state.is_some_and(|state| state.is_outcome());
        let Some(session) = self.session(channel).filter(|_| tells) else {
            return Ok(None);
        };
        let Some(entry) = session.outgoing.first_in(first, last) else {
            return Ok(None);
        };
        if settled {
            session.outgoing.remove(entry.id);
        }
        let link = session.link_id(channel, entry.handle);
        let next = entry.id.wrapping_add(1);
        if entry.id != last && session.outgoing.first_in(next, last).is_some() {
            self.again = true;
            self.cursor = Some(next);
        }
        Ok(link.map(|link| Event::Outcome {
            link,
            delivery_id: entry.id,
            token: entry.item,
            state,
            settled,
        }))
    }

    /// The sender settles what we had not.
    fn on_settled<'a>(
        &mut self,
        channel: u16,
        first: u32,
        last: u32,
        disposition: &Disposition<'a>,
        out: &mut Vec<u8>,
    ) -> Handled<'a> {
        let Some(session) = self.session(channel).filter(|_| disposition.settled) else {
            return Ok(None);
        };
        let Some(entry) = session.incoming.first_in(first, last) else {
            return Ok(None);
        };
        let Some(id) = session.link_id(channel, entry.handle) else {
            return Ok(None);
        };
        if entry.id != last {
            self.again = true;
            self.cursor = Some(entry.id.wrapping_add(1));
        }
        self.settled_one(channel, entry.id, out);
        Ok(Some(Event::Settled {
            link: id,
            delivery_id: entry.id,
            state: disposition.state,
        }))
    }
}

fn lost<'a>(link: LinkId, delivery_id: u32, token: u64) -> Event<'a> {
    Event::Outcome {
        link,
        delivery_id,
        token,
        state: None,
        settled: true,
    }
}

/// Takes over the credit a receiver gives (AMQP 2.6.7). Returns whether there is anything to tell.
fn credit_given(link: &mut Link, flow: &Flow<'_>) -> bool {
    let Some(credit) = flow.link_credit else {
        return false;
    };
    let limit = flow.delivery_count.unwrap_or(0).wrapping_add(credit);
    let left = limit.wrapping_sub(link.delivery_count);
    // What is under way may be more than the receiver would now give: then nothing is left.
    link.credit = if left > i32::MAX as u32 && credit <= i32::MAX as u32 {
        0
    } else {
        left
    };
    link.drain = flow.drain;
    true
}

/// Takes over what a sender says about its use of credit (AMQP 2.6.7). Returns whether a drain is done.
fn credit_used(link: &mut Link, flow: &Flow<'_>) -> bool {
    let Some(count) = flow.delivery_count else {
        return false;
    };
    let advanced = count.wrapping_sub(link.delivery_count);
    if advanced > link.credit {
        return false;
    }
    link.delivery_count = count;
    link.credit -= advanced;
    let done = link.drain && link.credit == 0;
    if done {
        link.drain = false;
        link.surplus = 0;
    }
    done
}
