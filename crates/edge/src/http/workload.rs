//! The workload API: what modules ask of their device (edge.md section 12).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Timestamp;
use holdfast_observe::Repeats;
use holdfast_ports::BoxFuture;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::callers::{Callers, container_of};
use super::route::{check_method, check_version, not_found};
use super::{Answer, Api, Call};
use crate::certificates::{Certificates, Issued, Request, Usage};
use crate::keys::{KeyStore, KeyStoreError, Purpose};
use crate::modules::Modules;

/// First version of the routes that modules need.
const FIRST: &str = "2018-06-28";
/// By cause.
static NOT_SERVED: Repeats = Repeats::new();

/// Where generation ids of modules are known.
pub trait Generations: Send + Sync + 'static {
    /// The generation id under which a module's keys were derived.
    fn generation_of(&self, module_id: &str) -> Option<String>;
}

/// The API.
pub struct Workload {
    /// Who may speak for whom.
    pub callers: Callers,
    /// Keys.
    pub keys: Arc<dyn KeyStore>,
    /// Certificates.
    pub certificates: Arc<Certificates>,
    /// Generation ids.
    pub generations: Arc<dyn Generations>,
    /// The module list.
    pub modules: Arc<Modules>,
    /// Host name of the hub, for identity certificates.
    pub hub: String,
    /// This device.
    pub device_id: String,
}

#[derive(Deserialize)]
struct SignBody {
    data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptBody {
    plaintext: String,
    initialization_vector: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DecryptBody {
    ciphertext: String,
    initialization_vector: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerCertificateBody {
    common_name: String,
}

impl Api for Workload {
    fn answer<'a>(&'a self, call: Call) -> BoxFuture<'a, Answer> {
        Box::pin(async move { self.route(&call).await.unwrap_or_else(|answer| answer) })
    }
}

impl Workload {
    async fn route(&self, call: &Call) -> Result<Answer, Answer> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["modules"] => {
                self.open(call, &[Method::GET])?;
                self.modules.list().await
            }
            ["trust-bundle"] => {
                self.open(call, &[Method::GET])?;
                let bundle = self.certificates.trust_bundle().map_err(|error| failed(&error))?;
                if bundle.is_empty() {
                    return Err(not_found());
                }
                Ok(Answer::json(200, &json!({ "certificate": bundle })))
            }
            ["manifest-trust-bundle"] => {
                self.open(call, &[Method::GET])?;
                let bundle = self.certificates.manifest_trust_bundle();
                let bundle = bundle.map_err(|error| failed(&error))?;
                Ok(Answer::json(200, &json!({ "certificate": bundle })))
            }
            [
                "modules",
                module,
                "genid",
                generation,
                operation @ ("sign" | "encrypt" | "decrypt"),
            ] => {
                self.guarded(call, module).await?;
                match *operation {
                    "sign" => self.sign(call, module, generation).await,
                    "encrypt" => self.encrypt(call, module, generation).await,
                    _ => self.decrypt(call, module, generation).await,
                }
            }
            ["modules", module, "genid", _, "certificate", "server"] => {
                self.guarded(call, module).await?;
                self.server_certificate(call, module).await
            }
            ["modules", module, "certificate", "identity"] => {
                self.guarded(call, module).await?;
                self.identity_certificate(module).await
            }
            _ => Err(not_found()),
        }
    }

    fn open(&self, call: &Call, methods: &[Method]) -> Result<(), Answer> {
        check_version(call, FIRST)?;
        check_method(call, methods)
    }

    async fn guarded(&self, call: &Call, module: &str) -> Result<(), Answer> {
        self.open(call, &[Method::POST])?;
        self.callers.require(call.peer, module).await
    }

    /// The generation in the path is not used for signing: an SDK keeps the one that it was started with.
    fn generation(&self, module: &str, given: &str) -> String {
        self.generations
            .generation_of(module)
            .unwrap_or_else(|| given.to_owned())
    }

    async fn sign(&self, call: &Call, module: &str, generation: &str) -> Result<Answer, Answer> {
        let body: SignBody = call.parse()?;
        let data = decode(&body.data, "data")?;
        let generation = self.generation(module, generation);
        let digest = self.keys.sign_as_module(module, &generation, &data).await;
        let digest = digest.map_err(|error| failed(&error))?;
        Ok(Answer::json(200, &json!({ "digest": STANDARD.encode(digest) })))
    }

    async fn encrypt(&self, call: &Call, module: &str, generation: &str) -> Result<Answer, Answer> {
        let body: EncryptBody = call.parse()?;
        let (plaintext, vector) = (
            decode(&body.plaintext, "plaintext")?,
            decode(&body.initialization_vector, "initializationVector")?,
        );
        let ciphertext = self
            .keys
            .encrypt(purpose(module, generation, &vector), &plaintext)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Answer::json(
            200,
            &json!({ "ciphertext": STANDARD.encode(ciphertext) }),
        ))
    }

    async fn decrypt(&self, call: &Call, module: &str, generation: &str) -> Result<Answer, Answer> {
        let body: DecryptBody = call.parse()?;
        let (ciphertext, vector) = (
            decode(&body.ciphertext, "ciphertext")?,
            decode(&body.initialization_vector, "initializationVector")?,
        );
        let plaintext = self
            .keys
            .decrypt(purpose(module, generation, &vector), &ciphertext)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Answer::json(
            200,
            &json!({ "plaintext": STANDARD.encode(&*plaintext) }),
        ))
    }

    async fn server_certificate(&self, call: &Call, module: &str) -> Result<Answer, Answer> {
        let body: ServerCertificateBody = call.parse()?;
        if body.common_name.is_empty() || body.common_name.len() > 253 {
            return Err(Answer::error(400, "commonName must have 1 to 253 characters"));
        }
        let mut names = vec![body.common_name.clone()];
        let module_name = container_of(module);
        if !module_name.eq_ignore_ascii_case(&body.common_name) {
            names.push(module_name.to_owned());
        }
        self.issue(&body.common_name, names, Usage::Server).await
    }

    async fn identity_certificate(&self, module: &str) -> Result<Answer, Answer> {
        // A DNS name by form, as the original writes it.
        let name = format!(
            "URI: azureiot://{}/devices/{}/modules/{module}",
            self.hub, self.device_id
        );
        self.issue(module, vec![name], Usage::Client).await
    }

    async fn issue(&self, common_name: &str, names: Vec<String>, usage: Usage) -> Result<Answer, Answer> {
        let (certificates, common_name) = (Arc::clone(&self.certificates), common_name.to_owned());
        // Renewing the edge CA writes files.
        let issued = tokio::task::spawn_blocking(move || {
            certificates.issue(&Request {
                common_name: &common_name,
                names: &names,
                usage,
            })
        });
        let issued = issued.await.map_err(|error| failed(&error))?;
        Ok(certificate_answer(&issued.map_err(|error| failed(&error))?))
    }
}

fn certificate_answer(issued: &Issued) -> Answer {
    let expiration = Timestamp::from_seconds(issued.not_after).to_string();
    Answer::json(
        201,
        &json!({
            "privateKey": { "type": "key", "bytes": &**issued.key_pem() },
            "certificate": issued.chain_pem(),
            "expiration": expiration,
        }),
    )
}

fn purpose<'a>(module_id: &'a str, generation_id: &'a str, vector: &'a [u8]) -> Purpose<'a> {
    Purpose {
        module_id,
        generation_id,
        vector,
    }
}

fn decode(text: &str, name: &str) -> Result<Vec<u8>, Answer> {
    STANDARD
        .decode(text)
        .map_err(|_| Answer::error(400, &format!("{name} is not base64")))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Answer {
    if let Some(KeyStoreError::NotOurs) = error.downcast_ref() {
        return Answer::error(400, &error.to_string());
    }
    let text = error.to_string();
    if let Some(times) = NOT_SERVED.happened(&text) {
        tracing::warn!(error = text, times, "a module could not be served");
    }
    Answer::error(500, &error.to_string())
}
