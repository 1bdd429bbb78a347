//! What an engine's answer means.

use bytes::Bytes;
use holdfast_agent::runtime::RuntimeError;
use hyper::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connection::MESSAGE_BYTES_MAX;

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// The engine's words: `message` of its JSON, else the text as it came.
pub(crate) fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(parsed) => parsed.message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(MESSAGE_BYTES_MAX)]).into_owned(),
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        "it gave no reason".to_owned()
    } else {
        trimmed.to_owned()
    }
}

/// The error that an answer without success stands for.
pub(crate) fn refusal(status: StatusCode, body: &[u8]) -> RuntimeError {
    let message = message(body);
    match status {
        StatusCode::NOT_FOUND => RuntimeError::NotFound(message),
        StatusCode::CONFLICT => RuntimeError::Conflict(message),
        // Podman tells a taken name so.
        StatusCode::INTERNAL_SERVER_ERROR if message.contains("already in use") => {
            RuntimeError::Conflict(message)
        }
        _ => RuntimeError::Refused {
            status: status.as_u16(),
            message,
        },
    }
}

/// The body of a successful answer; an error for any other.
pub(crate) fn success((status, body): (StatusCode, Bytes)) -> Result<Bytes, RuntimeError> {
    if status.is_success() {
        Ok(body)
    } else {
        Err(refusal(status, &body))
    }
}

/// Reads JSON. What cannot be read is reported as an answer of the engine, which it is.
pub(crate) fn json<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, RuntimeError> {
    serde_json::from_slice(body).map_err(|error| RuntimeError::Refused {
        status: 200,
        message: format!("its answer to {what} cannot be read: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_errors() {
        let body = br#"{"message":"No such container: x"}"#;
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, body),
            RuntimeError::NotFound("No such container: x".to_owned())
        );
        assert!(matches!(
            refusal(StatusCode::CONFLICT, body),
            RuntimeError::Conflict(_)
        ));
        let podman =
            br#"{"cause":"x","message":"the container name \"a\" is already in use","response":500}"#;
        assert!(matches!(
            refusal(StatusCode::INTERNAL_SERVER_ERROR, podman),
            RuntimeError::Conflict(_)
        ));
        assert_eq!(
            refusal(StatusCode::BAD_REQUEST, b"page not found\n").to_string(),
            "the container engine answered 400: page not found"
        );
        assert!(
            refusal(StatusCode::BAD_GATEWAY, b"")
                .to_string()
                .contains("no reason")
        );
    }
}
