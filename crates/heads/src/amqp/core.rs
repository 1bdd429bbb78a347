//! What a connection stands for: the protocol machine, its links, and everything that has to be waited for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_amqp::connection::{Delivery, Event};
use holdfast_amqp::performatives::{DeliveryState, Error as AmqpError, Open, condition};
use holdfast_amqp::types::{MapBuf, Value};
use holdfast_amqp::{Connection as Machine, ConnectionError, LinkId, SessionId};
use holdfast_model::Identity;
use holdfast_ports::BoxFuture;
use holdfast_ports::gateway::Protocol;

use super::Shared;
use super::attach::Link;
use super::failure::{End, Failure};
use super::login::Login;
use super::members::{Member, MemberId};
use super::outbox::Outbox;
use super::registration::Registering;
use super::scratch::Scratch;
use super::service::{Queue, Services};
use super::telemetry::{Ending, Uplink};

/// What a future came to: what to do now, with the connection at hand.
pub(super) type Done = Box<dyn FnOnce(&mut Core, &mut Vec<u8>) -> Result<(), End> + Send>;

/// See the module documentation.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) machine: Machine,
    pub(super) peer: SocketAddr,
    pub(super) protocol: Protocol,
    /// Host that the client thinks it talks to.
    pub(super) host: Option<Box<str>>,
    pub(super) login: Login,
    /// What a device that wants to be provisioned has proven.
    pub(super) registering: Option<Box<Registering>>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) members: HashMap<MemberId, Box<Member>>,
    pub(super) by_identity: HashMap<Identity, MemberId>,
    pub(super) last_member: MemberId,
    /// Links that wait for the session of their identity.
    pub(super) pending: BTreeMap<LinkId, MemberId>,
    pub(super) uplink: Uplink,
    pub(super) services: Services,
    pub(super) outbox: Outbox,
    waits: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Futures that must end before the connection's sessions do.
    pub(super) critical: usize,
    /// Requests of the client that wait or run.
    pub(super) requests: usize,
    /// Receivers of events, in the order of their turns.
    pub(super) readers: VecDeque<LinkId>,
    /// Millisecond of the monotonic clock, read once a turn.
    pub(super) now: u64,
    began: u64,
    /// When the first lock of a cloud-to-device message ends.
    pub(super) locks_due: Option<u64>,
    /// A frame waits for an answer of ours.
    held: bool,
    /// Something was proven: a token, or an identity by its certificate.
    pub(super) used: bool,
    pub(super) draining: bool,
    /// The client is hung up on without a word.
    pub(super) silent: bool,
}

impl Core {
    pub(super) fn new(
        shared: &Arc<Shared>,
        certificates: Arc<[Bytes]>,
        protocol: Protocol,
        peer: SocketAddr,
    ) -> Self {
        let now = shared.clock.monotonic_millis();
        Core {
            machine: Machine::server(Arc::clone(&shared.machine), now),
            shared: Arc::clone(shared),
            peer,
            protocol,
            host: None,
            login: Login::new(certificates, shared.config.clock_skew),
            registering: None,
            links: BTreeMap::new(),
            members: HashMap::new(),
            by_identity: HashMap::new(),
            last_member: 0,
            pending: BTreeMap::new(),
            uplink: Uplink::default(),
            services: Services::default(),
            outbox: Outbox::default(),
            waits: FuturesUnordered::new(),
            critical: 0,
            requests: 0,
            readers: VecDeque::new(),
            now,
            began: now,
            locks_due: None,
            held: false,
            silent: false,
            used: false,
            draining: false,
        }
    }

    /// Waits for a future; then `Done` is called with the connection, unless that has ended.
    pub(super) fn wait(&mut self, future: impl Future<Output = Done> + Send + 'static) {
        self.waits.push(Box::pin(future));
    }

    /// As [`Core::wait`], for a future that must not be dropped half-way, even if the connection ends.
    pub(super) fn wait_critical(&mut self, future: impl Future<Output = Done> + Send + 'static) {
        self.critical += 1;
        self.waits.push(Box::pin(async move {
            let done = future.await;
            let done: Done = Box::new(move |core: &mut Core, out: &mut Vec<u8>| {
                core.critical -= 1;
                done(core, out)
            });
            done
        }));
    }

    /// Works off the futures that are ready; says whether there was one.
    pub(super) fn poll_done(
        &mut self,
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<bool, End> {
        let mut any = false;
        while !self.waits.is_empty() {
            match self.waits.poll_next_unpin(context) {
                Poll::Ready(Some(done)) => done(self, &mut scratch.output)?,
                Poll::Ready(None) | Poll::Pending => break,
            }
            any = true;
        }
        Ok(any)
    }

    /// Whether there is room for what more input may bring.
    pub(super) fn may_read(&self) -> bool {
        let config = &self.shared.config;
        !self.draining
            && !self.uplink.is_blocked()
            && self.uplink.bytes < config.unacknowledged_bytes_max
            && self.requests < config.requests_max
            && self.outbox.bytes < config.output_bytes_max / 2
    }

    /// Whether input waits for an answer of ours.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    pub(super) fn release_hold(&mut self) {
        self.held = false;
    }

    pub(super) fn outbox_bytes(&self) -> usize {
        self.outbox.bytes
    }

    /// Something was received that is not durable yet.
    pub(super) fn waits_for_hub(&self) -> bool {
        self.uplink.bytes > 0 || self.uplink.is_blocked() || self.critical > 0
    }

    /// Takes frames from the front of `input` for as long as there is room. True when it stopped for want of room or for
    /// an answer.
    pub(super) fn take_input(&mut self, input: &mut &[u8], scratch: &mut Scratch) -> Result<bool, End> {
        loop {
            if !self.may_read() {
                return Ok(true);
            }
            if self.held {
                return Ok(true);
            }
            match self.machine.next_event(input, self.now, &mut scratch.output) {
                Ok(Some(event)) => self.take_event(event, scratch)?,
                Ok(None) => return Ok(false),
                Err(error) => return Err(ended_by(error)),
            }
        }
    }

    #[inline]
    fn take_event(&mut self, event: Event<'_>, scratch: &mut Scratch) -> Result<(), End> {
        if matches!(
            event,
            Event::Detach { .. } | Event::LinkFailed { .. } | Event::End { .. }
        ) {
            // What came before the end of its link counts.
            self.flush_run(scratch)?;
        }
        if self.uplink.is_blocked() {
            // Not even that could be handed on yet. Nothing more is read until it is.
            match event {
                Event::Detach { link, .. } | Event::LinkFailed { link, .. } => {
                    self.uplink.then = Some(Ending::Link(link));
                    return Ok(());
                }
                Event::End { session, .. } => {
                    self.uplink.then = Some(Ending::Session(session));
                    return Ok(());
                }
                _ => {}
            }
        }
        let out = &mut scratch.output;
        match event {
            Event::Transfer { link, delivery } => self.take_transfer(link, &delivery, scratch),
            Event::Credit { link, credit, drain } => self.take_credit(link, credit, drain, out),
            Event::WindowOpen { session } => self.take_window(session, out),
            Event::Outcome {
                link,
                delivery_id,
                state,
                settled,
                ..
            } => self.take_outcome(link, delivery_id, state.as_ref(), settled, out),
            Event::Attach { link, attach } => self.take_attach(link, &attach, out),
            Event::Detach { link, .. } => self.link_gone(link, out),
            Event::LinkFailed { link, error } => {
                holdfast_observe::tracing::debug!(peer = %self.peer, %error, "link failed");
                self.link_gone(link, out)
            }
            Event::End { session, .. } => self.take_end(session, out),
            Event::Open(open) => self.take_open(&open, out),
            Event::SaslInit(init) => {
                self.held = true;
                self.take_sasl(&init, out)
            }
            Event::SaslResponse(response) => {
                self.held = true;
                self.take_tpm_response(response, out)
            }
            Event::Close { .. } => Err(End::goodbye("close")),
            // Sessions need no state of ours; we open no links and ask for no drains.
            _ => Ok(()),
        }
    }

    fn take_open(&mut self, open: &Open<'_>, out: &mut Vec<u8>) -> Result<(), End> {
        self.host = open.hostname.map(Into::into);
        let mut properties = MapBuf::new();
        // Some clients look into the properties without asking whether there are any.
        properties.symbol("product", &Value::String("holdfast"));
        properties.symbol("version", &Value::String(env!("CARGO_PKG_VERSION")));
        let answer = Open {
            container_id: "holdfast",
            properties: Some(properties.as_map()),
            ..Open::default()
        };
        self.machine.open(&answer, out);
        Ok(())
    }

    #[inline]
    fn take_transfer(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        let Some(kind) = self.links.get(&link) else {
            return Ok(());
        };
        match *kind {
            Link::Telemetry { member } => self.take_telemetry(link, member, delivery, scratch),
            Link::Producer(_) => self.take_produced(link, delivery, scratch),
            Link::CbsRequests => self.take_token(link, delivery, &mut scratch.output),
            Link::RegistrationRequests => self.take_registration_request(link, delivery, &mut scratch.output),
            Link::MethodAnswers { member } => {
                self.take_method_answer(link, member, delivery, &mut scratch.output)
            }
            Link::TwinRequests { member } => {
                self.take_twin_request(link, member, delivery, &mut scratch.output)
            }
            Link::ServiceC2d => self.take_service_c2d(link, delivery, &mut scratch.output),
            Link::ManagementRequests => self.take_management(link, delivery, &mut scratch.output),
            // The others receive; the machine lets nothing through on them.
            _ => Ok(()),
        }
    }

    fn take_credit(&mut self, link: LinkId, credit: u32, drain: bool, out: &mut Vec<u8>) -> Result<(), End> {
        self.flush_outbox(link, out);
        match self.links.get_mut(&link) {
            Some(Link::Reader(reader)) => reader.drain = drain,
            Some(Link::CloudToDevice { member }) => {
                let member = *member;
                self.resume_c2d(member);
            }
            Some(kind) => {
                if let Some(queue) = Queue::of(kind) {
                    self.look_for(queue, link);
                }
            }
            None => {}
        }
        let waits = matches!(self.links.get(&link), Some(Link::Reader(_)));
        if drain && credit > 0 && !waits {
            self.machine.drained(link, out);
        }
        Ok(())
    }

    fn take_window(&mut self, session: SessionId, out: &mut Vec<u8>) -> Result<(), End> {
        for link in self.outbox.links() {
            if link.session() == session {
                self.flush_outbox(link, out);
            }
        }
        self.resume_c2d_of(session);
        Ok(())
    }

    fn take_outcome(
        &mut self,
        link: LinkId,
        delivery_id: u32,
        state: Option<&DeliveryState<'_>>,
        settled: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        match self.links.get(&link) {
            Some(Link::CloudToDevice { member }) => {
                let member = *member;
                self.settle_c2d(link, member, delivery_id, state, settled);
            }
            Some(Link::Feedback | Link::FileNotifications) => {
                self.settle_held(link, delivery_id, state, settled);
            }
            _ if !settled => self
                .machine
                .settle_sent(link, delivery_id, Some(&DeliveryState::Accepted), out),
            _ => {}
        }
        Ok(())
    }

    /// Goes on with what had to wait for the log.
    pub(super) fn take_ending(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        match self.uplink.then.take() {
            Some(Ending::Link(link)) => self.link_gone(link, out),
            Some(Ending::Session(session)) => self.take_end(session, out),
            None => Ok(()),
        }
    }

    fn take_end(&mut self, session: SessionId, out: &mut Vec<u8>) -> Result<(), End> {
        let links: Vec<LinkId> = self
            .links
            .keys()
            .copied()
            .filter(|link| link.session() == session)
            .collect();
        for link in links {
            self.link_gone(link, out)?;
        }
        Ok(())
    }

    /// Refuses a delivery.
    pub(super) fn reject(&mut self, link: LinkId, delivery: u32, failure: &Failure, out: &mut Vec<u8>) {
        let session = link.session();
        let machine = &mut self.machine;
        failure.tell(self.shared.clock.now(), |error| {
            let state = DeliveryState::Rejected(Some(*error));
            machine.settle(session, [delivery], &state, true, out);
        });
    }

    /// Accepts deliveries.
    pub(super) fn accept(&mut self, link: LinkId, first: u32, last: u32, out: &mut Vec<u8>) {
        let count = last.wrapping_sub(first);
        let ids = (0..=count).map(|n| first.wrapping_add(n));
        self.machine
            .settle(link.session(), ids, &DeliveryState::Accepted, true, out);
    }

    /// Detaches a link and forgets it.
    pub(super) fn detach(&mut self, link: LinkId, failure: &Failure, out: &mut Vec<u8>) -> Result<(), End> {
        let machine = &mut self.machine;
        failure.tell(self.shared.clock.now(), |error| {
            machine.detach(link, Some(error), out)
        });
        self.link_gone(link, out)
    }

    /// Time-outs.
    pub(super) fn tick(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        if self.machine.next_tick().is_some_and(|due| due <= self.now) {
            self.machine
                .tick(self.now, out)
                .map_err(|error| End::silent(error.to_string()))?;
        }
        if !self.used && self.now >= self.login_due_at() {
            return Err(self.close(
                &Failure::new(condition::CONNECTION_FORCED, "nothing was proven in time"),
                End::silent("no token and no identity"),
                out,
            ));
        }
        self.tick_login(out)?;
        self.tick_c2d(out);
        self.tick_services(out);
        Ok(())
    }

    fn login_due_at(&self) -> u64 {
        self.began + self.shared.config.login_timeout.as_millis() as u64
    }

    /// When the connection wants to be woken.
    pub(super) fn next_tick(&self) -> Option<u64> {
        [
            self.machine.next_tick(),
            (!self.used).then(|| self.login_due_at()),
            self.next_login_tick(),
            self.next_service_tick(),
            self.locks_due,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Tells the client that the connection is over.
    pub(super) fn close(&mut self, failure: &Failure, end: End, out: &mut Vec<u8>) -> End {
        let error = AmqpError::new(&failure.condition, &failure.text);
        self.machine.close(Some(&error), out);
        end
    }

    /// The hub stops. Clients of the IoT SDKs are left without a word: the one for Node.js takes a close for a lasting
    /// error and 45 seconds to come to terms with it, while all of them repair a lost connection at once.
    pub(super) fn stop(&mut self, out: &mut Vec<u8>) -> End {
        let event_hubs = self.links.values().any(|kind| {
            matches!(
                kind,
                Link::Reader(_)
                    | Link::Producer(_)
                    | Link::ManagementRequests
                    | Link::ManagementAnswers { .. }
            )
        });
        self.silent = !self.links.is_empty() && !event_hubs;
        if self.silent {
            return End::stopping();
        }
        self.close(
            &Failure::new(condition::CONNECTION_FORCED, "the hub is stopping"),
            End::stopping(),
            out,
        )
    }

    /// Closes the connection, if that was not done yet.
    pub(super) fn say_farewell(&mut self, detail: &str, out: &mut Vec<u8>) {
        let error = AmqpError::new(condition::CONNECTION_FORCED, detail);
        self.machine.close(Some(&error), out);
    }

    /// Looks for the client's answer to our close; returns what is no whole frame yet.
    pub(super) fn take_farewell<'d>(&mut self, data: &'d [u8], out: &mut Vec<u8>) -> &'d [u8] {
        let mut rest = data;
        // An error ends it as an answer would.
        while let Ok(Some(_)) = self.machine.next_event(&mut rest, self.now, out) {}
        match self.machine.is_closed() {
            true => &[],
            false => rest,
        }
    }

    /// Whether both ends have closed the connection, or nothing can be said any more.
    pub(super) fn is_farewell_said(&self) -> bool {
        self.machine.is_closed()
    }

    /// Whether the hub looks at something that the client wants to prove.
    pub(super) fn is_judging(&self) -> bool {
        self.held || !self.waits.is_empty()
    }

    /// The connection is over: sessions end, once what must not be dropped has ended.
    pub(super) fn finish(&mut self, end: &End) {
        self.readers.clear();
        self.links.clear();
        let sessions = self.take_sessions(end);
        let waits = std::mem::take(&mut self.waits);
        if self.critical == 0 && self.services.is_idle() || tokio::runtime::Handle::try_current().is_err() {
            self.disconnect_all(&sessions, end.how);
            return;
        }
        let mut core = Core::new(&self.shared, Arc::from([]), self.protocol, self.peer);
        core.waits = waits;
        core.critical = self.critical;
        // Those that count requests down run too.
        core.requests = self.requests;
        std::mem::swap(&mut core.services, &mut self.services);
        core.give_back_held();
        let how = end.how;
        tokio::spawn(async move {
            let mut ignored = Vec::new();
            while core.critical > 0 {
                let Some(done) = core.waits.next().await else {
                    break;
                };
                // There is no connection any more that this could end.
                let _ = done(&mut core, &mut ignored);
                ignored.clear();
            }
            core.disconnect_all(&sessions, how);
        });
    }
}

fn ended_by(error: ConnectionError) -> End {
    End::protocol(error.to_string())
}
