//! The AMQP head: devices, services, and readers and producers of the event endpoint, on one port.
//!
//! A connection is one task (`connection`): socket, buffers of the worker thread, time-outs from one table for all
//! (`timers`). What it stands for is in `core`: the protocol machine of `holdfast-amqp`, links, the identities that share
//! the connection (`members`), tokens (`login`), and one set of futures for everything that has to be waited for, so that
//! each wakes only what concerns it.
//!
//! | Address | Module |
//! |---|---|
//! | `$cbs`, SASL | `login` |
//! | devices and modules | `members`, `telemetry`, `c2d`, `requests` (methods and twin) |
//! | services | `service` |
//! | provisioning devices | `registration` |
//! | event endpoint | `management`, `reader` (with `readers`: owner levels), `telemetry` (producers) |

mod acks;
mod attach;
mod c2d;
mod config;
mod connection;
mod core;
mod entrance;
mod failure;
mod login;
mod management;
mod members;
mod messages;
mod outbox;
mod reader;
mod readers;
mod registration;
mod requests;
mod scratch;
mod service;
mod start;
mod telemetry;
mod timers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_ports::clock::Clock;
use holdfast_ports::event_log::EventLog;
use holdfast_ports::file::FileNotifications;
use holdfast_ports::gateway::{DeviceGateway, Protocol};
use holdfast_ports::provisioning::ProvisioningGateway;
use holdfast_ports::service::ServiceGateway;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::Shutdown;
use crate::events::Metrics;
use crate::listener::accept_loop;
use crate::lobby::{Guest, Lobby};
use crate::tls::TlsSettings;
use crate::transport::{Socket, Transport};
use crate::websocket::FrameStream;

pub use config::AmqpConfig;

/// Connections run.
const RUNNING: u8 = 0;
/// Connections end when their outstanding acknowledgements are sent.
const DRAINING: u8 = 1;
/// Connections end now.
const ENDING: u8 = 2;

/// What is offered when devices can be provisioned.
const MECHANISMS_WITH_TPM: &[&str] = &["MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL", "TPM"];

/// How often a drain looks whether the connections are gone.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long connections that did not drain have to end.
const END_LOOKS: u32 = 100;

/// What all connections of a head share.
struct Shared {
    config: AmqpConfig,
    machine: Arc<holdfast_amqp::Config>,
    gateway: Arc<dyn DeviceGateway>,
    services: Arc<dyn ServiceGateway>,
    log: Arc<dyn EventLog>,
    provisioning: Option<Arc<dyn ProvisioningGateway>>,
    files: Option<Arc<dyn FileNotifications>>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    readers: readers::Readers,
    timers: timers::Timers,
    state: AtomicU8,
    sweeping: AtomicBool,
    /// Connections that have proven nothing yet.
    logins: Arc<Lobby>,
    /// The same of WebSockets, which come by another port: neither can take the other's places.
    websocket_logins: Arc<Lobby>,
    /// Connections that may still prove something.
    places: Arc<Semaphore>,
    handshakes: Semaphore,
    /// Where the next event of a producer without key goes.
    next_partition: AtomicU32,
    started_at: Timestamp,
}

impl Shared {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }
}

/// Serves AMQP 1.0. Cheap to clone; clones are the same head.
#[derive(Clone)]
pub struct AmqpHead {
    shared: Arc<Shared>,
}

impl AmqpHead {
    /// A head that serves nothing yet.
    #[must_use]
    pub fn new(
        config: AmqpConfig,
        gateway: Arc<dyn DeviceGateway>,
        services: Arc<dyn ServiceGateway>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        AmqpHead {
            shared: Arc::new(Shared {
                machine: Arc::new(config.machine.clone()),
                logins: Lobby::new(config.logins_pending_max),
                websocket_logins: Lobby::new(config.logins_pending_max),
                places: Arc::new(Semaphore::new(config.connections_max)),
                handshakes: Semaphore::new(config.handshakes_concurrent.max(1)),
                config,
                gateway,
                log: services.event_log(),
                provisioning: None,
                files: None,
                services,
                started_at: clock.now(),
                clock,
                metrics,
                readers: readers::Readers::default(),
                timers: timers::Timers::default(),
                state: AtomicU8::new(RUNNING),
                sweeping: AtomicBool::new(false),
                next_partition: AtomicU32::new(0),
            }),
        }
    }

    /// Also lets provisioning devices in, and offers them the SASL mechanism `TPM`. Call it before the head is cloned or
    /// serves.
    #[must_use]
    pub fn with_provisioning(mut self, gateway: Arc<dyn ProvisioningGateway>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.provisioning = Some(gateway);
            shared.machine = Arc::new(holdfast_amqp::Config {
                mechanisms: MECHANISMS_WITH_TPM,
                ..shared.config.machine.clone()
            });
        }
        self
    }

    /// Also tells services of file uploads. Call it before the head is cloned or serves.
    #[must_use]
    pub fn with_files(mut self, files: Arc<dyn FileNotifications>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.files = Some(files);
        }
        self
    }

    /// Serves one listener until the shutdown, then drains all connections of the head. Call it once per listener; with
    /// `tls` the first byte is TLS.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<TlsSettings>>, shutdown: Shutdown) {
        self.start_sweeping();
        let shared = &self.shared;
        accept_loop(
            listener,
            shutdown,
            &shared.metrics,
            &shared.logins,
            |tcp, peer, guest| {
                shared.metrics.connections_accepted.inc();
                let config = tls.as_ref().map(|tls| tls.config());
                tokio::spawn(start::run(Arc::clone(shared), tcp, config, peer, guest));
            },
        )
        .await;
        self.drain().await;
    }

    /// A place for a WebSocket that has proven nothing yet, to be taken before its upgrade is answered; `None` when
    /// connections that are being judged have all of them.
    pub(crate) fn reserve_websocket(&self) -> Option<Guest> {
        self.shared.websocket_logins.try_enter()
    }

    /// Serves the byte stream of a WebSocket whose upgrade has been answered. `early` is what the HTTP layer had read
    /// beyond its request.
    pub(crate) fn accept_websocket(&self, socket: Socket, early: &[u8], peer: SocketAddr, guest: Guest) {
        self.start_sweeping();
        let shared = &self.shared;
        shared.metrics.connections_accepted.inc();
        let certificates: Arc<[Bytes]> = socket.peer_certificates().into();
        let transport = Transport::WebSocket(Box::new(FrameStream::new(socket, early)));
        start::spawn(
            shared,
            transport,
            certificates,
            Protocol::AmqpWebSocket,
            peer,
            guest,
        );
    }

    /// Number of live connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.timers.live()
    }

    /// Ends all connections: nothing more is read; what is durable within the drain timeout is acknowledged first. Returns
    /// when they are gone.
    pub async fn drain(&self) {
        let shared = &self.shared;
        shared.state.store(DRAINING, Ordering::SeqCst);
        let looks = shared.config.drain_timeout.as_millis() / DRAIN_LOOK.as_millis();
        for look in 0..looks as u32 + END_LOOKS {
            if shared.timers.live() == 0 {
                return;
            }
            if look == looks as u32 {
                shared.state.store(ENDING, Ordering::SeqCst);
            }
            // Again each time: a connection may have begun after the last round.
            shared.timers.wake_all();
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
                // The last head is gone: so are its connections.
                let Some(shared) = shared.upgrade() else { return };
                shared.timers.sweep(shared.clock.monotonic_millis());
            }
        });
    }
}

impl std::fmt::Debug for AmqpHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpHead")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
