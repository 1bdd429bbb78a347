//! A hub on in-memory stores behind the HTTP service, called without a network.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by several test programs, each of which uses a part"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use holdfast_api::{Api, Closing, Routing};
use holdfast_fleet::configurations::{self, Configurations};
use holdfast_fleet::jobs::{self, Jobs};
use holdfast_fleet::models::ModelFolder;
use holdfast_fleet::transfer::{
    BlobPlace, BlobReader, BlobWriter, Metrics as TransferMetrics, Transfer, TransferFiles, TransferJobs,
};
use holdfast_hub::{Hub, HubConfig, Stores, events::Metrics};
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_observe::metrics::Registry;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::enrollment::{AllocationWebhook, HubConnector, HubRegistry};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::memory::event_log::MemoryLog;
use holdfast_provisioning::{Drivers, Provisioning, ProvisioningConfig};
use holdfast_routing::dispatchers::HealthBoard;
use holdfast_routing::endpoints::{Endpoints, Environment};
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const HOST: &str = "hub.test";

pub struct Service {
    pub api: Api,
    pub router: Router,
    /// Blobs of import and export jobs.
    pub files: Arc<MemoryFiles>,
    pub store: Arc<MemoryStore>,
    _work: tempfile::TempDir,
    _closing: watch::Sender<bool>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

impl Service {
    pub async fn start() -> Self {
        let store = Arc::new(MemoryStore::new());
        let log = Arc::new(MemoryLog::new(4));
        let stores = Stores {
            registry: store.clone(),
            twins: store.clone(),
            c2d: store.clone(),
            settings: store.clone(),
            sessions: store.clone(),
            checkpoints: store.clone(),
            outbox: store.clone(),
            log: log.clone(),
            clock: Arc::new(SystemClock::new()),
        };
        let config = HubConfig {
            host_names: vec![HOST.to_owned()],
            ..HubConfig::default()
        };
        let metrics = Metrics::register(&mut Registry::new());
        let hub = Hub::new(config, stores, 1, metrics)
            .await
            .expect("the memory store works");
        hub.ensure_policies().await.expect("the memory store works");
        let provisioning = provisioning(&store).await;
        let work = tempfile::tempdir().expect("a directory");
        let files = Arc::new(MemoryFiles::default());
        let transfer = Transfer::new(
            hub.clone(),
            Arc::new(holdfast_api::JsonLines),
            work.path().to_owned(),
            TransferMetrics::register(&mut Registry::new()),
        );
        let clock = Arc::new(SystemClock::new());
        let transfer = TransferJobs::new(transfer, files.clone(), store.clone(), clock)
            .await
            .expect("the memory store works");
        let (configurations, jobs) = management(&hub, &store).await;
        let (closing, follow) = watch::channel(false);
        let api = Api {
            hub,
            provisioning,
            transfer,
            configurations,
            jobs,
            models: Arc::new(ModelFolder::new(work.path().join("models"))),
            log,
            queries: store.clone(),
            routing: Routing {
                factory: Arc::new(Endpoints::new(Environment {
                    hub_name: "hub".to_owned(),
                    data_dir: work.path().join("endpoints"),
                    clock: Arc::new(SystemClock::new()),
                    actions: None,
                })),
                board: HealthBoard::default(),
                dead_letters: store.clone(),
            },
            checkpoints: store.clone(),
            closing: Closing::new(follow),
        };
        Service {
            router: holdfast_api::service(api.clone()),
            api,
            files,
            store,
            _work: work,
            _closing: closing,
        }
    }

    /// Imports one line, which must be a good one.
    pub async fn import_line(&self, line: &Value) {
        let token = self.token("iothubowner");
        let headers = [("authorization", token.as_str())];
        let answer = self
            .raw("POST", "/holdfast/v1/import", &headers, Some(line.clone()))
            .await;
        assert_eq!(answer.body["imported"], 1, "{}", answer.body);
    }

    /// Import and export jobs as a hub finds them that starts on the same store.
    pub async fn restarted_jobs(&self) -> Arc<TransferJobs> {
        let transfer = self.api.transfer.transfer().clone();
        let clock = Arc::new(SystemClock::new());
        TransferJobs::new(transfer, self.files.clone(), self.store.clone(), clock)
            .await
            .expect("the memory store works")
    }

    /// A token of a policy, valid for an hour.
    pub fn token(&self, policy: &str) -> String {
        let key = self.api.hub.policy(policy).expect("a policy").primary_key;
        sign_sas(HOST, &key, hours_from_now(1), Some(policy))
    }

    /// A token of a policy of the provisioning service, valid for an hour.
    pub fn provisioning_token(&self, policy: &str) -> String {
        let policy = self.api.provisioning.policy(policy).expect("a policy");
        sign_sas(HOST, &policy.primary_key, hours_from_now(1), Some(&policy.name))
    }

    /// A request with all rights at the provisioning service; api-version is added.
    pub async fn provisioner(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let token = self.provisioning_token("provisioningserviceowner");
        self.call(method, path, &[("authorization", &token)], body).await
    }

    /// A token of a device, valid for an hour.
    pub async fn device_token(&self, device_id: &str) -> String {
        let answer = self.owner("GET", &format!("/devices/{device_id}"), None).await;
        let key = answer.body["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .expect("a key");
        let key = SymmetricKey::parse(key).expect("a key");
        sign_sas(
            &format!("{HOST}/devices/{device_id}"),
            &key,
            hours_from_now(1),
            None,
        )
    }

    /// A request with all rights; api-version is added.
    pub async fn owner(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let token = self.token("iothubowner");
        self.call(method, path, &[("authorization", &token)], body).await
    }

    /// A request with these headers; api-version is added.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        self.raw(
            method,
            &format!("{path}{separator}api-version=2021-04-12"),
            headers,
            body,
        )
        .await
    }

    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let response = self.send(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 16 << 20).await.expect("a body");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    /// The answer with its body unread: the event stream has no end.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or(Body::empty(), |body| Body::from(body.to_string()));
        let request = request.body(body).expect("a request");
        self.router
            .clone()
            .oneshot(request)
            .await
            .expect("the router answers")
    }
}

/// Blobs in memory, by redacted address. Reading `blocked` waits until it is written.
#[derive(Default)]
pub struct MemoryFiles {
    pub blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl TransferFiles for MemoryFiles {
    fn check(&self, place: &BlobPlace) -> Result<(), Error> {
        if place.container.starts_with("mem://") {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::BlobContainerValidationError,
            "only mem:// here",
        ))
    }

    fn open(&self, place: &BlobPlace) -> Result<BlobReader, String> {
        let blobs = Arc::clone(&self.blobs);
        let name = place.redacted();
        while name.ends_with("/blocked") && !blobs.lock().expect("not poisoned").contains_key(&name) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let blobs = blobs.lock().expect("not poisoned");
        let bytes = blobs.get(&name).ok_or(format!("there is no blob {name}"))?;
        Ok(BlobReader {
            size: Some(bytes.len() as u64),
            bytes: Box::new(std::io::Cursor::new(bytes.clone())),
        })
    }

    fn create(&self, place: &BlobPlace) -> Result<Box<dyn BlobWriter>, String> {
        if place.container.contains("readonly") {
            return Err(format!("{} cannot be written", place.redacted()));
        }
        Ok(Box::new(MemoryBlob {
            name: place.redacted(),
            bytes: Vec::new(),
            blobs: Arc::clone(&self.blobs),
        }))
    }
}

struct MemoryBlob {
    name: String,
    bytes: Vec<u8>,
    blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl std::io::Write for MemoryBlob {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for MemoryBlob {
    fn finish(self: Box<Self>) -> Result<(), String> {
        self.blobs
            .lock()
            .expect("not poisoned")
            .insert(self.name, self.bytes);
        Ok(())
    }
}

/// No hub and no webhook: nothing here registers a device.
struct Nothing;

impl HubConnector for Nothing {
    fn connect(
        &self,
        _: &holdfast_model::provisioning::LinkedHub,
    ) -> Result<Arc<dyn HubRegistry>, holdfast_model::Error> {
        struct NoHub;
        impl HubRegistry for NoHub {
            fn probe(&self) -> holdfast_ports::BoxFuture<'_, Result<(), Error>> {
                Box::pin(async { unreachable!("no registration ends here") })
            }

            fn put_device<'a>(
                &'a self,
                _: &'a holdfast_ports::enrollment::ProvisionedDevice,
            ) -> BoxFuture<'a, Result<(), holdfast_model::Error>> {
                Box::pin(async { Ok(()) })
            }

            fn twin<'a>(
                &'a self,
                _: &'a str,
            ) -> BoxFuture<'a, Result<Option<holdfast_model::provisioning::InitialTwin>, holdfast_model::Error>>
            {
                Box::pin(async { Ok(None) })
            }

            fn delete_device<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), holdfast_model::Error>> {
                Box::pin(async { Ok(()) })
            }
        }
        Ok(Arc::new(NoHub))
    }
}

impl AllocationWebhook for Nothing {
    fn call<'a>(
        &'a self,
        _: &'a str,
        _: axum::body::Bytes,
        _: std::time::Duration,
    ) -> BoxFuture<'a, Result<(u16, axum::body::Bytes), String>> {
        Box::pin(async { Err("there is none".to_owned()) })
    }
}

async fn provisioning(store: &Arc<MemoryStore>) -> Arc<Provisioning> {
    let config = ProvisioningConfig {
        id_scope: "0neTEST".to_owned(),
        host_names: vec![HOST.to_owned()],
        ..ProvisioningConfig::default()
    };
    let drivers = Drivers {
        store: store.clone(),
        settings: store.clone(),
        connector: Arc::new(Nothing),
        webhook: Arc::new(Nothing),
        clock: Arc::new(SystemClock::new()),
    };
    let metrics = holdfast_provisioning::events::Metrics::register(&mut Registry::new());
    Provisioning::new(config, drivers, metrics)
        .await
        .expect("the memory store works")
}

pub fn hours_from_now(hours: i64) -> Timestamp {
    Timestamp::from_seconds(SystemClock::new().now().as_seconds() + hours * 3_600)
}

/// Configurations and jobs; whoever wants them to work runs them.
async fn management(hub: &Arc<Hub>, store: &Arc<MemoryStore>) -> (Arc<Configurations>, Arc<Jobs>) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let drivers = configurations::Drivers {
        store: store.clone(),
        query: store.clone(),
        clock: Arc::clone(&clock),
    };
    let metrics = configurations::events::Metrics::register(&mut Registry::new());
    let configurations = Configurations::new(
        configurations::ConfigurationsConfig {
            metrics_rest: 0,
            ..configurations::ConfigurationsConfig::default()
        },
        hub.clone(),
        drivers,
        metrics,
    );
    let drivers = jobs::Drivers {
        store: store.clone(),
        query: store.clone(),
        clock,
    };
    let metrics = jobs::events::Metrics::register(&mut Registry::new());
    let jobs = Jobs::new(jobs::JobsConfig::default(), hub.clone(), drivers, metrics);
    (configurations.await.expect("the memory store works"), jobs)
}
