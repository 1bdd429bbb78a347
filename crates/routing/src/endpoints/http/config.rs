//! Settings of a webhook.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Headers that the endpoint sets itself.
const OWN_HEADERS: &[&str] = &[
    "host",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "content-type",
    "authorization",
];
/// Most headers that can be given.
const HEADERS_MAX: usize = 32;

/// What events look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// CloudEvents 1.0 in JSON: an array, or with `batch` off one event per request.
    #[default]
    CloudEvents,
    /// The Event Grid schema: an array, or with `batch` off an array of one.
    EventGrid,
    /// The record of storage endpoints (languages.md 2.8), one a line.
    Json,
}

/// How requests are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip, told by `Content-Encoding`.
    Gzip,
}

/// Settings of the kind `http`: events are posted to a web service, as CloudEvents, in the Event Grid schema or as lines of
/// JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where events are posted: an address with `http://` or `https://`. Required.
    pub url: String,
    /// `cloudevents` (default), `eventgrid` or `json`.
    pub format: Format,
    /// Several events in one request. Default true.
    pub batch: bool,
    /// Whether the receiver must prove that it wants events before the first one: by repeating a code (`eventgrid`), or
    /// by allowing our origin in its answer to OPTIONS (`cloudevents`). Default true for `eventgrid`, false for others.
    pub handshake: Option<bool>,
    /// `topic` of the Event Grid schema and `source` of CloudEvents. Default: a resource path with the hub's name.
    pub topic: Option<String>,
    /// `none` (default) or `gzip`: whether bodies of requests are compressed, which the receiver must understand.
    pub compression: Compression,
    /// Headers to add, at most 32; their values are secrets.
    pub headers: BTreeMap<String, Secret>,
    /// Token for `Authorization: Bearer`. Secret.
    pub bearer_token: Option<Secret>,
    /// User name for `Authorization: Basic`, together with `password`.
    pub username: Option<String>,
    /// Password for `Authorization: Basic`. Secret.
    pub password: Option<Secret>,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// For one request and its answer, 1 to 25 s. Default 20.
    pub timeout_seconds: u64,
    /// For TCP and TLS, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most events of a request, 1 to 5,000. Default 500.
    pub batch_events_max: usize,
    /// Most bytes of bodies and properties in a request, 1,024 to 16 MiB; a single event may be larger. Default 512 KiB.
    pub batch_bytes_max: usize,
    /// How long to wait for a request to fill, 0 to 60,000 ms. Default 0.
    pub batch_wait_milliseconds: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            url: String::new(),
            format: Format::default(),
            batch: true,
            handshake: None,
            topic: None,
            compression: Compression::default(),
            headers: BTreeMap::new(),
            bearer_token: None,
            username: None,
            password: None,
            ca_certificate: None,
            timeout_seconds: 20,
            connect_timeout_seconds: 10,
            batch_events_max: 500,
            batch_bytes_max: 512 << 10,
            batch_wait_milliseconds: 0,
        }
    }
}

/// Where the settings' address leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Value of the header `Host`.
    pub(super) authority: String,
    /// Path and query.
    pub(super) path: String,
}

impl HttpConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let mut config: HttpConfig = settings(given)?;
        config.handshake.get_or_insert(config.format == Format::EventGrid);
        config.place()?;
        if config.format == Format::Json && config.handshake == Some(true) {
            return Err("handshake: the format json has none; use cloudevents or eventgrid".to_owned());
        }
        if config
            .topic
            .as_ref()
            .is_some_and(|topic| topic.is_empty() || topic.len() > 1_024)
        {
            return Err("topic must have 1 to 1,024 characters".to_owned());
        }
        config.request_headers()?;
        socket::tls(config.ca_certificate.as_deref(), None)?;
        bounded("timeoutSeconds", config.timeout_seconds, 1, 25)?;
        bounded("connectTimeoutSeconds", config.connect_timeout_seconds, 1, 25)?;
        bounded("batchEventsMax", config.batch_events_max as u64, 1, 5_000)?;
        bounded("batchBytesMax", config.batch_bytes_max as u64, 1_024, 16 << 20)?;
        bounded("batchWaitMilliseconds", config.batch_wait_milliseconds, 0, 60_000)?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    pub(super) fn place(&self) -> Result<Place, String> {
        let example = "such as https://example.com/events";
        if self.url.is_empty() {
            return Err(format!("url is missing: the address to post to, {example}"));
        }
        let url: http::Uri = self
            .url
            .parse()
            .map_err(|error| format!("url is no address: {error}; it looks {example}"))?;
        let tls = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("url must begin with https:// or http://, {example}")),
        };
        let authority = url
            .authority()
            .ok_or_else(|| format!("url has no host; it looks {example}"))?;
        if authority.as_str().contains('@') {
            return Err("url must not hold a user name or password; use username and password".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(format!("url has no host; it looks {example}"));
        }
        Ok(Place {
            tls,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// Headers of every request, `Authorization` included.
    pub(super) fn request_headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        if self.headers.len() > HEADERS_MAX {
            return Err(format!("headers: at most {HEADERS_MAX} can be given"));
        }
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            let header: HeaderName = name
                .parse()
                .map_err(|_| format!("headers: {name:?} cannot be the name of a header"))?;
            if OWN_HEADERS.contains(&header.as_str()) {
                return Err(format!("headers: {name} is set by the endpoint itself"));
            }
            headers.push((header, secret_value(name, value.reveal())?));
        }
        let authorization = match (&self.bearer_token, &self.username, &self.password) {
            (None, None, None) => None,
            (Some(token), None, None) => Some(format!("Bearer {}", token.reveal())),
            (None, Some(name), Some(_)) if name.contains(':') => {
                return Err("username must not contain a colon".to_owned());
            }
            (None, Some(name), Some(password)) => {
                use base64::Engine as _;
                let pair = format!("{name}:{}", password.reveal());
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                Some(format!("Basic {pair}"))
            }
            (None, ..) => return Err("username and password must be given together".to_owned()),
            (Some(_), ..) => {
                return Err("bearerToken cannot be given together with username and password".to_owned());
            }
        };
        if let Some(value) = authorization {
            headers.push((http::header::AUTHORIZATION, secret_value("bearerToken", &value)?));
        }
        Ok(headers)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

fn secret_value(name: &str, value: &str) -> Result<HeaderValue, String> {
    // The value is a secret, so the message tells nothing of it.
    let mut value =
        HeaderValue::from_str(value).map_err(|_| format!("{name}: the value cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}
