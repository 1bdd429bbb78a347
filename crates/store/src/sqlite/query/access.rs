//! How rows are found: by an index that fits a condition, or by looking at identities in the order of their numbers.
//!
//! Rows come in the order of `identities.id`, the order of creation. An index table is sorted by value and then by that
//! number, so all rows of one value come in the right order without sorting, from wherever a page begins.

use holdfast_query::twin::ast::{CompareOp, Literal, TextTest};
use holdfast_query::twin::plan::{Plan, Predicate, Test};
use holdfast_query::twin::sql::sqlite::Sqlite;
use holdfast_query::twin::sql::{Param, Params, after_prefix, condition};
use holdfast_query::twin::{Path, Root, Segment, Source};
use rusqlite::Connection;

use super::super::fault::Fault;
use super::indexes::{BOOL_FALSE, MISSING, NULL, NUMBER, Ready, TEXT};

/// What an index is not asked to sort: more matches than this are better found by looking at identities in order.
const SORT_MAX: i64 = 20_000;

/// An SQL text with its parameters.
#[derive(Clone, Debug, Default)]
pub(super) struct Sql {
    pub(super) text: String,
    pub(super) params: Params,
}

/// A way to find the numbers of rows.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// What goes between FROM and the end of WHERE, without the bounds of the number.
    from: String,
    conditions: Vec<String>,
    params: Params,
    /// The number, as SQL.
    pub(super) id: &'static str,
    /// Whether an index finds the rows. If not, they are looked at in slices of numbers.
    pub(super) is_indexed: bool,
    /// Places whose indexes help, for counting their use.
    pub(super) used: Option<Path>,
}

/// A condition that an index can serve.
struct Driver {
    /// Table with its alias.
    table: String,
    /// Name of the number in it.
    id: &'static str,
    condition: Sql,
    /// Whether the numbers come in order.
    is_sorted: bool,
    /// Position of its test among the plan's conjuncts.
    test: usize,
    path: Option<Path>,
}

impl Access {
    /// The way for a plan over devices or modules.
    pub(super) fn choose(
        db: &Connection,
        dialect: Sqlite,
        plan: &Plan,
        ready: &[Ready],
    ) -> Result<Self, Fault> {
        let module = i64::from(dialect.source == Source::Modules);
        let conjuncts = plan.conjuncts();
        let mut best: Option<(i64, Driver)> = None;
        for (at, test) in conjuncts.iter().enumerate() {
            let Some(mut driver) = driver(dialect, test, ready, module) else {
                continue;
            };
            driver.test = at;
            let count = driver.count(db)?;
            // More than can be sorted is only good if it need not be.
            if count > SORT_MAX && !driver.is_sorted {
                continue;
            }
            let better = best
                .as_ref()
                .is_none_or(|(least, old)| (count, !driver.is_sorted) < (*least, !old.is_sorted));
            if better {
                best = Some((count, driver));
            }
        }
        Ok(match best {
            Some((_, driver)) => Self::by(driver, dialect, plan),
            None => Self::scan(dialect, plan),
        })
    }

    fn by(driver: Driver, dialect: Sqlite, plan: &Plan) -> Self {
        let mut params = driver.condition.params.clone();
        let rest = without(&plan.predicate, driver.test);
        let mut conditions = vec![driver.condition.text.clone()];
        let mut from = driver.table.clone();
        let needs_identity = rest.is_some() || driver.id == "c.id";
        if needs_identity && driver.id != "i.id" {
            from.push_str(&format!(" CROSS JOIN identities AS i ON i.id = {}", driver.id));
        }
        if driver.id == "c.id" || driver.id == "i.id" {
            conditions.push(kind_of_identity(dialect.source).to_owned());
        }
        if let Some(rest) = &rest {
            let text = condition(&dialect, rest, &mut params);
            if text.contains("t.") {
                from.push_str(&format!(" CROSS JOIN twins AS t ON t.id = {}", driver.id));
            }
            conditions.push(text);
        }
        Access {
            from,
            conditions,
            params,
            id: driver.id,
            is_indexed: true,
            used: driver.path,
        }
    }

    fn scan(dialect: Sqlite, plan: &Plan) -> Self {
        let mut params = Params::default();
        let text = condition(&dialect, &plan.predicate, &mut params);
        let mut from = "identities AS i".to_owned();
        if text.contains("t.") {
            from.push_str(" CROSS JOIN twins AS t ON t.id = i.id");
        }
        Access {
            from,
            conditions: vec![kind_of_identity(dialect.source).to_owned(), text],
            params,
            id: "i.id",
            is_indexed: false,
            used: None,
        }
    }

    /// A statement for `columns` of the rows with numbers above `after` and up to `to`, in order if `sorted`.
    pub(super) fn select(&self, columns: &str, after: i64, to: Option<i64>, sorted: bool) -> Sql {
        let mut params = self.params.clone();
        let mut from = self.from.clone();
        if columns.contains("i.") && !from.contains(" AS i") {
            from.push_str(&format!(" CROSS JOIN identities AS i ON i.id = {}", self.id));
        }
        if columns.contains("t.") && !from.contains(" AS t") {
            from.push_str(&format!(" CROSS JOIN twins AS t ON t.id = {}", self.id));
        }
        let mut conditions = self.conditions.join(" AND ");
        conditions.push_str(&format!(
            " AND {} > ?{}",
            self.id,
            params.push(Param::Integer(after))
        ));
        if let Some(to) = to {
            conditions.push_str(&format!(
                " AND {} <= ?{}",
                self.id,
                params.push(Param::Integer(to))
            ));
        }
        let order = if sorted {
            format!(" ORDER BY {}", self.id)
        } else {
            String::new()
        };
        Sql {
            text: format!("SELECT {columns} FROM {from} WHERE {conditions}{order}"),
            params,
        }
    }
}

fn kind_of_identity(source: Source) -> &'static str {
    if source == Source::Modules {
        "i.module_id <> ''"
    } else {
        "i.module_id = ''"
    }
}

/// A predicate without the conjunct that an index has checked.
fn without(predicate: &Predicate, test: usize) -> Option<Predicate> {
    let Predicate::And(terms) = predicate else {
        return None;
    };
    let mut seen = 0;
    let mut rest = Vec::new();
    for term in terms {
        if matches!(term, Predicate::Test(_)) {
            seen += 1;
            if seen == test + 1 {
                continue;
            }
        }
        rest.push(term.clone());
    }
    Some(Predicate::And(rest))
}

impl Driver {
    /// How many rows it finds, counted no further than matters.
    fn count(&self, db: &Connection) -> Result<i64, Fault> {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {} LIMIT {})",
            self.table,
            self.condition.text,
            SORT_MAX + 1
        );
        let mut statement = db.prepare(&sql)?;
        Ok(statement.query_row(bind(&self.condition.params), |row| row.get(0))?)
    }
}

/// The parameters for rusqlite.
pub(super) fn bind(
    params: &Params,
) -> rusqlite::ParamsFromIter<impl Iterator<Item = rusqlite::types::Value> + '_> {
    use rusqlite::types::Value;
    rusqlite::params_from_iter(params.0.iter().map(|param| match param {
        Param::Text(text) => Value::Text(text.clone()),
        Param::Number(number) => Value::Real(*number),
        Param::Integer(number) => Value::Integer(*number),
    }))
}

fn driver(dialect: Sqlite, test: &Test, ready: &[Ready], module: i64) -> Option<Driver> {
    by_device_id(dialect, test)
        .or_else(|| by_configuration(test))
        .or_else(|| by_index(dialect, test, ready, module))
}

/// The registry's own index of device ids.
fn by_device_id(dialect: Sqlite, test: &Test) -> Option<Driver> {
    let path = place(test)?;
    let is_positive = match test {
        Test::Compare { op, .. } => *op != CompareOp::NotEqual,
        Test::In { negated, .. } => !negated,
        Test::Text { test, negated, .. } => *test == TextTest::StartsWith && !negated,
        _ => false,
    };
    if path.root != Root::DeviceId || !is_positive {
        return None;
    }
    let mut params = Params::default();
    let text = condition(&dialect, &Predicate::Test(test.clone()), &mut params);
    Some(Driver {
        table: "identities AS i".to_owned(),
        id: "i.id",
        condition: Sql { text, params },
        is_sorted: false,
        test: 0,
        path: None,
    })
}

/// `configurations.[[id]].status = '…'`.
fn by_configuration(test: &Test) -> Option<Driver> {
    let Test::Compare {
        path,
        op: CompareOp::Equal,
        literal: Literal::String(status),
    } = test
    else {
        return None;
    };
    let (Root::Configurations, [Segment::Name(id), Segment::Name(name)]) = (path.root, path.rest.as_slice())
    else {
        return None;
    };
    if name != "status" {
        return None;
    }
    let mut params = Params::default();
    let (id, status) = (
        params.push(Param::Text(id.clone())),
        params.push(Param::Text(status.clone())),
    );
    Some(Driver {
        table: "twin_configurations AS c".to_owned(),
        id: "c.id",
        condition: Sql {
            text: format!("c.configuration = ?{id} AND c.status = ?{status}"),
            params,
        },
        is_sorted: true,
        test: 0,
        path: None,
    })
}

/// The place a test looks at, if it is one.
pub(super) fn place(test: &Test) -> Option<&Path> {
    match test {
        Test::Compare { path, .. }
        | Test::CompareTime { path, .. }
        | Test::In { path, .. }
        | Test::Defined { path, .. }
        | Test::Type { path, .. }
        | Test::Text { path, .. }
        | Test::ArrayContains { path, .. }
        | Test::Is { path, .. } => Some(path),
        Test::ComparePaths { .. } => None,
    }
}

fn by_index(dialect: Sqlite, test: &Test, ready: &[Ready], module: i64) -> Option<Driver> {
    let path = place(test)?;
    let index = ready.iter().find(|index| index.path == *path)?;
    let mut params = Params::default();
    let (condition, is_sorted) = index_condition(dialect, test, &mut params)?;
    Some(Driver {
        table: format!("{} AS q", index.table()),
        id: "q.id",
        condition: Sql {
            text: format!("q.module = {module} AND {condition}"),
            params,
        },
        is_sorted,
        test: 0,
        path: Some(path.clone()),
    })
}

/// A test as a range of an index table, and whether all its rows have one value; `None` if it is no such range.
pub(super) fn index_condition(dialect: Sqlite, test: &Test, params: &mut Params) -> Option<(String, bool)> {
    // These kinds have one value each; naming it lets the rows come in order.
    let only = |kind: i64| (format!("q.kind = {kind} AND q.value = 0"), true);
    let mut value = |param: Param| format!("?{}", params.push(param));
    Some(match test {
        Test::Compare { path, op, literal } if path.root == Root::ConnectionState => {
            let connected = *literal == Literal::String("Connected".into());
            if !connected || *op != CompareOp::Equal {
                return None;
            }
            (format!("q.kind = {NUMBER} AND q.value = {}", dialect.boot), true)
        }
        // An index has times as numbers, and a number is no time.
        Test::Compare { path, .. } | Test::In { path, .. } if path.is_time() => return None,
        Test::Compare { op, literal, .. } => {
            let kind_and_value = match literal {
                Literal::String(text) => (TEXT, value(Param::Text(text.clone()))),
                Literal::Number(number) => (NUMBER, value(Param::Number(*number))),
                Literal::Bool(wanted) if *op == CompareOp::Equal => {
                    return Some(only(BOOL_FALSE + i64::from(*wanted)));
                }
                Literal::Null if *op == CompareOp::Equal => return Some(only(NULL)),
                _ => return None,
            };
            let (kind, value) = kind_and_value;
            match op {
                CompareOp::Equal => (format!("q.kind = {kind} AND q.value = {value}"), true),
                CompareOp::NotEqual => return None,
                _ => (
                    format!("q.kind = {kind} AND q.value {} {value}", op.text()),
                    false,
                ),
            }
        }
        Test::CompareTime { op, time, .. } => match op {
            CompareOp::NotEqual => return None,
            _ => {
                let value = value(Param::Integer(time.as_micros()));
                (
                    format!("q.kind = {NUMBER} AND q.value {} {value}", op.text()),
                    *op == CompareOp::Equal,
                )
            }
        },
        Test::In {
            path,
            list,
            negated: false,
        } if path.root != Root::ConnectionState => {
            let (mut texts, mut numbers) = (Vec::new(), Vec::new());
            for literal in list {
                match literal {
                    Literal::String(text) => texts.push(value(Param::Text(text.clone()))),
                    Literal::Number(number) => numbers.push(value(Param::Number(*number))),
                    _ => return None,
                }
            }
            let (kind, values) = match (texts.is_empty(), numbers.is_empty()) {
                (false, true) => (TEXT, texts),
                (true, false) => (NUMBER, numbers),
                _ => return None,
            };
            (
                format!("q.kind = {kind} AND q.value IN ({})", values.join(", ")),
                false,
            )
        }
        Test::Defined { path, negated } if path.root != Root::ConnectionState => {
            if *negated {
                only(MISSING)
            } else {
                (format!("q.kind > {MISSING}"), false)
            }
        }
        Test::Text {
            path,
            test: TextTest::StartsWith,
            part,
            negated: false,
        } if path.root != Root::ConnectionState => {
            let from = value(Param::Text(part.clone()));
            match after_prefix(part) {
                Some(end) => {
                    let end = value(Param::Text(end));
                    (
                        format!("q.kind = {TEXT} AND q.value >= {from} AND q.value < {end}"),
                        false,
                    )
                }
                None => (format!("q.kind = {TEXT} AND q.value >= {from}"), false),
            }
        }
        Test::Is { wanted, .. } => only(BOOL_FALSE + i64::from(*wanted)),
        _ => return None,
    })
}
