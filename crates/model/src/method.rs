//! Direct methods.

use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;

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

/// Checks a call: its name, its timeouts and its payload (rest.md section 7).
///
/// # Errors
/// [`ErrorCode::ArgumentInvalid`].
pub fn check_method_call(call: &MethodCall) -> Result<(), Error> {
    check_method_name(&call.name)?;
    let invalid = |why: String| Error::new(ErrorCode::ArgumentInvalid, why);
    let (least, _, most) = limits::METHOD_RESPONSE_TIMEOUT_SECONDS;
    if !(Duration::from_secs(least)..=Duration::from_secs(most)).contains(&call.response_timeout) {
        return Err(invalid(format!(
            "responseTimeoutInSeconds must be within [{least}; {most}]."
        )));
    }
    let most = limits::METHOD_CONNECT_TIMEOUT_MAX_SECONDS;
    if call.connect_timeout > Duration::from_secs(most) {
        return Err(invalid(format!(
            "connectTimeoutInSeconds must be within [0; {most}]."
        )));
    }
    check_payload(&call.payload).map_err(|why| invalid(format!("payload {why}")))
}

/// Checks an answer.
///
/// # Errors
/// [`ErrorCode::GenericBadGateway`] when it is not JSON or larger than 128 KiB.
pub fn check_method_response(response: MethodResponse) -> Result<MethodResponse, Error> {
    match check_payload(&response.payload) {
        Ok(()) => Ok(response),
        Err(why) => Err(Error::new(
            ErrorCode::GenericBadGateway,
            format!("the client's answer {why}"),
        )),
    }
}

/// Empty, or JSON in UTF-8 of at most 128 KiB.
fn check_payload(payload: &Bytes) -> Result<(), &'static str> {
    if payload.len() > limits::METHOD_BYTES_MAX {
        return Err("is larger than 128 KiB");
    }
    if payload.is_empty() {
        return Ok(());
    }
    // Skipping values does not look at the encoding of strings, so that is checked on its own.
    let text = std::str::from_utf8(payload).map_err(|_| "is not UTF-8")?;
    serde_json::from_str::<IgnoredAny>(text)
        .map(drop)
        .map_err(|_| "is not valid JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(payload: &'static [u8]) -> MethodCall {
        MethodCall {
            name: "restart".to_owned(),
            payload: Bytes::from_static(payload),
            connect_timeout: Duration::ZERO,
            response_timeout: Duration::from_secs(30),
        }
    }

    #[test]
    fn calls_that_cannot_be_are_refused() {
        check_method_call(&call(b"")).unwrap();
        check_method_call(&call(b"{\"a\":[1]}")).unwrap();
        let named = |name: &str| MethodCall {
            name: name.to_owned(),
            ..call(b"")
        };
        let answered_within = |seconds| MethodCall {
            response_timeout: Duration::from_secs(seconds),
            ..call(b"")
        };
        let slow = MethodCall {
            connect_timeout: Duration::from_secs(301),
            ..call(b"")
        };
        for (call, word) in [
            (named(""), "methodName"),
            (named("a b"), "methodName"),
            (answered_within(4), "responseTimeoutInSeconds"),
            (answered_within(301), "responseTimeoutInSeconds"),
            (slow, "connectTimeoutInSeconds"),
            (call(b"{"), "is not valid JSON"),
            (call(b"\"\xff\""), "is not UTF-8"),
        ] {
            let error = check_method_call(&call).unwrap_err();
            assert_eq!(error.code, ErrorCode::ArgumentInvalid);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn answers_that_cannot_be_are_the_clients_fault() {
        let answer = |payload: Vec<u8>| MethodResponse {
            status: 200,
            payload: payload.into(),
        };
        let longest = format!("\"{}\"", "x".repeat(limits::METHOD_BYTES_MAX - 2));
        check_method_response(answer(longest.clone().into_bytes())).unwrap();
        for payload in [format!(" {longest}").into_bytes(), b"nothing".to_vec()] {
            let error = check_method_response(answer(payload)).unwrap_err();
            assert_eq!(error.code, ErrorCode::GenericBadGateway);
        }
    }
}
