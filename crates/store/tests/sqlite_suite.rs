//! The behaviour suites of the ports on the SQLite store.

use std::sync::Arc;

use holdfast_observe::Registry;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use tempfile::TempDir;

fn fresh() -> (TempDir, Arc<SqliteStore>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let metrics = Metrics::register(&mut Registry::new());
    let store = SqliteStore::open(&directory.path().join("state.db"), metrics).expect("a new database");
    (directory, Arc::new(store))
}

holdfast_ports::store_suite!(fresh());
