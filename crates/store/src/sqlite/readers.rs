//! The readers: a few read-only connections, used on the calling thread.
//!
//! A read is a handful of page lookups, microseconds even when the operating system has to be asked for the pages, so
//! it runs inline on the asynchronous runtime: handing it to another thread would cost more than the read. Only one
//! connection per thread that reads at the same moment is needed; they are made on demand and kept for reuse.
//!
//! In WAL mode a read begins with the newest commit, so it sees everything that any earlier call returned.

use std::path::PathBuf;

use holdfast_ports::{StoreError, StoreResult};
use parking_lot::Mutex;
use rusqlite::Connection;

use super::events::Metrics;
use super::fault::Fault;
use super::schema;

/// Most idle reading connections kept; each may hold a page cache.
const IDLE_READERS_MAX: usize = 8;

/// Pool of reading connections.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    metrics: Metrics,
}

impl Readers {
    pub(super) fn new(path: PathBuf, metrics: Metrics) -> Self {
        Readers {
            path,
            idle: Mutex::new(Vec::new()),
            metrics,
        }
    }

    /// Runs `read` on a reading connection.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Fault>) -> StoreResult<T> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let opened = schema::open_reader(&self.path).map_err(Fault::Sqlite)?;
                self.metrics.readers.inc();
                opened
            }
        };
        let result = read(&connection).map_err(StoreError::from);
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_READERS_MAX {
            idle.push(connection);
        } else {
            drop(idle);
            self.metrics.readers.dec();
        }
        result
    }
}
