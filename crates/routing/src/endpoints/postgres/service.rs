//! A connection to a server.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, NoTls, TlsConnect, TlsStream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Statement};
use tokio_rustls::TlsConnector;

use super::config::PostgresConfig;
use super::request::{Rows, create_table, insert};
use crate::endpoints::socket::{Address, Socket, told};

/// What has failed, and whether it was because of the data.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) data: bool,
}

/// A connection that has logged in; closed when this is dropped.
pub(super) struct Connection {
    client: Client,
    insert: Statement,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects, logs in and makes the table if asked to.
    pub(super) async fn open(
        config: &PostgresConfig,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, Failure> {
        let opening = Self::log_in(config, tls);
        tokio::time::timeout(config.connect_timeout(), opening)
            .await
            .unwrap_or_else(|_| {
                Err(other(format!(
                    "{}:{} did not let us log in within {} s",
                    config.host,
                    config.port,
                    config.connect_timeout().as_secs()
                )))
            })
    }

    async fn log_in(config: &PostgresConfig, tls: Option<&Arc<ClientConfig>>) -> Result<Self, Failure> {
        let address = Address {
            host: config.host.clone(),
            port: config.port,
            // PostgreSQL speaks in the clear first and changes to TLS then.
            tls: None,
            timeout: Duration::from_secs(config.connect_timeout_seconds),
        };
        let socket = address.connect().await.map_err(other)?;
        let mut login = Config::new();
        login
            .user(&config.username)
            .dbname(&config.database)
            .application_name("holdfast")
            .ssl_mode(if tls.is_some() {
                SslMode::Require
            } else {
                SslMode::Disable
            });
        if let Some(password) = &config.password {
            login.password(password.reveal());
        }
        let (client, driver) = match tls {
            None => {
                let (client, connection) = login
                    .connect_raw(socket, NoTls)
                    .await
                    .map_err(|error| failure(&error))?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
            Some(tls) => {
                let tls = Upgrade {
                    connector: TlsConnector::from(tls.clone()),
                    host: config.host.clone(),
                };
                let (client, connection) = login
                    .connect_raw(socket, tls)
                    .await
                    .map_err(|error| failure(&error))?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        let driver = driver.abort_handle();
        let table = config.quoted_table();
        if config.create_table {
            client
                .batch_execute(&create_table(&table))
                .await
                .map_err(|error| failure(&error))?;
        }
        let insert = client
            .prepare(&insert(&table))
            .await
            .map_err(|error| failure(&error))?;
        Ok(Connection {
            client,
            insert,
            driver,
        })
    }

    /// Adds rows in one transaction; those that are there already stay as they are.
    pub(super) async fn insert(&self, rows: &Rows<'_>) -> Result<(), Failure> {
        let columns: [&(dyn ToSql + Sync); 10] = [
            &rows.partition,
            &rows.sequence_number,
            &rows.enqueued_at,
            &rows.source,
            &rows.device_id,
            &rows.module_id,
            &rows.properties,
            &rows.system_properties,
            &rows.body,
            &rows.body_json,
        ];
        let added = self.client.execute(&self.insert, &columns);
        added.await.map(drop).map_err(|error| failure(&error))
    }
}

fn other(message: String) -> Failure {
    Failure { message, data: false }
}

/// The server's message, without its details: they can hold what was to be stored.
fn failure(error: &tokio_postgres::Error) -> Failure {
    let Some(answer) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        return other(told(&format!("{error}{}", cause.unwrap_or_default())));
    };
    let code = answer.code().code();
    Failure {
        message: told(&format!("PostgreSQL {code}: {}", answer.message())),
        // Data exceptions, violated constraints, and limits such as the depth of JSON.
        data: ["22", "23", "54"].iter().any(|class| code.starts_with(class)),
    }
}

/// Changes a connection to TLS.
struct Upgrade {
    connector: TlsConnector,
    host: String,
}

// For any lifetime: the compiler does not find the one for `'static` within a boxed future.
impl<'a> TlsConnect<Box<dyn Socket + 'a>> for Upgrade {
    type Stream = Encrypted<'a>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<'a>>> + Send + 'a>>;

    fn connect(self, stream: Box<dyn Socket + 'a>) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            Ok(Encrypted(self.connector.connect(name, stream).await?))
        })
    }
}

/// A connection in TLS.
struct Encrypted<'a>(tokio_rustls::client::TlsStream<Box<dyn Socket + 'a>>);

impl TlsStream for Encrypted<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
