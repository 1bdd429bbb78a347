//! One connection: opening, tokens, and the loop that reads and writes.

use std::sync::Arc;
use std::time::Duration;

use holdfast_amqp::connection::{Delivery, Outgoing};
use holdfast_amqp::performatives::{Attach, DeliveryState, Open, Role, SaslCode, SaslInit, Source, Target};
use holdfast_amqp::{Config, Connection as Machine, Event, LinkId, Message as Encoded};
use holdfast_model::Identity;
use tokio::time::{Instant, timeout};

use super::members;
use super::messages;
use super::state::{Kind, Phase, Standing, State, Token, Trunk};
use crate::net::{Link, Step, is_silence};
use crate::port::{Account, CloudError};
use crate::silence::{Verdict, Watch};
use crate::token;

/// What an empty read buffer may keep.
const KEEP_BYTES: usize = 4 * 1024;
/// Far enough for "never".
const NEVER: Duration = Duration::from_secs(24 * 3_600);
/// The node for tokens.
const CBS: &str = "$cbs";

/// Why a connection ended.
pub(super) enum End {
    /// The upstream was dropped, or the client it was for.
    Closing,
    /// Nobody has used it for long.
    Idle,
    /// It broke.
    Lost(CloudError),
}

pub(super) struct Connection {
    link: Link,
    input: Vec<u8>,
    watch: Watch,
    /// It ended because nothing was heard for too long.
    silent: bool,
    /// The hub was asked whether it answers when it is asked.
    probed: bool,
    /// Last time somebody wanted it.
    used: Instant,
    asked: u64,
}

impl Connection {
    /// Connects, opens, and for clients with keys attaches the links for tokens.
    pub(super) async fn open(trunk: &Trunk) -> Result<Self, CloudError> {
        let limit = trunk.core.config.tuning.connect_timeout;
        match timeout(limit, Self::open_unhurried(trunk)).await {
            Ok(opened) => opened,
            Err(_) => {
                let (host, seconds) = (trunk.core.route.host(), limit.as_secs_f32());
                Err(CloudError::Unreachable(format!(
                    "{host} did not answer within {seconds} s"
                )))
            }
        }
    }

    async fn open_unhurried(trunk: &Trunk) -> Result<Self, CloudError> {
        let link = dial(trunk).await?;
        let config = Config {
            idle_time_out_ms: u32::try_from(trunk.core.config.tuning.keep_alive.as_millis())
                .unwrap_or(u32::MAX),
            ..Config::default()
        };
        {
            let mut state = trunk.state.lock();
            let state = &mut *state;
            state.connection += 1;
            state.out.clear();
            let machine = Machine::client(
                Arc::new(config),
                true,
                trunk.core.monotonic_millis(),
                &mut state.out,
            );
            state.machine = Some(Box::new(machine));
        }
        let now = Instant::now();
        let mut connection = Connection {
            link,
            input: Vec::new(),
            watch: Watch::new(now),
            silent: false,
            probed: false,
            used: now,
            asked: 0,
        };
        while !connection.is_ready(trunk) {
            connection.take_output(trunk);
            let deadline = Instant::now() + NEVER;
            if let Step::Read = connection.step(trunk, deadline).await? {
                connection.take_input(trunk)?;
            }
        }
        Ok(connection)
    }

    fn is_ready(&self, trunk: &Trunk) -> bool {
        let state = trunk.state.lock();
        let Some(machine) = state.machine.as_deref() else {
            return false;
        };
        let tokens = state.token_link.is_some_and(|link| machine.credit(link) > 0);
        machine.is_open() && (tokens || trunk.own.is_some())
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
    pub(super) async fn serve(&mut self, trunk: &Trunk) -> End {
        loop {
            match self.turn(trunk).await {
                Ok(None) => {}
                Ok(Some(end)) => {
                    self.say_goodbye(trunk).await;
                    return end;
                }
                Err(cause) => return End::Lost(cause),
            }
        }
    }

    async fn turn(&mut self, trunk: &Trunk) -> Result<Option<End>, CloudError> {
        self.put_tokens(trunk).await?;
        let deadline = {
            let mut state = trunk.state.lock();
            if state.is_over() {
                return Ok(Some(End::Closing));
            }
            let now = Instant::now();
            if state
                .members
                .values()
                .any(|member| member.is_wanted() || !member.flight.is_empty())
            {
                self.used = now;
            }
            let idle_close = trunk.core.config.tuning.idle_close;
            if now.duration_since(self.used) >= idle_close && !members::is_awaiting(&state) {
                return Ok(Some(End::Idle));
            }
            let state = &mut *state;
            let patience_ends = self.keep_watch(trunk, state, now)?;
            let Some(machine) = state.machine.as_deref_mut() else {
                return Err(CloudError::Unreachable("the connection is closed".to_owned()));
            };
            let now_ms = trunk.core.monotonic_millis();
            machine.tick(now_ms, &mut state.out).map_err(|_| self.silence())?;
            let mut deadline = (self.used + idle_close).max(now + Duration::from_secs(1));
            if let Some(tick) = machine.next_tick() {
                deadline = deadline.min(now + Duration::from_millis(tick.saturating_sub(now_ms) + 1));
            }
            let renewals = state
                .tokens
                .iter()
                .filter(|token| token.standing == Standing::Good);
            let due = renewals
                .map(|token| token.renew_at)
                .chain(state.members.values().filter_map(members::due))
                .chain(patience_ends);
            due.fold(deadline, Instant::min)
        };
        self.take_output(trunk);
        match self.step(trunk, deadline).await? {
            Step::Read => self.take_input(trunk)?,
            Step::Changed => self.used = Instant::now(),
            Step::Wrote => members::wake_all(&trunk.state.lock()),
            Step::Time => {}
        }
        Ok(None)
    }

    /// Brings clients a step further and puts the tokens they need, and those that grow old.
    async fn put_tokens(&mut self, trunk: &Trunk) -> Result<(), CloudError> {
        let needed: Vec<Account> = {
            let mut state = trunk.state.lock();
            let state = &mut *state;
            let numbers: Vec<u64> = state.members.keys().copied().collect();
            let mut identities: Vec<Identity> = Vec::new();
            for number in numbers {
                identities.extend(members::step(state, number, &trunk.core));
            }
            let now = Instant::now();
            let old = |token: &&Token| token.standing == Standing::Good && now >= token.renew_at;
            identities.extend(
                state
                    .tokens
                    .iter()
                    .filter(old)
                    .map(|token| token.identity.clone()),
            );
            identities.sort();
            identities.dedup();
            let account_of = |identity: &Identity| {
                let mut members = state.members.values();
                members
                    .find(|member| member.account.signer_identity() == identity)
                    .map(|member| member.account.clone())
            };
            // A token that nobody needs any more grows old and is forgotten.
            state
                .tokens
                .retain(|token| now < token.renew_at || account_of(&token.identity).is_some());
            identities.iter().filter_map(account_of).collect()
        };
        for account in needed {
            self.put_token(trunk, &account).await?;
        }
        Ok(())
    }

    async fn put_token(&mut self, trunk: &Trunk, account: &Account) -> Result<(), CloudError> {
        let identity = account.signer_identity().clone();
        let pass = account.pass(&trunk.core).await;
        let mut state = trunk.state.lock();
        let state = &mut *state;
        let pass = match pass {
            Ok(Some(pass)) => pass,
            Ok(None) => return Ok(()),
            Err(cause) => {
                let token = Token {
                    identity,
                    standing: Standing::Refused(cause),
                    renew_at: Instant::now(),
                };
                replace_token(state, token);
                return Ok(());
            }
        };
        let (Some(machine), Some(link)) = (state.machine.as_deref_mut(), state.token_link) else {
            return Ok(());
        };
        self.asked += 1;
        let id = format!("{}-{}", identity.as_str(), self.asked);
        let audience = token::audience(&trunk.core.config.hub_host, &identity);
        let outgoing = Outgoing {
            tag: &self.asked.to_be_bytes(),
            settled: true,
            ..Outgoing::default()
        };
        let write = |out: &mut Vec<u8>| messages::write_put_token(out, &id, &audience, &pass.token);
        // Without credit it is tried again as soon as something happens.
        if machine.send_with(link, &outgoing, write, &mut state.out).is_ok() {
            let token = Token {
                standing: match state.token_of(&identity).map(|token| token.standing.clone()) {
                    // The old one counts until the answer is there.
                    Some(Standing::Good) => Standing::Good,
                    _ => Standing::Asked,
                },
                identity,
                renew_at: Instant::now() + pass.renew_after,
            };
            replace_token(state, token);
        }
        Ok(())
    }

    fn take_output(&mut self, trunk: &Trunk) {
        if self.link.is_idle() {
            self.link.queue(&mut trunk.state.lock().out);
        }
    }

    /// Notices a hub that is gone, see [`Watch`]; returns when to look again.
    fn keep_watch(
        &mut self,
        trunk: &Trunk,
        state: &mut State,
        now: Instant,
    ) -> Result<Option<Instant>, CloudError> {
        let awaiting = members::is_awaiting(state);
        let of_tokens = state.token_link.map(LinkId::session);
        let session = of_tokens.or_else(|| state.members.values().find_map(|member| member.session));
        let (Some(machine), Some(session)) = (state.machine.as_deref_mut(), session) else {
            return Ok(None);
        };
        if !self.probed {
            self.probed = machine.ask(session, &mut state.out);
        }
        let tuning = &trunk.core.config.tuning;
        match self.watch.look(tuning, now, awaiting, machine.answers()) {
            Verdict::Unconcerned => Ok(None),
            Verdict::Patient(until) => Ok(Some(until)),
            Verdict::Ask(until) => {
                machine.ask(session, &mut state.out);
                Ok(Some(until))
            }
            Verdict::Silent => Err(self.silence()),
        }
    }

    async fn step(&mut self, trunk: &Trunk, deadline: Instant) -> Result<Step, CloudError> {
        let step = self.link.step(&mut self.input, &trunk.changed, deadline).await;
        step.map_err(|error| match is_silence(&error) {
            true => self.silence(),
            false => CloudError::Unreachable(format!("the connection broke: {error}")),
        })
    }

    fn take_input(&mut self, trunk: &Trunk) -> Result<(), CloudError> {
        self.watch.heard(Instant::now());
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        let now = trunk.core.monotonic_millis();
        {
            let mut state = trunk.state.lock();
            let state = &mut *state;
            while let Some(machine) = state.machine.as_deref_mut() {
                let event = machine
                    .next_event(&mut rest, now, &mut state.out)
                    .map_err(|error| {
                        CloudError::Unreachable(format!("the hub is against the protocol: {error}"))
                    })?;
                let Some(event) = event else { break };
                take_event(trunk, state, event)?;
            }
        }
        let used = input.len() - rest.len();
        self.input = input;
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(KEEP_BYTES);
        }
        Ok(())
    }

    async fn say_goodbye(&mut self, trunk: &Trunk) {
        {
            let mut state = trunk.state.lock();
            let state = &mut *state;
            if let Some(machine) = state.machine.as_deref_mut() {
                machine.close(None, &mut state.out);
            }
            self.link.queue(&mut state.out);
        }
        // Whether it hears this makes no difference any more.
        let _ = timeout(Duration::from_secs(1), self.link.close()).await;
    }
}

fn replace_token(state: &mut State, token: Token) {
    state.tokens.retain(|known| known.identity != token.identity);
    state.tokens.push(token);
}

fn take_event(trunk: &Trunk, state: &mut State, event: Event<'_>) -> Result<(), CloudError> {
    let core = &*trunk.core;
    match event {
        Event::SaslMechanisms(_) => {
            let mechanism = if trunk.own.is_some() {
                "EXTERNAL"
            } else {
                "MSSBCBS"
            };
            if let Some(machine) = state.machine.as_deref_mut() {
                let init = SaslInit {
                    mechanism,
                    initial_response: None,
                    hostname: Some(&core.config.hub_host),
                };
                machine.sasl_init(&init, &mut state.out);
            }
        }
        Event::SaslOutcome(SaslCode::Ok) => begin(trunk, state),
        Event::SaslOutcome(_) => {
            return Err(CloudError::Unauthorized(
                "the hub refuses the login (SASL)".to_owned(),
            ));
        }
        Event::Credit { link, .. } => {
            if let Some((number, _)) = state.links.get(&link).copied() {
                members::try_open(state, number, core);
                if let Some(member) = state.members.get(&number) {
                    member.progress.notify_waiters();
                }
            }
        }
        Event::WindowOpen { .. } => members::wake_all(state),
        Event::Attached { link, attach } => {
            let agreed = match attach.role {
                // The peer's role.
                Role::Receiver => attach.target.is_some(),
                Role::Sender => attach.source.is_some(),
            };
            members::attached(state, link, agreed, core);
        }
        Event::Transfer { link, delivery } => take_transfer(trunk, state, link, &delivery),
        Event::Outcome {
            link,
            token,
            state: outcome,
            ..
        } => members::note_outcome(state, link, token, outcome),
        Event::Detach { link, error, .. } => {
            if let Some((number, kind)) = state.links.get(&link).copied() {
                if kind == Kind::Tokens {
                    return Err(CloudError::Unreachable(
                        "the hub ended the links for tokens".to_owned(),
                    ));
                }
                members::cut(state, number, error.as_ref(), core);
            }
        }
        Event::LinkFailed { link, error } => {
            if let Some((number, _)) = state.links.get(&link).copied() {
                members::fail(state, number, &CloudError::Unreachable(error.to_string()), core);
            }
        }
        Event::End { session, error } => {
            let mut members = state.members.iter();
            let number = members
                .find(|(_, member)| member.session == Some(session))
                .map(|(number, _)| *number);
            if let Some(number) = number {
                members::cut(state, number, error.as_ref(), core);
            }
        }
        Event::Close { error } => {
            let cause = error.map_or_else(
                || CloudError::Unreachable("the hub closed the connection".to_owned()),
                |error| super::cloud_error(error.condition, error.description.unwrap_or_default()),
            );
            return Err(cause);
        }
        _ => {}
    }
    Ok(())
}

/// Opens this end, and for clients with keys attaches the links for tokens.
fn begin(trunk: &Trunk, state: &mut State) {
    let Some(machine) = state.machine.as_deref_mut() else {
        return;
    };
    let container = format!("holdfast-{}", state.connection);
    let open = Open {
        container_id: &container,
        hostname: Some(&trunk.core.config.hub_host),
        ..Open::default()
    };
    machine.open(&open, &mut state.out);
    if trunk.own.is_some() {
        return;
    }
    let Ok(session) = machine.begin(&mut state.out) else {
        return;
    };
    for (name, role) in [("cbs-receiver", Role::Receiver), ("cbs-sender", Role::Sender)] {
        let attach = Attach {
            source: Some(if role == Role::Receiver {
                Source::new(CBS)
            } else {
                Source::default()
            }),
            target: Some(if role == Role::Sender {
                Target::new(CBS)
            } else {
                Target::default()
            }),
            ..Attach::new(name, role)
        };
        let window = if role == Role::Receiver { 100 } else { 0 };
        if let Ok(link) = machine.attach(session, &attach, window, &mut state.out) {
            state.links.insert(link, (0, Kind::Tokens));
            if role == Role::Sender {
                state.token_link = Some(link);
            }
        }
    }
}

fn take_transfer(trunk: &Trunk, state: &mut State, link: LinkId, delivery: &Delivery<'_>) {
    match state.links.get(&link).copied() {
        Some((_, Kind::Tokens)) => {
            if !delivery.settled
                && let Some(machine) = state.machine.as_deref_mut()
            {
                machine.settle(
                    link.session(),
                    [delivery.id],
                    &DeliveryState::Accepted,
                    true,
                    &mut state.out,
                );
            }
            take_token_answer(state, delivery);
            trunk.changed.notify_one();
        }
        Some((number, kind)) => members::take(state, number, kind, link, delivery, &trunk.core),
        None => {}
    }
}

fn take_token_answer(state: &mut State, delivery: &Delivery<'_>) {
    let Ok(answer) = Encoded::decode(&delivery.payload) else {
        return;
    };
    let Some(id) = answer.properties.correlation_id.as_ref().map(messages::id_text) else {
        return;
    };
    let of = |key: &str| answer.application_properties.and_then(|map| map.get(key));
    let status = of("status-code").and_then(|value| value.as_i64()).unwrap_or(0);
    let text = of("status-description").and_then(|value| value.as_str().map(str::to_owned));
    let identity = id.rsplit_once('-').map_or("", |(identity, _)| identity);
    let Some(token) = state
        .tokens
        .iter_mut()
        .find(|token| token.identity.as_str() == identity)
    else {
        return;
    };
    let text = format!("{status} {}", text.unwrap_or_default());
    token.standing = match status {
        200..=299 => Standing::Good,
        408 | 429 | 500..=599 => Standing::Refused(CloudError::Unreachable(text)),
        _ => Standing::Refused(CloudError::Unauthorized(text)),
    };
}

async fn dial(trunk: &Trunk) -> Result<Link, CloudError> {
    let core = &trunk.core;
    let certificate = trunk.own.as_ref().and_then(Account::certificate);
    let tls = core.tls.of(certificate).map_err(CloudError::Unauthorized)?;
    let ports = &core.config.ports;
    let (port, dialled) = if core.config.protocol.is_websocket() {
        let opening = core
            .route
            .connect_websocket(ports.https, tls, "AMQPWSB10", certificate.is_some());
        (ports.https, opening.await)
    } else {
        (
            ports.amqp,
            core.route.connect(ports.amqp, tls).await.map(Link::plain),
        )
    };
    dialled.map_err(|error| {
        let host = core.route.host();
        CloudError::Unreachable(format!("cannot connect to {host}:{port}: {error}"))
    })
}

/// The phase that callers see while there is no connection.
pub(super) fn set_phase(trunk: &Trunk, phase: Phase) {
    let mut state = trunk.state.lock();
    // Callers are told the cause of the last failure until there is a connection again.
    if phase != Phase::Opening || !matches!(state.phase, Phase::Waiting(_)) {
        state.phase = phase;
    }
    members::wake_all(&state);
}
