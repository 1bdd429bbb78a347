//! Carrying out an import.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use holdfast_hub::{ImportEntry, ImportMode};
use holdfast_model::{Error, ErrorCode};
use tokio::sync::mpsc;

use super::errors::ImportErrors;
use super::lines::Lines;
use super::parse::{Batcher, Parsed};
use super::spool::Spool;
use super::{BadLine, LineError, LineFormat, Progress, Transfer};

/// Batches that are parsed and wait for the store.
const BATCHES_WAITING_MAX: usize = 2;
/// Times that lines put aside are tried; an edge hierarchy is five levels deep, and modules come on top.
const PASSES_MAX: usize = 8;

/// What an import that came to its end has done.
#[derive(Debug)]
pub struct ImportOutcome {
    /// Lines that were not blank.
    pub lines: u64,
    /// Lines carried out.
    pub imported: u64,
    /// Lines that were not.
    pub errors: ImportErrors,
}

/// Why an import ended early. What was imported until then stays.
#[derive(Debug)]
pub struct ImportStopped {
    /// The cause, for the client.
    pub error: Error,
    /// Whether that was [`Progress::cancel`].
    pub cancelled: bool,
    /// How far it had come.
    pub so_far: ImportOutcome,
}

/// An import under way.
struct Import<'a> {
    transfer: &'a Transfer,
    progress: &'a Arc<Progress>,
    errors: ImportErrors,
    lines: u64,
    imported: u64,
}

/// What to do with a line whose device or parent is not there.
enum Absent<'a> {
    PutAside(&'a mut Spool),
    Note,
}

impl Transfer {
    /// Imports all lines of `input`; its error is the reason why it broke off.
    ///
    /// # Errors
    /// [`ImportStopped`].
    pub async fn import(
        &self,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
        progress: &Arc<Progress>,
    ) -> Result<ImportOutcome, Box<ImportStopped>> {
        let mut import = Import {
            transfer: self,
            progress,
            errors: ImportErrors::new(Arc::clone(&self.work_dir)),
            lines: 0,
            imported: 0,
        };
        let result = import.run(input).await;
        let so_far = ImportOutcome {
            lines: import.lines,
            imported: import.imported,
            errors: import.errors,
        };
        self.metrics.lines_imported.add(so_far.imported);
        self.metrics.lines_failed.add(so_far.errors.count());
        match result {
            Ok(()) => Ok(so_far),
            Err(error) => Err(Box::new(ImportStopped {
                error,
                cancelled: progress.is_cancelled(),
                so_far,
            })),
        }
    }
}

impl Import<'_> {
    async fn run(
        &mut self,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<(), Error> {
        let mut aside = Spool::new(&self.transfer.work_dir).map_err(|error| disk(&error))?;
        let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let format = Arc::clone(&self.transfer.format);
        let progress = Arc::clone(self.progress);
        // Dropped with this future, and then the input with it.
        let mut parser = tokio::task::JoinSet::new();
        parser.spawn(parse(format, input, sender, progress));
        while let Some(batch) = batches.recv().await {
            self.lines += batch.len() as u64;
            Progress::add(&self.progress.lines, batch.len());
            self.carry_out(batch, Absent::PutAside(&mut aside)).await?;
        }
        match parser.join_next().await {
            Some(Ok(ended)) => ended?,
            _ => return Err(Error::new(ErrorCode::ServerError, "reading the lines has failed")),
        }
        self.come_back(aside).await
    }

    /// Tries the lines put aside until nothing changes any more; then those that are left are wrong.
    async fn come_back(&mut self, mut aside: Spool) -> Result<(), Error> {
        for _ in 0..PASSES_MAX {
            let waiting = aside.lines();
            if waiting == 0 {
                return Ok(());
            }
            let mut next = Spool::new(&self.transfer.work_dir).map_err(|error| disk(&error))?;
            self.try_again(aside, Some(&mut next)).await?;
            aside = next;
            if aside.lines() == waiting {
                break;
            }
        }
        self.try_again(aside, None).await
    }

    async fn try_again(&mut self, lines: Spool, mut next: Option<&mut Spool>) -> Result<(), Error> {
        let format = Arc::clone(&self.transfer.format);
        let mut reader = lines.read().map_err(|error| disk(&error))?;
        let mut batcher = Batcher::default();
        loop {
            let line = reader.next().map_err(|error| disk(&error))?;
            let (batch, ended) = match line {
                Some(line) => (batcher.add(&*format, line), false),
                None => (batcher.take(), true),
            };
            if let Some(batch) = batch {
                let absent = next.as_deref_mut().map_or(Absent::Note, Absent::PutAside);
                self.carry_out(batch, absent).await?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn carry_out(&mut self, batch: Vec<Parsed>, mut absent: Absent<'_>) -> Result<(), Error> {
        if self.progress.is_cancelled() {
            return Err(Error::new(
                ErrorCode::InvalidOperation,
                "the import was cancelled",
            ));
        }
        let (mut entries, mut places, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for line in batch {
            match line.entry {
                Ok(entry) => {
                    entries.push(entry);
                    places.push((line.number, line.text));
                }
                Err(bad) => failures.push((line.number, bad)),
            }
        }
        let outcomes = self.transfer.hub.import(&entries).await;
        let mut unavailable = None;
        for ((entry, (number, text)), outcome) in entries.into_iter().zip(places).zip(outcomes) {
            match outcome {
                Ok(()) => self.imported += 1,
                Err(error) if error.code == ErrorCode::ServiceUnavailable => unavailable = Some(error),
                Err(error) => {
                    if let Absent::PutAside(spool) = &mut absent
                        && may_come_later(&entry, &error)
                        && spool.add(number, &text).map_err(|error| disk(&error))?
                    {
                        continue;
                    }
                    let bad = BadLine {
                        device_id: Some(entry.entry.device_id),
                        module_id: entry.entry.module_id,
                        error,
                    };
                    failures.push((number, bad));
                }
            }
        }
        failures.sort_by_key(|(number, ..)| *number);
        for (number, bad) in failures {
            self.note(number, &bad)?;
        }
        unavailable.map_or(Ok(()), Err)
    }

    fn note(&mut self, line: u64, bad: &BadLine) -> Result<(), Error> {
        Progress::add(&self.progress.failed, 1);
        let error = LineError {
            line,
            device_id: bad.device_id.as_deref(),
            module_id: bad.module_id.as_deref(),
            error: &bad.error,
        };
        self.errors
            .note(&*self.transfer.format, &error)
            .map_err(|error| disk(&error))
    }
}

/// Whether the reason is a device that is not there, which a later line may bring.
fn may_come_later(entry: &ImportEntry, error: &Error) -> bool {
    match error.code {
        ErrorCode::InvalidDeviceScope => true,
        ErrorCode::DeviceNotFound => {
            entry.entry.module_id.is_some()
                && matches!(
                    entry.entry.mode,
                    ImportMode::Create | ImportMode::CreateOrUpdate | ImportMode::CreateOrUpdateIfMatchETag
                )
        }
        _ => false,
    }
}

/// Reads the input and makes batches until it ends or nobody takes them.
async fn parse(
    format: Arc<dyn LineFormat>,
    input: impl Stream<Item = Result<Bytes, String>>,
    batches: mpsc::Sender<Vec<Parsed>>,
    progress: Arc<Progress>,
) -> Result<(), Error> {
    let mut input = std::pin::pin!(input);
    let (mut lines, mut batcher) = (Lines::default(), Batcher::default());
    let mut ready = Vec::new();
    while let Some(piece) = input.next().await {
        let piece = piece.map_err(|reason| Error::new(ErrorCode::ArgumentInvalid, reason))?;
        let size = piece.len();
        lines.push(piece, &mut |line| ready.extend(batcher.add(&*format, line)));
        for batch in ready.drain(..) {
            if batches.send(batch).await.is_err() {
                return Ok(());
            }
        }
        Progress::add(&progress.done, size);
    }
    lines.finish(&mut |line| ready.extend(batcher.add(&*format, line)));
    ready.extend(batcher.take());
    for batch in ready {
        if batches.send(batch).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A file of the import's own cannot be used.
pub(super) fn disk(error: &std::io::Error) -> Error {
    holdfast_observe::tracing::error!(%error, "a working file of an import or export cannot be used");
    Error::new(
        ErrorCode::ServiceUnavailable,
        "the hub cannot use its working files; its log has the details",
    )
}
