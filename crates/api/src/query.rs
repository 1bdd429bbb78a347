//! `POST /devices/query` (REST contract, section 9; languages.md 1.1).

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;
use holdfast_ports::query::{Item, PageRequest};
use holdfast_query::twin::{self, Cursor, Select};
use holdfast_wire::dto::TwinDto;
use holdfast_wire::headers::{self, ItemType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::body;
use crate::reply::{Failure, Reply, json};

/// Items of a page if the client does not say, and most items of a page. The documentation gives 100 as both in newer
/// and 1000 as the most in older editions; clients that ask for more than 100 get it.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

/// A query.
#[derive(Deserialize, ToSchema)]
pub(crate) struct QueryDto {
    /// `SELECT … FROM devices`, `devices.modules` or `devices.jobs`.
    query: String,
}

/// An item of a page.
#[derive(Serialize)]
#[serde(untagged)]
enum ItemDto<'a> {
    Twin(Box<TwinDto<'a>>),
    Object(&'a Map<String, Value>),
}

/// Runs a query over twins, modules or jobs; one page of it. Right: ServiceConnect.
///
/// The header `x-ms-continuation` of the answer, sent back with the same body, gives the next page; the last page has
/// none. A page may hold fewer items than asked, even none, with more to come.
#[utoipa::path(post, path = "/devices/query", tag = "Queries",
    request_body = QueryDto,
    params(
        ("x-ms-max-item-count" = Option<u32>, Header, description = "Most items of the page: 100 if absent, at most 1000"),
        ("x-ms-continuation" = Option<String>, Header, description = "As the page before gave it"),
    ),
    responses((status = 200, description = "Twins, rows of columns, or rows of jobs, as x-ms-item-type says",
               body = Vec<Object>)))]
pub(crate) async fn run(State(api): State<Api>, fields: HeaderMap, bytes: Bytes) -> Reply {
    let query: QueryDto = body(&bytes)?;
    let select =
        twin::parse(&query.query).map_err(|error| invalid(format!("The query is invalid: {error}")))?;
    let request = page_request(&fields, &select)?;
    let page = api
        .queries
        .query(&select, request)
        .await
        .map_err(|error| failure(&error))?;
    let items: Vec<ItemDto<'_>> = page
        .items
        .iter()
        .map(|item| match item {
            Item::Twin(twin) => ItemDto::Twin(Box::new(TwinDto::new(&twin.record, &twin.twin, twin.waiting))),
            Item::Raw(row) | Item::Job(row) => ItemDto::Object(row),
        })
        .collect();
    let mut response = json(&items)?;
    let answered = response.headers_mut();
    let item_type = match select.item_type() {
        twin::ItemType::Twin => ItemType::Twin,
        twin::ItemType::Raw => ItemType::Raw,
        twin::ItemType::DeviceJob => ItemType::DeviceJob,
    };
    answered.insert(headers::ITEM_TYPE, HeaderValue::from_static(item_type.as_str()));
    if let Some(next) = page.next {
        let token = HeaderValue::from_str(&next.to_token()).map_err(|_| invalid("the token is no header"))?;
        answered.insert(headers::CONTINUATION, token);
    }
    Ok(response)
}

fn page_request(fields: &HeaderMap, select: &Select) -> Result<PageRequest, Error> {
    let text = |name: &str| {
        let value = fields.get(name).map(|value| value.to_str().unwrap_or("?").trim());
        value.filter(|text| !text.is_empty())
    };
    let cursor = match text(headers::CONTINUATION) {
        None => None,
        Some(token) => {
            let cursor = Cursor::from_token(token).filter(|cursor| cursor.fingerprint == select.fingerprint);
            Some(cursor.ok_or_else(|| {
                invalid("x-ms-continuation is not a token of this query; send the query it came with, or no token")
            })?)
        }
    };
    let limit = match text(headers::MAX_ITEM_COUNT) {
        None => PAGE_DEFAULT,
        Some(text) => match text.parse::<i64>() {
            // -1 leaves it to the service.
            Ok(-1) => PAGE_DEFAULT,
            Ok(count @ 1..) => usize::try_from(count).unwrap_or(PAGE_MAX).min(PAGE_MAX),
            _ => return Err(invalid("x-ms-max-item-count must be a whole number above 0")),
        },
    };
    Ok(PageRequest { cursor, limit })
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}

fn failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Refused(error) => error.clone().into(),
        other => {
            tracing::error!(error = %other, "a query failed");
            Error::new(
                ErrorCode::ServiceUnavailable,
                "the hub cannot reach its storage; try again later",
            )
            .into()
        }
    }
}
