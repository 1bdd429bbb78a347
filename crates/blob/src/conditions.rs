//! Conditional headers.

use axum::http::HeaderMap;

use crate::error::BlobError;
use crate::signature::parse_http_date;
use crate::store::Blob;

/// Checks `If-Match`, `If-None-Match`, `If-Modified-Since` and `If-Unmodified-Since` against a blob that is there or not.
pub(crate) fn check(headers: &HeaderMap, blob: Option<&Blob>, reading: bool) -> Result<(), BlobError> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is = |wanted: &str| match (wanted.trim(), blob) {
        ("*", found) => found.is_some(),
        (tags, Some(blob)) => tags
            .split(',')
            .any(|tag| tag.trim().trim_matches('"') == blob.etag),
        (_, None) => false,
    };
    let failed = || BlobError::new(412, "ConditionNotMet", "The condition of the request is not met.");
    let same = || match (reading, blob) {
        (true, _) => BlobError::new(304, "ConditionNotMet", "The blob has not changed."),
        (false, Some(_)) if value("if-none-match") == Some("*") => {
            BlobError::new(409, "BlobAlreadyExists", "The specified blob already exists.")
        }
        _ => failed(),
    };
    let date = |name: &'static str| match value(name) {
        None => Ok(None),
        Some(text) => parse_http_date(text)
            .map(Some)
            .ok_or_else(|| BlobError::header(name)),
    };
    if value("if-match").is_some_and(|wanted| !is(wanted)) {
        return Err(failed());
    }
    if value("if-none-match").is_some_and(is) {
        return Err(same());
    }
    let modified = blob.map(|blob| blob.modified_at.as_seconds());
    if let (Some(since), Some(modified)) = (date("if-modified-since")?, modified)
        && modified <= since
    {
        return Err(same());
    }
    if let (Some(since), Some(modified)) = (date("if-unmodified-since")?, modified)
        && modified > since
    {
        return Err(failed());
    }
    Ok(())
}
