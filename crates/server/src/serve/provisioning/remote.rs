//! Another hub, over its service API. Calls block, so they run on the runtime's threads for that, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::provisioning::{InitialTwin, LinkedHub};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::BoxFuture;
use holdfast_ports::enrollment::{HubCredential, HubRegistry, ProvisionedDevice};
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::cli::client::{Client, identity_path, roots_of};
use crate::cli::profile::Login;

/// Calls to one hub at once.
const CALLS_MAX: usize = 16;

/// Longest wait for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct RemoteHub {
    client: Arc<Client>,
    calls: Semaphore,
}

impl RemoteHub {
    pub(super) fn new(hub: &LinkedHub) -> Result<Self, Error> {
        let invalid = |text: String| Error::new(ErrorCode::ArgumentInvalid, text);
        let (policy, key) = hub
            .policy
            .clone()
            .ok_or_else(|| invalid("the linked hub has no connection string".to_owned()))?;
        let roots = match &hub.ca_certificate {
            Some(pem) => roots_of(pem.as_bytes())
                .ok_or_else(|| invalid("caCertificate holds no PEM certificate".to_owned()))?,
            None => crate::cli::client::roots(None).map_err(|error| invalid(error.to_string()))?,
        };
        let login = Login {
            host: hub.host.clone(),
            policy,
            key,
            https_port: hub.https_port,
            mqtt_port: 8883,
            mqtt_plain: None,
            amqp_port: 5671,
            amqp_plain: None,
            ca: None,
            source: "a linked hub".to_owned(),
        };
        Ok(RemoteHub {
            client: Arc::new(Client::trusting(login, roots)),
            calls: Semaphore::new(CALLS_MAX),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        // The semaphore is never closed.
        let _place = self.calls.acquire().await.ok();
        let client = Arc::clone(&self.client);
        match tokio::task::spawn_blocking(move || call(&client)).await {
            Ok(outcome) => outcome.map_err(|error| told(&error)),
            Err(_) => Err(Error::new(
                ErrorCode::ServiceUnavailable,
                "the call to the linked hub was cut off",
            )),
        }
    }
}

/// What a failed call means for a registration.
fn told(error: &anyhow::Error) -> Error {
    // Whoever asked logs it, with the device and within bounds.
    let kind = error.downcast_ref::<Failure>().map(|failure| failure.kind);
    let code = match kind {
        Some(Kind::Unauthorized) => ErrorCode::IotHubUnauthorizedAccess,
        Some(Kind::Failed | Kind::Usage | Kind::NotFound) => ErrorCode::ArgumentInvalid,
        // Somebody else changed the device, or the hub cannot be reached: both pass.
        _ => ErrorCode::ServiceUnavailable,
    };
    Error::new(code, format!("the linked hub did not take the device: {error}"))
}

fn missing(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Failure>()
        .is_some_and(|failure| failure.kind == Kind::NotFound)
}

impl HubRegistry for RemoteHub {
    fn put_device<'a>(&'a self, device: &'a ProvisionedDevice) -> BoxFuture<'a, Result<(), Error>> {
        let device = device.clone();
        Box::pin(self.run(move |client| {
            let path = identity_path("/devices", &device.device_id, None);
            match client.get(path.clone()).send() {
                Err(error) if missing(&error) => create(client, &device),
                Err(error) => Err(error),
                Ok(present) => update(client, path, present, &device),
            }
        }))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.run(|client| {
            client
                .get("/statistics/service")
                .timeout(Some(PROBE_TIMEOUT))
                .send()
                .map(drop)
        }))
    }

    fn twin<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<Option<InitialTwin>, Error>> {
        let path = identity_path("/twins", device_id, None);
        Box::pin(self.run(move |client| match client.get(path).send() {
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(error),
            Ok(twin) => Ok(Some(InitialTwin {
                tags: properties(twin.get("tags")),
                desired: properties(twin.pointer("/properties/desired")),
            })),
        }))
    }

    fn delete_device<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let path = identity_path("/devices", device_id, None);
        Box::pin(
            self.run(move |client| match client.delete(path).if_match(None).send() {
                Err(error) if missing(&error) => Ok(()),
                outcome => outcome.map(drop),
            }),
        )
    }
}

/// A bulk request creates a device together with its twin.
fn create(client: &Client, device: &ProvisionedDevice) -> anyhow::Result<()> {
    let entry = json!({
        "id": device.device_id,
        "importMode": "create",
        "status": "enabled",
        "authentication": authentication(&device.credential),
        "capabilities": { "iotEdge": device.iot_edge },
        "tags": device.twin.tags,
        "properties": { "desired": device.twin.desired },
    });
    client.post("/devices").json(json!([entry])).send().map(drop)
}

fn update(
    client: &Client,
    path: String,
    mut present: Value,
    device: &ProvisionedDevice,
) -> anyhow::Result<()> {
    let tag = present.get("etag").and_then(Value::as_str).map(str::to_owned);
    present["authentication"] = authentication(&device.credential);
    if device.iot_edge {
        present["capabilities"] = json!({ "iotEdge": true });
    }
    client.put(path).if_match(tag.as_deref()).json(present).send()?;
    if device.replace_twin {
        let twin = json!({
            "tags": device.twin.tags,
            "properties": { "desired": device.twin.desired },
        });
        let path = identity_path("/twins", &device.device_id, None);
        client.put(path).if_match(None).json(twin).send()?;
    }
    Ok(())
}

fn authentication(credential: &HubCredential) -> Value {
    match credential {
        HubCredential::Keys { primary, secondary } => json!({
            "type": "sas",
            "symmetricKey": { "primaryKey": primary.reveal(), "secondaryKey": secondary.reveal() },
        }),
        HubCredential::Thumbprints { primary, secondary } => json!({
            "type": "selfSigned",
            "x509Thumbprint": {
                "primaryThumbprint": primary.as_str(),
                "secondaryThumbprint": secondary.as_ref().map(|thumbprint| thumbprint.as_str()),
            },
        }),
    }
}

fn properties(section: Option<&Value>) -> Map<String, Value> {
    let mut section = section.and_then(Value::as_object).cloned().unwrap_or_default();
    section.retain(|name, _| !name.starts_with('$'));
    section
}
