//! REST client of a hub, over the same API that everyone else uses.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_model::Timestamp;
use holdfast_model::credential::sign_sas;
use holdfast_program::failure::{Failure, Kind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body};

use super::profile::Login;

/// Sent with every request of the service API.
pub const API_VERSION: &str = "2021-04-12";

/// Life of the tokens that requests carry.
const TOKEN_SECONDS: u64 = 3_600;

/// Files in which systems keep the certificates they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Everything but letters, digits and `-._~` is encoded in a path segment or query value.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Encodes one path segment or query value.
#[must_use]
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Path of a device or module below `root` (`/devices` or `/twins`).
#[must_use]
pub fn identity_path(root: &str, device: &str, module: Option<&str>) -> String {
    match module {
        None => format!("{root}/{}", segment(device)),
        Some(module) => format!("{root}/{}/modules/{}", segment(device), segment(module)),
    }
}

/// A client of one hub.
pub struct Client {
    agent: Agent,
    login: Login,
}

/// A request being put together.
pub struct Call<'a> {
    client: &'a Client,
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
    timeout: Option<Duration>,
}

impl Client {
    /// A client for a login.
    ///
    /// # Errors
    /// When the CA certificate cannot be read.
    pub fn new(login: Login) -> anyhow::Result<Client> {
        let roots = roots(login.ca.as_deref())?;
        Ok(Self::trusting(login, roots))
    }

    /// A client that trusts just these authorities.
    #[must_use]
    pub fn trusting(login: Login, roots: RootCerts) -> Client {
        let agent = Agent::config_builder()
            .tls_config(tls(roots))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            // A proxy of the environment has no way to a hub on this machine.
            .proxy(None)
            .build()
            .new_agent();
        Client { agent, login }
    }

    /// Where and as whom it talks.
    #[must_use]
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Starts a request.
    #[must_use]
    pub fn call(&self, method: Method, path: impl Into<String>) -> Call<'_> {
        Call {
            client: self,
            method,
            path: path.into(),
            query: vec![("api-version", API_VERSION.to_owned())],
            headers: Vec::new(),
            body: None,
            timeout: Some(Duration::from_secs(30)),
        }
    }

    /// GET.
    #[must_use]
    pub fn get(&self, path: impl Into<String>) -> Call<'_> {
        self.call(Method::GET, path)
    }

    /// PUT.
    #[must_use]
    pub fn put(&self, path: impl Into<String>) -> Call<'_> {
        self.call(Method::PUT, path)
    }

    /// POST.
    #[must_use]
    pub fn post(&self, path: impl Into<String>) -> Call<'_> {
        self.call(Method::POST, path)
    }

    /// DELETE.
    #[must_use]
    pub fn delete(&self, path: impl Into<String>) -> Call<'_> {
        self.call(Method::DELETE, path)
    }

    fn token(&self) -> String {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let expiry = i64::try_from(now + TOKEN_SECONDS).unwrap_or(i64::MAX);
        sign_sas(
            &self.login.host,
            &self.login.key,
            Timestamp::from_seconds(expiry),
            Some(&self.login.policy),
        )
    }
}

impl Call<'_> {
    /// Adds a query parameter, if there is a value.
    #[must_use]
    pub fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// Adds the condition of an update: the given entity tag, or any.
    #[must_use]
    pub fn if_match(mut self, etag: Option<&str>) -> Self {
        let value = match etag {
            None | Some("*") => "*".to_owned(),
            Some(etag) => format!("\"{}\"", etag.trim_matches('"')),
        };
        self.headers.push(("if-match", value));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a JSON body.
    #[must_use]
    pub fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Waits so long for the whole answer; `None` for ever.
    #[must_use]
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends the request and reads the JSON answer; an empty one is null.
    ///
    /// # Errors
    /// [`Failure`] for an answer that is not a success, and when the hub cannot be reached.
    pub fn send(self) -> anyhow::Result<Value> {
        self.send_with_headers().map(|(body, _)| body)
    }

    /// As [`Call::send`], with the headers of the answer.
    ///
    /// # Errors
    /// As [`Call::send`].
    pub fn send_with_headers(self) -> anyhow::Result<(Value, HeaderMap)> {
        let mut response = self.open()?;
        let headers = response.headers().clone();
        let text = response
            .body_mut()
            .with_config()
            .limit(256 << 20)
            .read_to_string()
            .context("the hub's answer broke off")?;
        if text.trim().is_empty() {
            return Ok((Value::Null, headers));
        }
        let body = serde_json::from_str(&text).context("the hub's answer is not JSON")?;
        Ok((body, headers))
    }

    /// Sends the request and returns the successful response with its body still to be read.
    ///
    /// # Errors
    /// As [`Call::send`].
    pub fn open(self) -> anyhow::Result<Response<Body>> {
        let login = &self.client.login;
        let agent = &self.client.agent;
        let request = self.request();
        let sent = match self.body {
            Some(body) => {
                let request = request
                    .header("content-type", "application/json; charset=utf-8")
                    .body(serde_json::to_vec(&body)?)?;
                let request = agent.configure_request(request).timeout_global(self.timeout);
                agent.run(request.allow_non_standard_methods(true).build())
            }
            None => {
                let request = agent
                    .configure_request(request.body(())?)
                    .timeout_global(self.timeout);
                agent.run(request.allow_non_standard_methods(true).build())
            }
        };
        accepted(sent, login)
    }

    /// As [`Call::open`], with a body of any length that is read while it is sent.
    ///
    /// # Errors
    /// As [`Call::send`].
    pub fn upload(self, content_type: &str, body: &mut dyn std::io::Read) -> anyhow::Result<Response<Body>> {
        let request = self.request().header("content-type", content_type);
        // A refusal is heard before the body is sent, and not as a broken connection in the middle of it.
        let request = request.header("expect", "100-continue");
        let request = request.body(ureq::SendBody::from_reader(body))?;
        let agent = &self.client.agent;
        let request = agent.configure_request(request).timeout_global(self.timeout);
        accepted(agent.run(request.build()), &self.client.login)
    }

    fn request(&self) -> ureq::http::request::Builder {
        let login = &self.client.login;
        let host = if login.host.contains(':') {
            format!("[{}]", login.host)
        } else {
            login.host.clone()
        };
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| format!("{name}={}", segment(value)))
            .collect();
        let uri = format!(
            "https://{host}:{}{}?{}",
            login.https_port,
            self.path,
            query.join("&")
        );
        let mut request = Request::builder()
            .method(&self.method)
            .uri(&uri)
            .header("authorization", self.client.token());
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request
    }
}

fn accepted(sent: Result<Response<Body>, ureq::Error>, login: &Login) -> anyhow::Result<Response<Body>> {
    let response = sent.map_err(|error| unreachable_hub(login, &error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refused(response, login).into())
}

fn unreachable_hub(login: &Login, error: &ureq::Error) -> Failure {
    let (host, port) = (&login.host, login.https_port);
    let text = error.to_string();
    let hint = if text.contains("UnknownIssuer") || text.contains("certificate") {
        "the hub's certificate is not trusted: give its CA certificate with --ca (ca.pem in its data directory), \
         and check that the hub knows the name (holdfast serve --host NAME)"
            .to_owned()
    } else if text.contains("refused") {
        format!(
            "nothing listens on port {port}: is the hub running? Its ports are in connection.env; set HOLDFAST_HTTPS_PORT for another one"
        )
    } else {
        "check the host name and the network; `holdfast serve` prints the addresses of a hub".to_owned()
    };
    Failure::new(
        Kind::Unavailable,
        format!("cannot reach the hub at {host}:{port}: {text}"),
    )
    .hint(hint)
}

fn refused(mut response: Response<Body>, login: &Login) -> Failure {
    let status = response.status().as_u16();
    let headers = response.headers();
    let header = headers
        .get("iothub-errorcode")
        .or_else(|| headers.get("x-ms-error-code"));
    let code = header
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let text = response.body_mut().read_to_string().unwrap_or_default();
    let text = explain(&text);
    let kind = match status {
        401 | 403 if code.contains("Quota") || code.contains("Queue") => Kind::Unavailable,
        401 | 403 => Kind::Unauthorized,
        404 if code == "DeviceNotOnline" || code == "DeviceConnectionClosedRemotely" => Kind::Unavailable,
        404 => Kind::NotFound,
        409 | 412 => Kind::Conflict,
        408 | 429 | 502..=504 => Kind::Unavailable,
        _ => Kind::Failed,
    };
    let hint = match kind {
        Kind::Unauthorized => Some(format!(
            "the login comes from {} (policy {}); check its key and rights with `holdfast policy list`",
            login.source, login.policy
        )),
        Kind::Conflict if status == 412 => {
            Some("somebody changed it meanwhile: read it again and repeat".to_owned())
        }
        Kind::Unavailable if status == 404 => Some(
            "the device is not connected or has not subscribed to methods; --connect-timeout waits for it"
                .to_owned(),
        ),
        _ => None,
    };
    let name = if code.is_empty() {
        format!("HTTP {status}")
    } else {
        format!("{code}, HTTP {status}")
    };
    let message = if text.is_empty() {
        name
    } else {
        format!("{text} ({name})")
    };
    Failure { kind, message, hint }
}

/// The sentence inside the hub's error bodies (rest.md 4.1).
fn explain(body: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        return body.trim().chars().take(300).collect();
    };
    let Some(message) = value
        .get("Message")
        .or_else(|| value.get("message"))
        .and_then(Value::as_str)
    else {
        return String::new();
    };
    if let Ok(inner) = serde_json::from_str::<Value>(message)
        && let Some(text) = inner.get("message").and_then(Value::as_str)
    {
        return text.to_owned();
    }
    let text = message
        .strip_prefix("ErrorCode:")
        .and_then(|rest| rest.split_once(';'));
    text.map_or(message, |(_, text)| text).trim().to_owned()
}

/// TLS of a client that trusts just these authorities, with the cryptography of the rest of the program.
#[must_use]
pub fn tls(roots: RootCerts) -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// The certificates of a PEM text, to be trusted; `None` when there is none.
#[must_use]
pub fn roots_of(pem: &[u8]) -> Option<RootCerts> {
    let certificates: Vec<Certificate<'static>> = parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::new_with_certs(&certificates))
}

/// What to trust: the authority in this file, or those of the system.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn roots(ca: Option<&Path>) -> anyhow::Result<RootCerts> {
    let (path, named) = match ca {
        Some(path) => (path.to_owned(), true),
        None => {
            let variable = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
            let system = SYSTEM_ROOTS
                .iter()
                .map(std::path::PathBuf::from)
                .find(|path| path.exists());
            match variable.or(system) {
                Some(path) => (path, false),
                None => return Ok(RootCerts::new_with_certs(&[])),
            }
        }
    };
    let pem = fs::read(&path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the CA certificate {}: {error}",
            path.display()
        ))
        .hint("--ca and HOLDFAST_CA name the file ca.pem of the hub's data directory")
    })?;
    let found = roots_of(&pem);
    if found.is_none() && named {
        return Err(
            Failure::usage(format!("{} holds no PEM certificate", path.display()))
                .hint("--ca and HOLDFAST_CA name the file ca.pem of the hub's data directory")
                .into(),
        );
    }
    Ok(found.unwrap_or_else(|| RootCerts::new_with_certs(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_are_explained() {
        assert_eq!(
            explain(r#"{"Message":"ErrorCode:DeviceNotFound;no device d1","ExceptionMessage":""}"#),
            "no device d1"
        );
        assert_eq!(
            explain(r#"{"Message":"{\"errorCode\":404103,\"message\":\"not online\"}"}"#),
            "not online"
        );
        assert_eq!(explain("Bad gateway"), "Bad gateway");
    }

    #[test]
    fn ids_are_encoded() {
        assert_eq!(
            identity_path("/devices", "a#b%", Some("m+1")),
            "/devices/a%23b%25/modules/m%2B1"
        );
    }
}
