//! Live sessions: takeover, fencing, stored subscriptions, expiry, connection state, the end (mqtt.md 2.4 and 7).

use std::future::Future as _;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use holdfast_hub::HubConfig;
use holdfast_hub::events::SessionEnd;
use holdfast_model::c2d::{C2dDelivery, C2dMessage, FeedbackBatch, LockToken, Settlement};
use holdfast_model::credential::sign_sas;
use holdfast_model::event::Records;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{ErrorCode, Identity, Timestamp};
use holdfast_ports::gateway::{
    AccessRequest, ConnectRequest, Credential, DeviceGateway as _, Disconnect, IngestError, Persistence,
};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::queue::{C2dLimits, C2dQueue};
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::session::{CloseReason, Downlink};
use holdfast_ports::settings::SessionStore as _;
use holdfast_ports::{BoxFuture, StoreResult};

use crate::harness::*;

fn one_record() -> Records {
    let mut records = Records::new();
    let _ = records.record().finish(b"{}");
    records
}

#[tokio::test]
async fn a_newer_connection_takes_over_and_fences_the_older() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let older = test.connect("d1").await.session;
    let newer = test.connect("d1").await.session;
    assert_eq!(closed(&older), Some(CloseReason::TakenOver));
    assert!(newer.epoch > older.epoch && !newer.is_ended());
    assert_eq!(test.hub.send(&older, &one_record()), Err(IngestError::Fenced));
    assert!(test.hub.send(&newer, &one_record()).is_ok());
    // The older head's goodbye comes late and changes nothing.
    test.hub.disconnect(&older, Disconnect::Closed);
    assert!(test.record("d1").await.connected);
    assert_eq!(test.hub.connected_devices(), 1);
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::TakenOver).get(), 1);
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::Lost).get(), 0);
}

#[tokio::test]
async fn a_failed_login_leaves_the_older_session_alone() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    refused(test.connect_with("d1", Credential::Sas("nonsense")).await);
    assert!(!session.is_ended());
}

#[tokio::test]
async fn devices_and_modules_are_separate_identities() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d1/m1").await;
    let device = test.connect("d1").await.session;
    let module = test.connect("d1/m1").await.session;
    assert!(!device.is_ended() && !module.is_ended());
    assert_eq!(device.partition, module.partition);
    assert_eq!(
        (test.hub.connected_devices(), test.hub.connected_sessions()),
        (1, 2)
    );
}

#[tokio::test]
async fn subscriptions_survive_until_a_clean_session() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let first = test.connect("d1").await;
    assert!(!first.session_present);
    test.subscribe(&first.session, &[Channel::Methods, Channel::DesiredProperties])
        .await;
    test.hub.disconnect(&first.session, Disconnect::Lost);

    let second = test.connect("d1").await;
    assert!(second.session_present);
    assert!(
        second.session.subscribed(Channel::Methods) && second.session.subscribed(Channel::DesiredProperties)
    );
    assert!(!second.session.subscribed(Channel::CloudToDevice));

    let token = test.token("d1").await;
    let clean = |clean_session: bool| ConnectRequest {
        access: access("d1", Credential::Sas(&token)),
        persistence: if clean_session {
            Persistence::Forgotten
        } else {
            Persistence::Stored
        },
        model_id: None,
        client_type: None,
    };
    let third = test.hub.connect(clean(true)).await.expect("good");
    assert!(!third.session_present && !third.session.subscribed(Channel::Methods));
    test.subscribe(&third.session, &[Channel::Methods]).await;
    // Nothing of a clean session is kept, and what was before is forgotten.
    let fourth = test.hub.connect(clean(false)).await.expect("good");
    assert!(!fourth.session_present && !fourth.session.subscribed(Channel::Methods));
    // A session without any subscription is one, too.
    assert!(test.connect("d1").await.session_present);
}

#[tokio::test]
async fn a_late_subscription_of_a_replaced_session_is_not_stored() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let older = test.online("d1", &[Channel::Methods]).await;
    test.connect("d1").await;
    let late = test.hub.subscribe(&older, Default::default()).await;
    assert!(late.is_err());
    assert!(test.connect("d1").await.session.subscribed(Channel::Methods));
}

#[tokio::test]
async fn a_token_that_is_over_ends_its_session_after_the_grace() {
    let test = TestHub::new().await;
    let (key, _) = keys(&test.create("d1").await);
    test.create("d2").await;
    let session = test.connect("d1").await.session;
    test.clock.advance(Duration::from_secs(3_600 + 599));
    test.hub.tick().await;
    assert!(!session.is_ended());
    // A renewal, and a device with a longer token, go on.
    let other = test.connect("d2").await.session;
    test.clock.advance(Duration::from_secs(2));
    test.hub.tick().await;
    assert_eq!(closed(&session), Some(CloseReason::TokenExpired));
    assert!(!other.is_ended());
    assert_eq!(test.hub.send(&session, &one_record()), Err(IngestError::Fenced));
    assert!(!test.record("d1").await.connected);
    test.hub.disconnect(&session, Disconnect::Closed);
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::TokenExpired).get(), 1);

    let short = sign_sas(
        &resource("d1"),
        &key,
        test.now().plus(Duration::from_secs(1)),
        None,
    );
    let renewed = test
        .connect_with("d1", Credential::Sas(&short))
        .await
        .expect("good")
        .session;
    for _ in 0..602 {
        test.clock.advance(Duration::from_secs(1));
        test.hub.tick().await;
    }
    assert!(renewed.is_ended());
}

#[tokio::test]
async fn without_grace_expiry_is_at_once() {
    let test = TestHub::with(HubConfig {
        token_grace: Duration::ZERO,
        ..HubConfig::default()
    })
    .await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.clock.advance(Duration::from_secs(3_600));
    test.hub.tick().await;
    assert!(session.is_ended());
}

#[tokio::test]
async fn the_scan_for_expired_tokens_is_bounded_and_comes_round() {
    let test = TestHub::with(HubConfig {
        expiry_scan_max: 10,
        ..HubConfig::default()
    })
    .await;
    for index in 0..100 {
        test.create(&format!("d{index}")).await;
        test.connect(&format!("d{index}")).await;
    }
    test.clock.advance(Duration::from_secs(5_000));
    test.hub.tick().await;
    let left = test.hub.connected_devices();
    assert!((1..100).contains(&left), "{left}");
    for _ in 0..10 {
        test.hub.tick().await;
    }
    assert_eq!(test.hub.connected_devices(), 0);
}

#[tokio::test]
async fn connection_state_is_live_and_saved_in_batches() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let before = test.record("d1").await;
    assert!(!before.connected);
    assert_eq!(before.connection_updated_at, holdfast_model::Timestamp::NEVER);

    let connected_at = test.now();
    let session = test.connect("d1").await.session;
    let record = test.record("d1").await;
    assert!(record.connected);
    assert_eq!(record.connection_updated_at, connected_at);
    let stored = test
        .store
        .get(&identity("d1"))
        .await
        .expect("a store")
        .expect("a record");
    assert!(!stored.connected, "not on the login's path");

    test.hub.tick().await;
    let stored = test
        .store
        .get(&identity("d1"))
        .await
        .expect("a store")
        .expect("a record");
    assert!(stored.connected);
    assert_eq!(stored.version, before.version);

    test.clock.advance(Duration::from_secs(60));
    session.touch(1_060);
    test.clock.advance(Duration::from_secs(5));
    test.hub.disconnect(&session, Disconnect::Clean);
    let record = test.record("d1").await;
    assert!(!record.connected);
    assert_eq!(record.connection_updated_at, test.now());
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::Clean).get(), 1);
    // A store that fails meanwhile loses nothing.
    test.store.set_unavailable(true);
    test.hub.tick().await;
    test.store.set_unavailable(false);
    test.hub.tick().await;
    let stored = test
        .store
        .get(&identity("d1"))
        .await
        .expect("a store")
        .expect("a record");
    assert!(!stored.connected);
    assert_eq!(stored.connection_updated_at, record.connection_updated_at);
}

#[tokio::test]
async fn draining_closes_everything_and_takes_nobody() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d2").await;
    let token = test.token("d2").await;
    let session = test.connect("d1").await.session;
    test.hub.drain().await;
    assert_eq!(closed(&session), Some(CloseReason::ShuttingDown));
    assert_eq!(test.hub.connected_sessions(), 0);
    assert_eq!(
        refused(test.connect_with("d2", Credential::Sas(&token)).await),
        ErrorCode::ServiceUnavailable
    );
    let admitted = test
        .hub
        .admit(AccessRequest {
            ..access("d2", Credential::Sas(&token))
        })
        .await;
    assert_eq!(
        admitted.expect_err("stopping").code,
        ErrorCode::ServiceUnavailable
    );
}

#[tokio::test]
async fn a_store_that_fails_refuses_without_blame() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let token = test.token("d1").await;
    test.store.set_unavailable(true);
    assert_eq!(
        refused(test.connect_with("d1", Credential::Sas(&token)).await),
        ErrorCode::ServiceUnavailable
    );
    assert_eq!(test.hub.connected_sessions(), 0);
    test.store.set_unavailable(false);
    assert!(test.connect_with("d1", Credential::Sas(&token)).await.is_ok());
}

#[tokio::test]
async fn a_session_that_ends_is_never_pushed_to() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.online("d1", &[Channel::DesiredProperties]).await;
    test.hub.disconnect(&session, Disconnect::Lost);
    assert!(session.push(Downlink::CloudToDevice).is_err());
    assert!(test.hub.send(&session, &one_record()).is_err());
    // Reported twice, counted once.
    test.hub.disconnect(&session, Disconnect::Lost);
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::Lost).get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_logins_at_once_exactly_one_stays() {
    let test = Arc::new(TestHub::new().await);
    test.create("d1").await;
    let logins: Vec<_> = (0..50)
        .map(|_| {
            let test = Arc::clone(&test);
            tokio::spawn(async move {
                let token = test.token("d1").await;
                test.connect_with("d1", Credential::Sas(&token)).await.ok()
            })
        })
        .collect();
    let mut live = 0;
    for login in logins {
        if let Some(connected) = login.await.expect("no panic") {
            live += usize::from(!connected.session.is_ended());
        }
    }
    // Counted while logins were still going on, so more than one may have been seen alive, but one is left.
    assert!(live >= 1);
    assert_eq!(test.hub.connected_sessions(), 1);
}

#[tokio::test]
async fn the_model_id_is_kept_on_the_twin() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let token = test.token("d1").await;
    for (announced, expected) in [
        (None, None),
        (Some("dtmi:com:ex:Thermostat;1"), Some("dtmi:com:ex:Thermostat;1")),
        (Some("dtmi:com:ex:Thermostat;1"), Some("dtmi:com:ex:Thermostat;1")),
        (None, Some("dtmi:com:ex:Thermostat;1")),
        (Some("dtmi:com:ex:Thermostat;2"), Some("dtmi:com:ex:Thermostat;2")),
    ] {
        test.hub
            .connect(ConnectRequest {
                access: access("d1", Credential::Sas(&token)),
                persistence: Persistence::Stored,
                model_id: announced,
                client_type: Some("test/1.0"),
            })
            .await
            .expect("good");
        let twin = test.hub.twin(&identity("d1")).await.expect("a twin");
        assert_eq!(twin.model_id.as_deref(), expected);
        assert_eq!(twin.version, 1);
    }
}

/// A queue that never answers how many messages wait: a login that restores the subscription hangs there.
struct Hanging(MemoryStore);

impl C2dQueue for Hanging {
    fn enqueue(&self, message: C2dMessage, limits: C2dLimits) -> BoxFuture<'_, StoreResult<u64>> {
        self.0.enqueue(message, limits)
    }

    fn lock_next<'a>(
        &'a self,
        device: &'a Identity,
        max: usize,
        owner: u64,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<C2dDelivery>>> {
        self.0.lock_next(device, max, owner, now, lock_until)
    }

    fn settle<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
        limits: C2dLimits,
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.0.settle(device, lock, settlement, limits, now)
    }

    fn release<'a>(&'a self, device: &'a Identity, owner: u64) -> BoxFuture<'a, StoreResult<()>> {
        self.0.release(device, owner)
    }

    fn purge<'a>(&'a self, device: &'a Identity, now: Timestamp) -> BoxFuture<'a, StoreResult<u64>> {
        self.0.purge(device, now)
    }

    fn depth<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(std::future::pending())
    }

    fn expire(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        self.0.expire(now)
    }

    fn lock_feedback(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
        ripe_before: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FeedbackBatch>>> {
        self.0.lock_feedback(now, lock_until, ripe_before)
    }

    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, StoreResult<()>> {
        self.0.settle_feedback(lock, complete)
    }
}

#[tokio::test]
async fn a_login_that_its_head_gives_up_leaves_nothing_behind() {
    let test = TestHub::build(HubConfig::default(), |stores| {
        stores.c2d = Arc::new(Hanging(MemoryStore::new()));
    })
    .await;
    test.create("d1").await;
    let mut subscriptions = Subscriptions::NONE;
    subscriptions.insert(Channel::CloudToDevice, true);
    test.store
        .save_session(&identity("d1"), subscriptions)
        .await
        .expect("a store");
    let token = test.token("d1").await;
    {
        let mut login = Box::pin(test.connect_with("d1", Credential::Sas(&token)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(login.as_mut().poll(&mut context).is_pending());
        assert_eq!(test.hub.connected_sessions(), 1);
    }
    assert_eq!(test.hub.connected_sessions(), 0);
    assert!(!test.record("d1").await.connected);
    assert_eq!(test.metrics.sessions_ended.of(SessionEnd::Lost).get(), 1);
    assert_eq!(test.metrics.sessions_started.get(), 1);
}
