//! Queries in SQLite.
//!
//! A page is made in two steps: numbers of identities that pass what SQL can check, then the whole rows of these, which
//! are checked again if the plan was not exact. Everything of a page is read in one state of the database.
//!
//! - `access`: by which index the numbers are found
//! - `figures`: aggregates and GROUP BY
//! - `device_jobs`: `devices.jobs`
//! - `indexes`: indexes that make themselves
//! - `connections`: threads, connections, bounds

mod access;
mod connections;
mod device_jobs;
mod figures;
mod indexes;

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::query::{Item, Page, PageRequest, QueryStore, TwinItem};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use holdfast_query::twin::ast::Projection;
use holdfast_query::twin::order::{self, SortKey};
use holdfast_query::twin::sql::sqlite::Sqlite;
use holdfast_query::twin::sql::{Dialect as _, Params};
use holdfast_query::twin::{Cursor, Path, Plan, Position, Select, Source, matches, project};
use rusqlite::Connection;
use serde_json::{Map, Value};

use super::fault::Fault;
use super::{SqliteStore, c2d, registry, twin};
use access::{Access, bind};
use connections::{Stop, StopOnDrop};

pub(super) use connections::Connections;
pub use connections::QueryLimits;
pub use indexes::INDEXES_MAX;
pub(super) use indexes::Usage;

/// Identities looked at between two looks at the clock, at first and at most.
const SLICE: (i64, i64) = (10_000, 100_000);

/// How long a full page looks for whether another row follows.
const PEEK_TIME: Duration = Duration::from_millis(50);

/// Bytes of twins after which a page is closed.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Query connections unused for so long are closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

impl QueryStore for SqliteStore {
    fn query<'a>(&'a self, select: &'a Select, page: PageRequest) -> BoxFuture<'a, StoreResult<Page>> {
        Box::pin(async move {
            let permit = self.shared.queries.admit().await?;
            let stop = Stop::default();
            let _stop_on_drop = StopOnDrop(stop.clone());
            let (store, select) = (self.clone(), select.clone());
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                store
                    .shared
                    .queries
                    .run(&stop, |db| Run::new(&store, db, &select, page)?.page())
            });
            task.await
                .map_err(|error| StoreError::Unavailable(format!("the query failed inside: {error}")))?
        })
    }

    fn maintain_indexes(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<bool>> {
        self.shared.queries.close_idle(IDLE_MAX);
        Box::pin(self.maintain(now))
    }
}

/// A page while it is being made.
struct Run<'a> {
    store: &'a SqliteStore,
    db: &'a Connection,
    select: &'a Select,
    plan: Plan,
    dialect: Sqlite,
    started: Instant,
    /// Rows given out before this page.
    delivered: u64,
    position: Option<Position>,
    /// Most rows of this page.
    limit: usize,
    /// Places whose index would spare a scan.
    scanned: RefCell<Vec<Path>>,
}

impl<'a> Run<'a> {
    fn new(
        store: &'a SqliteStore,
        db: &'a Connection,
        select: &'a Select,
        page: PageRequest,
    ) -> Result<Self, Fault> {
        let dialect = Sqlite {
            source: select.source,
            boot: store.shared.boot,
        };
        let (delivered, position) = match page.cursor {
            None => (0, None),
            Some(cursor) if cursor.fingerprint == select.fingerprint => {
                (cursor.delivered, Some(cursor.position))
            }
            Some(_) => return Err(other_query()),
        };
        let left = select.top.map_or(u64::MAX, |top| top.saturating_sub(delivered));
        Ok(Run {
            store,
            db,
            select,
            plan: Plan::of(select.filter.as_ref(), &|test| dialect.can(test)),
            dialect,
            started: Instant::now(),
            delivered,
            position,
            limit: page.limit.min(usize::try_from(left).unwrap_or(usize::MAX)),
            scanned: RefCell::default(),
        })
    }

    fn page(self) -> Result<Page, Fault> {
        let page = self.make_page();
        self.note_scan();
        page
    }

    fn make_page(&self) -> Result<Page, Fault> {
        if self.limit == 0 {
            return Ok(Page {
                items: Vec::new(),
                next: None,
            });
        }
        if self.select.is_aggregated() {
            return self.figures();
        }
        if self.select.source == Source::Jobs {
            return self.jobs();
        }
        if self.select.order_by.is_empty() {
            self.in_order()
        } else {
            self.sorted()
        }
    }

    fn next(&self, items: usize, position: Option<Position>) -> Option<Cursor> {
        let delivered = self.delivered + items as u64;
        let done = self.select.top.is_some_and(|top| delivered >= top);
        Some(Cursor {
            fingerprint: self.select.fingerprint,
            delivered,
            position: position.filter(|_| !done)?,
        })
    }

    fn unless(&self, stop: bool) -> ControlFlow<()> {
        if stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn is_late(&self) -> bool {
        self.started.elapsed() >= self.store.shared.queries.limits().page_time
    }

    fn access(&self) -> Result<Access, Fault> {
        let access = Access::choose(self.db, self.dialect, &self.plan, &indexes::ready(self.db)?)?;
        if let Some(path) = &access.used {
            self.store.shared.usage.used(path.clone());
        }
        if !access.is_indexed {
            let tests = self.plan.conjuncts();
            let helpful = tests.iter().filter_map(|test| {
                access::index_condition(self.dialect, test, &mut Params::default())?;
                access::place(test).cloned()
            });
            self.scanned.borrow_mut().extend(helpful);
        }
        Ok(access)
    }

    /// Notes how long the query took, for the places whose index would have spared it a scan; also of one that was
    /// stopped, which needs it most.
    fn note_scan(&self) {
        let places = self.scanned.take();
        self.store.shared.usage.scanned(places, self.started.elapsed());
    }

    fn last_id(&self) -> Result<i64, Fault> {
        let sql = "SELECT ifnull(max(id), 0) FROM identities";
        Ok(self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// Visits the numbers that pass the plan, in order, from above `after`; ends where the visitor breaks, or after a
    /// slice when `pause` says so. Returns up to where everything was looked at, `None` for to the end.
    fn visit(
        &self,
        access: &Access,
        after: i64,
        mut visit: impl FnMut(i64) -> Result<ControlFlow<()>, Fault>,
        mut pause: impl FnMut() -> bool,
    ) -> Result<Option<i64>, Fault> {
        let last = self.last_id()?;
        let (mut from, mut slice) = (after, SLICE.0);
        loop {
            // An index finds what there is; without one, a slice bounds the time between two looks at the clock.
            let to = if access.is_indexed {
                last
            } else {
                from.saturating_add(slice).min(last)
            };
            let sql = access.select(access.id, from, Some(to), true);
            let mut statement = self.db.prepare(&sql.text)?;
            let mut rows = statement.query(bind(&sql.params))?;
            while let Some(row) = rows.next()? {
                let id = row.get(0)?;
                if visit(id)?.is_break() {
                    return Ok(Some(id));
                }
            }
            if to >= last {
                return Ok(None);
            }
            if pause() {
                return Ok(Some(to));
            }
            from = to;
            slice = (slice * 2).min(SLICE.1);
        }
    }

    /// Rows in the order of the store.
    fn in_order(&self) -> Result<Page, Fault> {
        let after = match &self.position {
            None => 0,
            Some(Position::Row(key)) => key.parse().map_err(|_| other_query())?,
            Some(_) => return Err(other_query()),
        };
        let access = self.access()?;
        let mut items = Vec::new();
        let mut last = after;
        let mut bytes = 0;
        let full_at = Cell::new(None::<Instant>);
        let visited = self.visit(
            &access,
            after,
            |id| {
                let Some(item) = self.load(id)? else {
                    return Ok(self.unless(full_at.get().is_none() && self.is_late()));
                };
                if full_at.get().is_some() {
                    return Ok(ControlFlow::Break(()));
                }
                bytes += weight(&item);
                items.push(self.result(item));
                last = id;
                if items.len() == self.limit || bytes >= PAGE_BYTES_MAX {
                    full_at.set(Some(Instant::now()));
                }
                Ok(self.unless(full_at.get().is_none() && self.is_late()))
            },
            || match full_at.get() {
                Some(at) => at.elapsed() >= PEEK_TIME,
                None => self.is_late(),
            },
        )?;
        // Everything up to there is in the page, unless the page was full before.
        let position = visited.map(|to| if full_at.get().is_some() { last } else { to });
        Ok(Page {
            next: self.next(items.len(), position.map(|id| Position::Row(id.to_string()))),
            items,
        })
    }

    /// The row of a number, if it passes the filter.
    fn load(&self, id: i64) -> Result<Option<TwinItem>, Fault> {
        let Some(item) = load(self.db, self.store.shared.boot, id)? else {
            return Ok(None);
        };
        let keeps = match &self.select.filter {
            Some(filter) if !self.plan.exact => matches(filter, &item.row()),
            _ => true,
        };
        Ok(Some(item).filter(|_| keeps))
    }

    fn result(&self, item: TwinItem) -> Item {
        match &self.select.projection {
            Projection::Document => Item::Twin(Box::new(item)),
            Projection::Columns(columns) => Item::Raw(project(columns, &item.row())),
        }
    }

    /// Rows by ORDER BY: all that pass are looked at, and only as many kept as the page needs.
    fn sorted(&self) -> Result<Page, Fault> {
        let after = match &self.position {
            None => None,
            Some(Position::Ordered(keys, key)) if keys.len() == self.select.order_by.len() => {
                Some((keys.clone(), key.parse::<i64>().map_err(|_| other_query())?))
            }
            Some(_) => return Err(other_query()),
        };
        let terms = &self.select.order_by;
        let compare = |left: &(Vec<SortKey>, i64), right: &(Vec<SortKey>, i64)| {
            order::compare(terms, &left.0, &right.0).then(left.1.cmp(&right.1))
        };
        let access = self.access()?;
        let wanted = self.limit.saturating_add(1);
        let mut kept: Vec<(Vec<SortKey>, i64)> = Vec::new();
        self.visit(
            &access,
            0,
            |id| {
                if let Some(item) = self.load(id)? {
                    let entry = (order::keys(terms, &item.row()), id);
                    if after.as_ref().is_none_or(|after| compare(&entry, after).is_gt()) {
                        kept.push(entry);
                    }
                    if kept.len() >= wanted.saturating_mul(2).max(4_096) {
                        kept.sort_by(compare);
                        kept.truncate(wanted);
                    }
                }
                Ok(ControlFlow::Continue(()))
            },
            || false,
        )?;
        kept.sort_by(compare);
        let more = kept.len() > self.limit;
        kept.truncate(self.limit);
        let position = kept.last().filter(|_| more).cloned();
        let mut items = Vec::new();
        for (_, id) in kept {
            items.extend(self.load(id)?.map(|item| self.result(item)));
        }
        Ok(Page {
            next: self.next(
                items.len(),
                position.map(|(keys, id)| Position::Ordered(keys, id.to_string())),
            ),
            items,
        })
    }
}

fn other_query() -> Fault {
    refused(
        "the continuation token is of another query; send the query it came with, or begin without a token",
    )
}

fn refused(text: impl Into<String>) -> Fault {
    Fault::Store(StoreError::Refused(Error::new(
        ErrorCode::ArgumentInvalid,
        text.into(),
    )))
}

/// An identity with its twin and its waiting messages.
fn load(db: &Connection, boot: i64, id: i64) -> Result<Option<TwinItem>, Fault> {
    let Some(record) = registry::of_row(db, boot, id)? else {
        return Ok(None);
    };
    Ok(Some(TwinItem {
        record,
        twin: twin::of_row(db, id)?,
        waiting: c2d::depth(db, id)?,
    }))
}

/// About how much memory a twin takes.
fn weight(item: &TwinItem) -> usize {
    let Twin {
        tags,
        desired,
        reported,
        ..
    } = &item.twin;
    let maps = [
        tags,
        &desired.properties,
        &desired.metadata,
        &reported.properties,
        &reported.metadata,
    ];
    1_024 + maps.into_iter().map(map_weight).sum::<usize>()
}

fn map_weight(map: &Map<String, Value>) -> usize {
    map.iter()
        .map(|(key, value)| 64 + key.len() + value_weight(value))
        .sum()
}

fn value_weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(|value| 32 + value_weight(value)).sum(),
        Value::Object(map) => map_weight(map),
        _ => 0,
    }
}

impl SqliteStore {
    /// Lets every scanned place get an index at once, however short the scan: for tests and measurements.
    pub fn want_indexes(&self, at_once: bool) {
        self.shared.usage.want_at_once(at_once);
    }

    /// The places that have an index that is ready.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn indexed_places(&self) -> StoreResult<Vec<String>> {
        self.read(|db| {
            let ready = indexes::ready(db)?;
            Ok(ready.iter().map(|index| index.path.to_string()).collect())
        })
        .await
    }
}
