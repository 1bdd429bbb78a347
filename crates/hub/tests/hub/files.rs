//! File uploads over memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_hub::files::events::Metrics;
use holdfast_hub::files::{FileDrivers, Files, FilesConfig};
use holdfast_model::c2d::Settlement;
use holdfast_model::file::UploadedBlob;
use holdfast_model::{ErrorCode, Identity, Timestamp};
use holdfast_observe::Registry;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock as _, ManualClock};
use holdfast_ports::file::{
    FileGateway as _, FileNotifications as _, SignedBlob, StorageError, UploadResult, UploadStorage,
};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::suite::fixtures::create;
use parking_lot::Mutex;

/// Sizes of blobs by name, ended signatures, and what every call fails with.
#[derive(Default)]
struct FakeStorage {
    blobs: Mutex<BTreeMap<String, u64>>,
    ended: Mutex<BTreeSet<String>>,
    failure: Mutex<Option<StorageError>>,
}

impl UploadStorage for FakeStorage {
    fn sign(&self, blob: &str, id: &str, expires_at: Timestamp, host: Option<&str>) -> SignedBlob {
        SignedBlob {
            host_name: host.unwrap_or("a.test").to_owned(),
            container_name: "box".to_owned(),
            sas_token: format!("?{blob}&{id}&{}", expires_at.as_seconds()),
        }
    }

    fn finish<'a>(
        &'a self,
        blob: &'a str,
        id: &'a str,
        _expires_at: Timestamp,
    ) -> BoxFuture<'a, Result<Option<UploadedBlob>, StorageError>> {
        Box::pin(async move {
            if let Some(failure) = self.failure.lock().clone() {
                return Err(failure);
            }
            let found = self.blobs.lock().get(blob).map(|size| UploadedBlob {
                uri: format!("https://a.test/box/{blob}"),
                size: *size,
                updated_at: Timestamp::from_seconds(1),
            });
            if found.is_some() {
                self.ended.lock().insert(id.to_owned());
            }
            Ok(found)
        })
    }

    fn revoke<'a>(&'a self, id: &'a str, _expires_at: Timestamp) -> BoxFuture<'a, Result<(), StorageError>> {
        Box::pin(async move {
            self.ended.lock().insert(id.to_owned());
            Ok(())
        })
    }
}

struct Bench {
    files: Arc<Files>,
    storage: Arc<FakeStorage>,
    store: MemoryStore,
    clock: Arc<ManualClock>,
    metrics: Metrics,
}

fn device() -> Identity {
    Identity::device("d1").expect("an id")
}

async fn bench() -> Bench {
    let (store, storage) = (MemoryStore::new(), Arc::new(FakeStorage::default()));
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_780_272_000_500_000)));
    create(&store, &["d1", "d1/m1", "d2"]).await;
    let metrics = Metrics::register(&mut Registry::new());
    let drivers = FileDrivers {
        store: Arc::new(store.clone()),
        storage: Some(storage.clone()),
        clock: clock.clone(),
    };
    Bench {
        files: Files::new(FilesConfig::default(), drivers, metrics.clone()),
        storage,
        store,
        clock,
        metrics,
    }
}

impl Bench {
    async fn begin(&self, name: &str) -> String {
        let grant = self
            .files
            .begin_upload(&device(), name, None)
            .await
            .expect("begun");
        grant.correlation_id
    }

    async fn end(&self, device: &Identity, id: &str, is_success: bool) -> Result<(), ErrorCode> {
        let result = UploadResult {
            correlation_id: id.to_owned(),
            is_success,
            status_code: 200,
            status_description: "x".repeat(100_000),
        };
        let ended = self.files.end_upload(device, result).await;
        ended.map_err(|error| error.code)
    }
}

#[tokio::test]
async fn an_upload_is_told_to_services_once() {
    let bench = bench().await;
    let grant = bench
        .files
        .begin_upload(&device(), "a/b.txt", Some("hub.test"))
        .await
        .expect("begun");
    let id = grant.correlation_id.as_str();
    assert_eq!(
        (grant.host_name.as_str(), grant.container_name.as_str()),
        ("hub.test", "box")
    );
    assert_eq!(grant.blob_name, "d1/a/b.txt");
    assert_eq!(grant.sas_token, format!("?d1/a/b.txt&{id}&1780275600"));
    assert!(
        !format!("{grant:?}").contains("1780275600"),
        "signatures are not shown"
    );
    // Without a blob it goes on.
    assert_eq!(
        bench.end(&device(), id, true).await,
        Err(ErrorCode::InvalidStorageEndpointOrBlob)
    );
    assert!(bench.storage.ended.lock().is_empty());
    bench.storage.blobs.lock().insert("d1/a/b.txt".to_owned(), 7);
    // Not by somebody else, not by another id, not while the storage fails.
    let other = Identity::device("d2").expect("an id");
    assert_eq!(
        bench.end(&other, id, true).await,
        Err(ErrorCode::InvalidFileUploadCorrelationId)
    );
    assert_eq!(
        bench.end(&device(), "x", true).await,
        Err(ErrorCode::InvalidFileUploadCorrelationId)
    );
    *bench.storage.failure.lock() = Some(StorageError::Unavailable("down".to_owned()));
    assert_eq!(
        bench.end(&device(), id, true).await,
        Err(ErrorCode::ServiceUnavailable)
    );
    *bench.storage.failure.lock() = Some(StorageError::Refused("no".to_owned()));
    assert_eq!(
        bench.end(&device(), id, true).await,
        Err(ErrorCode::InvalidStorageEndpointOrBlob)
    );
    *bench.storage.failure.lock() = None;
    assert!(
        bench
            .files
            .receive_notification()
            .await
            .expect("readable")
            .is_none()
    );
    bench.end(&device(), id, true).await.expect("it ends");
    assert_eq!(
        bench.end(&device(), id, true).await,
        Err(ErrorCode::InvalidFileUploadCorrelationId)
    );
    assert!(bench.storage.ended.lock().contains(id));
    let told = bench
        .files
        .receive_notification()
        .await
        .expect("readable")
        .expect("one waits");
    assert_eq!(told.notification.device_id, "d1");
    assert_eq!(told.notification.blob_uri, "https://a.test/box/d1/a/b.txt");
    assert_eq!(told.notification.blob_size, 7);
    assert_eq!(told.notification.enqueued_at, bench.clock.now());
    bench
        .files
        .settle_notification(told.lock, Settlement::Complete)
        .await
        .expect("held");
    let lost = bench
        .files
        .settle_notification(told.lock, Settlement::Complete)
        .await;
    assert_eq!(lost.expect_err("settled").code, ErrorCode::DeviceMessageLockLost);
    assert!(
        bench
            .files
            .receive_notification()
            .await
            .expect("readable")
            .is_none()
    );
    assert_eq!(bench.metrics.notifications.get(), 1);
}

#[tokio::test]
async fn a_crash_between_storage_and_store_is_healed_by_telling_again() {
    let bench = bench().await;
    let id = bench.begin("x").await;
    bench.storage.blobs.lock().insert("d1/x".to_owned(), 1);
    // The store fails when the storage has ended the signature already.
    let blob = bench
        .storage
        .finish("d1/x", &id, Timestamp::MAX)
        .await
        .expect("it answers");
    assert!(blob.is_some());
    bench.store.set_unavailable(true);
    assert_eq!(
        bench.end(&device(), &id, true).await,
        Err(ErrorCode::ServiceUnavailable)
    );
    bench.store.set_unavailable(false);
    bench.end(&device(), &id, true).await.expect("it ends");
    assert!(
        bench
            .files
            .receive_notification()
            .await
            .expect("readable")
            .is_some()
    );
}

#[tokio::test]
async fn failures_end_the_signature_and_tell_nobody() {
    let bench = bench().await;
    let id = bench.begin("x").await;
    bench.end(&device(), &id, false).await.expect("it ends");
    assert!(bench.storage.ended.lock().contains(&id));
    assert!(
        bench
            .files
            .receive_notification()
            .await
            .expect("readable")
            .is_none()
    );
}

#[tokio::test]
async fn uploads_are_bounded_and_expire() {
    let bench = bench().await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(bench.begin(&format!("f{number}")).await);
    }
    let full = bench
        .files
        .begin_upload(&device(), "more", None)
        .await
        .expect_err("full");
    assert_eq!(full.code, ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded);
    bench.end(&device(), &ids[3], false).await.expect("it ends");
    ids[3] = bench.begin("more").await;
    bench.clock.advance(Duration::from_secs(3_600));
    bench.storage.blobs.lock().insert("d1/f0".to_owned(), 1);
    assert_eq!(
        bench.end(&device(), &ids[0], true).await,
        Err(ErrorCode::ExpiredFileUploadCorrelationId)
    );
    let id = bench.begin("again").await;
    // Long after, nobody remembers.
    bench.clock.advance(Duration::from_secs(30 * 3_600));
    bench.files.tick().await;
    for id in [&ids[0], &id] {
        assert_eq!(
            bench.end(&device(), id, true).await,
            Err(ErrorCode::InvalidFileUploadCorrelationId)
        );
    }
}

#[tokio::test]
async fn notifications_expire() {
    let bench = bench().await;
    let id = bench.begin("x").await;
    bench.storage.blobs.lock().insert("d1/x".to_owned(), 1);
    bench.end(&device(), &id, true).await.expect("it ends");
    bench.clock.advance(Duration::from_secs(3_601));
    bench.files.tick().await;
    assert_eq!(bench.metrics.notifications_expired.get(), 1);
    assert!(
        bench
            .files
            .receive_notification()
            .await
            .expect("readable")
            .is_none()
    );
}

#[tokio::test]
async fn only_devices_with_a_place_upload() {
    let bench = bench().await;
    let module = Identity::module("d1", "m1").expect("an id");
    let refused = bench
        .files
        .begin_upload(&module, "x", None)
        .await
        .expect_err("a module");
    assert_eq!(refused.code, ErrorCode::ArgumentInvalid);
    let nobody = Identity::device("nobody").expect("an id");
    let refused = bench
        .files
        .begin_upload(&nobody, "x", None)
        .await
        .expect_err("nobody");
    assert_eq!(refused.code, ErrorCode::DeviceNotFound);
    let drivers = FileDrivers {
        store: Arc::new(bench.store.clone()),
        storage: None,
        clock: bench.clock.clone(),
    };
    let files = Files::new(FilesConfig::default(), drivers, bench.metrics.clone());
    let refused = files
        .begin_upload(&device(), "x", None)
        .await
        .expect_err("no storage");
    assert_eq!(refused.code, ErrorCode::DefaultStorageEndpointNotConfigured);
}
