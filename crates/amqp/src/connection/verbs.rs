//! What the caller can do with sessions and links.

use super::session::{Link, LinkState, Session, SessionState};
use super::{Connection, LinkId, Phase, SessionId};
use crate::error::OpenError;
use crate::performatives::{Attach, DeliveryState, Detach, Disposition, End, Error, Flow, Role};

impl Connection {
    /// Begins a session (AMQP 2.5.1). The answer comes as [`Event::Begin`](super::Event::Begin); links can be attached at
    /// once.
    ///
    /// # Errors
    /// [`OpenError`] before [`open`](Self::open), after a close, or if the peer allows no more.
    pub fn begin(&mut self, out: &mut Vec<u8>) -> Result<SessionId, OpenError> {
        if !self.open_sent || matches!(self.phase, Phase::Closing | Phase::Closed) {
            return Err(OpenError::NotOpen);
        }
        let channel = self.free_channel().ok_or(OpenError::Limit)?;
        let session = Session::new(self.next_serial(), &self.config);
        let begin = session.begin(&self.config);
        let id = session.id(channel);
        self.sessions[usize::from(channel)] = Some(Box::new(session));
        self.put(out, channel, |out| begin.encode(out));
        Ok(id)
    }

    /// Ends a session with its links (AMQP 2.5.4). No event comes any more from either. Look at
    /// [`in_flight`](Self::in_flight) before, if deliveries matter.
    pub fn end(&mut self, session: SessionId, error: Option<&Error<'_>>, out: &mut Vec<u8>) {
        let mut freed = 0;
        let mut gone = 0;
        let Some(state) = self.live_session(session) else {
            return;
        };
        state.state = SessionState::EndSent;
        for link in state.links.drain(..).flatten() {
            freed += link.partial_len();
            gone += 1;
        }
        state.handles = Vec::new();
        state.unsent = None;
        while state.outgoing.pop().is_some() {}
        while state.incoming.pop().is_some() {}
        self.links -= gone;
        self.release(freed);
        let error = error.copied();
        self.put(out, session.channel, |out| End { error }.encode(out));
    }

    fn live_session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.session(id.channel)
            .filter(|session| session.serial == id.serial && session.state != SessionState::EndSent)
    }

    /// Attaches a link (AMQP 2.6.3). The answer comes as [`Event::Attached`](super::Event::Attached). `window` is for a
    /// receiver, see [`set_window`](Self::set_window).
    ///
    /// # Errors
    /// [`OpenError`]; nothing was appended.
    pub fn attach(
        &mut self,
        session: SessionId,
        attach: &Attach<'_>,
        window: u32,
        out: &mut Vec<u8>,
    ) -> Result<LinkId, OpenError> {
        if self.links >= self.config.max_links {
            return Err(OpenError::Limit);
        }
        let serial = self.next_serial();
        let state = self.live_session(session).ok_or(OpenError::NotOpen)?;
        if state.named(attach.name, attach.role).is_some() {
            return Err(OpenError::NameInUse);
        }
        let mut link = Link::new(attach.name, attach.role, serial, LinkState::AttachSent);
        link.take_over(attach, window);
        let handle = state.insert(link).ok_or(OpenError::Limit)?;
        self.links += 1;
        self.put_attach(session.channel, handle, attach, out);
        Ok(LinkId {
            channel: session.channel,
            handle,
            serial,
            session: session.serial,
        })
    }

    /// Agrees to a link of the peer's, with [`Attach::agree`] or something more special; name, role and handle are filled
    /// in. `window` is for a receiver, see [`set_window`](Self::set_window).
    ///
    /// Clients give credit without waiting for the answer. What came before this call is not reported as
    /// [`Event::Credit`](super::Event::Credit): ask [`credit`](Self::credit) afterwards if the answer was not immediate.
    pub fn accept_link(&mut self, link: LinkId, answer: &Attach<'_>, window: u32, out: &mut Vec<u8>) {
        let Some((name, role)) = self.asked(link) else {
            return;
        };
        let answer = Attach {
            name: &name,
            role,
            ..*answer
        };
        self.put_attach(link.channel, link.handle, &answer, out);
        let Some(state) = self.live_link(link) else { return };
        state.take_over(&answer, window);
        state.state = LinkState::Attached;
        if state.top_up() {
            self.put_link_flow(link.channel, link.handle, out);
        }
    }

    /// Refuses a link of the peer's: an attach without termini, then a detach that says why (AMQP 2.6.3). For a redirect,
    /// accept it with a window of 0 and detach it: then the peer sees its termini again.
    pub fn refuse_link(&mut self, link: LinkId, error: &Error<'_>, out: &mut Vec<u8>) {
        self.detach(link, Some(error), out);
    }

    /// Detaches a link for good (AMQP 2.6.4). No event comes from it any more. Look at
    /// [`in_flight_on`](Self::in_flight_on) before, if deliveries matter. A link that waits for an answer is refused by it.
    pub fn detach(&mut self, link: LinkId, error: Option<&Error<'_>>, out: &mut Vec<u8>) {
        if let Some((name, role)) = self.asked(link) {
            self.put_attach(link.channel, link.handle, &Attach::new(&name, role), out);
        }
        let Some(state) = self.live_link(link) else { return };
        state.state = LinkState::DetachSent;
        state.credit = 0;
        let freed = state.partial_len();
        state.partial = None;
        self.release(freed);
        if let Some(session) = self.session(link.channel) {
            session.forget(link.handle);
        }
        let detach = Detach {
            handle: link.handle.into(),
            closed: true,
            error: error.copied(),
        };
        self.put(out, link.channel, |out| detach.encode(out));
        // What was received on it and never settled held the session's window.
        self.open_window(link.channel, out);
    }

    /// Name and role of a link that waits for the caller's answer.
    fn asked(&mut self, link: LinkId) -> Option<(Box<str>, Role)> {
        self.live_link(link)
            .filter(|link| link.state == LinkState::AttachReceived)
            .map(|link| (link.name.clone(), link.role))
    }

    fn live_link(&mut self, link: LinkId) -> Option<&mut Link> {
        self.session(link.channel)?
            .link(link)
            .filter(|link| link.state != LinkState::DetachSent)
    }

    fn put_attach(&mut self, channel: u16, handle: u16, attach: &Attach<'_>, out: &mut Vec<u8>) {
        let attach = Attach {
            handle: handle.into(),
            // Mandatory from a sender (AMQP 2.7.3), and clients check it.
            initial_delivery_count: (attach.role == Role::Sender).then_some(0),
            ..*attach
        };
        self.put(out, channel, |out| attach.encode(out));
    }

    /// Keeps credit and unsettled deliveries of a receiving link together at `window`: as deliveries are settled, credit is
    /// given again, in steps of half the window. A peer whose messages are not dealt with is slowed down by that. 0 leaves
    /// credit to [`set_credit`](Self::set_credit).
    pub fn set_window(&mut self, link: LinkId, window: u32, out: &mut Vec<u8>) {
        let Some(state) = self.live_link(link) else { return };
        state.window = window;
        if state.role == Role::Receiver && state.top_up() {
            self.put_link_flow(link.channel, link.handle, out);
        }
    }

    /// Sets the credit of a receiving link that has no window.
    pub fn set_credit(&mut self, link: LinkId, credit: u32, out: &mut Vec<u8>) {
        self.give(link, credit, false, out);
    }

    /// Asks the sender to use up `credit` or give it back (AMQP 2.6.8); [`Event::Drained`](super::Event::Drained) tells
    /// when.
    pub fn drain(&mut self, link: LinkId, credit: u32, out: &mut Vec<u8>) {
        self.give(link, credit, true, out);
    }

    fn give(&mut self, link: LinkId, credit: u32, drain: bool, out: &mut Vec<u8>) {
        let Some(state) = self.live_link(link) else { return };
        if state.role == Role::Receiver && state.state == LinkState::Attached {
            state.grant(credit);
            state.drain = drain;
            self.put_link_flow(link.channel, link.handle, out);
        }
    }

    /// Gives the rest of the credit of a sending link back, in answer to a drain (AMQP 2.6.8).
    pub fn drained(&mut self, link: LinkId, out: &mut Vec<u8>) {
        let Some(state) = self.live_link(link) else { return };
        if state.role == Role::Sender && state.drain {
            state.delivery_count = state.delivery_count.wrapping_add(state.credit);
            state.credit = 0;
            self.put_link_flow(link.channel, link.handle, out);
            if let Some(state) = self.live_link(link) {
                state.drain = false;
            }
        }
    }

    /// Asks the peer for the state of a session (a flow with `echo`, AMQP 2.7.4), which a peer that is there answers at once
    /// whatever else it is busy with: for finding out whether it is. `false` when there is no such session (any more).
    pub fn ask(&mut self, session: SessionId, out: &mut Vec<u8>) -> bool {
        let config = self.config.clone();
        let Some(live) = self.live_session(session) else {
            return false;
        };
        let flow = Flow {
            echo: true,
            ..live.flow(&config)
        };
        self.put(out, session.channel, |out| flow.encode(out));
        self.asked = true;
        true
    }

    pub(super) fn put_flow(&mut self, channel: u16, out: &mut Vec<u8>) {
        let config = self.config.clone();
        if let Some(session) = self.session(channel) {
            let flow = session.flow(&config);
            self.put(out, channel, |out| flow.encode(out));
        }
    }

    pub(super) fn put_link_flow(&mut self, channel: u16, handle: u16, out: &mut Vec<u8>) {
        let config = self.config.clone();
        if let Some(session) = self.session(channel) {
            let flow = session.link_flow(handle, &config);
            self.put(out, channel, |out| flow.encode(out));
        }
    }

    /// Tells the state of received deliveries, and settles them or not (AMQP 2.6.12). Numbers that follow each other share a
    /// frame. Numbers that are not unsettled are left out. Returns how many were told.
    ///
    /// With `settled` off the sender settles, which comes as [`Event::Settled`](super::Event::Settled).
    pub fn settle(
        &mut self,
        session: SessionId,
        deliveries: impl IntoIterator<Item = u32>,
        state: &DeliveryState<'_>,
        settled: bool,
        out: &mut Vec<u8>,
    ) -> usize {
        let mut told = 0;
        let mut run: Option<(u32, u32)> = None;
        if self.live_session(session).is_none() {
            return 0;
        }
        for id in deliveries {
            let known = if settled {
                self.settled_one(session.channel, id, out)
            } else {
                self.session(session.channel)
                    .is_some_and(|session| session.incoming.contains(id))
            };
            if !known {
                continue;
            }
            told += 1;
            run = match run {
                Some((first, last)) if id == last.wrapping_add(1) => Some((first, id)),
                Some(run) => {
                    self.put_disposition(session.channel, run, state, settled, out);
                    Some((id, id))
                }
                None => Some((id, id)),
            };
        }
        if let Some(run) = run {
            self.put_disposition(session.channel, run, state, settled, out);
        }
        told
    }

    /// Forgets a received delivery and gives credit for it. A flow may overtake the disposition: neither depends on the
    /// other.
    pub(super) fn settled_one(&mut self, channel: u16, id: u32, out: &mut Vec<u8>) -> bool {
        let Some(session) = self.session(channel) else {
            return false;
        };
        let Some(entry) = session.incoming.remove(id) else {
            return false;
        };
        let topped = session.slot(entry.handle).is_some_and(|link| {
            link.unsettled = link.unsettled.saturating_sub(1);
            link.top_up()
        });
        if topped {
            self.put_link_flow(channel, entry.handle, out);
        }
        self.open_window(channel, out);
        true
    }

    fn put_disposition(
        &mut self,
        channel: u16,
        (first, last): (u32, u32),
        state: &DeliveryState<'_>,
        settled: bool,
        out: &mut Vec<u8>,
    ) {
        let disposition = Disposition {
            role: Role::Receiver,
            first,
            last: Some(last),
            settled,
            state: Some(*state),
            batchable: false,
        };
        self.put(out, channel, |out| disposition.encode(out));
    }

    /// Received deliveries of a session that are not settled.
    #[must_use]
    pub fn unsettled(&self, session: SessionId) -> usize {
        self.sessions
            .get(usize::from(session.channel))
            .and_then(|state| state.as_deref())
            .filter(|state| state.serial == session.serial)
            .map_or(0, |state| state.incoming.len())
    }
}

impl Link {
    /// Takes over what our own attach promises.
    fn take_over(&mut self, attach: &Attach<'_>, window: u32) {
        if self.role == Role::Receiver {
            self.max_message_size = attach.max_message_size.unwrap_or(0);
            self.window = window;
        }
    }
}
