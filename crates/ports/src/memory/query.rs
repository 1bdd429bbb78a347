//! Queries in memory: every row is looked at, as the definition says.

use holdfast_model::ErrorCode;
use holdfast_model::Timestamp;
use holdfast_query::twin::ast::Projection;
use holdfast_query::twin::{Cursor, Groups, JobRow, Position, Row, Select, Source, matches, order, project};

use super::{MemoryStore, State};
use crate::query::{Item, Page, PageRequest, QueryStore, TwinItem, job_document};
use crate::{BoxFuture, StoreError, StoreResult};

impl QueryStore for MemoryStore {
    fn query<'a>(&'a self, select: &'a Select, page: PageRequest) -> BoxFuture<'a, StoreResult<Page>> {
        self.run(move |state| {
            let (delivered, position) = begin(select, page.cursor)?;
            let limit = remaining(select, delivered, page.limit);
            let rows = state.rows(select);
            if select.is_aggregated() {
                aggregate(select, &rows, delivered, position, limit)
            } else {
                list(select, rows, delivered, position, limit)
            }
        })
    }

    fn maintain_indexes(&self, _now: Timestamp) -> BoxFuture<'_, StoreResult<bool>> {
        self.run(|_| Ok(false))
    }
}

/// A row and the key it is known by.
struct Keyed {
    key: String,
    item: Item,
}

impl Keyed {
    fn row(&self) -> Box<dyn Row + '_> {
        match &self.item {
            Item::Twin(twin) => Box::new(twin.row()),
            Item::Raw(map) | Item::Job(map) => Box::new(JobRow(map)),
        }
    }

    fn sort_keys(&self, select: &Select) -> Vec<order::SortKey> {
        order::keys(&select.order_by, &*self.row())
    }
}

impl State {
    /// All rows that pass the filter, in the order of their identities.
    fn rows(&self, select: &Select) -> Vec<Keyed> {
        let rows: Vec<Keyed> = match select.source {
            Source::Jobs => self.job_rows(),
            source => self
                .identities
                .iter()
                .filter(|(identity, _)| identity.is_module() == (source == Source::Modules))
                .map(|(identity, entry)| Keyed {
                    key: identity.as_str().to_owned(),
                    item: Item::Twin(Box::new(TwinItem {
                        record: entry.record.clone(),
                        twin: entry.twin.clone(),
                        waiting: entry.queue.len() as u64,
                    })),
                })
                .collect(),
        };
        let keeps = |keyed: &Keyed| {
            let filter = select.filter.as_ref();
            filter.is_none_or(|filter| matches(filter, &*keyed.row()))
        };
        rows.into_iter().filter(keeps).collect()
    }

    fn job_rows(&self) -> Vec<Keyed> {
        self.jobs
            .device_jobs()
            .map(|job| Keyed {
                key: format!("{:020} {}", job.number, job.identity),
                item: Item::Job(job_document(job)),
            })
            .collect()
    }
}

/// How many rows were given out, and where to go on.
fn begin(select: &Select, cursor: Option<Cursor>) -> StoreResult<(u64, Option<Position>)> {
    match cursor {
        None => Ok((0, None)),
        Some(cursor) if cursor.fingerprint == select.fingerprint => {
            Ok((cursor.delivered, Some(cursor.position)))
        }
        Some(_) => Err(other_query()),
    }
}

fn other_query() -> StoreError {
    let text =
        "the continuation token is of another query; send the query it came with, or begin without a token";
    StoreError::Refused(holdfast_model::Error::new(ErrorCode::ArgumentInvalid, text))
}

fn remaining(select: &Select, delivered: u64, limit: usize) -> usize {
    let left = select.top.map_or(u64::MAX, |top| top.saturating_sub(delivered));
    limit.min(usize::try_from(left).unwrap_or(usize::MAX))
}

fn next(select: &Select, delivered: u64, more: bool, position: Option<Position>) -> Option<Cursor> {
    let done = !more || select.top.is_some_and(|top| delivered >= top);
    Some(Cursor {
        fingerprint: select.fingerprint,
        delivered,
        position: position.filter(|_| !done)?,
    })
}

fn aggregate(
    select: &Select,
    rows: &[Keyed],
    delivered: u64,
    position: Option<Position>,
    limit: usize,
) -> StoreResult<Page> {
    let after = match position {
        None => None,
        Some(Position::Group(mark)) => Some(mark),
        Some(_) => return Err(other_query()),
    };
    let mut groups = Groups::new(select);
    for keyed in rows {
        groups.add_row(&*keyed.row()).map_err(|error| {
            StoreError::Refused(holdfast_model::Error::new(
                ErrorCode::ArgumentInvalid,
                error.to_string(),
            ))
        })?;
    }
    let (rows, last) = groups.rows(after.as_deref(), limit);
    let delivered = delivered + rows.len() as u64;
    Ok(Page {
        next: next(select, delivered, last.is_some(), last.map(Position::Group)),
        items: rows.into_iter().map(Item::Raw).collect(),
    })
}

fn list(
    select: &Select,
    rows: Vec<Keyed>,
    delivered: u64,
    position: Option<Position>,
    limit: usize,
) -> StoreResult<Page> {
    let mut sorted: Vec<(Vec<order::SortKey>, Keyed)> = rows
        .into_iter()
        .map(|keyed| (keyed.sort_keys(select), keyed))
        .collect();
    let compare = |left: (&[order::SortKey], &str), right: (&[order::SortKey], &str)| {
        order::compare(&select.order_by, left.0, right.0).then_with(|| left.1.cmp(right.1))
    };
    sorted.sort_by(|left, right| compare((&left.0, &left.1.key), (&right.0, &right.1.key)));
    let after = match position {
        None => None,
        Some(Position::Row(key)) if select.order_by.is_empty() => Some((Vec::new(), key)),
        Some(Position::Ordered(keys, key)) if !keys.is_empty() && keys.len() == select.order_by.len() => {
            Some((keys, key))
        }
        Some(_) => return Err(other_query()),
    };
    if let Some((keys, key)) = &after {
        sorted.retain(|(own, keyed)| compare((own, &keyed.key), (keys, key)).is_gt());
    }
    let more = sorted.len() > limit;
    sorted.truncate(limit);
    let position = sorted.last().map(|(keys, keyed)| {
        if select.order_by.is_empty() {
            Position::Row(keyed.key.clone())
        } else {
            Position::Ordered(keys.clone(), keyed.key.clone())
        }
    });
    let delivered = delivered + sorted.len() as u64;
    let items = sorted.into_iter().map(|(_, keyed)| match &select.projection {
        Projection::Document => keyed.item,
        Projection::Columns(columns) => Item::Raw(project(columns, &*keyed.row())),
    });
    Ok(Page {
        items: items.collect(),
        next: next(select, delivered, more, position),
    })
}
