//! The embedded event log passes the behaviour suite of its port.

use std::sync::Arc;

use holdfast_store::log::{Durability, EmbeddedLog, LogConfig};

async fn check(config: LogConfig) {
    let root = tempfile::tempdir().expect("a directory");
    let count = std::sync::atomic::AtomicU32::new(0);
    holdfast_ports::suite::event_log::all(async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = root.path().join(number.to_string());
        Arc::new(
            EmbeddedLog::open(LogConfig {
                dir,
                ..config.clone()
            })
            .expect("opened"),
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synced() {
    check(LogConfig::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn written_only() {
    check(LogConfig {
        durability: Durability::Os,
        ..LogConfig::default()
    })
    .await;
}

#[tokio::test]
async fn in_many_small_segments() {
    check(LogConfig {
        segment_bytes: 4096,
        ..LogConfig::default()
    })
    .await;
}
