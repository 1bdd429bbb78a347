//! Direct methods.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorCode};
use crate::limits;

/// A direct method call as a service asks for it.
#[derive(Clone, Debug)]
pub struct MethodCall {
    /// Name of the method; see [`check_method_name`].
    pub name: String,
    /// JSON text handed to the device; empty for none.
    pub payload: Bytes,
    /// How long to wait for the target to connect and subscribe; zero means it must be online now.
    pub connect_timeout: Duration,
    /// How long to wait for the answer.
    pub response_timeout: Duration,
}

/// A direct method request on its way to one session.
#[derive(Clone, Debug)]
pub struct MethodRequest {
    /// Correlates the answer; short, of `[0-9a-f-]`, unique within the session.
    pub request_id: u64,
    /// Name of the method.
    pub name: String,
    /// JSON text, possibly empty.
    pub payload: Bytes,
}

/// What the device answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MethodResponse {
    /// Status chosen by the device; never becomes the HTTP status.
    pub status: i64,
    /// JSON text, possibly empty (then the service sees `null`).
    pub payload: Bytes,
}

/// Checks a method name: 1 to 100 printable ASCII characters without separators (rest.md section 7).
///
/// # Errors
/// [`ErrorCode::ArgumentInvalid`].
pub fn check_method_name(name: &str) -> Result<(), Error> {
    const SEPARATORS: &[u8] = b"$()<>@,;:\\\"/[]?={} \t";
    let fits = !name.is_empty()
        && name.len() <= limits::METHOD_NAME_LEN_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !SEPARATORS.contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(Error::new(
            ErrorCode::ArgumentInvalid,
            format!(
                "methodName must have 1 to {} printable ASCII characters without $ ( ) < > @ , ; : \\ \" / [ ] ? = {{ }} and space",
                limits::METHOD_NAME_LEN_MAX
            ),
        ))
    }
}
