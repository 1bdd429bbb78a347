//! The errors of the Blob service that a client can see.

/// Why a request is refused. The names and status codes are those of the Blob service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct BlobError {
    /// HTTP status.
    pub status: u16,
    /// Value of `x-ms-error-code`.
    pub code: &'static str,
    /// Text for people. Never holds a signature.
    pub message: String,
}

impl BlobError {
    /// An error with a text.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        BlobError {
            status,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(403, "AuthenticationFailed", message)
    }

    pub(crate) fn signature_ended() -> Self {
        Self::unauthenticated("The signature has been ended: its upload was notified.")
    }

    pub(crate) fn container_missing() -> Self {
        Self::new(
            404,
            "ContainerNotFound",
            "The specified container does not exist.",
        )
    }

    pub(crate) fn blob_missing() -> Self {
        Self::new(404, "BlobNotFound", "The specified blob does not exist.")
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        Self::new(
            413,
            "RequestBodyTooLarge",
            format!("The request body is larger than the {limit} bytes that this operation takes."),
        )
    }

    pub(crate) fn header(name: &str) -> Self {
        Self::new(
            400,
            "InvalidHeaderValue",
            format!("The value of the header {name} is not valid."),
        )
    }

    pub(crate) fn query(name: &str) -> Self {
        Self::new(
            400,
            "InvalidQueryParameterValue",
            format!("The value of the query parameter {name} is not valid."),
        )
    }
}

impl From<std::io::Error> for BlobError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return disk_full();
        }
        failed(&error)
    }
}

impl From<rusqlite::Error> for BlobError {
    fn from(error: rusqlite::Error) -> Self {
        if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) {
            return disk_full();
        }
        failed(&error)
    }
}

/// 507 and not 503: clients repeat a 503 at once, and an upload of gigabytes frees no disk.
pub(crate) fn disk_full() -> BlobError {
    BlobError::new(
        507,
        "InsufficientStorage",
        "The disk of the blob store is full; free some space, then upload again.",
    )
}

fn failed(error: &dyn std::fmt::Display) -> BlobError {
    holdfast_observe::tracing::error!(%error, "the blob store cannot use its disk");
    BlobError::new(
        500,
        "InternalError",
        "The blob store cannot use its disk; its log tells why.",
    )
}
