//! Webhooks: events are posted to a web service.
//!
//! An answer 2xx means accepted. Redirects are not followed, and answers that speak of the request as such (401, 403,
//! 404, 407, 408, 415, 429, 3xx, 5xx) are tried again, after the time of `Retry-After` if there is one: losing events to a
//! token that has expired would help nobody. Every other 4xx refuses: a batch is split until the event is found that
//! the service does not take, and that one goes to the dead letters.

mod config;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
pub use config::{Compression, Format, HttpConfig};
use holdfast_model::Timestamp;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use holdfast_wire::routed::event_grid;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use request::Shape;
use serde_json::Value;
use service::{Answer, Service};
use tokio::time::Instant;

use super::socket::{self, Address, told};
use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "http",
    secrets: &["headers", "bearerToken", "password"],
    check: HttpConfig::check,
    make,
    described: described::<HttpConfig>,
};

/// Requests that are made of one batch of the dispatcher: between two batches the service has nothing to do.
const REQUESTS_AT_ONCE: usize = 16;
/// Bytes of a batch of the dispatcher.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// How often other tasks get their turn until a request has been written.
const TURNS_TO_LEAVE: usize = 3;
/// Longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    let endpoint = HttpEndpoint::new(&definition.settings, environment)?;
    Ok(Arc::new(endpoint))
}

/// A webhook.
pub(crate) struct HttpEndpoint {
    config: HttpConfig,
    shape: Shape,
    service: Service,
    clock: Arc<dyn Clock>,
    /// The receiver has proved that it wants events.
    validated: AtomicBool,
}

/// What an answer means.
enum Verdict {
    Accepted,
    Refused(String),
    Retry(String, Option<Duration>),
}

impl HttpEndpoint {
    pub(crate) fn new(settings: &Value, environment: &Environment) -> Result<Self, String> {
        let config = HttpConfig::read(settings)?;
        let place = config.place()?;
        let tls = place
            .tls
            .then(|| socket::tls(config.ca_certificate.as_deref(), None))
            .transpose()?;
        let address = Address {
            host: place.host.clone(),
            port: place.port,
            tls,
            timeout: Duration::from_secs(config.connect_timeout_seconds),
        };
        let topic = config.topic.clone();
        let shape = Shape {
            format: config.format,
            batch: config.batch,
            topic: topic.unwrap_or_else(|| event_grid::topic(&environment.hub_name)),
            hub_name: environment.hub_name.clone(),
        };
        let headers = config.request_headers()?;
        Ok(HttpEndpoint {
            service: Service::new(address, place, headers, config.timeout()),
            shape,
            clock: environment.clock.clone(),
            validated: AtomicBool::new(config.handshake != Some(true)),
            config,
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        if !self.validated.load(Ordering::Acquire) {
            self.validate().await?;
            self.validated.store(true, Ordering::Release);
        }
        let end = Instant::now() + DELIVERY_TIME_MAX;
        let mut accepted = 0;
        let mut size = if self.config.batch {
            self.config.batch_events_max
        } else {
            1
        };
        // The body of the next request, and how many events it has.
        let mut ready = None;
        while accepted < batch.len() {
            let count = self.fitting(&batch[accepted..], size);
            let body = match ready.take() {
                Some((events, body)) if events == count => body,
                _ => self.body(&batch[accepted..accepted + count]),
            };
            let later = &batch[accepted + count..];
            // The next body is made while the service is busy with this one.
            let (verdict, next) = tokio::join!(biased; self.post(body, end), async {
                // First the request has to leave: the connection's own task says that it is ready, is handed the
                // request, and writes it.
                for _ in 0..TURNS_TO_LEAVE {
                    tokio::task::yield_now().await;
                }
                let events = self.fitting(later, size);
                (events > 0).then(|| (events, self.body(&later[..events])))
            });
            // The dispatcher would forget what was accepted so far, and a slow service would get it again and again.
            let Some(verdict) = verdict else {
                let message = format!(
                    "the service took {accepted} events in {} s",
                    DELIVERY_TIME_MAX.as_secs()
                );
                return Err(DeliveryError::retry(message).after(accepted));
            };
            match verdict {
                Verdict::Accepted => {
                    accepted += count;
                    ready = next;
                }
                Verdict::Refused(message) if count == 1 => {
                    return Err(DeliveryError::refused(message).after(accepted));
                }
                // Somewhere in here is an event that it does not take.
                Verdict::Refused(_) => size = count / 2,
                Verdict::Retry(message, retry_after) => {
                    let error = DeliveryError::retry(message).after(accepted);
                    return Err(DeliveryError { retry_after, ..error });
                }
            }
        }
        Ok(())
    }

    /// How many of the events fit into one request: at most `most`, at least one if there is any.
    fn fitting(&self, events: &[Outbound<'_>], most: usize) -> usize {
        let mut bytes = 0;
        let fits = |outbound: &&Outbound<'_>| {
            let first = bytes == 0;
            bytes += (outbound.event.body.len() + outbound.event.encoded_fields().len()).max(1);
            first || bytes <= self.config.batch_bytes_max
        };
        events.iter().take(most).take_while(fits).count()
    }

    fn body(&self, events: &[Outbound<'_>]) -> Bytes {
        let body = self.shape.body(events);
        Bytes::from(match self.config.compression {
            Compression::None => body,
            Compression::Gzip => request::gzipped(&body),
        })
    }

    /// Posts a body; `None` when there is no answer before `end`.
    async fn post(&self, body: Bytes, end: Instant) -> Option<Verdict> {
        let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static(self.shape.content_type()))];
        if self.shape.format == Format::EventGrid {
            headers.push(event_type("Notification"));
        }
        if self.config.compression == Compression::Gzip {
            headers.push((CONTENT_ENCODING, HeaderValue::from_static("gzip")));
        }
        let sending = self.service.send(Method::POST, &headers, body);
        Some(match tokio::time::timeout_at(end, sending).await.ok()? {
            Ok(answer) => judge(&answer, self.clock.now()),
            Err(message) => Verdict::Retry(message, None),
        })
    }

    /// The handshake before the first event.
    async fn validate(&self) -> Result<(), DeliveryError> {
        let answer = match self.shape.format {
            Format::EventGrid => return self.validate_by_code().await,
            Format::CloudEvents => self.ask_permission().await,
            Format::Json => return Ok(()),
        };
        let answer = answer.map_err(|error| DeliveryError::retry(format!("handshake: {error}")))?;
        let allowed = answer.headers.get("webhook-allowed-origin");
        let origin = allowed.and_then(|value| value.to_str().ok()).map(str::trim);
        match origin {
            Some(origin) if origin == "*" || origin.eq_ignore_ascii_case(&self.shape.hub_name) => Ok(()),
            _ => Err(DeliveryError::retry(format!(
                "handshake: the service answered OPTIONS with {} and did not allow the origin {:?} in WebHook-Allowed-Origin",
                answer.status, self.shape.hub_name
            ))),
        }
    }

    async fn ask_permission(&self) -> Result<Answer, String> {
        let origin = HeaderValue::from_str(&self.shape.hub_name).map_err(|error| error.to_string())?;
        let headers = [(HeaderName::from_static("webhook-request-origin"), origin)];
        self.service.send(Method::OPTIONS, &headers, Bytes::new()).await
    }

    async fn validate_by_code(&self) -> Result<(), DeliveryError> {
        let code = uuid::Uuid::new_v4().to_string();
        let id = uuid::Uuid::new_v4().to_string();
        let body = event_grid::validation(&self.shape.topic, &id, &code, self.clock.now());
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(self.shape.content_type())),
            event_type("SubscriptionValidation"),
        ];
        let failed = |text: String| DeliveryError::retry(format!("handshake: {text}"));
        let answer = self.service.send(Method::POST, &headers, body.into()).await;
        let answer = answer.map_err(failed)?;
        if answer.status.is_success() && event_grid::is_validated(&answer.body, &code) {
            return Ok(());
        }
        Err(failed(format!(
            "the service answered {} and did not repeat the validation code as validationResponse",
            answer.status
        )))
    }
}

fn event_type(value: &'static str) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static("aeg-event-type"),
        HeaderValue::from_static(value),
    )
}

fn judge(answer: &Answer, now: Timestamp) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        return Verdict::Accepted;
    }
    let said = told(&String::from_utf8_lossy(&answer.body));
    let said = if said.is_empty() {
        said
    } else {
        format!(": {said}")
    };
    if status.is_redirection() {
        let text = format!(
            "the service answered {status}; redirects are not followed, put the final address in url"
        );
        return Verdict::Retry(text, None);
    }
    let text = format!("the service answered {status}{said}");
    let of_the_request = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    if status.is_client_error() && !of_the_request.contains(&status) {
        return Verdict::Refused(text);
    }
    let asked = answer
        .headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    // Seconds, or a date.
    let asked = asked.and_then(|text| match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => request::date(text).map(|at| at.since(now)),
    });
    Verdict::Retry(text, asked.map(|asked| asked.min(RETRY_AFTER_MAX)))
}

impl Endpoint for HttpEndpoint {
    fn limits(&self) -> BatchLimits {
        // Several requests at once, so that the next one can be made while the last one is under way; waiting is for
        // one to fill.
        let requests = if self.config.batch_wait_milliseconds == 0 && self.config.batch {
            REQUESTS_AT_ONCE
        } else {
            1
        };
        BatchLimits {
            events_max: self.config.batch_events_max * requests,
            bytes_max: (self.config.batch_bytes_max * requests).min(BATCH_BYTES_MAX),
            wait_max: Duration::from_millis(self.config.batch_wait_milliseconds),
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.deliver_all(batch))
    }

    fn idle(&self) -> BoxFuture<'_, ()> {
        self.service.close();
        Box::pin(std::future::ready(()))
    }
}
