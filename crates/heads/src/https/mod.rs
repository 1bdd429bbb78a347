//! The HTTPS port: service API, device HTTPS and WebSockets on one listener (clients.md section 2).
//!
//! Each request goes to the first that knows it: a WebSocket upgrade to the MQTT or AMQP head, a device's request to
//! [`DeviceHttps`], everything else to the caller's router. The two first are chosen here and not by routes of the
//! router, because their paths overlap with those of the service API and of the portal, and because their literal
//! segments are compared without case, which routes cannot.
//!
//! HTTP/1.1 only: no SDK offers ALPN. A request finds the client's certificates
//! ([`holdfast_ports::gateway::PeerCertificates`]) and address ([`axum::extract::ConnectInfo`]) in its extensions.

mod body;
mod config;
mod device;
mod request_body;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use holdfast_observe::Event as _;
use holdfast_ports::gateway::PeerCertificates;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use crate::amqp::AmqpHead;
use crate::dps::ProvisioningHttps;
use crate::dps::https::Operation as ProvisioningOperation;
use crate::events::{LoginRefused, Metrics, RefusalReason};
use crate::listener::accept_loop;
use crate::lobby::{Guest, Lobby, Stage};
use crate::mqtt::MqttHead;
use crate::tls::{TlsSettings, TlsStream};
use crate::transport::Socket;
use crate::websocket::upgrade::{self, Carriers};
use crate::{Shutdown, stopped};

use body::{Served, ServedBody};
pub use config::HttpsConfig;
pub use device::DeviceHttps;
pub(crate) use device::add_request_id;
use request_body::{GivenUp, PacedBody};

/// Serves an HTTPS port. Cheap to clone; clones are the same head.
#[derive(Clone)]
pub struct HttpsHead {
    shared: Arc<Shared>,
}

struct Shared {
    config: HttpsConfig,
    router: Router,
    device: Option<DeviceHttps>,
    provisioning: Option<ProvisioningHttps>,
    carriers: Carriers,
    metrics: Metrics,
    places: Arc<Lobby>,
    handshakes: Semaphore,
}

impl HttpsHead {
    /// A head that serves nothing yet. Without `device` or `mqtt`, their requests go to `router` like all others.
    #[must_use]
    pub fn new(
        config: HttpsConfig,
        router: Router,
        device: Option<DeviceHttps>,
        mqtt: Option<MqttHead>,
        metrics: Metrics,
    ) -> Self {
        HttpsHead {
            shared: Arc::new(Shared {
                places: Lobby::new(config.connections_max),
                handshakes: Semaphore::new(config.handshakes_concurrent.max(1)),
                config,
                router,
                device,
                provisioning: None,
                carriers: Carriers { mqtt, amqp: None },
                metrics,
            }),
        }
    }

    /// Also takes WebSockets for AMQP. Call it before the head is cloned or serves.
    #[must_use]
    pub fn with_amqp(mut self, amqp: AmqpHead) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.carriers.amqp = Some(amqp);
        }
        self
    }

    /// Also answers provisioning devices. Call it before the head is cloned or serves.
    #[must_use]
    pub fn with_provisioning(mut self, provisioning: ProvisioningHttps) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.provisioning = Some(provisioning);
        }
        self
    }

    /// Serves one listener until the shutdown, then lets requests that are being answered end, and drains the sessions
    /// of the heads behind WebSockets. Call it once per listener; with `tls` the first byte is TLS.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<TlsSettings>>, shutdown: Shutdown) {
        let shared = &self.shared;
        accept_loop(
            listener,
            shutdown.clone(),
            &shared.metrics,
            &shared.places,
            |tcp, peer, place| {
                let tls = tls.clone();
                tokio::spawn(serve_connection(
                    Arc::clone(shared),
                    tcp,
                    tls,
                    peer,
                    place,
                    shutdown.clone(),
                ));
            },
        )
        .await;
        let connections = shared.places.emptied();
        let sessions = async {
            if let Some(mqtt) = &shared.carriers.mqtt {
                mqtt.drain().await;
            }
            if let Some(amqp) = &shared.carriers.amqp {
                amqp.drain().await;
            }
        };
        let timeout = shared.config.drain_timeout;
        let _ = tokio::join!(tokio::time::timeout(timeout, connections), sessions);
    }
}

impl std::fmt::Debug for HttpsHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsHead").finish_non_exhaustive()
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    tcp: TcpStream,
    tls: Option<Arc<TlsSettings>>,
    peer: SocketAddr,
    place: Guest,
    shutdown: Shutdown,
) {
    shared.metrics.connections_accepted.inc();
    let place = Arc::new(place);
    let evicted = tokio::select! {
        biased;
        () = place.evicted() => true,
        () = serve_in_place(&shared, tcp, tls, peer, &place, shutdown) => false,
    };
    if evicted {
        LoginRefused {
            peer,
            client_id: "",
            reason: RefusalReason::Evicted,
            detail: &"too many connections are open, and this was the oldest that asked for nothing",
        }
        .emit(&shared.metrics);
    }
}

async fn serve_in_place(
    shared: &Arc<Shared>,
    tcp: TcpStream,
    tls: Option<Arc<TlsSettings>>,
    peer: SocketAddr,
    place: &Arc<Guest>,
    mut shutdown: Shutdown,
) {
    let socket = tokio::select! {
        socket = handshake(shared, tcp, tls, peer, place) => socket,
        // Nothing has been asked yet.
        () = stopped(&mut shutdown) => return,
    };
    let Some(socket) = socket else { return };
    let certificates = socket.peer_certificates();
    let dispatch = Dispatch {
        shared: Arc::clone(shared),
        place: Arc::clone(place),
        certificates: (!certificates.is_empty()).then(|| PeerCertificates(certificates.into())),
        peer,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.head_timeout)
        .max_buf_size(shared.config.head_bytes_max)
        .max_header_size(shared.config.head_bytes_max)
        .max_headers(shared.config.headers_max)
        .serve_connection(TokioIo::new(socket), dispatch)
        .with_upgrades();
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopped(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // Clients that go away in the middle are no news.
        holdfast_observe::tracing::debug!(%peer, %error, "HTTPS connection ended");
    }
}

async fn handshake(
    shared: &Shared,
    tcp: TcpStream,
    tls: Option<Arc<TlsSettings>>,
    peer: SocketAddr,
    place: &Guest,
) -> Option<Socket> {
    let timeout = match tls {
        Some(_) => shared.config.handshake_timeout,
        None => shared.config.head_timeout,
    };
    let accept = async {
        tcp.peek(&mut [0; 1]).await?;
        place.wait_as(Stage::Speaking);
        match tls {
            None => Ok(Socket::Tcp(tcp)),
            Some(tls) => TlsStream::accept(tcp, tls.config(), &shared.handshakes)
                .await
                .map(Socket::Tls),
        }
    };
    let refused = match tokio::time::timeout(timeout, accept).await {
        Ok(Ok(socket)) => {
            if let Socket::Tls(stream) = &socket
                && stream.resumed()
            {
                shared.metrics.tls_resumed.inc();
            }
            return Some(socket);
        }
        Ok(Err(error)) => (RefusalReason::Tls, error.to_string()),
        Err(_) => (RefusalReason::Timeout, "no TLS handshake in time".to_owned()),
    };
    LoginRefused {
        peer,
        client_id: "",
        reason: refused.0,
        detail: &refused.1,
    }
    .emit(&shared.metrics);
    None
}

/// Hands each request of one connection to whom it is for.
struct Dispatch {
    shared: Arc<Shared>,
    place: Arc<Guest>,
    certificates: Option<PeerCertificates>,
    peer: SocketAddr,
}

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let served = Served::new(&self.place);
        if let Some(wanted) = self.shared.carriers.wanted(&request) {
            let response = upgrade::answer(&mut request, wanted, self.peer);
            return Box::pin(std::future::ready(Ok(response)));
        }
        if let Some(certificates) = &self.certificates {
            request.extensions_mut().insert(certificates.clone());
        }
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let given_up = GivenUp::default();
            let timeout = shared.config.body_timeout;
            let asks_first = request.headers().contains_key(http::header::EXPECT);
            let request =
                request.map(|body| Body::new(PacedBody::new(body, timeout, asks_first, given_up.clone())));
            let response = if let Some(device) = &shared.device
                && let Some(operation) = device::Operation::of(request.method(), request.uri().path())
            {
                device.serve(operation, request, &shared.config).await
            } else if let Some(provisioning) = &shared.provisioning
                && let Some(operation) = ProvisioningOperation::of(request.method(), request.uri().path())
            {
                provisioning.serve(operation, request, timeout).await
            } else {
                shared.router.clone().oneshot(request).await?
            };
            // Whatever the reader made of the broken body, this is the reason.
            let response = if given_up.is_set() {
                device::body_timeout()
            } else {
                response
            };
            Ok(response.map(|body| Body::new(ServedBody::new(body, served))))
        })
    }
}
