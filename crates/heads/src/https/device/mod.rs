//! What devices and modules do over HTTPS: send one message or a batch, receive and settle cloud-to-device messages,
//! begin and end file uploads (rest.md section 15).

mod files;
mod operation;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::event::Records;
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::clock::Clock;
use holdfast_ports::event_log::AppendTicket;
use holdfast_ports::file::FileGateway;
use holdfast_ports::gateway::{
    AccessRequest, Admitted, Credential, DeviceGateway, IngestError, PeerCertificates, Protocol,
};
use holdfast_wire::{api_version, headers, http_device};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::HttpsConfig;
use crate::events::Metrics;
use crate::tracking;

pub(super) use operation::Operation;
use operation::{Action, query_parameter};
pub(super) use reply::body_timeout;

/// How long to wait when the log is full and names no ticket to wait for.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The device side of the HTTPS port. Cheap to clone.
#[derive(Clone)]
pub struct DeviceHttps {
    gateway: Arc<dyn DeviceGateway>,
    files: Option<Arc<dyn FileGateway>>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

/// What a request failed with: an error of the contract, or a client that is too slow.
enum Failure {
    Error(Error),
    BodyTimeout,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl DeviceHttps {
    /// The device side of `gateway`.
    #[must_use]
    pub fn new(gateway: Arc<dyn DeviceGateway>, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        DeviceHttps {
            gateway,
            files: None,
            clock,
            metrics,
        }
    }

    /// Also lets devices upload files.
    #[must_use]
    pub fn with_files(mut self, files: Arc<dyn FileGateway>) -> Self {
        self.files = Some(files);
        self
    }

    /// Answers a request. Every answer carries a request id.
    pub(super) async fn serve(
        &self,
        operation: Operation,
        request: Request<Body>,
        config: &HttpsConfig,
    ) -> Response<Body> {
        let mut response = match self.perform(operation, request, config).await {
            Ok(response) => response,
            Err(failure) => {
                self.metrics.requests_failed.inc();
                match failure {
                    Failure::Error(error) => reply::failure(&error, self.clock.now()),
                    Failure::BodyTimeout => reply::body_timeout(),
                }
            }
        };
        add_request_id(&mut response);
        response
    }

    async fn perform(
        &self,
        operation: Operation,
        request: Request<Body>,
        config: &HttpsConfig,
    ) -> Result<Response<Body>, Failure> {
        // Taken apart at once: a body cannot be shared between threads, and the head is borrowed over an await.
        let (head, body) = request.into_parts();
        let version = query_parameter(head.uri.query(), api_version::PARAMETER);
        if !version
            .flatten()
            .is_some_and(|version| api_version::is_date_shaped(&version))
        {
            let text = "the query must have an api-version such as 2021-04-12";
            return Err(Error::new(ErrorCode::InvalidProtocolVersion, text).into());
        }
        let admitted = self.admit(&operation, &head).await?;
        match operation.action {
            Action::Send => self.send(&admitted, &head, body, config).await,
            Action::Receive => self.receive(&admitted).await,
            Action::Complete { lock } => {
                let reject = query_parameter(head.uri.query(), "reject").is_some();
                let settlement = match reject {
                    true => Settlement::Reject,
                    false => Settlement::Complete,
                };
                self.settle(&admitted, &lock, settlement).await
            }
            Action::Abandon { lock } => self.settle(&admitted, &lock, Settlement::Abandon).await,
            Action::BeginUpload => self.begin_upload(&admitted, &head, body, config).await,
            Action::EndUpload { correlation_id } => {
                let id = correlation_id.as_deref();
                self.end_upload(&admitted, id, &head, body, config).await
            }
        }
    }

    async fn admit(&self, operation: &Operation, head: &Parts) -> Result<Admitted, Error> {
        let certificates = head.extensions.get::<PeerCertificates>();
        let credential = match (head.headers.get(AUTHORIZATION), certificates) {
            // Text that is not even ASCII is no token.
            (Some(token), _) => Credential::Sas(token.to_str().unwrap_or_default()),
            (None, Some(PeerCertificates(chain))) => Credential::Certificates(chain),
            (None, None) => Credential::None,
        };
        let access = AccessRequest {
            device_id: &operation.device_id,
            module_id: operation.module_id.as_deref(),
            credential,
            auth_chain: None,
            protocol: Protocol::Https,
        };
        self.gateway.admit(access).await
    }

    async fn send(
        &self,
        admitted: &Admitted,
        head: &Parts,
        body: Body,
        config: &HttpsConfig,
    ) -> Result<Response<Body>, Failure> {
        let body = read_body(&head.headers, body, config.body_timeout).await?;
        let mut records = Records::new();
        let content_type = head
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        if content_type.is_some_and(headers::is_message_batch) {
            http_device::parse_batch(&body, &mut records)?;
        } else {
            let mut record = records.record();
            // A value that is no text cannot become a property.
            let fields = head
                .headers
                .iter()
                .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
            http_device::write_record(fields, &mut record);
            let _ = record.finish(&body);
        }
        let ticket = self.append(admitted, &records, config.ingest_timeout).await?;
        std::future::poll_fn(|context| self.gateway.poll_durable(ticket, context))
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(reply::no_content())
    }

    /// Hands records to the hub; waits for room in the log for some time.
    async fn append(
        &self,
        admitted: &Admitted,
        records: &Records,
        timeout: Duration,
    ) -> Result<AppendTicket, Error> {
        let offers = async {
            loop {
                match self.gateway.send_admitted(admitted, records) {
                    Ok(ticket) => return Ok(ticket),
                    Err(IngestError::Busy(Some(ticket))) => {
                        // A log that has failed says so at the next try.
                        let _ =
                            std::future::poll_fn(|context| self.gateway.poll_durable(ticket, context)).await;
                    }
                    Err(IngestError::Busy(None)) => tokio::time::sleep(BUSY_PAUSE).await,
                    Err(IngestError::TooLarge) => return Err(too_large()),
                    Err(error @ (IngestError::Fenced | IngestError::Failed(_))) => {
                        return Err(unavailable(&error));
                    }
                }
            }
        };
        match tokio::time::timeout(timeout, offers).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(
                ErrorCode::ThrottlingException,
                "the hub is busy; try again later",
            )),
        }
    }

    async fn receive(&self, admitted: &Admitted) -> Result<Response<Body>, Failure> {
        let identity = &admitted.origin.identity;
        if identity.is_module() {
            // Messages to a module do not exist (mqtt.md section 6.1).
            return Ok(reply::no_content());
        }
        let deliveries = self.gateway.receive_c2d(identity, None, 1).await?;
        Ok(match deliveries.first() {
            None => reply::no_content(),
            Some(delivery) => reply::delivery(delivery),
        })
    }

    async fn settle(
        &self,
        admitted: &Admitted,
        lock: &str,
        settlement: Settlement,
    ) -> Result<Response<Body>, Failure> {
        let lock = LockToken::parse(lock).ok_or_else(|| {
            Error::new(
                ErrorCode::DeviceMessageLockLost,
                "the lock token is not one of this hub",
            )
        })?;
        self.gateway
            .settle_c2d(&admitted.origin.identity, lock, settlement)
            .await?;
        Ok(reply::no_content())
    }
}

/// Adds the id of the request, which every answer carries.
pub(crate) fn add_request_id(response: &mut Response<Body>) {
    reply::add_request_id(response, tracking::random());
}

impl std::fmt::Debug for DeviceHttps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceHttps").finish_non_exhaustive()
    }
}

fn too_large() -> Error {
    Error::new(
        ErrorCode::MessageTooLarge,
        "a message has at most 256 KB, properties included",
    )
}

fn unavailable(error: &dyn std::fmt::Display) -> Error {
    holdfast_observe::tracing::debug!(%error, "a device's message was not stored");
    Error::new(
        ErrorCode::ServiceUnavailable,
        "the hub cannot store messages right now",
    )
}

/// Reads a body of at most a message. One that announces more is refused before a byte of it is read.
async fn read_body(headers: &HeaderMap, body: Body, timeout: Duration) -> Result<Bytes, Failure> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > D2C_BYTES_MAX {
        return Err(too_large().into());
    }
    let read = Limited::new(body, D2C_BYTES_MAX).collect();
    match tokio::time::timeout(timeout, read).await {
        Err(_) => Err(Failure::BodyTimeout),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large().into()),
        Ok(Err(error)) => {
            let text = format!("the body could not be read: {error}");
            Err(Error::new(ErrorCode::IotHubFormatError, text).into())
        }
    }
}
