//! A connection to a server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::jetstream;
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustls::ClientConfig;

use super::config::NatsConfig;
use crate::endpoints::DELIVERY_TIME_MAX;
use crate::endpoints::socket::told;

/// Commands that wait for the connection.
const COMMANDS_MAX: usize = 1_024;

/// A connection that has logged in.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) stream: jetstream::Context,
}

impl Connection {
    pub(super) async fn open(config: &NatsConfig, tls: Option<&Arc<ClientConfig>>) -> Result<Self, String> {
        let mut options = ConnectOptions::new()
            .name("holdfast")
            .client_capacity(COMMANDS_MAX)
            .connection_timeout(config.connect_timeout())
            .ignore_discovered_servers();
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            options = options.user_and_password(user.clone(), password.reveal().to_owned());
        } else if let Some(token) = &config.token {
            options = options.token(token.reveal().to_owned());
        }
        if let Some(tls) = tls {
            options = options.require_tls(true).tls_client_config(tls.as_ref().clone());
        }
        let place = match config.host.contains(':') {
            true => format!("[{}]:{}", config.host, config.port),
            false => format!("{}:{}", config.host, config.port),
        };
        let scheme = if tls.is_some() { "tls" } else { "nats" };
        let opening = options.connect(format!("{scheme}://{place}"));
        let client = match tokio::time::timeout(config.connect_timeout(), opening).await {
            Ok(client) => {
                client.map_err(|error| format!("cannot connect to {place}: {}", told(&error.to_string())))?
            }
            Err(_) => {
                return Err(format!(
                    "{place} did not let us log in within {} s",
                    config.connect_timeout().as_secs()
                ));
            }
        };
        let stream = jetstream::context::ContextBuilder::new()
            .timeout(DELIVERY_TIME_MAX)
            .ack_timeout(DELIVERY_TIME_MAX)
            .build(client.clone());
        Ok(Connection { client, stream })
    }

    /// Whether this is still the connection that was opened: one that was opened anew in between may have lost messages.
    pub(super) fn is_first(&self) -> bool {
        self.client.statistics().connects.load(Ordering::Relaxed) <= 1
    }

    /// Waits until the server has read everything: it sends a last message back, and it reads in order.
    pub(super) async fn settle(&self) -> Result<(), String> {
        let inbox = self.client.new_inbox();
        let failed = |what: &str| format!("cannot tell whether the server has read the events: {what}");
        let mut echo = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| failed(&error.to_string()))?;
        self.client
            .publish(inbox, Bytes::new())
            .await
            .map_err(|error| failed(&error.to_string()))?;
        self.client
            .flush()
            .await
            .map_err(|error| failed(&error.to_string()))?;
        echo.next()
            .await
            .ok_or_else(|| failed("the connection was closed"))?;
        match self.is_first() {
            true => Ok(()),
            false => Err(failed("the connection was lost")),
        }
    }
}
