//! Where a reader begins (AMQP contract, section 5.4).

use holdfast_model::Timestamp;

/// Key of the selector in a source's filter set, and one of the two descriptors of its value.
pub const SELECTOR_NAME: &str = "apache.org:selector-filter:string";
/// The other descriptor.
pub const SELECTOR_CODE: u64 = 0x0000_468C_0000_0004;

const PREFIX: &str = "amqp.annotation.";
const LATEST: &str = "@latest";

/// Where a reader of a partition begins. Offsets are sequence numbers as text, so both become [`StartPosition::From`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartPosition {
    /// With the event of this sequence number, or the oldest after it.
    From(u64),
    /// With the next new event.
    Latest,
    /// With the first event enqueued at this time or later.
    EnqueuedAt(Timestamp),
    /// With the first event enqueued later than this.
    EnqueuedAfter(Timestamp),
}

/// Why a selector was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// Not of the form `amqp.annotation.{key} > '{value}'`.
    #[error("the selector `{0}` is not of the form amqp.annotation.x-opt-offset > '…'")]
    Malformed(String),
    /// A number that no event can have.
    #[error("the selector's value `{0}` is out of range")]
    OutOfRange(String),
}

/// Parses a selector. Values stand in single quotes or bare.
///
/// # Errors
/// [`SelectorError`].
///
/// ```
/// use holdfast_wire::links::{StartPosition, parse_selector};
/// let start = parse_selector("amqp.annotation.x-opt-sequence-number > '41'")?;
/// assert_eq!(start, StartPosition::From(42));
/// # Ok::<(), holdfast_wire::links::SelectorError>(())
/// ```
pub fn parse_selector(text: &str) -> Result<StartPosition, SelectorError> {
    let malformed = || SelectorError::Malformed(text.to_owned());
    let rest = text.trim().strip_prefix(PREFIX).ok_or_else(malformed)?;
    let (key, rest) = rest.split_once('>').ok_or_else(malformed)?;
    let (inclusive, value) = match rest.strip_prefix('=') {
        Some(value) => (true, value.trim()),
        None => (false, rest.trim()),
    };
    let value = match value.strip_prefix('\'') {
        Some(quoted) => quoted.strip_suffix('\'').ok_or_else(malformed)?,
        None => value,
    };
    let key = key.trim().to_ascii_lowercase();
    if matches!(key.as_str(), "x-opt-offset" | "x-opt-sequence-number") && value.eq_ignore_ascii_case(LATEST)
    {
        return Ok(StartPosition::Latest);
    }
    let number: i64 = value.trim().parse().map_err(|_| {
        if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
            SelectorError::OutOfRange(value.to_owned())
        } else {
            malformed()
        }
    })?;
    match key.as_str() {
        "x-opt-offset" | "x-opt-sequence-number" => match (number, inclusive) {
            (-1, _) => Ok(StartPosition::From(0)),
            (number, inclusive) => {
                let number =
                    u64::try_from(number).map_err(|_| SelectorError::OutOfRange(value.to_owned()))?;
                Ok(StartPosition::From(number + u64::from(!inclusive)))
            }
        },
        "x-opt-enqueued-time" | "x-opt-enqueuedtimeutc" => {
            let micros = number
                .checked_mul(1_000)
                .ok_or_else(|| SelectorError::OutOfRange(value.to_owned()))?;
            let time = Timestamp::from_micros(micros);
            Ok(if inclusive {
                StartPosition::EnqueuedAt(time)
            } else {
                StartPosition::EnqueuedAfter(time)
            })
        }
        _ => Err(malformed()),
    }
}
