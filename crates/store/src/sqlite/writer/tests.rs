//! Groups that fail.

use holdfast_observe::Registry;
use holdfast_ports::settings::SettingsStore as _;
use holdfast_ports::{StoreError, StoreResult};
use rusqlite::ffi;

use crate::sqlite::fault::Fault;
use crate::sqlite::writer::WriteContext;
use crate::sqlite::{Metrics, SqliteStore};

fn open(directory: &tempfile::TempDir) -> SqliteStore {
    let metrics = Metrics::register(&mut Registry::new());
    SqliteStore::open(&directory.path().join("state.db"), metrics).expect("a new database")
}

/// Goal: nothing of a group whose COMMIT fails has happened, everybody is told, and the next group works.
///
/// Method: a deferred constraint fails at COMMIT and nowhere else. The group is put together while the writer is held
/// up in an operation before it.
#[tokio::test]
async fn a_failed_commit_fails_its_whole_group() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let hold_up = store.write(move |_| {
        let _ = started.send(());
        let _ = may_go_on.recv();
        Ok(())
    });
    let break_commit = store.write(|context: &WriteContext| {
        context.db.execute_batch(
            "PRAGMA defer_foreign_keys = ON; INSERT INTO sessions (id, subscriptions) VALUES (12345, 0)",
        )?;
        Ok(())
    });
    let group = async {
        has_started.await.expect("the writer took it");
        tokio::join!(
            store.set_value("before", "x"),
            break_commit,
            store.set_value("after", "x"),
            async { go_on.send(()).expect("the writer waits") }
        )
    };
    let (held_up, (before, broken, after, ())) = tokio::join!(hold_up, group);
    held_up.expect("its own group");
    for result in [before, broken, after] {
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    }
    assert_eq!(store.value("before").await.expect("readable"), None);
    store.set_value("later", "x").await.expect("the writer goes on");
}

/// Goal: after a failed sync the store takes no more changes, says so, and can still be read.
#[tokio::test]
async fn a_failed_sync_is_final() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory);
    store.set_value("kept", "x").await.expect("stored");
    let failed: StoreResult<()> = store
        .write(|_| {
            let error = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
            Err(Fault::Sqlite(rusqlite::Error::SqliteFailure(error, None)))
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))));
    for _ in 0..2 {
        let refused = store.set_value("more", "x").await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    }
    let kept = store.value("kept").await.expect("readable");
    assert_eq!(kept.as_deref(), Some("x"));
    drop(store);
    open(&directory)
        .set_value("more", "x")
        .await
        .expect("after a restart");
}

/// Goal: an operation whose caller went away after handing it in is done all the same, in its place.
#[tokio::test]
async fn a_cancelled_caller_keeps_its_place() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory);
    {
        let mut abandoned = store.set_value("key", "first");
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(abandoned.as_mut().poll(&mut context).is_pending());
    }
    store.set_value("key", "second").await.expect("stored");
    let value = store.value("key").await.expect("readable");
    assert_eq!(value.as_deref(), Some("second"));
}
