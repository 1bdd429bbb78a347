//! State of a session and its links (AMQP 2.5, 2.6).

use super::config::Config;
use super::event::{LinkId, SessionId, Tag};
use super::unsettled::Unsettled;
use crate::performatives::{Begin, Flow, Role};

/// What we announce as outgoing window: we never hold transfers back for want of it.
pub(crate) const OUTGOING_WINDOW: u32 = i32::MAX as u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// We began; no answer yet.
    BeginSent,
    /// Both began.
    Mapped,
    /// We ended; what still comes is discarded.
    EndSent,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) serial: u32,
    /// Channel of the peer.
    pub(crate) remote_channel: Option<u16>,
    pub(crate) state: SessionState,
    /// A send found the window full.
    pub(crate) blocked: bool,
    /// Id of the transfer that comes next.
    pub(crate) next_incoming_id: u32,
    /// Transfers the peer may still send.
    pub(crate) incoming_window: u32,
    /// Id of the transfer that goes out next.
    pub(crate) next_outgoing_id: u32,
    /// Transfers the peer still takes.
    pub(crate) remote_incoming_window: u32,
    /// Number of the delivery that goes out next.
    pub(crate) next_delivery_id: u32,
    /// Number of the delivery that came last.
    pub(crate) last_delivery_id: Option<u32>,
    pub(crate) remote_handle_max: u32,
    /// Links by our handle.
    pub(crate) links: Vec<Option<Box<Link>>>,
    /// The peer's handle and ours, in order of the peer's.
    pub(crate) handles: Vec<(u32, u16)>,
    /// Sent and not settled, with the caller's tokens.
    pub(crate) outgoing: Unsettled<u64>,
    /// Received and not settled.
    pub(crate) incoming: Unsettled<()>,
    /// A message that the window cut.
    pub(crate) unsent: Option<Box<Unsent>>,
}

/// The rest of a message that waits for the window.
#[derive(Debug)]
pub(crate) struct Unsent {
    pub(crate) payload: Vec<u8>,
    pub(crate) sent: usize,
    pub(crate) handle: u16,
    pub(crate) settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// The peer asks; the caller has to answer.
    AttachReceived,
    /// We ask.
    AttachSent,
    Attached,
    /// We detached; what still comes is discarded.
    DetachSent,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: Box<str>,
    /// Largest message: that we take if we receive, that the peer takes if we send. 0: any.
    pub(crate) max_message_size: u64,
    /// A message of which more is to come.
    pub(crate) partial: Option<Box<Partial>>,
    pub(crate) serial: u32,
    /// Handle of the peer, once it is known.
    pub(crate) remote_handle: Option<u32>,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    /// Receiver: messages beyond the credit that may be under way because there was more credit before.
    pub(crate) surplus: u32,
    /// Receiver: credit and unsettled deliveries together are kept at this. 0: credit is the caller's business.
    pub(crate) window: u32,
    /// Received and not settled.
    pub(crate) unsettled: u32,
    pub(crate) role: Role,
    pub(crate) state: LinkState,
    pub(crate) drain: bool,
}

#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) payload: Vec<u8>,
    pub(crate) id: u32,
    pub(crate) message_format: u32,
    pub(crate) tag: Tag,
    pub(crate) settled: bool,
}

impl Session {
    pub(crate) fn new(serial: u32, config: &Config) -> Self {
        Self {
            serial,
            remote_channel: None,
            state: SessionState::BeginSent,
            blocked: false,
            next_incoming_id: 0,
            incoming_window: config.full_window(),
            next_outgoing_id: 0,
            remote_incoming_window: 0,
            next_delivery_id: 0,
            last_delivery_id: None,
            remote_handle_max: u32::MAX,
            links: Vec::new(),
            handles: Vec::new(),
            outgoing: Unsettled::new(),
            incoming: Unsettled::new(),
            unsent: None,
        }
    }

    /// Takes over what the peer's begin says.
    pub(crate) fn map(&mut self, channel: u16, begin: &Begin<'_>) {
        self.remote_channel = Some(channel);
        self.state = SessionState::Mapped;
        self.next_incoming_id = begin.next_outgoing_id;
        self.remote_incoming_window = begin.incoming_window;
        self.remote_handle_max = begin.handle_max;
    }

    /// Our begin.
    pub(crate) fn begin(&self, config: &Config) -> Begin<'static> {
        Begin {
            remote_channel: self.remote_channel,
            next_outgoing_id: self.next_outgoing_id,
            incoming_window: self.incoming_window,
            outgoing_window: OUTGOING_WINDOW,
            handle_max: config.handle_max.into(),
            ..Begin::default()
        }
    }

    /// The window to give now: the whole one, as long as its transfers and what is unsettled are within the bound.
    fn window_due(&self, config: &Config) -> u32 {
        let unsettled = u32::try_from(self.incoming.len()).unwrap_or(u32::MAX);
        config
            .full_window()
            .min(config.max_received.saturating_sub(unsettled))
    }

    /// Whether the window is half used up, and enough of it could be given again to be worth a frame.
    #[inline]
    pub(crate) fn wants_flow(&self, config: &Config) -> bool {
        let half = config.full_window() / 2;
        self.incoming_window <= half
            && self.window_due(config).saturating_sub(self.incoming_window) >= half.max(1)
    }

    /// A flow for the session alone. Sending it opens the incoming window again.
    pub(crate) fn flow(&mut self, config: &Config) -> Flow<'static> {
        self.incoming_window = self.window_due(config);
        Flow {
            next_incoming_id: (self.state != SessionState::BeginSent).then_some(self.next_incoming_id),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: OUTGOING_WINDOW,
            ..Flow::default()
        }
    }

    /// A flow for a link, with its credit as it is.
    pub(crate) fn link_flow(&mut self, handle: u16, config: &Config) -> Flow<'static> {
        let flow = self.flow(config);
        match self.slot(handle) {
            Some(link) => Flow {
                handle: Some(handle.into()),
                delivery_count: Some(link.delivery_count),
                link_credit: Some(link.credit),
                // Nothing waits in this machine: the caller keeps what it could not send.
                available: Some(0),
                drain: link.drain,
                ..flow
            },
            None => flow,
        }
    }

    #[inline]
    pub(crate) fn slot(&mut self, handle: u16) -> Option<&mut Link> {
        self.links.get_mut(usize::from(handle))?.as_deref_mut()
    }

    /// The link, if it is still the one meant.
    #[inline]
    pub(crate) fn link(&mut self, id: LinkId) -> Option<&mut Link> {
        self.slot(id.handle).filter(|link| link.serial == id.serial)
    }

    pub(crate) fn link_id(&self, channel: u16, handle: u16) -> Option<LinkId> {
        let link = self.links.get(usize::from(handle))?.as_deref()?;
        Some(LinkId {
            channel,
            handle,
            serial: link.serial,
            session: self.serial,
        })
    }

    pub(crate) fn id(&self, channel: u16) -> SessionId {
        SessionId {
            channel,
            serial: self.serial,
        }
    }

    /// Our handle for the peer's.
    #[inline]
    pub(crate) fn handle_of(&self, remote: u32) -> Option<u16> {
        let at = self
            .handles
            .binary_search_by_key(&remote, |(remote, _)| *remote)
            .ok()?;
        Some(self.handles[at].1)
    }

    /// Notes the peer's handle of a link. Returns false if it is in use.
    pub(crate) fn map_handle(&mut self, remote: u32, handle: u16) -> bool {
        match self.handles.binary_search_by_key(&remote, |(remote, _)| *remote) {
            Ok(_) => false,
            Err(at) => {
                self.handles.insert(at, (remote, handle));
                true
            }
        }
    }

    /// Puts a link into a free slot whose number the peer accepts.
    pub(crate) fn insert(&mut self, link: Link) -> Option<u16> {
        let free = self.links.iter().position(Option::is_none);
        let at = free.unwrap_or(self.links.len());
        let handle = u16::try_from(at).ok()?;
        if u32::from(handle) > self.remote_handle_max {
            return None;
        }
        if free.is_none() {
            self.links.push(None);
        }
        self.links[at] = Some(Box::new(link));
        Some(handle)
    }

    /// Takes a link out. Its unsettled deliveries are forgotten.
    pub(crate) fn remove(&mut self, handle: u16) -> Option<Box<Link>> {
        let link = self.links.get_mut(usize::from(handle))?.take()?;
        self.handles.retain(|(_, own)| *own != handle);
        while matches!(self.links.last(), Some(None)) {
            self.links.pop();
        }
        self.forget(handle);
        Some(link)
    }

    /// Forgets the deliveries of a link that is ending.
    pub(crate) fn forget(&mut self, handle: u16) {
        self.incoming.forget(handle);
        self.outgoing.forget(handle);
        if self.unsent.as_ref().is_some_and(|unsent| unsent.handle == handle) {
            self.unsent = None;
        }
    }

    /// A link we attached and detached before the peer answered, whose answer has this name and our role.
    pub(crate) fn abandoned(&mut self, name: &str, role: Role) -> Option<u16> {
        let at = self.links.iter().position(|link| {
            link.as_ref().is_some_and(|link| {
                let waits = link.state == LinkState::DetachSent && link.remote_handle.is_none();
                waits && link.role == role && *link.name == *name
            })
        })?;
        u16::try_from(at).ok()
    }

    /// A live link of this name and role.
    pub(crate) fn named(&self, name: &str, role: Role) -> Option<u16> {
        let at = self.links.iter().position(|link| {
            link.as_ref().is_some_and(|link| {
                link.role == role && link.state != LinkState::DetachSent && *link.name == *name
            })
        })?;
        u16::try_from(at).ok()
    }
}

impl Link {
    pub(crate) fn new(name: &str, role: Role, serial: u32, state: LinkState) -> Self {
        Self {
            name: name.into(),
            max_message_size: 0,
            partial: None,
            serial,
            remote_handle: None,
            delivery_count: 0,
            credit: 0,
            surplus: 0,
            window: 0,
            unsettled: 0,
            role,
            state,
            drain: false,
        }
    }

    /// Credit that brings credit and unsettled deliveries together back to the window, if that is worth a frame.
    #[inline]
    pub(crate) fn top_up(&mut self) -> bool {
        let due = self.window.saturating_sub(self.unsettled);
        let worth = due.saturating_sub(self.credit) >= (self.window / 2).max(1);
        if self.window == 0 || self.state != LinkState::Attached || self.drain || !worth {
            return false;
        }
        self.grant(due);
        true
    }

    /// Sets the credit of a receiver. The sender may use what it had until it hears of less (AMQP 2.6.7).
    pub(crate) fn grant(&mut self, credit: u32) {
        self.surplus = self.surplus.saturating_add(self.credit).saturating_sub(credit);
        self.credit = credit;
    }

    /// Takes one message off the credit of a receiver. Returns whether there was any.
    #[inline]
    pub(crate) fn use_credit(&mut self) -> bool {
        let left = if self.credit > 0 {
            &mut self.credit
        } else {
            &mut self.surplus
        };
        let any = *left > 0;
        *left = left.saturating_sub(1);
        any
    }

    pub(crate) fn partial_len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.payload.len())
    }
}
