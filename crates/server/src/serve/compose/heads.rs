//! The sockets of a hub, and the protocol heads that serve them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_heads::dps::ProvisioningHttps;
use holdfast_heads::https::{DeviceHttps, HttpsConfig, HttpsHead};
use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::provisioning::ProvisioningGateway;
use holdfast_ports::service::ServiceGateway;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Parts;
use crate::serve::banner::Addresses;
use crate::serve::config::{self, Config};
use crate::serve::listen::{self, bind, bind_all};
use crate::serve::{Settings, admin};

/// Sockets that wait for their heads.
pub(super) struct Listeners {
    mqtt: Vec<TcpListener>,
    https: Vec<TcpListener>,
    mqtt_plain: Option<TcpListener>,
    amqp: Vec<TcpListener>,
    amqp_plain: Option<TcpListener>,
    blob: Vec<TcpListener>,
    blob_plain: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        let addresses = &config.server.listen;
        let plain = config.mqtt.plain.map(|address| bind(address, listen::MQTT_PLAIN));
        let amqp_plain = config.amqp.plain.map(|address| bind(address, listen::AMQP_PLAIN));
        let blob_plain = config.blob.plain.map(|address| bind(address, listen::BLOB_PLAIN));
        let admin = config.server.admin.map(|address| bind(address, listen::ADMIN));
        Ok(Listeners {
            https: bind_all(addresses, config.https.port, listen::HTTPS)?,
            mqtt: bind_all(addresses, config.mqtt.port, listen::MQTT)?,
            mqtt_plain: plain.transpose()?,
            amqp: bind_all(addresses, config.amqp.port, listen::AMQP)?,
            amqp_plain: amqp_plain.transpose()?,
            blob: match config.blob.enabled {
                true => bind_all(addresses, config.blob.port(config.https.port), listen::BLOB)?,
                false => Vec::new(),
            },
            blob_plain: blob_plain.transpose()?,
            admin: admin.transpose()?,
        })
    }

    pub(super) fn addresses(&self, host: &str) -> anyhow::Result<Addresses> {
        let port = |listeners: &[TcpListener]| -> anyhow::Result<u16> {
            Ok(listeners.first().context("no listener")?.local_addr()?.port())
        };
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses {
            host: host.to_owned(),
            mqtt_port: port(&self.mqtt)?,
            amqp_port: port(&self.amqp)?,
            https_port: port(&self.https)?,
            mqtt_plain: address(&self.mqtt_plain)?,
            amqp_plain: address(&self.amqp_plain)?,
            blob_port: match self.blob.first() {
                Some(listener) => Some(listener.local_addr()?.port()),
                None => None,
            },
            blob_plain: address(&self.blob_plain)?,
            admin: address(&self.admin)?,
        })
    }
}

fn amqp_config(config: &config::AmqpConfig, hub: &config::HubSection, drain_timeout: Duration) -> AmqpConfig {
    let millis = |span: Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let bytes_u32 = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    let default = AmqpConfig::default();
    let machine = holdfast_amqp::Config {
        max_frame_size: bytes_u32(config.frame_size_max.0),
        channel_max: config.sessions_max.saturating_sub(1),
        max_links: config.links_max,
        idle_time_out_ms: millis(config.silence_max.0),
        open_timeout_ms: millis(config.login_timeout.0),
        max_reassembly: bytes_u32(config.unfinished_size.0),
        ..default.machine.clone()
    };
    AmqpConfig {
        machine,
        handshake_timeout: config.handshake_timeout.0,
        login_timeout: config.login_timeout.0,
        clock_skew: hub.clock_skew.0,
        token_grace: hub.token_grace.0,
        producer_bytes_max: config.event_size_max.0,
        link_window: config.link_window,
        unacknowledged_bytes_max: bytes(config.unacknowledged_size.0),
        requests_max: config.requests_max,
        grants_max: config.tokens_max,
        output_bytes_pause: default
            .output_bytes_pause
            .min(bytes(config.output_size_max.0 / 2)),
        output_bytes_max: bytes(config.output_size_max.0),
        logins_pending_max: config.logins_pending_max,
        connections_max: config.connections_max,
        drain_timeout,
        ..default
    }
}

fn mqtt_config(config: &config::MqttConfig, drain_timeout: Duration) -> MqttConfig {
    MqttConfig {
        connect_timeout: config.connect_timeout.0,
        silence_max: config.silence_max.0,
        unacknowledged_max: config.unacknowledged_max,
        unacknowledged_bytes_max: usize::try_from(config.unacknowledged_size.0).unwrap_or(usize::MAX),
        drain_timeout,
        ..MqttConfig::default()
    }
}

fn https_config(config: &config::HttpsConfig, drain_timeout: Duration) -> HttpsConfig {
    HttpsConfig {
        handshake_timeout: config.handshake_timeout.0,
        head_timeout: config.head_timeout.0,
        body_timeout: config.body_timeout.0,
        ingest_timeout: config.ingest_timeout.0,
        drain_timeout,
        ..HttpsConfig::default()
    }
}

/// Starts a task per listener.
pub(super) fn serve_heads(
    heads: &mut JoinSet<()>,
    listeners: Listeners,
    parts: &Parts,
    settings: &Settings,
    stopped: &watch::Receiver<bool>,
) {
    let drain_timeout = settings.config.server.drain_timeout.0 / 2;
    let config = mqtt_config(&settings.config.mqtt, drain_timeout);
    let (clock, metrics) = (&parts.clock, &parts.heads);
    let gateway: Arc<dyn DeviceGateway> = Arc::clone(&parts.hub) as Arc<_>;
    let dps: Arc<dyn ProvisioningGateway> = Arc::clone(&parts.provisioning) as Arc<_>;
    let mqtt = MqttHead::new(config, Arc::clone(&gateway), Arc::clone(clock), metrics.clone())
        .with_provisioning(Arc::clone(&dps));
    for listener in listeners.mqtt {
        let (head, tls, stopped) = (mqtt.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    if let Some(listener) = listeners.mqtt_plain {
        let (head, stopped) = (mqtt.clone(), stopped.clone());
        heads.spawn(async move { head.serve(listener, None, stopped).await });
    }
    let config = amqp_config(&settings.config.amqp, &settings.config.hub, drain_timeout);
    let services: Arc<dyn ServiceGateway> = Arc::clone(&parts.hub) as Arc<_>;
    let amqp = AmqpHead::new(
        config,
        Arc::clone(&gateway),
        services,
        Arc::clone(clock),
        metrics.clone(),
    )
    .with_provisioning(Arc::clone(&dps));
    let amqp = match parts.uploads.tells_services() {
        true => amqp.with_files(Arc::clone(&parts.uploads.files) as Arc<_>),
        false => amqp,
    };
    for listener in listeners.amqp {
        let (head, tls, stopped) = (amqp.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    if let Some(listener) = listeners.amqp_plain {
        let (head, stopped) = (amqp.clone(), stopped.clone());
        heads.spawn(async move { head.serve(listener, None, stopped).await });
    }
    let watched = admin::router(parts.health.clone(), Arc::clone(&parts.registry));
    let config = https_config(&settings.config.https, drain_timeout);
    let router = https_router(parts, watched.clone(), stopped);
    let devices = DeviceHttps::new(gateway, Arc::clone(clock), metrics.clone())
        .with_files(Arc::clone(&parts.uploads.files) as Arc<_>);
    let https = HttpsHead::new(config, router, Some(devices), Some(mqtt), metrics.clone())
        .with_amqp(amqp)
        .with_provisioning(ProvisioningHttps::new(dps, Arc::clone(clock), metrics.clone()));
    for listener in listeners.https {
        let (head, tls, stopped) = (https.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    let config = HttpsConfig {
        connections_max: settings.config.blob.connections_max,
        ..https_config(&settings.config.https, drain_timeout)
    };
    let blobs = (listeners.blob, listeners.blob_plain);
    (parts.uploads).serve_blobs(heads, blobs, &config, (&parts.tls, metrics), stopped);
    if let Some(listener) = listeners.admin {
        let mut stopped = stopped.clone();
        heads.spawn(async move {
            let stop = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(listener, watched).with_graceful_shutdown(stop).await {
                tracing::error!(%error, "the admin listener has failed");
            }
        });
    }
}

/// Everything that HTTPS answers besides devices and WebSockets: the watchers' paths, then the service API.
fn https_router(parts: &Parts, watched: Router, stopped: &watch::Receiver<bool>) -> Router {
    let api = holdfast_api::Api {
        hub: Arc::clone(&parts.hub),
        provisioning: Arc::clone(&parts.provisioning),
        transfer: Arc::clone(&parts.transfer),
        models: Arc::clone(&parts.models),
        configurations: Arc::clone(&parts.management.configurations),
        jobs: Arc::clone(&parts.management.jobs),
        log: Arc::clone(&parts.log) as Arc<_>,
        queries: Arc::new(parts.store.clone()),
        checkpoints: Arc::new(parts.store.clone()),
        routing: parts.routing.api(),
        closing: holdfast_api::Closing::new(stopped.clone()),
    };
    watched.fallback_service(holdfast_api::service(api))
}
