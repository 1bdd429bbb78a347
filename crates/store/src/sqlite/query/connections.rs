//! Connections of their own for queries: a query may scan everything, so it runs on a thread that may block, never on
//! the registry's connections; few run at once, each for a bounded time, and one whose caller went away stops.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::{StoreError, StoreResult};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode as SqliteCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::events::{Metrics, QueryEnded, QueryRefused};
use super::super::fault::Fault;
use super::super::schema;

/// Bounds of queries.
#[derive(Clone, Copy, Debug)]
pub struct QueryLimits {
    /// Most queries that run at once.
    pub running_max: usize,
    /// Most queries that wait for one of these to end.
    pub waiting_max: usize,
    /// Longest wait.
    pub wait_max: Duration,
    /// Time after which a page is closed with what it has.
    pub page_time: Duration,
    /// Time after which a query is stopped with an error.
    pub time_max: Duration,
}

impl Default for QueryLimits {
    fn default() -> Self {
        QueryLimits {
            running_max: 4,
            waiting_max: 64,
            wait_max: Duration::from_secs(10),
            page_time: Duration::from_secs(2),
            time_max: Duration::from_secs(30),
        }
    }
}

/// Page cache of one connection, KiB; larger than that of others, since scans come back to the same pages.
const PAGE_CACHE_KIB: i64 = 16_384;

/// Steps of SQLite's machine between two looks at the clock: some microseconds.
const STEPS_PER_LOOK: i32 = 4_096;

/// The connections.
pub(in crate::sqlite) struct Connections {
    path: PathBuf,
    metrics: Metrics,
    limits: QueryLimits,
    idle: Mutex<Vec<(Connection, Instant)>>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Stops a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Stops the query when the future that waits for it is dropped.
pub(super) struct StopOnDrop(pub(super) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// The right to run a query.
pub(super) type Permit = OwnedSemaphorePermit;

impl Connections {
    pub(in crate::sqlite) fn new(path: PathBuf, metrics: Metrics, limits: QueryLimits) -> Self {
        Connections {
            path,
            metrics,
            limits,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(limits.running_max)),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(super) fn limits(&self) -> QueryLimits {
        self.limits
    }

    /// Waits for the right to run a query.
    pub(super) async fn admit(&self) -> StoreResult<Permit> {
        let busy = || {
            let running = self.limits.running_max;
            let text = format!("{running} queries are running and others are waiting; try again later");
            QueryRefused { reason: &text }.emit(&self.metrics);
            StoreError::Refused(Error::new(ErrorCode::ThrottlingException, text))
        };
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::enter(&self.waiting, self.limits.waiting_max).ok_or_else(busy)?;
        let permit = tokio::time::timeout(self.limits.wait_max, Arc::clone(&self.permits).acquire_owned());
        match permit.await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(busy()),
        }
    }

    /// Runs `read` within one state of the database, and not longer than it may.
    pub(super) fn run<T>(
        &self,
        stop: &Stop,
        read: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> StoreResult<T> {
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some((connection, _)) => connection,
            None => open(&self.path).map_err(Fault::Sqlite)?,
        };
        let started = Instant::now();
        let result = limited(
            &mut connection,
            stop.clone(),
            started + self.limits.time_max,
            read,
        );
        let took = started.elapsed();
        QueryEnded { took }.emit(&self.metrics);
        let mut idle = self.idle.lock();
        if idle.len() < self.limits.running_max {
            idle.push((connection, Instant::now()));
        }
        result.map_err(|fault| match fault {
            Fault::Sqlite(error) if error.sqlite_error_code() == Some(SqliteCode::OperationInterrupted) && !stop.is_set() => {
                let seconds = self.limits.time_max.as_secs_f64();
                let text = format!(
                    "the query took longer than {seconds} s; narrow it with a condition on deviceId or on a tag that few \
                     devices have, or ask again later: places that slow queries look at get an index"
                );
                QueryRefused { reason: &text }.emit(&self.metrics);
                StoreError::Refused(Error::new(ErrorCode::ArgumentInvalid, text))
            }
            other => other.into(),
        })
    }

    /// Closes connections that have not been used for a while.
    pub(super) fn close_idle(&self, unused: Duration) {
        self.idle.lock().retain(|(_, since)| since.elapsed() < unused);
    }
}

fn open(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let connection = schema::open_reader(path)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.execute_batch(&format!("PRAGMA cache_size = -{PAGE_CACHE_KIB};"))?;
    Ok(connection)
}

fn limited<T>(
    connection: &mut Connection,
    stop: Stop,
    deadline: Instant,
    read: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    connection.progress_handler(
        STEPS_PER_LOOK,
        Some(move || stop.is_set() || Instant::now() >= deadline),
    )?;
    let result = (|| {
        let transaction = connection.transaction()?;
        let result = read(&transaction)?;
        transaction.finish()?;
        Ok(result)
    })();
    connection.progress_handler(0, None::<fn() -> bool>)?;
    result
}

/// Counts a waiting query.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        let entered = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < max).then_some(count + 1)
        });
        entered.ok().map(|_| Waiting(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
