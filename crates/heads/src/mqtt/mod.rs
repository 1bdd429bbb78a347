//! The MQTT head: one task per connection, nothing held by an idle one.
//!
//! A connection begins as a task that does the TLS handshake and the log-in (`login`), which may be large, and goes on
//! as another that is small (`connection`, some hundred bytes): the memory of the first is gone before
//! the session idles. Everything rare lives in a box that is dropped when drained (`active`); buffers belong to the
//! worker thread (`scratch`); keep-alive has one table for all (`roster`).
//!
//! Telemetry: all publishes of one read become one [`holdfast_model::event::Records`], one `DeviceGateway::send`, one
//! ticket to wait for (`acks`), and one write of PUBACKs.

mod acks;
mod active;
mod config;
mod connection;
mod downlink;
mod end;
mod login;
mod requests;
mod roster;
mod scratch;
mod uplink;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_mqtt::server::ServerLimits;
use holdfast_ports::clock::Clock;
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::provisioning::ProvisioningGateway;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::Shutdown;
use crate::events::Metrics;
use crate::listener::accept_loop;
use crate::lobby::{Guest, Lobby};
use crate::tls::TlsSettings;
use crate::transport::Socket;
use crate::websocket::FrameStream;

pub use config::MqttConfig;

/// Sessions run.
const RUNNING: u8 = 0;
/// Sessions end when their outstanding acknowledgements are sent.
const DRAINING: u8 = 1;
/// Sessions end now.
const ENDING: u8 = 2;

/// How often a drain looks whether the sessions are gone.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long sessions that did not drain have to end.
const END_LOOKS: u32 = 100;

/// What all connections of a head share.
struct Shared {
    config: MqttConfig,
    limits: ServerLimits,
    gateway: Arc<dyn DeviceGateway>,
    provisioning: Option<Arc<dyn ProvisioningGateway>>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    roster: roster::Roster,
    state: AtomicU8,
    sweeping: AtomicBool,
    /// Connections between accept and the end of their log-in.
    logins: Arc<Lobby>,
    /// The same of WebSockets, which come by another port: neither can take the other's places.
    websocket_logins: Arc<Lobby>,
    /// Log-ins the hub is judging: a stop waits for them, but not for clients that say nothing.
    connecting: AtomicUsize,
    /// TLS handshakes that may be worked on.
    handshakes: Semaphore,
}

impl Shared {
    /// Second of the monotonic clock, as in `SessionHandle::touch`.
    fn second(&self) -> u32 {
        second_of(self.clock.monotonic_millis())
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }
}

fn second_of(millis: u64) -> u32 {
    u32::try_from(millis / 1_000).unwrap_or(u32::MAX)
}

/// Serves MQTT 3.1.1 to devices and modules. Cheap to clone; clones are the same head.
#[derive(Clone)]
pub struct MqttHead {
    shared: Arc<Shared>,
}

impl MqttHead {
    /// A head that serves nothing yet.
    #[must_use]
    pub fn new(
        config: MqttConfig,
        gateway: Arc<dyn DeviceGateway>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        MqttHead {
            shared: Arc::new(Shared {
                limits: config.limits(),
                logins: Lobby::new(config.logins_pending_max),
                websocket_logins: Lobby::new(config.logins_pending_max),
                connecting: AtomicUsize::new(0),
                handshakes: Semaphore::new(config.handshakes_concurrent.max(1)),
                config,
                gateway,
                provisioning: None,
                clock,
                metrics,
                roster: roster::Roster::default(),
                state: AtomicU8::new(RUNNING),
                sweeping: AtomicBool::new(false),
            }),
        }
    }

    /// Also lets provisioning devices in. Call it before the head is cloned or serves.
    #[must_use]
    pub fn with_provisioning(mut self, gateway: Arc<dyn ProvisioningGateway>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.provisioning = Some(gateway);
        }
        self
    }

    /// Serves one listener until the shutdown, then drains all sessions of the head. Call it once per listener; with
    /// `tls` the first byte is TLS.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<TlsSettings>>, shutdown: Shutdown) {
        self.start_sweeping();
        let shared = &self.shared;
        accept_loop(
            listener,
            shutdown,
            &shared.metrics,
            &shared.logins,
            |tcp, peer, place| {
                shared.metrics.connections_accepted.inc();
                let pending = Pending::new(shared, place);
                let config = tls.as_ref().map(|tls| tls.config());
                tokio::spawn(login::run(Arc::clone(shared), tcp, config, peer, pending));
            },
        )
        .await;
        self.drain().await;
    }

    /// A place for the log-in of a WebSocket, to be taken before its upgrade is answered; `None` when log-ins that are
    /// being judged have all of them.
    pub(crate) fn reserve_websocket(&self) -> Option<Guest> {
        self.shared.websocket_logins.try_enter()
    }

    /// Serves the byte stream of a WebSocket whose upgrade has been answered. `early` is what the HTTP layer had read
    /// beyond its request.
    pub(crate) fn accept_websocket(&self, socket: Socket, early: &[u8], peer: SocketAddr, place: Guest) {
        self.start_sweeping();
        let shared = &self.shared;
        shared.metrics.connections_accepted.inc();
        let pending = Pending::new(shared, place);
        let certificates = socket.peer_certificates();
        let frames = Box::new(FrameStream::new(socket, early));
        tokio::spawn(login::run_websocket(
            Arc::clone(shared),
            frames,
            certificates,
            peer,
            pending,
        ));
    }

    /// Number of live sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.shared.roster.live()
    }

    /// Ends all sessions: nothing more is read; what is durable within the drain timeout is acknowledged first. Returns
    /// when they are gone.
    pub async fn drain(&self) {
        let shared = &self.shared;
        shared.state.store(DRAINING, Ordering::SeqCst);
        let looks = shared.config.drain_timeout.as_millis() / DRAIN_LOOK.as_millis();
        for look in 0..looks as u32 + END_LOOKS {
            if shared.roster.live() == 0 && shared.connecting.load(Ordering::SeqCst) == 0 {
                return;
            }
            if look == looks as u32 {
                shared.state.store(ENDING, Ordering::SeqCst);
            }
            // Again each time: a session may have begun after the last round.
            shared.roster.wake_all();
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    fn start_sweeping(&self) {
        if self.shared.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::downgrade(&self.shared);
        let mut ticks = tokio::time::interval(self.shared.config.sweep_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                // The last head is gone: so are its sessions.
                let Some(shared) = shared.upgrade() else { return };
                shared.roster.sweep(shared.second());
            }
        });
    }
}

impl std::fmt::Debug for MqttHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MqttHead")
            .field("sessions", &self.sessions())
            .finish_non_exhaustive()
    }
}

/// A connection between accept and the end of its log-in, holding its place among them.
struct Pending {
    guest: Guest,
    /// How long it may take.
    timeout: Duration,
}

impl Pending {
    fn new(shared: &Shared, guest: Guest) -> Self {
        let config = &shared.config;
        let timeout = if guest.lobby().taken() > config.logins_pending_max / 2 {
            config.connect_timeout_crowded.min(config.connect_timeout)
        } else {
            config.connect_timeout
        };
        Pending { guest, timeout }
    }
}
