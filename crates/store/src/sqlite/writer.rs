//! The writer: one thread, one connection, commits in groups.
//!
//! An fsync costs as much as dozens of operations, so whatever waits in the channel shares one transaction. An
//! operation that fails is rolled back to its savepoint and does not harm its neighbours. Callers hear of their
//! result only after COMMIT has returned, i.e. when it is on the disk; with `synchronous = FULL` readers do not see
//! it earlier either. When COMMIT fails, nothing of the group has happened and every caller is told so.
//!
//! Operations run in the order in which they entered the channel, also those whose caller went away meanwhile.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Instant;

use holdfast_observe::Event as _;
use holdfast_ports::{StoreError, StoreResult};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::events::{GroupCommitted, GroupFailed, Metrics, OperationPanicked};
use super::fault::{Fault, explain, is_final};

/// Most operations waiting for the writer; further callers wait before they may enter.
pub const WRITE_QUEUE_MAX: usize = 1_024;

/// Most operations in one transaction: bounds what one failed commit takes with it, and how long the first waits.
pub const GROUP_MAX: usize = 512;

/// What an operation works with.
pub(super) struct WriteContext {
    /// The writing connection, inside a transaction.
    pub(super) db: Connection,
    /// Number of this opening of the file.
    pub(super) boot: i64,
    pub(super) metrics: Metrics,
    nonces: RandomState,
    nonce_count: std::cell::Cell<u64>,
}

impl WriteContext {
    pub(super) fn new(db: Connection, boot: i64, metrics: Metrics) -> Self {
        WriteContext {
            db,
            boot,
            metrics,
            nonces: RandomState::new(),
            nonce_count: std::cell::Cell::new(0),
        }
    }

    /// Random part of a new lock token. A keyed hash of a counter: the key is new with every start, and a token only
    /// opens the queue of the identity that was given it.
    pub(super) fn nonce(&self) -> u64 {
        let count = self.nonce_count.get() + 1;
        self.nonce_count.set(count);
        self.nonces.hash_one(count)
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// How much of an operation can be left half done when it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// It writes with its last statement only, so there is nothing to take back.
    SingleStatement,
    /// It runs under a savepoint.
    Compound,
}

/// An operation with the way back to its caller.
trait Job: Send {
    /// Runs the operation and keeps its result. An error is the database's; the caller's own errors are results.
    fn run(&mut self, context: &WriteContext) -> Result<(), rusqlite::Error>;
    /// Tells the caller: its result, or that the group failed.
    fn finish(self: Box<Self>, group: Result<(), &StoreError>);
}

struct Operation<T, F> {
    run: Option<F>,
    shape: Shape,
    result: Option<StoreResult<T>>,
    reply: oneshot::Sender<StoreResult<T>>,
}

impl<T, F> Operation<T, F>
where
    F: FnOnce(&WriteContext) -> Result<T, Fault>,
{
    fn attempt(&mut self, context: &WriteContext) -> Result<T, Fault> {
        let Some(run) = self.run.take() else {
            return Err(Fault::content("operation", "it ran already"));
        };
        // The writer serves everyone, so a mutation that panics must not end it. What it saw is rolled back.
        let run = AssertUnwindSafe(|| run(context));
        if self.shape == Shape::SingleStatement {
            return catch_unwind(run).unwrap_or_else(|panic| Err(panicked(context, &*panic)));
        }
        context.execute("SAVEPOINT operation")?;
        let result = catch_unwind(run).unwrap_or_else(|panic| Err(panicked(context, &*panic)));
        // Some failures (disk full) make SQLite roll everything back; then the savepoint is gone with it.
        if !context.db.is_autocommit() {
            if result.is_err() {
                context.execute("ROLLBACK TO operation")?;
            }
            context.execute("RELEASE operation")?;
        }
        result
    }
}

impl<T, F> Job for Operation<T, F>
where
    T: Send,
    F: FnOnce(&WriteContext) -> Result<T, Fault> + Send,
{
    fn run(&mut self, context: &WriteContext) -> Result<(), rusqlite::Error> {
        match self.attempt(context) {
            Ok(value) => {
                self.result = Some(Ok(value));
                Ok(())
            }
            Err(Fault::Sqlite(error)) => {
                self.result = Some(Err(StoreError::Unavailable(explain(&error))));
                Err(error)
            }
            Err(fault) => {
                self.result = Some(Err(fault.into()));
                Ok(())
            }
        }
    }

    fn finish(self: Box<Self>, group: Result<(), &StoreError>) {
        let result = match (group, self.result) {
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(StoreError::Unavailable("the operation did not run".into())),
            (Err(error), _) => Err(error.clone()),
        };
        // A caller that went away does not want to know.
        let _ = self.reply.send(result);
    }
}

fn panicked(context: &WriteContext, panic: &(dyn Any + Send)) -> Fault {
    OperationPanicked.emit(&context.metrics);
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Fault::Store(StoreError::Unavailable(format!(
        "the operation panicked: {}",
        text.unwrap_or("no text")
    )))
}

/// The handle of the writer thread.
pub(super) struct Writer {
    /// `None` once it is being stopped.
    sender: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
    metrics: Metrics,
}

impl Writer {
    pub(super) fn start(context: WriteContext) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(WRITE_QUEUE_MAX);
        let metrics = context.metrics.clone();
        let thread = std::thread::Builder::new()
            .name("state-writer".into())
            .spawn(move || serve(&context, receiver))?;
        Ok(Writer {
            sender: Some(sender),
            thread: Some(thread),
            metrics,
        })
    }

    /// Runs `operation` in one of the next groups; returns when that is durable.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        shape: Shape,
        operation: impl FnOnce(&WriteContext) -> Result<T, Fault> + Send + 'static,
    ) -> StoreResult<T> {
        let stopped = || StoreError::Unavailable("the store has been closed".into());
        let sender = self.sender.as_ref().ok_or_else(stopped)?;
        let permit = sender.reserve().await.map_err(|_| stopped())?;
        let (reply, result) = oneshot::channel();
        self.metrics.queue_depth.inc();
        permit.send(Box::new(Operation {
            run: Some(operation),
            shape,
            result: None,
            reply,
        }));
        result.await.map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    /// Lets the writer finish what was handed in, and waits for it.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported when it happened.
            let _ = thread.join();
        }
    }
}

fn serve(context: &WriteContext, mut receiver: mpsc::Receiver<Box<dyn Job>>) {
    let mut failed: Option<StoreError> = None;
    let mut jobs = Vec::with_capacity(GROUP_MAX);
    while receiver.blocking_recv_many(&mut jobs, GROUP_MAX) > 0 {
        context.metrics.queue_depth.add(-(jobs.len() as i64));
        if let Some(error) = &failed {
            for job in jobs.drain(..) {
                job.finish(Err(error));
            }
            continue;
        }
        while let Some(error) = run_group(context, &mut jobs) {
            let fatal = is_final(&error);
            let reason = explain(&error);
            GroupFailed {
                operations: jobs.len(),
                reason: &reason,
                fatal,
            }
            .emit(&context.metrics);
            if fatal {
                let error = StoreError::Unavailable(reason);
                for job in jobs.drain(..) {
                    job.finish(Err(&error));
                }
                failed = Some(error);
            }
        }
    }
}

/// Runs the jobs as one transaction and answers them. An error has been answered to all jobs it concerned; those that
/// are left had no part in it.
fn run_group(context: &WriteContext, jobs: &mut Vec<Box<dyn Job>>) -> Option<rusqlite::Error> {
    if jobs.is_empty() {
        return None;
    }
    let started = Instant::now();
    let mut done = 0;
    let outcome = context.execute("BEGIN IMMEDIATE").and_then(|()| {
        for job in jobs.iter_mut() {
            done += 1;
            if let Err(error) = job.run(context)
                && (context.db.is_autocommit() || is_final(&error))
            {
                return Err(error);
            }
        }
        context.execute("COMMIT")
    });
    // A transaction that could not begin concerns everybody.
    let concerned = if done == 0 { jobs.len() } else { done };
    match outcome {
        Ok(()) => {
            GroupCommitted {
                operations: concerned,
                took: started.elapsed(),
            }
            .emit(&context.metrics);
            for job in jobs.drain(..) {
                job.finish(Ok(()));
            }
            None
        }
        Err(error) => {
            if !context.db.is_autocommit() {
                // Fails only if SQLite rolled back by itself meanwhile.
                let _ = context.execute("ROLLBACK");
            }
            let answer = StoreError::Unavailable(explain(&error));
            for job in jobs.drain(..concerned) {
                job.finish(Err(&answer));
            }
            Some(error)
        }
    }
}

#[cfg(test)]
mod tests;
