//! Opening, restarting, upgrading and refusing database files.

use std::path::Path;

use holdfast_model::c2d::{FeedbackStatus, Settlement};
use holdfast_model::event::{EventSource, Records};
use holdfast_model::file::{FileNotification, Upload};
use holdfast_model::provisioning::{AccessList, EnrollmentGroup};
use holdfast_model::registry::IdentityRecord;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Identity, Timestamp};
use holdfast_observe::Registry;
use holdfast_ports::dead_letters::{DeadLetter, DeadLetterStore as _};
use holdfast_ports::enrollment::{EnrollmentStore as _, Expected};
use holdfast_ports::file::FileStore as _;
use holdfast_ports::outbox::{OutboxEvent, OutboxStore as _};
use holdfast_ports::queue::C2dQueue as _;
use holdfast_ports::registry::{ConnectionUpdate, RegistryStore as _};
use holdfast_ports::settings::{CheckpointStore as _, SessionStore as _, SettingsStore as _};
use holdfast_ports::suite::enrollment::{group, individual, registration};
use holdfast_ports::suite::fixtures::{LIMITS, at, count_up, create, id, message, message_id, record};
use holdfast_ports::twin::TwinStore as _;
use holdfast_ports::{StoreError, suite::fixtures::set_reason};
use holdfast_store::sqlite::{Metrics, OpenError, SqliteStore};

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::new())
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, metrics()).expect("it opens")
}

fn refuse(path: &Path) -> OpenError {
    SqliteStore::open(path, metrics()).expect_err("it is refused")
}

/// All that a hub of some use holds, in the words of the ports.
async fn populate(store: &SqliteStore) {
    create(store, &["d1", "d1/m1", "d2"]).await;
    for _ in 0..3 {
        store
            .mutate_twin(&id("d1"), count_up())
            .await
            .expect("it is there");
    }
    store
        .mutate(&id("d2"), set_reason("kept"))
        .await
        .expect("it is there");
    for message_id in ["1", "2"] {
        store
            .enqueue(message("d1", message_id), LIMITS)
            .await
            .expect("room");
    }
    let deliveries = store.lock_next(&id("d1"), 1, 1, at(1), at(61)).await;
    let delivery = deliveries.expect("readable").pop().expect("a message");
    store
        .settle(&id("d1"), delivery.lock, Settlement::Complete, LIMITS, at(1))
        .await
        .expect("held");
    let mut subscriptions = Subscriptions::NONE;
    subscriptions.insert(Channel::Methods, true);
    store
        .save_session(&id("d1"), subscriptions)
        .await
        .expect("stored");
    store.set_value("id-scope", "0ne1").await.expect("stored");
    store.create_consumer_group("g").await.expect("new");
    store.save_checkpoint("g", 1, 7).await.expect("stored");
    let expected = Expected::Absent;
    store
        .put_enrollment(individual("Solo", 3), expected)
        .await
        .expect("new");
    store.put_group(group("Crew", 4), expected).await.expect("new");
    let registered = registration("X1", Some("Crew"), 5);
    store.put_registration(registered, expected).await.expect("new");
    store.bury(vec![letter()]).await.expect("stored");
    store.add_to_outbox(vec![told()]).await.expect("room");
    for name in ["up-1", "up-2"] {
        store.add_upload(upload(name), 9, at(5)).await.expect("room");
    }
    store
        .end_upload(&id("d1"), "up-2", Some(uploaded()))
        .await
        .expect("it is there");
}

/// An event on its way to the log.
fn told() -> OutboxEvent {
    let mut records = Records::new();
    let mut record = records.record();
    record.property("opType", Some("updateTwin"));
    let _ = record.finish(b"{}");
    OutboxEvent {
        source: EventSource::TwinChange,
        identity: id("d1/m1"),
        records,
        twin: Some("{}".to_owned()),
    }
}

fn upload(name: &str) -> Upload {
    Upload {
        correlation_id: name.to_owned(),
        device: id("d1"),
        blob_name: format!("d1/{name}"),
        begun_at: at(5),
        expires_at: at(3_605),
    }
}

fn uploaded() -> FileNotification {
    FileNotification {
        device_id: "d1".to_owned(),
        blob_uri: "https://host/uploads/d1/up-2".to_owned(),
        blob_name: "d1/up-2".to_owned(),
        blob_size: 7,
        blob_updated_at: at(6),
        enqueued_at: at(7),
        expires_at: at(4_000),
    }
}

/// What came with file uploads and events of the hub itself.
async fn check_messages_out(store: &SqliteStore) {
    let letters = store.dead_letters("gate", 9).await.expect("readable");
    assert_eq!(letters, [letter()]);
    let waiting = store.outbox(9, usize::MAX).await.expect("readable");
    let (event, expected) = (&waiting[0].event, told());
    assert_eq!(waiting.len(), 1);
    assert_eq!(
        (event.source, &event.identity),
        (expected.source, &expected.identity)
    );
    assert_eq!(event.records.as_bytes(), expected.records.as_bytes());
    assert_eq!(event.twin, expected.twin);
    let found = store.upload(&id("d1"), "up-1").await.expect("readable");
    assert_eq!(found, Some(upload("up-1")));
    let found = store.upload(&id("d1"), "up-2").await.expect("readable");
    assert_eq!(found, None, "it has ended");
    let delivery = store
        .lock_file_notification(at(8), at(68))
        .await
        .expect("readable");
    assert_eq!(delivery.map(|delivery| delivery.notification), Some(uploaded()));
}

fn letter() -> DeadLetter {
    DeadLetter {
        endpoint: "gate".to_owned(),
        partition: 2,
        sequence_number: 77,
        identity: "d1/m1".to_owned(),
        at: at(5),
        reason: "too large".to_owned(),
    }
}

/// What came with the second version of the schema; lists of who may register came within it, after its test data.
async fn check_provisioning(store: &SqliteStore, crew: EnrollmentGroup) {
    let found = store.enrollment("solo").await.expect("readable");
    assert_eq!(found, Some(individual("Solo", 3)));
    let found = store.list_groups(None, 9).await.expect("readable");
    assert_eq!(found, [crew]);
    let found = store.list_registrations("crew", None, 9).await.expect("readable");
    assert_eq!(found, [registration("X1", Some("Crew"), 5)]);
}

async fn check_populated(store: &SqliteStore) {
    let expected = IdentityRecord {
        version: 2,
        status_reason: Some("kept".into()),
        ..record(&id("d2"))
    };
    assert_eq!(store.get(&id("d2")).await.expect("readable"), Some(expected));
    assert_eq!(store.statistics().await.expect("readable").total, 2);
    let twin = store.twin(&id("d1")).await.expect("readable").expect("a twin");
    assert_eq!(
        (&twin.reported.properties["n"], twin.reported.version),
        (&3.into(), 4)
    );
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 1);
    let session = store.session(&id("d1")).await.expect("readable");
    assert!(session.is_some_and(|session| session.at_least_once(Channel::Methods)));
    let value = store.value("id-scope").await.expect("readable");
    assert_eq!(value.as_deref(), Some("0ne1"));
    assert_eq!(store.checkpoint("g", 1).await.expect("readable"), Some(7));
    assert_eq!(
        store.consumer_groups().await.expect("readable"),
        ["$Default", "g"]
    );
    let feedback = store
        .lock_feedback(at(9), at(69), Timestamp::MAX)
        .await
        .expect("readable")
        .expect("one record");
    assert_eq!(feedback.records[0].status_code, FeedbackStatus::Success);
    store.settle_feedback(feedback.lock, false).await.expect("held");
    // The next number goes on where the first process stopped.
    let next = store.enqueue(message("d2", "3"), LIMITS).await.expect("room");
    assert_eq!(next, 3);
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    populate(&open(&path)).await;
    let again = open(&path);
    check_populated(&again).await;
    check_provisioning(&again, group("Crew", 4)).await;
    check_messages_out(&again).await;
}

/// The upgrade test: a database made by the first version (by `make_testdata`) reads as it should.
#[tokio::test]
async fn version_1_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1/state.db");
    std::fs::copy(kept, &path).expect("the kept database is there");
    check_populated(&open(&path)).await;
}

/// As above, for the version that brought device provisioning.
#[tokio::test]
async fn version_2_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v2/state.db");
    std::fs::copy(kept, &path).expect("the kept database is there");
    let store = open(&path);
    check_populated(&store).await;
    let without_lists = EnrollmentGroup {
        access: AccessList::default(),
        ..group("Crew", 4)
    };
    check_provisioning(&store, without_lists).await;
}

/// As above, for the version that brought configurations, jobs, routing and an outbox.
#[tokio::test]
async fn version_4_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v4/state.db");
    std::fs::copy(kept, &path).expect("the kept database is there");
    let store = open(&path);
    check_populated(&store).await;
    check_provisioning(&store, group("Crew", 4)).await;
    let letters = store.dead_letters("gate", 9).await.expect("readable");
    assert_eq!(letters, [letter()]);
}

/// As above, for the version that brought file uploads and the children of edge devices (versions 5 and 6 came at once).
#[tokio::test]
async fn version_6_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v6/state.db");
    std::fs::copy(kept, &path).expect("the kept database is there");
    let store = open(&path);
    check_populated(&store).await;
    check_provisioning(&store, group("Crew", 4)).await;
    check_messages_out(&store).await;
}

/// Makes the database of `testdata/vN`: run it once when a schema version is released, with the path in
/// `HOLDFAST_TESTDATA`, and never again for that version.
#[tokio::test]
#[ignore = "makes test data"]
async fn make_testdata() {
    let target = std::env::var("HOLDFAST_TESTDATA").expect("HOLDFAST_TESTDATA names the file to make");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory.path().join("state.db"));
    populate(&store).await;
    store.backup_to(Path::new(&target)).expect("a new file");
}

#[tokio::test]
async fn a_restart_voids_locks_and_connections() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let (device, epoch) = (id("d1"), 5);
    let first = open(&path);
    create(&first, &["d1", "d2", "d2/m1"]).await;
    for message_id in ["1", "2"] {
        first
            .enqueue(message("d1", message_id), LIMITS)
            .await
            .expect("room");
    }
    let late = Timestamp::MAX;
    let held = first.lock_next(&device, 1, epoch, at(0), late).await;
    let held = held.expect("readable");
    let update = ConnectionUpdate {
        identity: device.clone(),
        connected: true,
        updated_at: at(3),
        last_activity_at: at(4),
    };
    let of = |name: &str, connected| ConnectionUpdate {
        identity: id(name),
        connected,
        ..update.clone()
    };
    let updates = vec![of("d1", true), of("d2", true), of("d2", false), of("d2/m1", true)];
    first.save_connections(updates).await.expect("saved");
    let connected = first.get(&device).await.expect("readable");
    assert!(connected.is_some_and(|record| record.connected));
    let base = first.next_epoch_base();
    drop(first);

    let second = open(&path);
    assert!(second.next_epoch_base() >= base + (1 << 32));
    let found = second.get(&device).await.expect("readable").expect("it is there");
    assert!(!found.connected);
    let interrupted = second.interrupted(0, 9).await.expect("readable");
    let identities: Vec<_> = interrupted.iter().map(|who| who.identity.as_str()).collect();
    assert_eq!(identities, ["d1", "d2/m1"]);
    let behind = second
        .interrupted(interrupted[0].place, 9)
        .await
        .expect("readable");
    assert_eq!(behind, interrupted[1..]);
    // A session of this process is none of theirs.
    let back = ConnectionUpdate {
        identity: id("d2/m1"),
        connected: true,
        updated_at: at(5),
        last_activity_at: at(5),
    };
    second.save_connections(vec![back]).await.expect("saved");
    let places = interrupted.iter().map(|who| who.place).collect();
    second.end_interrupted(places).await.expect("saved");
    assert!(second.interrupted(0, 9).await.expect("readable").is_empty());
    let module = second.get(&id("d2/m1")).await.expect("readable");
    assert!(module.is_some_and(|module| module.connected));
    assert_eq!(
        (found.connection_updated_at, found.last_activity_at),
        (at(3), at(4))
    );
    let settled = second
        .settle(&device, held[0].lock, Settlement::Complete, LIMITS, at(1))
        .await;
    assert!(matches!(settled, Err(StoreError::Missing)));
    let again = second
        .lock_next(&device, 9, epoch, at(1), late)
        .await
        .expect("readable");
    let ids: Vec<&str> = again
        .iter()
        .map(|delivery| message_id(&delivery.message))
        .collect();
    assert_eq!(ids, ["1", "2"]);
    assert!(again[0].redelivered && !again[1].redelivered);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let first = open(&path);
    let error = refuse(&path);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let clone = first.clone();
    drop(first);
    assert!(matches!(refuse(&path), OpenError::InUse { .. }));
    drop(clone);
    open(&path);
}

/// Runs SQL on a database file that no store has open.
fn sql(path: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    connection.execute_batch(sql).expect("valid SQL");
}

fn user_version(path: &Path) -> i64 {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    version.expect("readable")
}

#[tokio::test]
async fn a_newer_version_is_refused_untouched() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    populate(&open(&path)).await;
    let current = user_version(&path);
    sql(&path, "PRAGMA user_version = 99");
    let before = std::fs::read(&path).expect("readable");
    let error = refuse(&path);
    assert!(
        matches!(error, OpenError::NewerVersion { found: 99, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("state.db") && text.contains("newer release"),
        "{text}"
    );
    assert_eq!(std::fs::read(&path).expect("readable"), before);
    sql(&path, &format!("PRAGMA user_version = {current}"));
    check_populated(&open(&path)).await;
}

#[tokio::test]
async fn a_clean_close_leaves_one_file_to_back_up() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    {
        let store = open(&path);
        populate(&store).await;
        // A read opens a connection of its own.
        store.get(&id("d1")).await.expect("readable").expect("there");
    }
    assert!(
        !path.with_extension("db-wal").exists(),
        "the write-ahead log is folded into the file"
    );
    check_populated(&open(&path)).await;
}

#[test]
fn a_database_of_another_program_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, content) in [
        ("marked.db", "PRAGMA application_id = 77; CREATE TABLE t (x)"),
        ("unmarked.db", "CREATE TABLE t (x)"),
    ] {
        let path = directory.path().join(name);
        sql(&path, content);
        let before = std::fs::read(&path).expect("readable");
        let error = refuse(&path);
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("readable"), before);
    }
}

#[test]
fn what_is_no_database_is_named_with_a_remedy() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    std::fs::write(&path, "this is text, and quite a lot of it ".repeat(100)).expect("written");
    let error = refuse(&path);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("state.db") && text.contains("restore"), "{text}");
    let missing = directory.path().join("no-such-directory").join("state.db");
    assert!(matches!(refuse(&missing), OpenError::File { .. }));
}

#[tokio::test]
async fn a_damaged_page_is_reported_and_never_guessed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    {
        let store = open(&path);
        for number in 0..400 {
            create(&store, &[&format!("d{number}")]).await;
        }
    }
    // Everything after the first page, which holds the header and the schema.
    let mut bytes = std::fs::read(&path).expect("readable");
    for byte in &mut bytes[4096..] {
        *byte = 0x5a;
    }
    std::fs::write(&path, bytes).expect("written");
    match SqliteStore::open(&path, metrics()) {
        Err(error) => assert!(error.to_string().contains("damaged"), "{error}"),
        Ok(store) => {
            let error = store.get(&id("d1")).await.expect_err("the page is damaged");
            let StoreError::Unavailable(text) = error else {
                panic!("{error}");
            };
            assert!(text.contains("damaged") && text.contains("backup"), "{text}");
        }
    }
}

#[tokio::test]
async fn keys_are_for_the_owner_of_the_file_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let store = open(&path);
    create(&store, &["d1"]).await;
    let mut seen = 0;
    for entry in std::fs::read_dir(directory.path()).expect("readable") {
        let entry = entry.expect("readable");
        let mode = entry.metadata().expect("readable").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        seen += 1;
    }
    assert!(seen >= 3, "database, log and lock");
}

#[tokio::test]
async fn a_backup_is_a_database_of_its_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (path, copy) = (
        directory.path().join("state.db"),
        directory.path().join("copy.db"),
    );
    let store = open(&path);
    populate(&store).await;
    store.backup_to(&copy).expect("a new file");
    let again = store.backup_to(&copy).expect_err("it exists");
    assert!(matches!(again, StoreError::Unavailable(_)));
    store
        .delete(&id("d1"), None)
        .await
        .expect("the store goes on working");
    check_populated(&open(&copy)).await;
}

#[tokio::test]
async fn a_panicking_mutation_harms_nobody() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory.path().join("state.db"));
    create(&store, &["d1", "d2"]).await;
    let (one, two): (Identity, Identity) = (id("d1"), id("d2"));
    let panicking = store.mutate_twin(
        &one,
        std::sync::Arc::new(|twin| {
            twin.version = 99;
            panic!("a mistake of the engine")
        }),
    );
    let (panicked, neighbour) = tokio::join!(panicking, store.mutate_twin(&two, count_up()));
    let StoreError::Unavailable(text) = panicked.expect_err("it panicked") else {
        panic!("unavailable");
    };
    assert!(text.contains("a mistake of the engine"), "{text}");
    neighbour.expect("not harmed");
    let twin = store
        .mutate_twin(&one, count_up())
        .await
        .expect("the writer lives on");
    assert_eq!((twin.version, twin.reported.version), (1, 2));
}

#[tokio::test]
async fn a_damaged_event_of_the_outbox_does_not_hold_up_the_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let store = open(&path);
    store.add_to_outbox(vec![told(); 5]).await.expect("room");
    drop(store);
    sql(
        &path,
        "UPDATE outbox SET record = x'05' WHERE number = 1; UPDATE outbox SET source = 300 WHERE number = 3;
         UPDATE outbox SET identity = '' WHERE number = 4; UPDATE outbox SET record = x'' WHERE number = 5",
    );
    let store = open(&path);
    let numbers = async |store: &SqliteStore| -> Vec<u64> {
        let waiting = store.outbox(9, usize::MAX).await.expect("readable");
        waiting.iter().map(|waiting| waiting.number).collect()
    };
    assert_eq!(numbers(&store).await, [2]);
    store.remove_from_outbox(2).await.expect("removed");
    assert!(numbers(&store).await.is_empty());
    // Beside nothing but what was set aside, numbers still grow.
    store.add_to_outbox(vec![told(), told()]).await.expect("room");
    assert_eq!(numbers(&store).await, [1, 2]);
    drop(store);
    let connection = rusqlite::Connection::open(&path).expect("it opens");
    let aside = connection.query_row("SELECT count(*) FROM outbox WHERE number < 0", [], |row| {
        row.get(0)
    });
    assert_eq!(aside, Ok(4), "for somebody to look at");
}
