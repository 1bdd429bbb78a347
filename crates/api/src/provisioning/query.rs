//! Queries of the provisioning service: `SELECT *` of one kind, in pages.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Error;
use holdfast_wire::headers;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::invalid;
use crate::extract::body;
use crate::reply::{Failure, Reply, json};

/// Most items of a page, and how many there are if the client does not say.
const PAGE_MAX: usize = 1_000;

/// A query.
#[derive(Deserialize, ToSchema)]
pub(crate) struct QueryDto {
    /// `SELECT *`, with or without `FROM enrollments` or `FROM enrollmentGroups`.
    query: String,
}

/// What a page is to hold.
pub(super) struct Page {
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

impl Page {
    /// Reads the paging headers.
    pub(super) fn of(fields: &HeaderMap) -> Result<Self, Error> {
        let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
        let after = text(headers::CONTINUATION)
            .filter(|token| !token.is_empty())
            .map(|token| {
                let bytes = STANDARD.decode(token).ok();
                bytes
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .ok_or_else(|| invalid("x-ms-continuation is not one of this service"))
            });
        let limit = match text(headers::MAX_ITEM_COUNT)
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            None => PAGE_MAX,
            Some(text) => match text.parse::<i64>() {
                // -1 leaves it to the service.
                Ok(-1) => PAGE_MAX,
                Ok(count @ 1..) => usize::try_from(count).unwrap_or(PAGE_MAX).min(PAGE_MAX),
                _ => return Err(invalid("x-ms-max-item-count must be a positive number")),
            },
        };
        Ok(Page {
            after: after.transpose()?,
            limit,
        })
    }

    /// One more than the page holds tells whether there is another.
    pub(super) fn wanted(&self) -> usize {
        self.limit + 1
    }

    /// The answer; `key` is what an item is sorted by.
    pub(super) fn answer<T, D: Serialize>(
        &self,
        mut items: Vec<T>,
        item_type: &'static str,
        key: impl Fn(&T) -> String,
        dto: impl Fn(&T) -> D,
    ) -> Reply {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let last = items.last().map(key).filter(|_| more);
        let mut response = json(&items.iter().map(dto).collect::<Vec<D>>())?;
        let fields = response.headers_mut();
        fields.insert(headers::ITEM_TYPE, HeaderValue::from_static(item_type));
        fields.insert(headers::MAX_ITEM_COUNT, HeaderValue::from(self.limit as u64));
        if let Some(token) = last.and_then(|key| HeaderValue::from_str(&STANDARD.encode(key)).ok()) {
            fields.insert(headers::CONTINUATION, token);
        }
        Ok(response)
    }
}

/// Reads the body of a query and checks that it asks for everything there is: nothing else is offered.
pub(super) fn check(bytes: &Bytes, from: &[&str]) -> Result<(), Failure> {
    let query: QueryDto = body(bytes)?;
    let words: Vec<String> = query
        .query
        .trim()
        .trim_end_matches(';')
        .split_whitespace()
        .map(str::to_ascii_lowercase)
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let known = |name: &str| from.iter().any(|known| known.eq_ignore_ascii_case(name));
    match words[..] {
        ["select", "*"] => Ok(()),
        ["select", "*", "from", name] if known(name) => Ok(()),
        _ => Err(invalid(&format!(
            "the query must be SELECT * or SELECT * FROM {}",
            from[0]
        ))
        .into()),
    }
}
