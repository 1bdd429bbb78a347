//! The service side of device provisioning (REST contract, section 16), and Holdfast's own operations for it below
//! `/holdfast/v1`: linked hubs and the policies of the provisioning service.
//!
//! Errors here have the flat shape, whatever the operation; the middleware that every one of these routes is declared
//! with sees to that.

pub(crate) mod access;
pub(crate) mod certificates;
pub(crate) mod enrollments;
pub(crate) mod groups;
pub(crate) mod linked_hubs;
pub(crate) mod policies;
mod query;
pub(crate) mod registrations;
mod spec;

use axum::http::{HeaderMap, header};
use holdfast_ports::enrollment::Expected;
use holdfast_wire::etag::IfMatch;

/// `If-Match` of a request.
fn expected(headers: &HeaderMap) -> Expected {
    let text = headers
        .get(header::IF_MATCH)
        .map(|value| value.to_str().unwrap_or("?"));
    match IfMatch::identity(text) {
        IfMatch::Absent => Expected::Whatever,
        IfMatch::Any => Expected::Present,
        IfMatch::Version(version) => Expected::Version(version),
        // A tag that was never given out; no entry has this version.
        IfMatch::Other(_) => Expected::Version(u64::MAX),
    }
}
