//! Import and export jobs: one at a time, in the background, between the hub and blobs (rest.md section 11).
//!
//! A job's record is stored when it begins, every few seconds while it runs and when it ends; the URIs with their
//! signatures are not. So a job that was under way when the hub stopped cannot go on: at the next start it is marked as
//! failed, with the number of lines that it had come to. An import is repeated with the same request.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::clock::Clock;
use holdfast_ports::settings::SettingsStore;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;

use super::errors::ImportErrors;
use super::events::JobEnded;
use super::job::Places;
use super::{BlobPlace, JobRequest, JobStatus, Progress, Transfer, TransferFiles, TransferJob};

/// Key of the records among the hub's settings.
const RECORDS: &str = "transfer.jobs";
/// Jobs that are remembered.
const HISTORY_MAX: usize = 50;
/// Pieces of a blob that wait to be parsed or written.
const PIECES_WAITING_MAX: usize = 4;
/// Size of a piece that is read.
const PIECE_BYTES: usize = 256 * 1024;
/// How long a stopping hub waits for a job to end; one that waits for a blob longer is marked as failed at the next start.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the record of a running job is stored.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// Runs import and export jobs.
pub struct TransferJobs {
    transfer: Transfer,
    files: Arc<dyn TransferFiles>,
    settings: Arc<dyn SettingsStore>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Keeps the stored list in the order of its changes.
    saving: tokio::sync::Mutex<()>,
    stopping: AtomicBool,
    ended: Notify,
}

#[derive(Default)]
struct State {
    /// Newest first.
    jobs: Vec<TransferJob>,
    running: Option<(String, Arc<Progress>)>,
    /// Tells jobs of the same microsecond apart.
    count: u64,
}

/// How a job ended.
struct End {
    status: JobStatus,
    reason: Option<String>,
}

impl TransferJobs {
    /// Reads the records; a job that was under way is marked as failed.
    ///
    /// # Errors
    /// `ServiceUnavailable` when the records cannot be read or written.
    pub async fn new(
        transfer: Transfer,
        files: Arc<dyn TransferFiles>,
        settings: Arc<dyn SettingsStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, Error> {
        let stored = settings
            .value(RECORDS)
            .await
            .map_err(|error| unavailable(&error))?;
        let mut jobs: Vec<TransferJob> = match stored {
            None => Vec::new(),
            Some(text) => serde_json::from_str(&text).unwrap_or_else(|error| {
                holdfast_observe::tracing::warn!(%error, "the history of import and export jobs cannot be read and starts anew");
                Vec::new()
            }),
        };
        let mut changed = false;
        for job in jobs.iter_mut().filter(|job| job.status == JobStatus::Running) {
            changed = true;
            let reason = interrupted(job.lines);
            job.end(JobStatus::Failed, Some(reason), clock.now());
        }
        let this = Arc::new(TransferJobs {
            transfer,
            files,
            settings,
            clock,
            state: Mutex::new(State {
                jobs,
                ..State::default()
            }),
            saving: tokio::sync::Mutex::new(()),
            stopping: AtomicBool::new(false),
            ended: Notify::new(),
        });
        if changed {
            this.save().await?;
        }
        Ok(this)
    }

    /// The engine that jobs use, for transfers without a job.
    #[must_use]
    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// Starts a job; returns it as it begins.
    ///
    /// # Errors
    /// `BlobContainerValidationError`; `JobQuotaExceeded` while another one runs; `ServiceUnavailable`.
    pub async fn create(self: &Arc<Self>, request: JobRequest) -> Result<TransferJob, Error> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Error::new(
                ErrorCode::ServiceUnavailable,
                "the hub is stopping; try again later",
            ));
        }
        let places = request.places()?;
        self.files.check(&places.lines)?;
        if let Some(errors) = &places.errors {
            self.files.check(errors)?;
        }
        let now = self.clock.now();
        let progress = Arc::new(Progress::default());
        let job = {
            let mut state = self.state.lock();
            if let Some((running, _)) = &state.running {
                return Err(Error::new(
                    ErrorCode::JobQuotaExceeded,
                    format!("the import or export job {running} is under way; one can run at a time"),
                ));
            }
            state.count += 1;
            let id = format!("{:016x}{:08x}", now.as_micros(), state.count);
            let job = TransferJob::new(id, &request, now);
            state.running = Some((job.id.clone(), Arc::clone(&progress)));
            state.jobs.insert(0, job.clone());
            state.jobs.truncate(HISTORY_MAX);
            job
        };
        if let Err(error) = self.save().await {
            let mut state = self.state.lock();
            state.running = None;
            state.jobs.retain(|kept| kept.id != job.id);
            return Err(error);
        }
        let (this, id) = (Arc::clone(self), job.id.clone());
        tokio::spawn(async move { this.run(id, request, places, progress).await });
        Ok(job)
    }

    /// All jobs that are remembered, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<TransferJob> {
        let state = self.state.lock();
        state
            .jobs
            .iter()
            .map(|job| with_progress(job, &state.running))
            .collect()
    }

    /// One job.
    ///
    /// # Errors
    /// `JobNotFound`.
    pub fn get(&self, id: &str) -> Result<TransferJob, Error> {
        let state = self.state.lock();
        let found = state.jobs.iter().find(|job| job.id == id);
        found
            .map(|job| with_progress(job, &state.running))
            .ok_or_else(|| not_found(id))
    }

    /// Asks a running job to stop, which it does at the next batch; a job that has ended stays as it is.
    ///
    /// # Errors
    /// `JobNotFound`.
    pub fn cancel(&self, id: &str) -> Result<TransferJob, Error> {
        if let Some((running, progress)) = &self.state.lock().running
            && running == id
        {
            progress.cancel();
        }
        self.get(id)
    }

    /// Ends the running job, because the hub stops.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let ended = self.ended.notified();
        let mut ended = std::pin::pin!(ended);
        // Listen first, look second: an end that comes in between is not missed.
        ended.as_mut().enable();
        let running = self.state.lock().running.clone();
        if let Some((_, progress)) = running {
            progress.cancel();
            // In vain only if the job waits for a blob; the next start finds it unfinished.
            let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        }
    }

    async fn run(self: Arc<Self>, id: String, request: JobRequest, places: Places, progress: Arc<Progress>) {
        let work = async {
            match &request {
                JobRequest::Import { .. } => self.import(places, &progress).await,
                JobRequest::Export { exclude_keys, .. } => {
                    self.export(places.lines, *exclude_keys, &progress).await
                }
            }
        };
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(SAVE_INTERVAL);
        ticks.tick().await;
        let end = loop {
            tokio::select! {
                end = work.as_mut() => break end,
                _ = ticks.tick() => {
                    self.update(&id, &progress, None);
                    // The next one makes good for it.
                    let _ = self.save().await;
                }
            }
        };
        let mut end = end;
        if end.status == JobStatus::Cancelled && self.stopping.load(Ordering::SeqCst) {
            end.status = JobStatus::Failed;
            end.reason = Some(interrupted(progress.lines()));
        }
        JobEnded {
            job_id: &id,
            kind: request.kind(),
            status: end.status,
            lines: progress.lines(),
            failed: progress.failed(),
            reason: end.reason.as_deref().unwrap_or_default(),
        }
        .emit(&self.transfer.metrics);
        self.update(&id, &progress, Some(end));
        if let Err(error) = self.save().await {
            holdfast_observe::tracing::warn!(job = id, %error, "the end of a job is not stored; after a restart it will count as failed");
        }
        self.ended.notify_waiters();
    }

    fn update(&self, id: &str, progress: &Progress, end: Option<End>) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        if end.is_some() {
            state.running = None;
        }
        if let Some(job) = state.jobs.iter_mut().find(|job| job.id == id) {
            show(job, progress);
            if let Some(end) = end {
                job.end(end.status, end.reason, now);
            }
        }
    }

    async fn save(&self) -> Result<(), Error> {
        let _order = self.saving.lock().await;
        let text = serde_json::to_string(&self.state.lock().jobs).map_err(|error| {
            Error::new(
                ErrorCode::ServerError,
                format!("the jobs cannot be written: {error}"),
            )
        })?;
        let saved = self.settings.set_value(RECORDS, &text).await;
        saved.map_err(|error| unavailable(&error))
    }

    async fn import(&self, places: Places, progress: &Arc<Progress>) -> End {
        let (sender, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let (files, lines) = (Arc::clone(&self.files), places.lines);
        let reading = Arc::clone(progress);
        // Ends by itself when nobody takes its pieces any more.
        spawn_blocking(move || read_blob(&*files, &lines, &reading, &sender));
        let input = stream::poll_fn(move |context| pieces.poll_recv(context));
        let (outcome, mut end) = match self.transfer.import(input, progress).await {
            Ok(outcome) => (
                outcome,
                End {
                    status: JobStatus::Completed,
                    reason: None,
                },
            ),
            Err(stopped) => {
                let imported = stopped.so_far.imported;
                let reason = format!(
                    "{}; {imported} lines had been imported and stay",
                    stopped.error.message
                );
                let status = if stopped.cancelled {
                    JobStatus::Cancelled
                } else {
                    JobStatus::Failed
                };
                (
                    stopped.so_far,
                    End {
                        status,
                        reason: Some(reason),
                    },
                )
            }
        };
        let failed = outcome.errors.count();
        let Some(place) = places.errors else { return end };
        let told = self.write_errors(place, outcome.errors).await;
        let note = match (failed, told) {
            (_, Err(reason)) => Some(format!(
                "{failed} lines failed, and their errors cannot be written: {reason}"
            )),
            (0, Ok(())) => None,
            (_, Ok(())) => Some(format!(
                "{failed} lines failed: see importErrors.log in the output container"
            )),
        };
        if let Some(note) = note {
            end.reason = Some(match end.reason {
                Some(reason) => format!("{reason}; {note}"),
                None => note,
            });
        }
        end
    }

    /// Writes the log of bad lines, an empty one too: a log of an earlier import would be misleading.
    async fn write_errors(&self, place: BlobPlace, errors: ImportErrors) -> Result<(), String> {
        let files = Arc::clone(&self.files);
        let written = spawn_blocking(move || {
            let mut writer = files.create(&place)?;
            let file = errors.into_file().map_err(|error| error.to_string())?;
            if let Some(mut file) = file {
                std::io::copy(&mut file, &mut writer).map_err(|error| error.to_string())?;
            }
            writer.finish()
        });
        written
            .await
            .unwrap_or_else(|_| Err("writing was cut off".to_owned()))
    }

    async fn export(&self, place: BlobPlace, exclude_keys: bool, progress: &Arc<Progress>) -> End {
        let (sender, pieces) = mpsc::channel::<Bytes>(PIECES_WAITING_MAX);
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let files = Arc::clone(&self.files);
        let writing = spawn_blocking(move || write_blob(&*files, &place, pieces, finished));
        let mut lines = std::pin::pin!(self.transfer.export(exclude_keys, progress));
        let mut failure = None;
        while let Some(piece) = lines.next().await {
            match piece {
                Ok(piece) => {
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if failure.is_none() {
            // Only then is the blob made: half an export must not look like a whole one.
            let _ = finish.send(());
        } else {
            drop(finish);
        }
        drop(sender);
        let written = writing
            .await
            .unwrap_or_else(|_| Err("writing was cut off".to_owned()));
        match (failure, written) {
            (Some(_), _) if progress.is_cancelled() => End {
                status: JobStatus::Cancelled,
                reason: None,
            },
            (Some(error), _) => End {
                status: JobStatus::Failed,
                reason: Some(error.message),
            },
            (None, Err(reason)) => End {
                status: JobStatus::Failed,
                reason: Some(reason),
            },
            (None, Ok(())) => End {
                status: JobStatus::Completed,
                reason: None,
            },
        }
    }
}

impl std::fmt::Debug for TransferJobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransferJobs").finish_non_exhaustive()
    }
}

fn read_blob(
    files: &dyn TransferFiles,
    place: &BlobPlace,
    progress: &Progress,
    pieces: &mpsc::Sender<Result<Bytes, String>>,
) {
    let mut reader = match files.open(place) {
        Ok(reader) => reader,
        Err(reason) => {
            // Nobody hears it only if the import has ended.
            let _ = pieces.blocking_send(Err(reason));
            return;
        }
    };
    progress.total.store(reader.size.unwrap_or(0), Ordering::Relaxed);
    let mut read = 0u64;
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        match reader.bytes.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => {
                read += length as u64;
                piece.truncate(length);
                if pieces.blocking_send(Ok(piece.into())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = pieces.blocking_send(Err(format!(
                    "reading {} broke off after {read} bytes: {error}",
                    place.redacted()
                )));
                return;
            }
        }
    }
}

fn write_blob(
    files: &dyn TransferFiles,
    place: &BlobPlace,
    mut pieces: mpsc::Receiver<Bytes>,
    mut finished: tokio::sync::oneshot::Receiver<()>,
) -> Result<(), String> {
    let mut writer = files.create(place)?;
    while let Some(piece) = pieces.blocking_recv() {
        writer
            .write_all(&piece)
            .map_err(|error| format!("cannot write {}: {error}", place.redacted()))?;
    }
    match finished.try_recv() {
        Ok(()) => writer.finish(),
        Err(_) => Err("the export did not come to its end".to_owned()),
    }
}

fn with_progress(job: &TransferJob, running: &Option<(String, Arc<Progress>)>) -> TransferJob {
    let mut job = job.clone();
    if let Some((id, progress)) = running
        && *id == job.id
    {
        show(&mut job, progress);
    }
    job
}

fn show(job: &mut TransferJob, progress: &Progress) {
    job.progress = progress.percent();
    job.lines = progress.lines();
    job.failed_lines = progress.failed();
}

fn interrupted(lines: u64) -> String {
    format!(
        "the hub was stopped while the job ran, after {lines} lines; what was done until then stays, and the same request \
         can be made again"
    )
}

fn not_found(id: &str) -> Error {
    Error::new(
        ErrorCode::JobNotFound,
        format!("there is no import or export job {id:?}"),
    )
}

fn unavailable(error: &holdfast_ports::StoreError) -> Error {
    holdfast_observe::tracing::error!(%error, "the records of import and export jobs cannot be used");
    Error::new(
        ErrorCode::ServiceUnavailable,
        "the hub cannot reach its storage; try again later",
    )
}
