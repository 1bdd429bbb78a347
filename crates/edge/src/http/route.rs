//! Versions and verbs of routes.

use http::Method;

use super::{Answer, Call};

/// Versions of the workload and management APIs, oldest first.
pub const VERSIONS: [&str; 7] = [
    "2018-06-28",
    "2019-01-30",
    "2019-10-22",
    "2019-11-05",
    "2020-07-07",
    "2021-12-07",
    "2022-08-03",
];

/// Refuses a call whose `api-version` is missing or unknown (400), or older than the route (404).
///
/// # Errors
/// The answer.
pub fn check_version(call: &Call, since: &str) -> Result<(), Answer> {
    check_version_of(call, &VERSIONS, since)
}

/// The same for an API with other versions.
///
/// # Errors
/// The answer.
pub fn check_version_of(call: &Call, versions: &[&str], since: &str) -> Result<(), Answer> {
    let Some(version) = call.parameter("api-version") else {
        return Err(Answer::error(400, "the query parameter api-version is missing"));
    };
    if !versions.contains(&version) {
        let known = versions.join(", ");
        return Err(Answer::error(
            400,
            &format!("the api-version is not known; it is one of {known}"),
        ));
    }
    // Dates compare as text.
    if version < since {
        return Err(not_found());
    }
    Ok(())
}

/// No such path.
#[must_use]
pub fn not_found() -> Answer {
    Answer::error(404, "not found")
}

/// The original answers 400 where others answer 405.
///
/// # Errors
/// The answer.
pub fn check_method(call: &Call, allowed: &[Method]) -> Result<(), Answer> {
    if allowed.contains(&call.method) {
        return Ok(());
    }
    Err(Answer::error(400, "method not allowed"))
}
