//! One connection: login, subscriptions, and the loop that reads and writes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::method::MethodRequest;
use holdfast_mqtt::client::Event;
use holdfast_mqtt::codec::{ConnAck, Connect, ConnectCode, PacketType, Publish, QoS, decode, encode_pingreq};
use holdfast_observe::Event as _;
use holdfast_wire::topics::HubTopic;
use holdfast_wire::{bag, topics};
use tokio::time::{Instant, timeout};

use super::state::{Answer, Delivery, Fate, Shared, State};
use crate::events::UnknownTopic;
use crate::net::{Link, Step, is_silence};
use crate::port::{CloudError, CloudEvent, CloudMessage, Interests};
use crate::silence::{Verdict, Watch};

/// Largest packet taken from the hub: the largest method payload and twin are far below.
const PACKET_BYTES_MAX: usize = 512 * 1024;
/// How long a connection to be replaced waits for what is in flight and for answers to methods.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// What an empty read buffer may keep.
const KEEP_BYTES: usize = 4 * 1024;
/// Far enough for "never".
const NEVER: Duration = Duration::from_secs(24 * 3_600);

/// Why a connection ended.
pub(super) enum End {
    /// The client was dropped.
    Closing,
    /// Nobody has used it for long.
    Idle,
    /// Its token is old; the next one follows at once.
    Renewal,
    /// It broke.
    Lost(CloudError),
}

pub(super) struct Connection {
    link: Link,
    input: Vec<u8>,
    connack: Option<ConnAck>,
    /// SUBSCRIBE and UNSUBSCRIBE not answered yet.
    unanswered: usize,
    subscribed: Interests,
    renew_at: Option<Instant>,
    drain_until: Option<Instant>,
    watch: Watch,
    /// It ended because nothing was heard for too long.
    silent: bool,
    /// Last time a caller had something for it.
    used: Instant,
}

impl Connection {
    /// Connects, logs in and subscribes.
    pub(super) async fn open(shared: &Arc<Shared>) -> Result<Self, CloudError> {
        let limit = shared.core.config.tuning.connect_timeout;
        let host = shared.core.route.host();
        match timeout(limit, Self::open_unhurried(shared)).await {
            Ok(opened) => opened,
            Err(_) => {
                let seconds = limit.as_secs_f32();
                Err(CloudError::Unreachable(format!(
                    "{host} did not answer within {seconds} s"
                )))
            }
        }
    }

    async fn open_unhurried(shared: &Arc<Shared>) -> Result<Self, CloudError> {
        let pass = shared.account.pass(&shared.core).await?;
        let link = dial(shared).await?;
        let now = Instant::now();
        let mut connection = Connection {
            link,
            input: Vec::new(),
            connack: None,
            unanswered: 0,
            subscribed: Interests::default(),
            renew_at: pass.as_ref().map(|pass| now + pass.renew_after),
            drain_until: None,
            watch: Watch::new(now),
            silent: false,
            used: now,
        };
        connection
            .log_in(shared, pass.map(|pass| pass.token).as_deref())
            .await?;
        connection.subscribe_first(shared).await?;
        Ok(connection)
    }

    async fn log_in(&mut self, shared: &Shared, token: Option<&str>) -> Result<(), CloudError> {
        let config = &shared.core.config;
        let keep_alive = u16::try_from(config.tuning.keep_alive.as_secs()).unwrap_or(u16::MAX);
        let user_name = shared.account.user_name(&config.hub_host);
        {
            let mut state = shared.state.lock();
            let state = &mut *state;
            state.begin(config.tuning.window);
            let connect = Connect {
                client_id: shared.identity().as_str(),
                // Like every SDK: the hub keeps cloud-to-device messages for stored subscriptions only.
                clean_session: false,
                keep_alive,
                username: Some(&user_name),
                password: token.map(str::as_bytes),
                will: None,
            };
            state
                .session
                .connect(&connect, shared.now(), &mut state.out)
                .map_err(|error| CloudError::Refused {
                    status: 400,
                    message: error.to_string(),
                })?;
        }
        let connack = loop {
            if let Some(connack) = self.connack {
                break connack;
            }
            self.exchange(shared).await?;
        };
        match connack.code {
            ConnectCode::Accepted => Ok(()),
            ConnectCode::ServerUnavailable => Err(CloudError::Unreachable(
                "the hub is not available now (CONNACK 3)".to_owned(),
            )),
            code => {
                let (identity, code) = (shared.identity().as_str(), code as u8);
                Err(CloudError::Unauthorized(format!("{identity}: CONNACK {code}")))
            }
        }
    }

    /// Subscribes to what is wanted, and waits until it holds: whoever fetches the twin afterwards misses no change.
    async fn subscribe_first(&mut self, shared: &Shared) -> Result<(), CloudError> {
        let remembered = self.connack.is_some_and(|connack| connack.session_present);
        {
            let mut state = shared.state.lock();
            let wanted = state.interests;
            self.subscribe(shared, &mut state, &wanted, true)?;
            if remembered {
                // An earlier connection's subscriptions hold; those nobody wants now would pile up deliveries.
                let unwanted = Interests {
                    methods: !wanted.methods,
                    desired: !wanted.desired,
                    cloud_to_device: !wanted.cloud_to_device,
                };
                self.unsubscribe(shared, &mut state, &unwanted)?;
            }
            self.subscribed = wanted;
        }
        while self.unanswered > 0 {
            self.exchange(shared).await?;
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        shared: &Shared,
        state: &mut State,
        interests: &Interests,
        with_responses: bool,
    ) -> Result<(), CloudError> {
        let cloud_to_device = topics::cloud_to_device_filter(shared.identity());
        let mut filters = Vec::with_capacity(4);
        if with_responses {
            filters.push((topics::TWIN_RESPONSES_FILTER, QoS::AtMostOnce));
        }
        filters.extend(reserved_filters(interests).map(|filter| (filter, QoS::AtMostOnce)));
        if let Some(filter) = cloud_to_device.as_deref().filter(|_| interests.cloud_to_device) {
            filters.push((filter, QoS::AtLeastOnce));
        }
        if filters.is_empty() {
            return Ok(());
        }
        let asked = state.session.subscribe(&filters, shared.now(), &mut state.out);
        asked.map_err(broken)?;
        self.unanswered += 1;
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        shared: &Shared,
        state: &mut State,
        interests: &Interests,
    ) -> Result<(), CloudError> {
        let cloud_to_device = topics::cloud_to_device_filter(shared.identity());
        let mut filters: Vec<&str> = reserved_filters(interests).collect();
        filters.extend(cloud_to_device.as_deref().filter(|_| interests.cloud_to_device));
        if filters.is_empty() {
            return Ok(());
        }
        let asked = state.session.unsubscribe(&filters, shared.now(), &mut state.out);
        asked.map_err(broken)?;
        self.unanswered += 1;
        Ok(())
    }

    /// Writes, reads and judges once.
    async fn exchange(&mut self, shared: &Shared) -> Result<(), CloudError> {
        self.take_output(&mut shared.state.lock());
        if let Step::Read = self.step(shared, Instant::now() + NEVER).await? {
            self.take_input(shared)?;
        }
        Ok(())
    }

    /// Whether it ended because nothing was heard for too long.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// What is told when nothing was heard for too long.
    fn silence(&mut self) -> CloudError {
        self.silent = true;
        CloudError::Unreachable("the hub is silent".to_owned())
    }

    /// Runs until it ends.
    pub(super) async fn serve(&mut self, shared: &Shared) -> End {
        loop {
            match self.turn(shared).await {
                Ok(None) => {}
                Ok(Some(end)) => {
                    self.say_goodbye(shared).await;
                    return end;
                }
                Err(cause) => return End::Lost(cause),
            }
        }
    }

    async fn turn(&mut self, shared: &Shared) -> Result<Option<End>, CloudError> {
        let deadline = {
            let mut state = shared.state.lock();
            if let Some(end) = self.due_end(shared, &mut state)? {
                return Ok(Some(end));
            }
            self.follow_interests(shared, &mut state)?;
            let deadline = self.keep_watch(shared, &mut state)?;
            self.take_output(&mut state);
            deadline
        };
        match self.step(shared, deadline).await? {
            Step::Read => self.take_input(shared)?,
            Step::Changed => self.used = Instant::now(),
            Step::Wrote | Step::Time => {}
        }
        Ok(None)
    }

    /// Whether it is to end now.
    fn due_end(&mut self, shared: &Shared, state: &mut State) -> Result<Option<End>, CloudError> {
        if state.closing {
            return Ok(Some(End::Closing));
        }
        if let Some(reason) = state.reset.take() {
            return Err(CloudError::Unreachable(reason.to_owned()));
        }
        let now = Instant::now();
        if self.renew_at.is_some_and(|at| now >= at) && self.drain_until.is_none() {
            self.drain_until = Some(now + DRAIN_MAX);
            state.draining = true;
        }
        if let Some(until) = self.drain_until {
            let idle = state.session.in_flight() == 0
                && state.requests.is_empty()
                && state.methods.is_empty()
                && state.deliveries.is_empty();
            if idle || now >= until {
                return Ok(Some(End::Renewal));
            }
        }
        let unused = now.duration_since(self.used) >= shared.core.config.tuning.idle_close;
        if unused && !state.is_wanted() && state.session.in_flight() == 0 {
            return Ok(Some(End::Idle));
        }
        Ok(None)
    }

    fn follow_interests(&mut self, shared: &Shared, state: &mut State) -> Result<(), CloudError> {
        let (wanted, had) = (state.interests, self.subscribed);
        if wanted == had || self.drain_until.is_some() {
            return Ok(());
        }
        let without = |these: Interests, those: Interests| Interests {
            methods: these.methods && !those.methods,
            desired: these.desired && !those.desired,
            cloud_to_device: these.cloud_to_device && !those.cloud_to_device,
        };
        self.subscribe(shared, state, &without(wanted, had), false)?;
        self.unsubscribe(shared, state, &without(had, wanted))?;
        self.subscribed = wanted;
        Ok(())
    }

    /// Pings when it is time, notices a dead hub; returns when to look again.
    fn keep_watch(&mut self, shared: &Shared, state: &mut State) -> Result<Instant, CloudError> {
        let tuning = &shared.core.config.tuning;
        let (now, now_ms) = (Instant::now(), shared.now());
        state
            .session
            .tick(now_ms, &mut state.out)
            .map_err(|_| self.silence())?;
        let mut deadline = now + NEVER;
        if let Some(tick) = state.session.next_tick() {
            // A millisecond more, since the clocks are rounded differently.
            deadline = deadline.min(now + Duration::from_millis(tick.saturating_sub(now_ms) + 1));
        }
        for at in [
            self.renew_at.filter(|_| self.drain_until.is_none()),
            self.drain_until,
        ]
        .into_iter()
        .flatten()
        {
            deadline = deadline.min(at);
        }
        if !state.is_wanted() {
            // Not in the past, while something unused still waits for its acknowledgement.
            deadline = deadline.min((self.used + tuning.idle_close).max(now + Duration::from_secs(1)));
        }
        let awaiting = state.session.in_flight() > 0 || !state.requests.is_empty() || self.unanswered > 0;
        match self.watch.look(tuning, now, awaiting, true) {
            Verdict::Unconcerned => {}
            Verdict::Patient(until) => deadline = deadline.min(until),
            Verdict::Ask(until) => {
                encode_pingreq(&mut state.out);
                deadline = deadline.min(until);
            }
            Verdict::Silent => return Err(self.silence()),
        }
        Ok(deadline)
    }

    fn take_output(&mut self, state: &mut State) {
        if self.link.is_idle() {
            self.link.queue(&mut state.out);
        }
    }

    async fn step(&mut self, shared: &Shared, deadline: Instant) -> Result<Step, CloudError> {
        let step = self.link.step(&mut self.input, &shared.changed, deadline).await;
        step.map_err(|error| match is_silence(&error) {
            true => self.silence(),
            false => lost(&error),
        })
    }

    /// Judges what was read.
    fn take_input(&mut self, shared: &Shared) -> Result<(), CloudError> {
        self.watch.heard(Instant::now());
        let input = std::mem::take(&mut self.input);
        let mut used = 0;
        {
            let mut state = shared.state.lock();
            let protocol = |error: &dyn std::fmt::Display| {
                CloudError::Unreachable(format!("the hub is against the protocol: {error}"))
            };
            while let Some((packet, length)) =
                decode(&input[used..], PACKET_BYTES_MAX).map_err(|error| protocol(&error))?
            {
                used += length;
                let state = &mut *state;
                let refused = packet.packet_type() == PacketType::ConnAck && self.connack.is_some();
                if refused {
                    return Err(protocol(&"a second CONNACK"));
                }
                let event = state.session.handle(packet, shared.now(), &mut state.out);
                self.take_event(shared, state, event.map_err(|error| protocol(&error))?);
            }
            state.note_acknowledged();
        }
        self.input = input;
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(KEEP_BYTES);
        }
        shared.progress.notify_waiters();
        Ok(())
    }

    fn take_event(&mut self, shared: &Shared, state: &mut State, event: Event<'_>) {
        match event {
            Event::ConnAck(connack) => self.connack = Some(connack),
            Event::SubAck(_) | Event::UnsubAck(_) => self.unanswered = self.unanswered.saturating_sub(1),
            Event::Publish(publish) => take_publish(shared, state, publish),
            Event::PubAck { .. } | Event::StalePubAck { .. } | Event::PingResp => {}
        }
    }

    /// Tells the hub that the connection ends; a hub that does not listen is left after a second.
    async fn say_goodbye(&mut self, shared: &Shared) {
        {
            let mut state = shared.state.lock();
            let state = &mut *state;
            state.session.disconnect(&mut state.out);
            self.link.queue(&mut state.out);
        }
        // Whether it hears this makes no difference any more.
        let _ = timeout(Duration::from_secs(1), self.link.close()).await;
    }
}

async fn dial(shared: &Shared) -> Result<Link, CloudError> {
    let core = &shared.core;
    let certificate = shared.account.certificate();
    let tls = core.tls.of(certificate).map_err(CloudError::Unauthorized)?;
    let ports = &core.config.ports;
    let (port, dialled) = if core.config.protocol.is_websocket() {
        let with_certificate = certificate.is_some();
        let opening = core
            .route
            .connect_websocket(ports.https, tls, "mqtt", with_certificate);
        (ports.https, opening.await)
    } else {
        (
            ports.mqtt,
            core.route.connect(ports.mqtt, tls).await.map(Link::plain),
        )
    };
    dialled.map_err(|error| {
        let host = core.route.host();
        CloudError::Unreachable(format!("cannot connect to {host}:{port}: {error}"))
    })
}

fn take_publish(shared: &Shared, state: &mut State, publish: Publish<'_>) {
    let body = || Bytes::copy_from_slice(publish.payload);
    let topic = topics::parse_delivery(publish.topic, shared.identity());
    let mut fate = Fate::Acknowledge;
    let event = match topic {
        Some(HubTopic::TwinResponse { status, rid, version }) => {
            let rid: Option<u32> = rid.parse().ok();
            let at = state.requests.iter().position(|request| Some(request.rid) == rid);
            if let Some(at) = at {
                let body = body();
                // Nobody listens when the caller gave up this instant.
                let _ = state.requests.swap_remove(at).reply.send(Answer {
                    status,
                    version,
                    body,
                });
            }
            None
        }
        Some(HubTopic::Desired { version }) => Some(CloudEvent::Desired {
            version: version.unwrap_or_else(|| crate::port::version_in(publish.payload)),
            patch: body(),
        }),
        Some(HubTopic::Method { name, rid }) => Some(CloudEvent::Method(MethodRequest {
            request_id: state.file_method(rid),
            name: name.to_owned(),
            payload: body(),
        })),
        Some(HubTopic::CloudToDevice { bag }) => {
            let packet_id = publish.packet_id.map_or(0, |id| u64::from(id.get()));
            fate = Fate::Open;
            Some(CloudEvent::CloudToDevice(CloudMessage {
                message: bag::read_message(bag, body()),
                token: state.connection << 16 | packet_id,
            }))
        }
        None => {
            let (identity, topic) = (shared.identity(), publish.topic);
            UnknownTopic { identity, topic }.emit(&shared.core.metrics);
            None
        }
    };
    if let Some(packet_id) = publish.packet_id {
        // A second delivery on one connection stands in for the first.
        state
            .deliveries
            .retain(|delivery| delivery.packet_id != packet_id);
        state.deliveries.push_back(Delivery {
            packet_id,
            fate: Fate::Open,
        });
        if fate != Fate::Open {
            state.decide(packet_id, fate, shared.now());
        }
    }
    if let Some(event) = event
        && !shared.pushes.push(event)
    {
        state.reset = Some("nobody takes what the hub sends");
    }
}

fn reserved_filters(interests: &Interests) -> impl Iterator<Item = &'static str> {
    let methods = interests.methods.then_some(topics::METHODS_FILTER);
    let desired = interests.desired.then_some(topics::DESIRED_FILTER);
    [desired, methods].into_iter().flatten()
}

fn broken(error: holdfast_mqtt::SendError) -> CloudError {
    CloudError::Unreachable(format!("cannot subscribe: {error}"))
}

fn lost(error: &io::Error) -> CloudError {
    CloudError::Unreachable(format!("the connection broke: {error}"))
}
