//! SQLite: twins are JSON text, reached with `json_extract` and `json_type`.
//!
//! The tables are those of the embedded store (its migrations), under the aliases `i` (identities), `t` (twins), `j`
//! (device_jobs) and `k` (jobs). `json_extract` gives booleans as numbers and objects as text, so every test also asks
//! `json_type`. Names that SQLite's path syntax cannot quote (with `"`, `\` or control characters) cannot be said.

use super::{Dialect, Param, Params, after_prefix};
use crate::twin::ast::{CompareOp, Literal, Path, Root, Segment, Source, TextTest, TypeTest};
use crate::twin::plan::Test;

/// SQLite.
#[derive(Clone, Copy, Debug)]
pub struct Sqlite {
    /// Which tables.
    pub source: Source,
    /// Number of this opening of the database: an identity is connected if its column says this one.
    pub boot: i64,
}

/// A place as SQL.
#[derive(Clone, PartialEq, Debug)]
pub enum Field {
    /// A text, null if missing.
    Text(String),
    /// A number, null if missing.
    Number(String),
    /// 0 or 1.
    Bool(String),
    /// Microseconds since 1970, null if missing.
    Time(String),
    /// Any JSON: the document and the path into it, both as SQL.
    Json(String, String),
}

impl Field {
    /// The value's type as `json_type` names it, null if missing; and the value, null if it is no primitive.
    #[must_use]
    pub fn typed(&self) -> (String, String) {
        match self {
            Field::Text(sql) | Field::Time(sql) => (format!("iif({sql} IS NULL, NULL, 'text')"), sql.clone()),
            Field::Number(sql) => (format!("iif({sql} IS NULL, NULL, 'real')"), sql.clone()),
            Field::Bool(sql) => (format!("iif({sql}, 'true', 'false')"), "NULL".to_owned()),
            Field::Json(..) => {
                let (kind, value) = json(self);
                (kind, value)
            }
        }
    }
}

impl Sqlite {
    /// A place as SQL; `None` if it cannot be said.
    #[must_use]
    pub fn field(&self, path: &Path) -> Option<Field> {
        let rest = path.rest.as_slice();
        if self.source == Source::Jobs {
            return job_field(path.root, rest);
        }
        let text = |sql: &str| Some(Field::Text(sql.to_owned()));
        match (path.root, rest) {
            (Root::DeviceId, []) => text("i.device_id"),
            (Root::ModuleId, []) => text("i.module_id"),
            (Root::Status, []) => text("i.status"),
            (Root::StatusReason, []) => text("i.status_reason"),
            (Root::StatusUpdateTime, []) => Some(Field::Time("i.status_updated_at".into())),
            (Root::ConnectionState, []) => {
                let boot = self.boot;
                Some(Field::Text(format!(
                    "iif(i.connected_boot = {boot}, 'Connected', 'Disconnected')"
                )))
            }
            (Root::LastActivityTime, []) => Some(Field::Time("i.last_activity_at".into())),
            (Root::CloudToDeviceMessageCount, []) => Some(Field::Number(
                "(SELECT count(*) FROM messages AS m WHERE m.identity = i.id)".into(),
            )),
            (Root::AuthenticationType, []) => text("i.auth_type"),
            (Root::DeviceScope, []) => text("i.device_scope"),
            (Root::ParentScopes, rest) => Some(Field::Json("i.parent_scopes".into(), json_path(rest)?)),
            (Root::Capabilities, [Segment::Name(_)]) => Some(Field::Bool("i.iot_edge".into())),
            (Root::Version, []) => Some(Field::Number("t.version".into())),
            (Root::ModelId, []) => text("t.model_id"),
            (Root::Tags, rest) => Some(Field::Json("t.tags".into(), json_path(rest)?)),
            (Root::Properties, [Segment::Name(section), rest @ ..]) => section_field(section, rest),
            // Without configurations the document has no such member, but the column has an empty object.
            (Root::Configurations, [_, ..]) => Some(Field::Json("t.configurations".into(), json_path(rest)?)),
            _ => None,
        }
    }
}

fn section_field(section: &str, rest: &[Segment]) -> Option<Field> {
    if !matches!(section, "desired" | "reported") {
        return None;
    }
    match rest {
        // The whole section has members that are columns of their own.
        [] => None,
        [Segment::Name(name)] if name == "$version" => Some(Field::Number(format!("t.{section}_version"))),
        [Segment::Name(name), ..] if name == "$version" => None,
        [Segment::Name(name), rest @ ..] if name == "$metadata" => {
            Some(Field::Json(format!("t.{section}_metadata"), json_path(rest)?))
        }
        rest => Some(Field::Json(format!("t.{section}"), json_path(rest)?)),
    }
}

fn job_field(root: Root, rest: &[Segment]) -> Option<Field> {
    Some(match (root, rest) {
        (Root::JobId, []) => Field::Text("k.id".into()),
        (Root::DeviceId, []) => Field::Text("j.device_id".into()),
        (Root::ModuleId, []) => Field::Text("nullif(j.module_id, '')".into()),
        (Root::JobType, []) => Field::Text("k.type".into()),
        (Root::Status, []) => Field::Text("j.status".into()),
        (Root::StartTimeUtc, []) => Field::Time("j.started_at".into()),
        (Root::EndTimeUtc, []) => Field::Time("j.ended_at".into()),
        (Root::CreatedDateTimeUtc, []) => Field::Time("j.created_at".into()),
        (Root::LastUpdatedDateTimeUtc, []) => Field::Time("j.updated_at".into()),
        (Root::Outcome, rest) => Field::Json("j.outcome".into(), json_path(rest)?),
        (Root::Error, rest) => Field::Json("j.error".into(), json_path(rest)?),
        _ => return None,
    })
}

/// A path in SQLite's syntax as an SQL text; `None` if a name cannot be quoted.
#[must_use]
pub fn json_path(rest: &[Segment]) -> Option<String> {
    let mut path = String::from("'$");
    for segment in rest {
        match segment {
            Segment::Index(index) => path.push_str(&format!("[{index}]")),
            Segment::Name(name) => {
                let plain =
                    !name.is_empty() && !name.chars().any(|c| c == '"' || c == '\\' || c.is_control());
                if !plain {
                    return None;
                }
                path.push_str(".\"");
                path.push_str(&name.replace('\'', "''"));
                path.push('"');
            }
        }
    }
    path.push('\'');
    Some(path)
}

/// `json_type` and `json_extract` of a field; for [`Field::Json`] only.
fn json(field: &Field) -> (String, String) {
    match field {
        Field::Json(document, path) => (
            format!("json_type({document}, {path})"),
            format!("json_extract({document}, {path})"),
        ),
        other => other.typed(),
    }
}

const NEVER: &str = "(1 = 0)";
const NUMBERS: &str = "('integer', 'real')";
const PRIMITIVES: &str = "('text', 'integer', 'real', 'true', 'false', 'null')";

impl Dialect for Sqlite {
    fn test(&self, test: &Test, params: &mut Params) -> Option<String> {
        match test {
            Test::Compare { path, op, literal } => compare(&self.field(path)?, *op, literal, params),
            Test::CompareTime { path, op, time } => {
                let Field::Time(sql) = self.field(path)? else {
                    return None;
                };
                let number = params.push(Param::Integer(time.as_micros()));
                Some(format!("({sql} {} ?{number})", operator(*op)))
            }
            Test::ComparePaths { left, op, right } => {
                let (left, right) = (self.field(left)?, self.field(right)?);
                compare_fields(&left, *op, &right)
            }
            Test::In { path, list, negated } => {
                let field = self.field(path)?;
                let found = is_in(&field, list, params)?;
                if !negated {
                    return Some(found);
                }
                let (kind, _) = field.typed();
                Some(format!("({kind} IN {PRIMITIVES} AND {found} IS NOT TRUE)"))
            }
            Test::Defined { path, negated } => {
                let (kind, _) = self.field(path)?.typed();
                Some(format!("({kind} IS {}NULL)", if *negated { "" } else { "NOT " }))
            }
            Test::Type { path, test, negated } => {
                let (kind, _) = self.field(path)?.typed();
                let kinds = match test {
                    TypeTest::Null => "('null')",
                    TypeTest::Bool => "('true', 'false')",
                    TypeTest::Number => NUMBERS,
                    TypeTest::String => "('text')",
                    TypeTest::Object => "('object')",
                    TypeTest::Array => "('array')",
                    TypeTest::Primitive => PRIMITIVES,
                };
                Some(format!(
                    "({kind} IN {kinds}{})",
                    if *negated { " IS NOT TRUE" } else { "" }
                ))
            }
            Test::Text {
                path,
                test,
                part,
                negated,
            } => text_test(&self.field(path)?, *test, part, *negated, params),
            Test::ArrayContains { path, value, negated } => {
                array_contains(&self.field(path)?, value, *negated, params)
            }
            Test::Is { path, wanted } => Some(match self.field(path)? {
                Field::Bool(sql) => format!("({sql} = {})", i32::from(*wanted)),
                field @ Field::Json(..) => format!("({} = '{wanted}')", json(&field).0),
                _ => NEVER.to_owned(),
            }),
        }
    }
}

fn operator(op: CompareOp) -> &'static str {
    match op {
        CompareOp::NotEqual => "<>",
        other => other.text(),
    }
}

/// Null differs from every other primitive.
fn or_null(kind: &str, op: CompareOp, condition: String) -> String {
    if op == CompareOp::NotEqual {
        format!("({condition} OR {kind} = 'null')")
    } else {
        condition
    }
}

fn compare(field: &Field, op: CompareOp, literal: &Literal, params: &mut Params) -> Option<String> {
    let sign = operator(op);
    let equality = matches!(op, CompareOp::Equal | CompareOp::NotEqual);
    Some(match (field, literal) {
        (_, Literal::Undefined) => NEVER.to_owned(),
        (Field::Text(sql), Literal::String(text)) => {
            let number = params.push(Param::Text(text.clone()));
            format!("({sql} {sign} ?{number})")
        }
        (Field::Number(sql), Literal::Number(value)) => {
            let number = params.push(Param::Number(*value));
            format!("({sql} {sign} ?{number})")
        }
        (Field::Bool(sql), Literal::Bool(value)) if equality => {
            format!("({sql} {sign} {})", i32::from(*value))
        }
        (Field::Json(..), Literal::String(text)) => {
            let (kind, value) = json(field);
            let number = params.push(Param::Text(text.clone()));
            or_null(
                &kind,
                op,
                format!("({value} {sign} ?{number} AND {kind} = 'text')"),
            )
        }
        (Field::Json(..), Literal::Number(other)) => {
            let (kind, value) = json(field);
            let number = params.push(Param::Number(*other));
            or_null(
                &kind,
                op,
                format!("({value} {sign} ?{number} AND {kind} IN {NUMBERS})"),
            )
        }
        (Field::Json(..), Literal::Bool(other)) if equality => {
            let wanted = *other == (op == CompareOp::Equal);
            let (kind, _) = json(field);
            or_null(&kind, op, format!("({kind} = '{wanted}')"))
        }
        (Field::Json(..), Literal::Null) if op == CompareOp::Equal => format!("({} = 'null')", json(field).0),
        (Field::Json(..), Literal::Null) if op == CompareOp::NotEqual => {
            format!(
                "({} IN ('text', 'integer', 'real', 'true', 'false'))",
                json(field).0
            )
        }
        // Columns of the hub's own hold no null: what is null there is missing.
        (_, Literal::Null) if op == CompareOp::NotEqual => format!("({} IS NOT NULL)", field.typed().0),
        (Field::Time(_), Literal::String(_)) => return None,
        _ => NEVER.to_owned(),
    })
}

fn compare_fields(left: &Field, op: CompareOp, right: &Field) -> Option<String> {
    let sign = operator(op);
    Some(match (left, right) {
        (Field::Text(left), Field::Text(right)) | (Field::Number(left), Field::Number(right)) => {
            format!("({left} {sign} {right})")
        }
        (Field::Text(_), Field::Number(_)) | (Field::Number(_), Field::Text(_)) => NEVER.to_owned(),
        (Field::Text(_) | Field::Number(_) | Field::Json(..), Field::Json(..))
        | (Field::Json(..), Field::Text(_) | Field::Number(_)) => {
            let ((left_kind, left), (right_kind, right)) = (left.typed(), right.typed());
            let mut terms = vec![
                format!("({left_kind} = 'text' AND {right_kind} = 'text' AND {left} {sign} {right})"),
                format!("({left_kind} IN {NUMBERS} AND {right_kind} IN {NUMBERS} AND {left} {sign} {right})"),
            ];
            let other = "('text', 'integer', 'real', 'true', 'false')";
            match op {
                CompareOp::Equal => {
                    terms.push(format!(
                        "({left_kind} = {right_kind} AND {left_kind} IN ('true', 'false', 'null'))"
                    ));
                }
                CompareOp::NotEqual => {
                    let bools = "('true', 'false')";
                    terms.push(format!(
                        "({left_kind} IN {bools} AND {right_kind} IN {bools} AND {left_kind} <> {right_kind})"
                    ));
                    terms.push(format!("({left_kind} = 'null' AND {right_kind} IN {other})"));
                    terms.push(format!("({right_kind} = 'null' AND {left_kind} IN {other})"));
                }
                _ => {}
            }
            format!("({})", terms.join(" OR "))
        }
        _ => return None,
    })
}

/// Whether the value is one of the list; null or false where it is not.
fn is_in(field: &Field, list: &[Literal], params: &mut Params) -> Option<String> {
    let mut texts = Vec::new();
    let mut numbers = Vec::new();
    let mut kinds = Vec::new();
    for literal in list {
        match literal {
            Literal::Undefined => {}
            Literal::Null => kinds.push("'null'"),
            Literal::Bool(true) => kinds.push("'true'"),
            Literal::Bool(false) => kinds.push("'false'"),
            Literal::String(text) => texts.push(Param::Text(text.clone())),
            Literal::Number(value) => numbers.push(Param::Number(*value)),
        }
    }
    let mut listed = |values: Vec<Param>| {
        let numbers: Vec<String> = values
            .into_iter()
            .map(|value| format!("?{}", params.push(value)))
            .collect();
        numbers.join(", ")
    };
    let mut terms = Vec::new();
    match field {
        Field::Time(_) => return None,
        Field::Text(sql) if !texts.is_empty() => terms.push(format!("{sql} IN ({})", listed(texts))),
        Field::Number(sql) if !numbers.is_empty() => terms.push(format!("{sql} IN ({})", listed(numbers))),
        Field::Text(_) | Field::Number(_) => {}
        Field::Bool(_) => {
            let (kind, _) = field.typed();
            terms.extend((!kinds.is_empty()).then(|| format!("{kind} IN ({})", kinds.join(", "))));
        }
        Field::Json(..) => {
            let (kind, value) = json(field);
            if !texts.is_empty() {
                terms.push(format!("({value} IN ({}) AND {kind} = 'text')", listed(texts)));
            }
            if !numbers.is_empty() {
                terms.push(format!(
                    "({value} IN ({}) AND {kind} IN {NUMBERS})",
                    listed(numbers)
                ));
            }
            if !kinds.is_empty() {
                terms.push(format!("{kind} IN ({})", kinds.join(", ")));
            }
        }
    }
    Some(if terms.is_empty() {
        NEVER.to_owned()
    } else {
        format!("({})", terms.join(" OR "))
    })
}

fn text_test(
    field: &Field,
    test: TextTest,
    part: &str,
    negated: bool,
    params: &mut Params,
) -> Option<String> {
    let (text, guard) = match field {
        Field::Text(sql) => (sql.clone(), format!("{sql} IS NOT NULL")),
        Field::Json(..) => {
            let (kind, value) = json(field);
            (value, format!("{kind} = 'text'"))
        }
        Field::Time(_) => return None,
        _ => return Some(NEVER.to_owned()),
    };
    let condition = match test {
        // Every text has the empty one, which the forms below do not all know.
        _ if part.is_empty() => "1 = 1".to_owned(),
        TextTest::StartsWith => {
            let from = params.push(Param::Text(part.to_owned()));
            match after_prefix(part) {
                Some(end) => {
                    let end = params.push(Param::Text(end));
                    format!("{text} >= ?{from} AND {text} < ?{end}")
                }
                None => format!("{text} >= ?{from}"),
            }
        }
        // By bytes, since a text may hold a NUL, which ends a text for `substr`.
        TextTest::EndsWith => {
            let number = params.push(Param::Text(part.to_owned()));
            format!(
                "substr(CAST({text} AS BLOB), -{}) = CAST(?{number} AS BLOB)",
                part.len()
            )
        }
        TextTest::Contains => {
            let number = params.push(Param::Text(part.to_owned()));
            format!("instr({text}, ?{number}) > 0")
        }
    };
    Some(if negated {
        format!("({guard} AND NOT ({condition}))")
    } else {
        format!("({condition} AND {guard})")
    })
}

fn array_contains(field: &Field, wanted: &Literal, negated: bool, params: &mut Params) -> Option<String> {
    let Field::Json(document, path) = field else {
        return Some(NEVER.to_owned());
    };
    let element = match wanted {
        Literal::Undefined => return Some(NEVER.to_owned()),
        Literal::Null => "e.type = 'null'".to_owned(),
        Literal::Bool(value) => format!("e.type = '{value}'"),
        Literal::Number(value) => {
            format!(
                "e.value = ?{} AND e.type IN {NUMBERS}",
                params.push(Param::Number(*value))
            )
        }
        Literal::String(text) => {
            format!(
                "e.value = ?{} AND e.type = 'text'",
                params.push(Param::Text(text.clone()))
            )
        }
    };
    let (kind, _) = json(field);
    let not = if negated { "NOT " } else { "" };
    // Most identities have no parents; that is seen without reading JSON.
    let shortcut = if document == "i.parent_scopes" && !negated {
        "i.parent_scopes <> '[]' AND "
    } else {
        ""
    };
    Some(format!(
        "({shortcut}{kind} = 'array' AND {not}EXISTS (SELECT 1 FROM json_each({document}, {path}) AS e WHERE {element}))"
    ))
}
