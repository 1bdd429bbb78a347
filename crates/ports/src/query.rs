//! Queries over twins, modules and jobs, page by page.
//!
//! # For those who build on it
//! ```text
//! let select = holdfast_query::twin::parse("SELECT * FROM devices WHERE tags.site = 'north'")?;
//! let mut cursor = None;
//! loop {
//!     let page = store.query(&select, PageRequest { cursor, limit: 100 }).await?;
//!     for item in &page.items { … }              // Item::Twin | Item::Raw | Item::Job
//!     cursor = page.next;
//!     if cursor.is_none() { break }
//! }
//! ```
//! * A target condition: [`holdfast_query::twin::parse_condition`] gives a
//!   [`Condition`](holdfast_query::twin::Condition); [`QueryStore::find_targets`] gives the identities it targets, page by
//!   page, and `condition.matches(&twin_item.row())` decides about one twin in memory, for instance after a change.
//! * `configurations.[[id]].status` looks at [`holdfast_model::twin::Twin::configurations`].
//! * `devices.jobs` reads what [`JobStore`](crate::job::JobStore) keeps; the documents are [`job_document`]s.

use holdfast_model::job::DeviceJob;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::Twin;
use holdfast_model::{Identity, Timestamp};
use holdfast_query::twin::row::time_text;
use holdfast_query::twin::{Condition, Cursor, Root, Select, TwinRow};
use serde_json::{Map, Value, json};

use crate::{BoxFuture, StoreResult};

/// Which page is wanted.
#[derive(Clone, PartialEq, Debug)]
pub struct PageRequest {
    /// Where to go on; `None` begins.
    pub cursor: Option<Cursor>,
    /// Most items.
    pub limit: usize,
}

/// A page of a result.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// The items. May be fewer than asked, even none, with more to come: a store gives what it found in reasonable
    /// time.
    pub items: Vec<Item>,
    /// Where to go on; `None` when that was all.
    pub next: Option<Cursor>,
}

/// An item of a result; which one follows from [`Select::item_type`].
#[derive(Clone, PartialEq, Debug)]
pub enum Item {
    /// `SELECT *` of devices or modules.
    Twin(Box<TwinItem>),
    /// Columns.
    Raw(Map<String, Value>),
    /// `SELECT *` of jobs: the document.
    Job(Map<String, Value>),
}

/// A twin with all that its document shows.
#[derive(Clone, PartialEq, Debug)]
pub struct TwinItem {
    /// The identity.
    pub record: IdentityRecord,
    /// Its twin.
    pub twin: Twin,
    /// Number of cloud-to-device messages that wait for it.
    pub waiting: u64,
}

impl TwinItem {
    /// The twin as a row for conditions.
    #[must_use]
    pub fn row(&self) -> TwinRow<'_> {
        TwinRow {
            record: &self.record,
            twin: &self.twin,
            waiting: self.waiting,
        }
    }
}

/// A page of identities.
#[derive(Clone, PartialEq, Debug)]
pub struct Targets {
    /// The identities.
    pub identities: Vec<Identity>,
    /// Where to go on; `None` when that was all.
    pub next: Option<Cursor>,
}

/// Runs queries.
///
/// Rows come in an order that does not change while the store is open or closed and opened again (by default some
/// order of the store's own, with new identities last or in their place). Each page sees one state of the store, the
/// next page perhaps a later one: whatever was there throughout comes exactly once; what is created meanwhile comes
/// once or not at all.
///
/// # Errors
/// All methods: `Refused` with `ArgumentInvalid` for a cursor of another query, a result with too many groups, or a
/// query that takes too long; with `ThrottlingException` when too many queries run already; `Unavailable`.
pub trait QueryStore: Send + Sync + 'static {
    /// One page of a query. Dropping the future stops the query.
    fn query<'a>(&'a self, select: &'a Select, page: PageRequest) -> BoxFuture<'a, StoreResult<Page>>;

    /// Up to `limit` identities that a condition targets; fewer, even none, may come with more to follow.
    fn find_targets<'a>(
        &'a self,
        condition: &'a Condition,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Targets>> {
        Box::pin(async move {
            let Some(select) = condition.ids() else {
                return Ok(Targets {
                    identities: Vec::new(),
                    next: None,
                });
            };
            let page = self.query(&select, PageRequest { cursor, limit }).await?;
            let identities = page.items.iter().filter_map(identity_of).collect();
            Ok(Targets {
                identities,
                next: page.next,
            })
        })
    }

    /// How many identities a condition targets.
    fn count_targets<'a>(&'a self, condition: &'a Condition) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move {
            let Some(select) = condition.count() else {
                return Ok(0);
            };
            let request = PageRequest {
                cursor: None,
                limit: 1,
            };
            let page = self.query(&select, request).await?;
            Ok(match page.items.first() {
                Some(Item::Raw(row)) => row.values().next().and_then(Value::as_u64).unwrap_or(0),
                _ => 0,
            })
        })
    }

    /// One small step of the store's own upkeep (making and dropping indexes that queries need or no longer need).
    /// Returns whether more is waiting, in which case it is called again soon; else every minute is enough.
    fn maintain_indexes(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<bool>>;
}

fn identity_of(item: &Item) -> Option<Identity> {
    let Item::Raw(row) = item else { return None };
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    Identity::new(text("deviceId")?, text("moduleId")).ok()
}

/// The document of a device job (rest.md 10.2).
#[must_use]
pub fn job_document(job: &DeviceJob) -> Map<String, Value> {
    let time = |time: Option<Timestamp>| time.map(|time| Value::from(time_text(time)));
    let outcome = job.outcome.as_ref().map(
        |outcome| json!({"deviceMethodResponse": {"status": outcome.status, "payload": outcome.payload}}),
    );
    let error = job.error.as_ref();
    let members: [(Root, Option<Value>); 11] = [
        (Root::DeviceId, Some(job.identity.device_id().into())),
        (Root::ModuleId, job.identity.module_id().map(Value::from)),
        (Root::JobId, Some(job.job_id.as_str().into())),
        (Root::JobType, Some(job.kind.as_str().into())),
        (Root::Status, Some(job.status.as_str().into())),
        (Root::StartTimeUtc, time(job.started_at)),
        (Root::EndTimeUtc, time(job.ended_at)),
        (Root::CreatedDateTimeUtc, time(Some(job.created_at))),
        (Root::LastUpdatedDateTimeUtc, time(Some(job.updated_at))),
        (Root::Outcome, outcome),
        (
            Root::Error,
            error.map(|error| json!({"code": error.code, "description": error.description})),
        ),
    ];
    members
        .into_iter()
        .filter_map(|(root, value)| Some((root.name().to_owned(), value?)))
        .collect()
}
