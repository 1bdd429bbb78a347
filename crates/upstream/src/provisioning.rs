//! Client of the device provisioning service (DPS) over HTTPS: symmetric key, X.509 certificate, TPM.
//!
//! ```no_run
//! use std::sync::Arc;
//! use holdfast_model::credential::SymmetricKey;
//! use holdfast_ports::clock::SystemClock;
//! use holdfast_upstream::KeySigner;
//! use holdfast_upstream::provisioning::{Attestation, ProvisioningClient, ProvisioningConfig};
//! # async fn example(group_key: SymmetricKey) -> Result<(), Box<dyn std::error::Error>> {
//! let config = ProvisioningConfig::new("dps.factory", "0ne0001");
//! let client = ProvisioningClient::new(config, Arc::new(SystemClock::new()))?;
//! // A device of an enrollment group has a key derived from the group's.
//! let key = group_key.derive("line-4");
//! let assigned = client
//!     .register("line-4", &Attestation::Key(Arc::new(KeySigner::new(key))), None)
//!     .await?;
//! println!("{} at {}", assigned.device_id, assigned.hub_host);
//! # Ok(()) }
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use http::Method;
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use crate::config::{Proxy, Trust, Tuning};
use crate::https::{Answer, Call, HttpsClient, cloud_error};
use crate::net::{Route, TlsSettings};
use crate::port::{ClientCertificate, CloudError, TokenSigner};
use crate::token::{self, STRICT};

/// What identityd asks with (edge.md section 14).
const API_VERSION: &str = "2021-06-01";
/// Names the purpose of tokens to the service.
const POLICY: &str = "registration";
const TOKEN_LIFE: Duration = Duration::from_secs(3_600);
/// Wait between polls when the service names none.
const POLL_DEFAULT: Duration = Duration::from_secs(2);
/// Longest wait between polls that is obeyed.
const POLL_MAX: Duration = Duration::from_secs(60);

/// Where the provisioning service is.
#[derive(Clone, Debug)]
pub struct ProvisioningConfig {
    /// Global endpoint: host name.
    pub endpoint: String,
    /// Port, 443.
    pub port: u16,
    /// Id scope.
    pub id_scope: String,
    /// Whom to trust.
    pub trust: Trust,
    /// Proxy, if connections go through one.
    pub proxy: Option<Proxy>,
    /// For one request. Default 20 s.
    pub request_timeout: Duration,
    /// For the whole registration. Default 5 min.
    pub registration_timeout: Duration,
    /// `User-Agent`.
    pub product_info: String,
}

impl ProvisioningConfig {
    /// With the system's authorities and default times.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, id_scope: impl Into<String>) -> Self {
        ProvisioningConfig {
            endpoint: endpoint.into(),
            port: 443,
            id_scope: id_scope.into(),
            trust: Trust::default(),
            proxy: None,
            request_timeout: Duration::from_secs(20),
            registration_timeout: Duration::from_secs(300),
            product_info: String::new(),
        }
    }
}

/// A TPM 2.0 as attestation needs it.
pub trait Tpm: TokenSigner {
    /// The endorsement key, public part, TPM wire form.
    fn endorsement_key(&self) -> Vec<u8>;

    /// The storage root key, public part, TPM wire form.
    fn storage_root_key(&self) -> Vec<u8>;

    /// Takes a key that the service encrypted for this TPM; signatures are made with it from then on. A registration imports
    /// two: first one for its own tokens, last the one for the hub.
    ///
    /// # Errors
    /// When the TPM refuses it.
    fn import<'a>(&'a self, encrypted_key: &'a [u8]) -> BoxFuture<'a, Result<(), CloudError>>;
}

/// How a device proves who it is to the service.
#[derive(Clone)]
pub enum Attestation {
    /// With a symmetric key: that of an individual enrollment, or one derived from a group's key
    /// ([`holdfast_model::credential::SymmetricKey::derive`]).
    Key(Arc<dyn TokenSigner>),
    /// With a certificate whose common name is the registration id.
    Certificate(ClientCertificate),
    /// With a TPM.
    Tpm(Arc<dyn Tpm>),
}

/// Where the device belongs.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Hub to connect to.
    pub hub_host: String,
    /// The device's id there.
    pub device_id: String,
    /// What the service sends along: JSON text.
    pub payload: Option<Bytes>,
}

/// Registers devices.
pub struct ProvisioningClient {
    config: ProvisioningConfig,
    clock: Arc<dyn Clock>,
    tls: TlsSettings,
}

/// What a request is sent with, besides its method and path.
struct Caller<'a> {
    https: HttpsClient,
    signer: Option<&'a dyn TokenSigner>,
    resource: String,
    body: Bytes,
}

impl ProvisioningClient {
    /// # Errors
    /// When the authorities of the configuration cannot be used.
    pub fn new(config: ProvisioningConfig, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let tls = TlsSettings::new(&config.trust)?;
        Ok(ProvisioningClient { config, clock, tls })
    }

    /// Registers and waits for the assignment. `payload` is JSON for a custom allocation.
    ///
    /// # Errors
    /// [`CloudError::Unreachable`] may be tried again; the others tell what the service has against the device.
    pub async fn register(
        &self,
        registration_id: &str,
        attestation: &Attestation,
        payload: Option<&RawValue>,
    ) -> Result<Assignment, CloudError> {
        let caller = self.caller(registration_id, attestation, payload)?;
        let limit = self.config.registration_timeout;
        match tokio::time::timeout(limit, self.run(registration_id, attestation, &caller)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let text = format!("not registered within {} s", limit.as_secs());
                Err(CloudError::Unreachable(text))
            }
        }
    }

    /// What the service last said of the device, without registering it; `None` when it has not registered yet. Not for
    /// TPMs, which get their key by registering; see [`Self::challenge`].
    ///
    /// # Errors
    /// As of [`Self::register`].
    pub async fn look_up(
        &self,
        registration_id: &str,
        attestation: &Attestation,
    ) -> Result<Option<Assignment>, CloudError> {
        let caller = self.caller(registration_id, attestation, None)?;
        let path = format!("{}?api-version={API_VERSION}", self.registration(registration_id));
        let answer = self.call(&caller, Method::POST, &path, true).await?;
        match answer.status {
            200..=299 => {}
            404 => return Ok(None),
            status => return Err(cloud_error(status, &answer.body)),
        }
        let state: StateJson = read(&answer.body).ok_or_else(unreadable)?;
        match state.status.as_deref() {
            Some("assigned") => assigned(attestation, state).await.map(Some),
            Some("assigning" | "unassigned") => Ok(None),
            status => Err(not_assigned(status.unwrap_or("unknown"), state.error_message)),
        }
    }

    /// Whether the service knows this TPM, and the TPM can take its keys, without registering: the TPM answers a challenge
    /// to itself.
    ///
    /// # Errors
    /// As of [`Self::register`].
    pub async fn challenge(&self, registration_id: &str, tpm: &Arc<dyn Tpm>) -> Result<(), CloudError> {
        let attestation = Attestation::Tpm(Arc::clone(tpm));
        let caller = self.caller(registration_id, &attestation, None)?;
        let register = self.path(registration_id, "register");
        self.meet_challenge(tpm.as_ref(), &caller, &register).await
    }

    /// The first request of a TPM has no token: its refusal brings the key to sign with.
    async fn meet_challenge(
        &self,
        tpm: &dyn Tpm,
        caller: &Caller<'_>,
        register: &str,
    ) -> Result<(), CloudError> {
        let refused = self.call(caller, Method::PUT, register, false).await?;
        match challenge_in(&refused) {
            Some(key) => tpm.import(&key).await,
            None => Err(cloud_error(refused.status, &refused.body)),
        }
    }

    fn caller<'a>(
        &self,
        registration_id: &str,
        attestation: &'a Attestation,
        payload: Option<&RawValue>,
    ) -> Result<Caller<'a>, CloudError> {
        let (signer, certificate): (Option<&dyn TokenSigner>, _) = match attestation {
            Attestation::Key(signer) => (Some(signer.as_ref()), None),
            Attestation::Certificate(certificate) => (None, Some(certificate)),
            Attestation::Tpm(tpm) => (Some(tpm.as_ref()), None),
        };
        let tls = self.tls.of(certificate).map_err(CloudError::Unauthorized)?;
        let config = &self.config;
        let route = Route::new(
            &config.endpoint,
            config.proxy.clone(),
            Tuning::default().probe_after,
        );
        let body = RegisterJson {
            registration_id,
            payload,
            tpm: match attestation {
                Attestation::Tpm(tpm) => Some(TpmJson {
                    endorsement_key: base64(&tpm.endorsement_key()),
                    storage_root_key: base64(&tpm.storage_root_key()),
                }),
                Attestation::Key(_) | Attestation::Certificate(_) => None,
            },
        };
        let body = serde_json::to_vec(&body).map_err(|error| CloudError::Refused {
            status: 400,
            message: error.to_string(),
        })?;
        Ok(Caller {
            https: HttpsClient::new(route, config.port, tls, config.request_timeout),
            signer,
            resource: format!("{}/registrations/{registration_id}", config.id_scope),
            body: body.into(),
        })
    }

    async fn run(
        &self,
        registration_id: &str,
        attestation: &Attestation,
        caller: &Caller<'_>,
    ) -> Result<Assignment, CloudError> {
        let register = self.path(registration_id, "register");
        let mut answer = None;
        if let Attestation::Tpm(tpm) = attestation {
            self.meet_challenge(tpm.as_ref(), caller, &register).await?;
        }
        let started = Instant::now();
        loop {
            let answered = match answer.take() {
                Some(answered) => answered,
                None => self.call(caller, Method::PUT, &register, true).await?,
            };
            let retry_after = answered.retry_after.unwrap_or(POLL_DEFAULT).min(POLL_MAX);
            match progress(&answered)? {
                Progress::Assigned(state) => return assigned(attestation, state).await,
                Progress::Assigning(operation) => {
                    sleep(retry_after).await;
                    let path = self.path(registration_id, &format!("operations/{}", encoded(&operation)));
                    answer = Some(self.call(caller, Method::GET, &path, true).await?);
                }
                Progress::Later(cause) => {
                    if started.elapsed() + retry_after > self.config.registration_timeout {
                        return Err(cause);
                    }
                    sleep(retry_after).await;
                }
            }
        }
    }

    fn path(&self, registration_id: &str, operation: &str) -> String {
        let registration = self.registration(registration_id);
        format!("{registration}/{operation}?api-version={API_VERSION}")
    }

    fn registration(&self, registration_id: &str) -> String {
        let id_scope = encoded(&self.config.id_scope);
        format!("/{id_scope}/registrations/{}", encoded(registration_id))
    }

    async fn call(
        &self,
        caller: &Caller<'_>,
        method: Method,
        path: &str,
        with_token: bool,
    ) -> Result<Answer, CloudError> {
        let authorization = match caller.signer.filter(|_| with_token) {
            None => None,
            Some(signer) => {
                let expiry = self.clock.now().plus(TOKEN_LIFE);
                Some(token::sign(signer, &caller.resource, expiry, Some(POLICY)).await?)
            }
        };
        let body = (method != Method::GET).then(|| caller.body.clone());
        let call = Call {
            method,
            path: path.to_owned(),
            authorization,
            if_match_any: false,
            user_agent: self.config.product_info.clone(),
            body,
        };
        caller.https.call(&call).await
    }
}

enum Progress {
    Assigned(StateJson),
    /// The operation to ask for.
    Assigning(String),
    /// The service has no time now.
    Later(CloudError),
}

fn progress(answer: &Answer) -> Result<Progress, CloudError> {
    let refused = || cloud_error(answer.status, &answer.body);
    match answer.status {
        200..=299 => {}
        429 | 500..=599 => return Ok(Progress::Later(refused())),
        _ => return Err(refused()),
    }
    let json: OperationJson = read(&answer.body).ok_or_else(unreadable)?;
    match (json.status.as_str(), json.registration_state) {
        ("assigned", Some(state)) => Ok(Progress::Assigned(state)),
        ("assigning" | "unassigned", _) => {
            let operation = json.operation_id.filter(|id| !id.is_empty());
            operation.map(Progress::Assigning).ok_or_else(unreadable)
        }
        (status, state) => Err(not_assigned(status, state.and_then(|state| state.error_message))),
    }
}

/// The encrypted key in the refusal of a request without a token.
fn challenge_in(answer: &Answer) -> Option<Vec<u8>> {
    if answer.status != 401 {
        return None;
    }
    let json: ChallengeJson = read(&answer.body)?;
    from_base64(&json.authentication_key)
}

fn unreadable() -> CloudError {
    CloudError::Unreachable("the service's answer cannot be read".to_owned())
}

fn not_assigned(status: &str, message: Option<String>) -> CloudError {
    let message = message.unwrap_or_default();
    CloudError::Unauthorized(format!("the registration is {status}: {message}"))
}

async fn assigned(attestation: &Attestation, state: StateJson) -> Result<Assignment, CloudError> {
    if let Attestation::Tpm(tpm) = attestation {
        // The key for the hub. Without it the TPM would go on with that of the challenge, which the hub does not know.
        let key = state.tpm.and_then(|key| from_base64(&key.authentication_key));
        let missing = || CloudError::Unreachable("the service sent no key for the hub".to_owned());
        tpm.import(&key.ok_or_else(missing)?).await?;
    }
    let missing = || CloudError::Unreachable("the service assigned no hub or device id".to_owned());
    Ok(Assignment {
        hub_host: state
            .assigned_hub
            .filter(|text| !text.is_empty())
            .ok_or_else(missing)?,
        device_id: state
            .device_id
            .filter(|text| !text.is_empty())
            .ok_or_else(missing)?,
        payload: state
            .payload
            .map(|payload| Bytes::copy_from_slice(payload.get().as_bytes()))
            .filter(|payload| payload.as_ref() != b"null"),
    })
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, STRICT).to_string()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegisterJson<'a> {
    registration_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm: Option<TpmJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TpmJson {
    endorsement_key: String,
    storage_root_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChallengeJson {
    authentication_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OperationJson {
    #[serde(default)]
    operation_id: Option<String>,
    status: String,
    #[serde(default)]
    registration_state: Option<StateJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StateJson {
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    assigned_hub: Option<String>,
    #[serde(default)]
    device_id: Option<String>,
    #[serde(default)]
    error_message: Option<String>,
    #[serde(default)]
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    tpm: Option<ChallengeJson>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            retry_after: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn operations_are_judged() {
        let judged = |status, body| progress(&answer(status, body));
        let assigned = r#"{"operationId":"o","status":"assigned","registrationState":{"assignedHub":"h","deviceId":"d","payload":{"a":1}}}"#;
        assert!(matches!(judged(200, assigned), Ok(Progress::Assigned(_))));
        let assigning = judged(202, r#"{"operationId":"4.x","status":"assigning"}"#);
        assert!(matches!(assigning, Ok(Progress::Assigning(operation)) if operation == "4.x"));
        let failed = r#"{"status":"failed","registrationState":{"errorMessage":"no hub"}}"#;
        assert!(
            matches!(judged(200, failed), Err(CloudError::Unauthorized(text)) if text.contains("no hub"))
        );
        assert!(matches!(judged(429, "{}"), Ok(Progress::Later(_))));
        assert!(matches!(judged(401, "{}"), Err(CloudError::Unauthorized(_))));
        assert!(matches!(
            judged(404, "{}"),
            Err(CloudError::Refused { status: 404, .. })
        ));
        assert!(matches!(judged(200, "<html>"), Err(CloudError::Unreachable(_))));
    }

    #[test]
    fn challenges_are_found_where_they_are() {
        let found = |status, body| challenge_in(&answer(status, body));
        let challenge =
            r#"{"message":"Authorization required","authenticationKey":"AAEC","keyName":"registration"}"#;
        assert_eq!(found(401, challenge), Some(vec![0, 1, 2]));
        for (status, body) in [
            (200, challenge),
            (401, r#"{"errorCode":401002,"message":"no"}"#),
            (401, r#"{"authenticationKey":"%"}"#),
            (401, "<html>"),
        ] {
            assert_eq!(found(status, body), None, "{status} {body}");
        }
    }

    /// Takes keys and tells them.
    #[derive(Default)]
    struct Keys(parking_lot::Mutex<Vec<Vec<u8>>>);

    impl TokenSigner for Keys {
        fn sign<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
            Box::pin(std::future::ready(Ok([0; 32])))
        }
    }

    impl Tpm for Keys {
        fn endorsement_key(&self) -> Vec<u8> {
            Vec::new()
        }

        fn storage_root_key(&self) -> Vec<u8> {
            Vec::new()
        }

        fn import<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<(), CloudError>> {
            self.0.lock().push(key.to_vec());
            Box::pin(std::future::ready(Ok(())))
        }
    }

    #[tokio::test]
    async fn a_tpm_is_given_the_key_for_the_hub() {
        let keys = Arc::new(Keys::default());
        let attestation = Attestation::Tpm(Arc::clone(&keys) as Arc<dyn Tpm>);
        let state = |tpm: &str| {
            let text = format!(r#"{{"assignedHub":"h","deviceId":"d"{tpm}}}"#);
            read::<StateJson>(text.as_bytes()).expect("a state")
        };
        let whole = state(r#","tpm":{"authenticationKey":"AQ=="}"#);
        assigned(&attestation, whole).await.expect("assigned");
        assert_eq!(*keys.0.lock(), [vec![1]]);
        for lacking in ["", r#","tpm":{"authenticationKey":"%"}"#] {
            let refused = assigned(&attestation, state(lacking)).await;
            assert!(matches!(refused, Err(CloudError::Unreachable(_))), "{lacking}");
        }
        assert_eq!(keys.0.lock().len(), 1);
    }
}
