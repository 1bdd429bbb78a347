//! Aggregates and GROUP BY.

use holdfast_model::Timestamp;
use holdfast_ports::query::{Item, Page};
use holdfast_query::twin::aggregate::Input;
use holdfast_query::twin::row::time_text;
use holdfast_query::twin::sql::sqlite::Field;
use holdfast_query::twin::{Groups, Position, Root, Source};
use rusqlite::types::ValueRef;
use std::ops::ControlFlow;

use super::super::fault::Fault;
use super::access::{Access, bind};
use super::indexes::{self, BOOL_FALSE, MISSING, NULL, NUMBER, OTHER, Ready, TEXT};
use super::{Run, other_query, refused};

impl Run<'_> {
    pub(super) fn figures(&self) -> Result<Page, Fault> {
        let after = match &self.position {
            None => None,
            Some(Position::Group(mark)) => Some(mark.as_slice()),
            Some(_) => return Err(other_query()),
        };
        let mut groups = Groups::new(self.select);
        self.fill(&mut groups)?;
        let (rows, last) = groups.rows(after, self.limit);
        Ok(Page {
            next: self.next(rows.len(), last.map(Position::Group)),
            items: rows.into_iter().map(Item::Raw).collect(),
        })
    }

    fn fill(&self, groups: &mut Groups<'_>) -> Result<(), Fault> {
        if groups.is_plain_count() && self.plan.exact {
            return self.count(groups);
        }
        let ready = indexes::ready(self.db)?;
        if let Some(index) = self.covering(groups, &ready)
            && self.take_index(groups, index)?
        {
            return Ok(());
        }
        let access = self.access()?;
        if let ([path], None) = (groups.paths(), &self.select.filter) {
            // An index over what is grouped by spares the scan too.
            self.scanned.borrow_mut().push(path.clone());
        }
        let fields: Option<Vec<Field>> = groups
            .paths()
            .iter()
            .map(|path| self.dialect.field(path))
            .collect();
        match fields {
            Some(fields) if self.plan.exact => self.take_columns(groups, &access, &fields)?,
            _ => self.take_rows(groups, &access)?,
        }
        Ok(())
    }

    fn count(&self, groups: &mut Groups<'_>) -> Result<(), Fault> {
        let count: i64 = if self.select.filter.is_none() && self.select.source == Source::Devices {
            // Kept by triggers.
            let sql = "SELECT devices_enabled + devices_disabled FROM hub";
            self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?
        } else {
            let access = self.access()?;
            let sql = access.select("count(*)", 0, None, false);
            self.db
                .prepare(&sql.text)?
                .query_row(bind(&sql.params), |row| row.get(0))?
        };
        groups.add_count(count as u64);
        Ok(())
    }

    /// The index that has everything a query without a filter needs.
    fn covering<'r>(&self, groups: &Groups<'_>, ready: &'r [Ready]) -> Option<&'r Ready> {
        let [path] = groups.paths() else { return None };
        // A connection state is not kept as what it shows, a time not as its text.
        if self.select.filter.is_some() || path.root == Root::ConnectionState || path.is_time() {
            return None;
        }
        ready.iter().find(|index| index.path == *path)
    }

    /// Takes all rows from an index, many equal ones at once; false if the index does not have them all.
    fn take_index(&self, groups: &mut Groups<'_>, index: &Ready) -> Result<bool, Fault> {
        let module = i64::from(self.select.source == Source::Modules);
        let table = index.table();
        // Objects and arrays are not kept there.
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE module = {module} AND kind = {OTHER})");
        if self.db.prepare(&sql)?.query_row([], |row| row.get(0))? {
            return Ok(false);
        }
        let sql =
            format!("SELECT kind, value, count(*) FROM {table} WHERE module = {module} GROUP BY kind, value");
        let mut statement = self.db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let value = row.get_ref(1)?;
            let input = match row.get::<_, i64>(0)? {
                MISSING => Input::Missing,
                NULL => Input::Null,
                NUMBER => number(value),
                TEXT => Input::Text(value.as_str().unwrap_or_default()),
                bool => Input::Bool(bool != BOOL_FALSE),
            };
            let count: i64 = row.get(2)?;
            groups
                .add_many(&[input], count as u64)
                .map_err(|error| refused(error.to_string()))?;
        }
        self.store.shared.usage.used(index.path.clone());
        Ok(true)
    }

    /// Takes rows in by the columns that are needed.
    fn take_columns(&self, groups: &mut Groups<'_>, access: &Access, fields: &[Field]) -> Result<(), Fault> {
        let columns: Vec<String> = fields
            .iter()
            .map(|field| match field {
                // One call instead of one for the type and one for the value.
                Field::Json(document, path) => format!("{document} -> {path}, NULL"),
                other => {
                    let (kind, value) = other.typed();
                    format!("{kind}, {value}")
                }
            })
            .collect();
        let columns = if columns.is_empty() {
            "1".to_owned()
        } else {
            columns.join(", ")
        };
        let sql = access.select(&columns, 0, None, false);
        let mut statement = self.db.prepare(&sql.text)?;
        let mut rows = statement.query(bind(&sql.params))?;
        // What a row does not hold as it goes into a group: times as text, texts with escapes.
        let mut made: Vec<Option<String>> = vec![None; fields.len()];
        while let Some(row) = rows.next()? {
            for (at, (field, made)) in fields.iter().zip(&mut made).enumerate() {
                *made = match (field, row.get_ref(2 * at)?, row.get_ref(2 * at + 1)?) {
                    (Field::Time(_), _, ValueRef::Integer(micros)) => {
                        Some(time_text(Timestamp::from_micros(micros)))
                    }
                    (Field::Json(..), json, _) => unescaped(json),
                    _ => None,
                };
            }
            let mut inputs = Vec::with_capacity(fields.len());
            for (at, (field, made)) in fields.iter().zip(&made).enumerate() {
                inputs.push(match (made, field) {
                    (Some(text), _) => Input::Text(text),
                    (None, Field::Json(..)) => json_input(row.get_ref(2 * at)?),
                    (None, _) => input(row.get_ref(2 * at)?, row.get_ref(2 * at + 1)?),
                });
            }
            groups.add(&inputs).map_err(|error| refused(error.to_string()))?;
        }
        Ok(())
    }

    /// Takes whole rows in.
    fn take_rows(&self, groups: &mut Groups<'_>, access: &Access) -> Result<(), Fault> {
        self.visit(
            access,
            0,
            |id| {
                if let Some(item) = self.load(id)? {
                    groups
                        .add_row(&item.row())
                        .map_err(|error| refused(error.to_string()))?;
                }
                Ok(ControlFlow::Continue(()))
            },
            || false,
        )?;
        Ok(())
    }
}

fn number(value: ValueRef<'_>) -> Input<'_> {
    match value {
        ValueRef::Integer(value) => Input::Number(value as f64),
        ValueRef::Real(value) => Input::Number(value),
        _ => Input::Missing,
    }
}

/// A JSON text that has escapes, without them.
fn unescaped(json: ValueRef<'_>) -> Option<String> {
    let text = json.as_str().ok()?;
    (text.starts_with('"') && text.contains('\\')).then(|| serde_json::from_str(text).ok())?
}

/// A JSON text that has none.
fn json_input(json: ValueRef<'_>) -> Input<'_> {
    let Ok(text) = json.as_str() else {
        return Input::Missing;
    };
    match text.as_bytes().first() {
        Some(b'"') => Input::Text(text.get(1..text.len() - 1).unwrap_or_default()),
        Some(b't') => Input::Bool(true),
        Some(b'f') => Input::Bool(false),
        Some(b'n') => Input::Null,
        Some(b'{' | b'[') => Input::Json(text),
        _ => text.parse().map_or(Input::Missing, Input::Number),
    }
}

/// A kind as `json_type` names it, and a value.
fn input<'v>(kind: ValueRef<'v>, value: ValueRef<'v>) -> Input<'v> {
    match kind.as_str() {
        Ok("text") => Input::Text(value.as_str().unwrap_or_default()),
        Ok("integer" | "real") => number(value),
        Ok("true") => Input::Bool(true),
        Ok("false") => Input::Bool(false),
        Ok("null") => Input::Null,
        _ => Input::Missing,
    }
}
