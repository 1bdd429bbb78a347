//! Indexes that make themselves.
//!
//! When queries that name a place scan for long, the place gets an index table `query_index_<n>`: one row for each
//! identity, sorted by the kind of the value, the value and the number of the identity. `CREATE INDEX` would hold the
//! writer for as long as it takes to read all twins; so triggers keep the table right from the moment it exists, and
//! what was there before is added in small steps between other writes. How far that is stands in the database, so it
//! goes on after a restart. An index that no query has used for [`UNUSED_MAX`] goes away, in steps too.
//!
//! Whether an index is ready is read in the same state of the database as the rows of the query that uses it.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_ports::StoreResult;
use holdfast_query::twin::sql::sqlite::{Field, Sqlite};
use holdfast_query::twin::{Path, Root, Segment, Source, parse_path};
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use super::super::SqliteStore;
use super::super::events::{IndexDropped, IndexReady, IndexStarted};
use super::super::fault::Fault;
use super::super::writer::WriteContext;
use holdfast_observe::Event as _;

// Kinds of values, in the order of the index.
pub(super) const MISSING: i64 = 0;
pub(super) const NULL: i64 = 1;
pub(super) const BOOL_FALSE: i64 = 2;
pub(super) const NUMBER: i64 = 4;
pub(super) const TEXT: i64 = 5;
pub(super) const OTHER: i64 = 6;

/// Most indexes.
pub const INDEXES_MAX: usize = 16;
/// An index that was not used for so long goes away.
const UNUSED_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// With all places taken, a wanted index may push out one that was not used for so long.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(3_600);
/// Time that queries must have spent scanning for a place before it gets an index.
const WANTED_AFTER: Duration = Duration::from_millis(100);
/// Most places whose scans are counted.
const WANTED_PLACES_MAX: usize = 256;
/// Identities that one step adds or takes away: some milliseconds of the writer.
const STEP: i64 = 2_000;
/// How far the stored time of the last use may lag behind.
const USED_LAG: Duration = Duration::from_secs(600);

const FILLING: i64 = 0;
const READY: i64 = 1;
const DROPPING: i64 = 2;

/// An index that may be used.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ready {
    number: i64,
    pub(super) path: Path,
}

impl Ready {
    pub(super) fn table(&self) -> String {
        table(self.number)
    }
}

fn table(number: i64) -> String {
    format!("query_index_{number}")
}

/// What queries have looked at since the process started.
#[derive(Default)]
pub(in crate::sqlite) struct Usage(Mutex<Places>);

#[derive(Default)]
struct Places {
    /// Time spent scanning, by place.
    scanned: HashMap<Path, Duration>,
    /// Indexes used since the last upkeep.
    used: Vec<Path>,
    /// See [`Usage::want_at_once`].
    at_once: bool,
}

impl Usage {
    pub(super) fn want_at_once(&self, at_once: bool) {
        self.0.lock().at_once = at_once;
    }

    /// Notes that a scan named these places.
    pub(super) fn scanned(&self, paths: impl IntoIterator<Item = Path>, took: Duration) {
        let mut places = self.0.lock();
        for path in paths {
            if source_of(&path).is_none() {
                continue;
            }
            if places.scanned.len() >= WANTED_PLACES_MAX && !places.scanned.contains_key(&path) {
                // Someone asks for ever new places; none of them is worth much.
                places.scanned.clear();
            }
            *places.scanned.entry(path).or_default() += took;
        }
    }

    pub(super) fn used(&self, path: Path) {
        let mut places = self.0.lock();
        if !places.used.contains(&path) && places.used.len() < INDEXES_MAX {
            places.used.push(path);
        }
    }

    fn take_used(&self) -> Vec<Path> {
        std::mem::take(&mut self.0.lock().used)
    }

    /// The place that scans have spent most time for, if that is enough.
    fn most_wanted(&self, have: &[Row]) -> Option<Path> {
        let mut places = self.0.lock();
        places
            .scanned
            .retain(|path, _| !have.iter().any(|row| row.path == *path));
        let wanted = places.scanned.iter().max_by_key(|(_, took)| **took)?;
        (*wanted.1 >= WANTED_AFTER || places.at_once).then(|| wanted.0.clone())
    }
}

/// Where the value of a place comes from: table, the column whose change matters, and the place as SQL over an alias.
struct Target {
    table: &'static str,
    column: String,
    field: Field,
}

/// `None` for places that get no index.
fn source_of(path: &Path) -> Option<Target> {
    let dialect = Sqlite {
        source: Source::Devices,
        boot: 0,
    };
    if path.root == Root::ConnectionState {
        return Some(Target {
            table: "identities",
            column: "connected_boot".into(),
            field: Field::Number("i.connected_boot".into()),
        });
    }
    let indexed = match path.root {
        Root::Tags => !path.rest.is_empty(),
        Root::Properties => path.rest.len() > 1,
        Root::Status
        | Root::StatusReason
        | Root::LastActivityTime
        | Root::AuthenticationType
        | Root::DeviceScope
        | Root::ModelId
        | Root::ModuleId
        | Root::Capabilities => true,
        _ => false,
    };
    let field = dialect.field(path).filter(|_| indexed)?;
    let (document, table) = match &field {
        Field::Text(sql) | Field::Number(sql) | Field::Bool(sql) | Field::Time(sql) | Field::Json(sql, _) => {
            let (alias, column) = sql.split_once('.')?;
            (column, if alias == "t" { "twins" } else { "identities" })
        }
    };
    // `$metadata` and `$version` change with every write.
    if path
        .rest
        .iter()
        .any(|segment| matches!(segment, Segment::Name(name) if name.starts_with('$')))
    {
        return None;
    }
    Some(Target {
        table,
        column: document.to_owned(),
        field,
    })
}

impl Target {
    /// Kind and value over a row called `row`.
    fn kind_and_value(&self, row: &str) -> (String, String) {
        let on = |sql: &str| format!("{row}.{}", sql.split_once('.').map_or(sql, |(_, column)| column));
        match &self.field {
            Field::Text(sql) => {
                let sql = on(sql);
                // A module id that is empty is none.
                (
                    format!("iif(nullif({sql}, '') IS NULL, {MISSING}, {TEXT})"),
                    format!("ifnull({sql}, 0)"),
                )
            }
            Field::Number(sql) | Field::Time(sql) => {
                let sql = on(sql);
                (
                    format!("iif({sql} IS NULL, {MISSING}, {NUMBER})"),
                    format!("ifnull({sql}, 0)"),
                )
            }
            Field::Bool(sql) => (format!("({BOOL_FALSE} + {})", on(sql)), "0".to_owned()),
            Field::Json(document, path) => {
                let document = on(document);
                (
                    format!(
                        "CASE json_type({document}, {path}) WHEN 'text' THEN {TEXT} WHEN 'integer' THEN {NUMBER}
                         WHEN 'real' THEN {NUMBER} WHEN 'true' THEN {BOOL_FALSE} + 1 WHEN 'false' THEN {BOOL_FALSE}
                         WHEN 'null' THEN {NULL} WHEN 'object' THEN {OTHER} WHEN 'array' THEN {OTHER}
                         ELSE {MISSING} END"
                    ),
                    format!(
                        "iif(json_type({document}, {path}) IN ('text', 'integer', 'real'),
                             json_extract({document}, {path}), 0)"
                    ),
                )
            }
        }
    }

    /// Whether a row called `row` is of a module.
    fn module(&self, row: &str) -> String {
        if self.table == "identities" {
            format!("{row}.module_id <> ''")
        } else {
            format!("(SELECT m.module_id <> '' FROM identities AS m WHERE m.id = {row}.id)")
        }
    }

    fn create(&self, number: i64) -> String {
        let name = table(number);
        let (source, column) = (self.table, &self.column);
        let (new_kind, new_value) = self.kind_and_value("new");
        let (old_kind, old_value) = self.kind_and_value("old");
        let add = format!(
            "INSERT OR IGNORE INTO {name} SELECT {}, {new_kind}, {new_value}, new.id;",
            self.module("new")
        );
        // The identity may be gone when its twin goes with it.
        let remove = format!(
            "DELETE FROM {name} WHERE module IN (0, 1) AND kind = {old_kind} AND value = {old_value} AND id = old.id;"
        );
        format!(
            "CREATE TABLE {name} (
                 module INTEGER NOT NULL,
                 kind   INTEGER NOT NULL,
                 value  ANY NOT NULL,
                 id     INTEGER NOT NULL,
                 PRIMARY KEY (module, kind, value, id)
             ) STRICT, WITHOUT ROWID;
             CREATE TRIGGER {name}_insert AFTER INSERT ON {source} BEGIN {add} END;
             CREATE TRIGGER {name}_delete AFTER DELETE ON {source} BEGIN {remove} END;
             CREATE TRIGGER {name}_update AFTER UPDATE OF {column} ON {source}
                 WHEN old.{column} IS NOT new.{column} BEGIN {remove} {add} END;"
        )
    }

    fn fill(&self, number: i64) -> String {
        let (kind, value) = self.kind_and_value("s");
        format!(
            "INSERT OR IGNORE INTO {} SELECT {}, {kind}, {value}, s.id FROM {} AS s WHERE s.id > ?1 AND s.id <= ?2",
            table(number),
            self.module("s"),
            self.table
        )
    }
}

/// A row of `query_indexes`.
#[derive(Clone, Debug)]
struct Row {
    number: i64,
    path: Path,
    state: i64,
    filled_to: i64,
    used_at: Timestamp,
}

fn rows(db: &Connection) -> Result<Vec<Row>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT number, target, state, filled_to, used_at FROM query_indexes ORDER BY number",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let target: String = row.get(1)?;
        found.push(Row {
            number: row.get(0)?,
            path: parse_path(&target).map_err(|error| Fault::content("index of queries", error))?,
            state: row.get(2)?,
            filled_to: row.get(3)?,
            used_at: Timestamp::from_micros(row.get(4)?),
        });
    }
    Ok(found)
}

/// The indexes that may be used in the state of the database that `db` sees.
pub(super) fn ready(db: &Connection) -> Result<Vec<Ready>, Fault> {
    let rows = rows(db)?.into_iter().filter(|row| row.state == READY);
    Ok(rows
        .map(|row| Ready {
            number: row.number,
            path: row.path,
        })
        .collect())
}

/// What a step of upkeep does.
enum Step {
    Create(Path, Timestamp),
    Fill(Row),
    Remove(Row),
    Retire(Row),
    Touch(Vec<i64>, Timestamp),
}

impl SqliteStore {
    /// One step of upkeep; whether more is waiting.
    pub(super) async fn maintain(&self, now: Timestamp) -> StoreResult<bool> {
        let all = self.read(rows).await?;
        let Some(step) = self.next_step(&all, now) else {
            return Ok(false);
        };
        self.write(move |context| {
            match &step {
                Step::Create(path, now) => create(context, path, *now)?,
                Step::Fill(row) => fill(context, row)?,
                Step::Remove(row) => remove(context, row)?,
                Step::Retire(row) => retire(context, row)?,
                Step::Touch(numbers, now) => touch(context, numbers, *now)?,
            }
            Ok(true)
        })
        .await
    }

    fn next_step(&self, all: &[Row], now: Timestamp) -> Option<Step> {
        let usage = &self.shared.usage;
        let used = usage.take_used();
        let mut lagging = Vec::new();
        for row in all.iter().filter(|row| used.contains(&row.path)) {
            if now.since(row.used_at) >= USED_LAG {
                lagging.push(row.number);
            }
        }
        if !lagging.is_empty() {
            return Some(Step::Touch(lagging, now));
        }
        if let Some(row) = all.iter().find(|row| row.state == DROPPING) {
            return Some(Step::Remove(row.clone()));
        }
        if let Some(row) = all.iter().find(|row| row.state == FILLING) {
            return Some(Step::Fill(row.clone()));
        }
        let oldest = all.iter().min_by_key(|row| row.used_at);
        if let Some(row) = oldest
            && now.since(row.used_at) >= UNUSED_MAX
        {
            return Some(Step::Retire(row.clone()));
        }
        let wanted = usage.most_wanted(all)?;
        match oldest {
            Some(row) if all.len() >= INDEXES_MAX => {
                (now.since(row.used_at) >= REPLACEABLE_AFTER).then(|| Step::Retire(row.clone()))
            }
            _ => Some(Step::Create(wanted, now)),
        }
    }
}

fn create(context: &WriteContext, path: &Path, now: Timestamp) -> Result<(), Fault> {
    let Some(target) = source_of(path) else {
        return Ok(());
    };
    let number: i64 = context
        .db
        .prepare_cached("INSERT INTO query_indexes (target, state, filled_to, used_at) VALUES (?1, ?2, 0, ?3) RETURNING number")?
        .query_row(params![path.to_string(), FILLING, now.as_micros()], |row| row.get(0))?;
    context.db.execute_batch(&target.create(number))?;
    let path = path.to_string();
    IndexStarted { path: &path }.emit(&context.metrics);
    Ok(())
}

fn fill(context: &WriteContext, row: &Row) -> Result<(), Fault> {
    let Some(target) = source_of(&row.path) else {
        return retire(context, row);
    };
    let last: i64 = context
        .db
        .prepare_cached("SELECT ifnull(max(id), 0) FROM identities")?
        .query_row([], |row| row.get(0))?;
    let to = row.filled_to + STEP;
    context
        .db
        .prepare(&target.fill(row.number))?
        .execute(params![row.filled_to, to])?;
    // Whatever comes after the last identity of now comes through the triggers.
    let state = if to >= last { READY } else { FILLING };
    context
        .db
        .prepare_cached("UPDATE query_indexes SET filled_to = ?2, state = ?3 WHERE number = ?1")?
        .execute(params![row.number, to, state])?;
    if state == READY {
        let path = row.path.to_string();
        IndexReady { path: &path }.emit(&context.metrics);
    }
    Ok(())
}

/// Stops the upkeep of an index; its rows go in steps.
fn retire(context: &WriteContext, row: &Row) -> Result<(), Fault> {
    let name = table(row.number);
    context.db.execute_batch(&format!(
        "DROP TRIGGER IF EXISTS {name}_insert; DROP TRIGGER IF EXISTS {name}_delete;
         DROP TRIGGER IF EXISTS {name}_update;"
    ))?;
    context
        .db
        .prepare_cached("UPDATE query_indexes SET state = ?2 WHERE number = ?1")?
        .execute(params![row.number, DROPPING])?;
    Ok(())
}

fn remove(context: &WriteContext, row: &Row) -> Result<(), Fault> {
    let name = table(row.number);
    let removed = context.db.execute(
        &format!(
            "DELETE FROM {name} WHERE (module, kind, value, id) IN
                 (SELECT module, kind, value, id FROM {name} LIMIT {STEP})"
        ),
        [],
    )?;
    if (removed as i64) < STEP {
        context.db.execute_batch(&format!("DROP TABLE {name};"))?;
        context
            .db
            .prepare_cached("DELETE FROM query_indexes WHERE number = ?1")?
            .execute([row.number])?;
        let path = row.path.to_string();
        IndexDropped { path: &path }.emit(&context.metrics);
    }
    Ok(())
}

fn touch(context: &WriteContext, numbers: &[i64], now: Timestamp) -> Result<(), Fault> {
    let mut statement = context
        .db
        .prepare_cached("UPDATE query_indexes SET used_at = ?2 WHERE number = ?1")?;
    for number in numbers {
        statement.execute(params![number, now.as_micros()])?;
    }
    Ok(())
}
