//! Records of import and export jobs.

use holdfast_model::{Error, ErrorCode, Timestamp};
use serde::{Deserialize, Serialize};

use super::files::{BlobPlace, shown};

/// Name of the blob with the lines, unless the request names another.
pub(super) const LINES_BLOB: &str = "devices.txt";
/// Name of the blob with the bad lines of an import.
pub(super) const ERRORS_BLOB: &str = "importErrors.log";
/// Longest URI and longest blob name of a request (a blob's name may have 1,024 characters).
const URI_LEN_MAX: usize = 8_192;
const BLOB_LEN_MAX: usize = 1_024;

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobKind {
    /// Blob to hub.
    Import,
    /// Hub to blob.
    Export,
}

impl JobKind {
    /// The spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::Import => "import",
            JobKind::Export => "export",
        }
    }
}

/// How a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobStatus {
    /// At work.
    Running,
    /// Ended; lines may have failed nevertheless.
    Completed,
    /// Ended early.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl JobStatus {
    /// The spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            JobStatus::Running => "running",
            JobStatus::Completed => "completed",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        }
    }
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum JobRequest {
    /// Blob to hub.
    Import {
        /// Container of the lines.
        input: String,
        /// Blob of the lines; default `devices.txt`.
        blob: Option<String>,
        /// Container for `importErrors.log`.
        output: String,
    },
    /// Hub to blob.
    Export {
        /// Container for the lines.
        output: String,
        /// Blob for the lines; default `devices.txt`.
        blob: Option<String>,
        /// Whether keys are left out.
        exclude_keys: bool,
    },
}

/// The places of a job, which are not kept: they hold signatures.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) lines: BlobPlace,
    pub(super) errors: Option<BlobPlace>,
}

impl JobRequest {
    pub(super) fn kind(&self) -> JobKind {
        match self {
            JobRequest::Import { .. } => JobKind::Import,
            JobRequest::Export { .. } => JobKind::Export,
        }
    }

    pub(super) fn places(&self) -> Result<Places, Error> {
        let place = |container: &String, blob: &str| {
            if container.len() > URI_LEN_MAX || blob.len() > BLOB_LEN_MAX || blob.is_empty() {
                return Err(Error::new(
                    ErrorCode::BlobContainerValidationError,
                    format!(
                        "a container URI can have {URI_LEN_MAX} bytes, and a blob name 1 to {BLOB_LEN_MAX}"
                    ),
                ));
            }
            Ok(BlobPlace {
                container: container.clone(),
                blob: blob.to_owned(),
            })
        };
        match self {
            JobRequest::Import { input, blob, output } => Ok(Places {
                lines: place(input, blob.as_deref().unwrap_or(LINES_BLOB))?,
                errors: Some(place(output, ERRORS_BLOB)?),
            }),
            JobRequest::Export { output, blob, .. } => Ok(Places {
                lines: place(output, blob.as_deref().unwrap_or(LINES_BLOB))?,
                errors: None,
            }),
        }
    }
}

/// A job as it is kept and shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferJob {
    /// Id, made by the hub.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub status: JobStatus,
    /// Begin, microseconds since 1970.
    started: i64,
    /// End, likewise.
    ended: Option<i64>,
    /// 0 to 100.
    pub progress: u8,
    /// Container of the lines of an import, without signature.
    pub input_container: Option<String>,
    /// Blob of the lines of an import.
    pub input_blob: Option<String>,
    /// Container that the job writes to, without signature.
    pub output_container: String,
    /// Blob of the lines of an export.
    pub output_blob: Option<String>,
    /// Whether keys are left out of an export.
    pub exclude_keys: bool,
    /// Lines read or written.
    pub lines: u64,
    /// Lines that failed.
    pub failed_lines: u64,
    /// Why it failed or was cut short, and what to do.
    pub reason: Option<String>,
}

impl TransferJob {
    pub(super) fn new(id: String, request: &JobRequest, now: Timestamp) -> Self {
        let kind = request.kind();
        let mut job = TransferJob {
            id,
            kind,
            status: JobStatus::Running,
            started: now.as_micros(),
            ended: None,
            progress: 0,
            input_container: None,
            input_blob: None,
            output_container: String::new(),
            output_blob: None,
            exclude_keys: false,
            lines: 0,
            failed_lines: 0,
            reason: None,
        };
        let or_default = |blob: &Option<String>| Some(blob.as_deref().unwrap_or(LINES_BLOB).to_owned());
        match request {
            JobRequest::Import { input, blob, output } => {
                job.input_container = Some(shown(input));
                job.input_blob = or_default(blob);
                job.output_container = shown(output);
            }
            JobRequest::Export {
                output,
                blob,
                exclude_keys,
            } => {
                job.output_container = shown(output);
                job.output_blob = or_default(blob);
                job.exclude_keys = *exclude_keys;
            }
        }
        job
    }

    pub(super) fn end(&mut self, status: JobStatus, reason: Option<String>, now: Timestamp) {
        self.status = status;
        self.reason = reason;
        self.ended = Some(now.as_micros());
        if status == JobStatus::Completed {
            self.progress = 100;
        }
    }

    /// When it began.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        Timestamp::from_micros(self.started)
    }

    /// When it ended.
    #[must_use]
    pub fn ended_at(&self) -> Option<Timestamp> {
        self.ended.map(Timestamp::from_micros)
    }
}
