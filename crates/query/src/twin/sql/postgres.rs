//! PostgreSQL: twins are `jsonb`, reached with `#>`; the same tests as SQLite's over another dialect.
//!
//! Tables and columns are named as in SQLite (aliases `i`, `t`, `j`, `k`); documents and arrays are `jsonb`, times
//! `bigint`, texts `text COLLATE "C"`. `jsonb` compares numbers as `numeric`, so a number goes through
//! `double precision`, which is what the language computes with. A NUL cannot stand in a PostgreSQL text, so a test for
//! one cannot be said.

use super::{Dialect, Param, Params, after_prefix};
use crate::twin::ast::{CompareOp, Literal, Path, Root, Segment, Source, TextTest, TypeTest};
use crate::twin::plan::Test;

/// PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub struct Postgres {
    /// Which tables.
    pub source: Source,
}

/// A place as SQL.
#[derive(Clone, PartialEq, Debug)]
enum Field {
    Text(&'static str),
    Number(&'static str),
    Bool(&'static str),
    Time(&'static str),
    /// An expression that is a `jsonb`, SQL null if nothing is there.
    Json(String),
}

impl Postgres {
    fn field(&self, path: &Path) -> Option<Field> {
        let rest = path.rest.as_slice();
        if self.source == Source::Jobs {
            return job_field(path.root, rest);
        }
        Some(match (path.root, rest) {
            (Root::DeviceId, []) => Field::Text("i.device_id"),
            (Root::ModuleId, []) => Field::Text("nullif(i.module_id, '')"),
            (Root::Status, []) => Field::Text("i.status"),
            (Root::StatusReason, []) => Field::Text("i.status_reason"),
            (Root::StatusUpdateTime, []) => Field::Time("i.status_updated_at"),
            (Root::ConnectionState, []) => {
                Field::Text("(CASE WHEN i.connected THEN 'Connected' ELSE 'Disconnected' END)")
            }
            (Root::LastActivityTime, []) => Field::Time("i.last_activity_at"),
            (Root::CloudToDeviceMessageCount, []) => {
                Field::Number("(SELECT count(*) FROM messages AS m WHERE m.identity = i.id)")
            }
            (Root::AuthenticationType, []) => Field::Text("i.auth_type"),
            (Root::DeviceScope, []) => Field::Text("i.device_scope"),
            (Root::ParentScopes, rest) => Field::Json(reach("i.parent_scopes", rest)?),
            (Root::Capabilities, [Segment::Name(_)]) => Field::Bool("i.iot_edge"),
            (Root::Version, []) => Field::Number("t.version"),
            (Root::ModelId, []) => Field::Text("t.model_id"),
            (Root::Tags, rest) => Field::Json(reach("t.tags", rest)?),
            (Root::Properties, [Segment::Name(section), rest @ ..]) => {
                section_field(section == "desired", rest)?
            }
            (Root::Configurations, [_, ..]) => Field::Json(reach("t.configurations", rest)?),
            _ => return None,
        })
    }
}

fn section_field(desired: bool, rest: &[Segment]) -> Option<Field> {
    let pick = |yes: &'static str, no: &'static str| if desired { yes } else { no };
    match rest {
        [] => None,
        [Segment::Name(name)] if name == "$version" => {
            Some(Field::Number(pick("t.desired_version", "t.reported_version")))
        }
        [Segment::Name(name), ..] if name == "$version" => None,
        [Segment::Name(name), rest @ ..] if name == "$metadata" => Some(Field::Json(reach(
            pick("t.desired_metadata", "t.reported_metadata"),
            rest,
        )?)),
        rest => Some(Field::Json(reach(pick("t.desired", "t.reported"), rest)?)),
    }
}

fn job_field(root: Root, rest: &[Segment]) -> Option<Field> {
    Some(match (root, rest) {
        (Root::JobId, []) => Field::Text("k.id"),
        (Root::DeviceId, []) => Field::Text("j.device_id"),
        (Root::ModuleId, []) => Field::Text("nullif(j.module_id, '')"),
        (Root::JobType, []) => Field::Text("k.type"),
        (Root::Status, []) => Field::Text("j.status"),
        (Root::StartTimeUtc, []) => Field::Time("j.started_at"),
        (Root::EndTimeUtc, []) => Field::Time("j.ended_at"),
        (Root::CreatedDateTimeUtc, []) => Field::Time("j.created_at"),
        (Root::LastUpdatedDateTimeUtc, []) => Field::Time("j.updated_at"),
        (Root::Outcome, rest) => Field::Json(reach("j.outcome", rest)?),
        (Root::Error, rest) => Field::Json(reach("j.error", rest)?),
        _ => return None,
    })
}

/// `document -> 'name' -> 3`: unlike `#>`, a name never means a place in an array, nor a number a name.
fn reach(document: &str, rest: &[Segment]) -> Option<String> {
    let mut sql = document.to_owned();
    for segment in rest {
        match segment {
            Segment::Index(index) => sql.push_str(&format!(" -> {index}")),
            Segment::Name(name) if name.contains('\0') => return None,
            Segment::Name(name) => sql.push_str(&format!(" -> '{}'", name.replace('\'', "''"))),
        }
    }
    Some(format!("({sql})"))
}

const NEVER: &str = "(1 = 0)";
const PRIMITIVES: &str = "('string', 'number', 'boolean', 'null')";

fn kind(json: &str) -> String {
    format!("jsonb_typeof({json})")
}

fn text_of(json: &str) -> String {
    format!("({json} #>> '{{}}') COLLATE \"C\"")
}

/// The number, null for anything else: a cast must not be tried on other values.
fn number_of(json: &str) -> String {
    format!("(CASE WHEN jsonb_typeof({json}) = 'number' THEN ({json})::text::double precision END)")
}

fn operator(op: CompareOp) -> &'static str {
    match op {
        CompareOp::NotEqual => "<>",
        other => other.text(),
    }
}

impl Dialect for Postgres {
    fn test(&self, test: &Test, params: &mut Params) -> Option<String> {
        match test {
            Test::Compare { path, op, literal } => compare(&self.field(path)?, *op, literal, params),
            Test::CompareTime { path, op, time } => {
                let Field::Time(sql) = self.field(path)? else {
                    return None;
                };
                let number = params.push(Param::Integer(time.as_micros()));
                Some(format!("({sql} {} ${number})", operator(*op)))
            }
            Test::ComparePaths { left, op, right } => {
                compare_fields(&self.field(left)?, *op, &self.field(right)?)
            }
            Test::In { path, list, negated } => is_in(&self.field(path)?, list, *negated, params),
            Test::Defined { path, negated } => {
                let not = if *negated { "" } else { "NOT " };
                Some(format!("({} IS {not}NULL)", sql_of(&self.field(path)?)))
            }
            Test::Type { path, test, negated } => Some(type_test(&self.field(path)?, *test, *negated)),
            Test::Text {
                path,
                test,
                part,
                negated,
            } => text_test(&self.field(path)?, *test, part, *negated, params),
            Test::ArrayContains { path, value, negated } => {
                let Field::Json(json) = self.field(path)? else {
                    return Some(NEVER.to_owned());
                };
                let element = element(value, params)?;
                let not = if *negated { "NOT " } else { "" };
                // Elements of what is no array are not asked for.
                Some(format!(
                    "({} = 'array' AND {not}EXISTS (SELECT 1 FROM jsonb_array_elements(CASE WHEN {} = 'array' THEN \
                     {json} END) AS e(value) WHERE {element}))",
                    kind(&json),
                    kind(&json)
                ))
            }
            Test::Is { path, wanted } => Some(match self.field(path)? {
                Field::Bool(sql) => format!("({sql} = {wanted})"),
                Field::Json(json) => format!("({json} = '{wanted}'::jsonb)"),
                _ => NEVER.to_owned(),
            }),
        }
    }
}

fn sql_of(field: &Field) -> &str {
    match field {
        Field::Text(sql) | Field::Number(sql) | Field::Bool(sql) | Field::Time(sql) => sql,
        Field::Json(json) => json,
    }
}

/// A text as parameter, unless it has what a PostgreSQL text cannot have.
fn text_param(text: &str, params: &mut Params) -> Option<usize> {
    (!text.contains('\0')).then(|| params.push(Param::Text(text.to_owned())))
}

fn compare(field: &Field, op: CompareOp, literal: &Literal, params: &mut Params) -> Option<String> {
    let sign = operator(op);
    let equality = matches!(op, CompareOp::Equal | CompareOp::NotEqual);
    let or_null = |json: &str, condition: String| match op {
        // Null differs from every other primitive.
        CompareOp::NotEqual => format!("({condition} OR {json} = 'null'::jsonb)"),
        _ => condition,
    };
    Some(match (field, literal) {
        (_, Literal::Undefined) => NEVER.to_owned(),
        (Field::Text(sql), Literal::String(text)) => format!("({sql} {sign} ${})", text_param(text, params)?),
        (Field::Number(sql), Literal::Number(value)) => {
            format!(
                "({sql}::double precision {sign} ${})",
                params.push(Param::Number(*value))
            )
        }
        (Field::Bool(sql), Literal::Bool(value)) if equality => format!("({sql} {sign} {value})"),
        (Field::Json(json), Literal::String(text)) => {
            let number = text_param(text, params)?;
            or_null(
                json,
                format!(
                    "({} = 'string' AND {} {sign} ${number})",
                    kind(json),
                    text_of(json)
                ),
            )
        }
        (Field::Json(json), Literal::Number(value)) => {
            let number = params.push(Param::Number(*value));
            or_null(json, format!("({} {sign} ${number})", number_of(json)))
        }
        (Field::Json(json), Literal::Bool(value)) if equality => {
            let wanted = *value == (op == CompareOp::Equal);
            or_null(json, format!("({json} = '{wanted}'::jsonb)"))
        }
        (Field::Json(json), Literal::Null) if op == CompareOp::Equal => format!("({json} = 'null'::jsonb)"),
        (Field::Json(json), Literal::Null) if equality => {
            format!("({} IN ('string', 'number', 'boolean'))", kind(json))
        }
        (_, Literal::Null) if op == CompareOp::NotEqual => format!("({} IS NOT NULL)", sql_of(field)),
        (Field::Time(_), Literal::String(_)) => return None,
        _ => NEVER.to_owned(),
    })
}

fn compare_fields(left: &Field, op: CompareOp, right: &Field) -> Option<String> {
    let sign = operator(op);
    let equality = matches!(op, CompareOp::Equal | CompareOp::NotEqual);
    Some(match (left, right) {
        (Field::Text(left), Field::Text(right)) | (Field::Number(left), Field::Number(right)) => {
            format!("({left} {sign} {right})")
        }
        (Field::Json(left), Field::Json(right)) => {
            let mut terms = vec![
                format!(
                    "({} = 'string' AND {} = 'string' AND {} {sign} {})",
                    kind(left),
                    kind(right),
                    text_of(left),
                    text_of(right)
                ),
                format!("({} {sign} {})", number_of(left), number_of(right)),
            ];
            if equality {
                let (l, r) = (kind(left), kind(right));
                terms.push(format!(
                    "({l} = 'boolean' AND {r} = 'boolean' AND {left} {sign} {right})"
                ));
                terms.push(match op {
                    CompareOp::Equal => format!("({l} = 'null' AND {r} = 'null')"),
                    _ => format!(
                        "({l} IN {PRIMITIVES} AND {r} IN {PRIMITIVES} AND ({l} = 'null') <> ({r} = 'null'))"
                    ),
                });
            }
            format!("({})", terms.join(" OR "))
        }
        (Field::Text(text), Field::Json(json)) | (Field::Json(json), Field::Text(text)) => {
            let json_first = matches!(left, Field::Json(_));
            sided(json, op, json_first, "string", &text_of(json), text)
        }
        (Field::Number(number), Field::Json(json)) | (Field::Json(json), Field::Number(number)) => {
            let json_first = matches!(left, Field::Json(_));
            sided(json, op, json_first, "number", &number_of(json), number)
        }
        (Field::Text(_), Field::Number(_)) | (Field::Number(_), Field::Text(_)) => NEVER.to_owned(),
        _ => return None,
    })
}

/// A JSON value against a column of one type.
fn sided(json: &str, op: CompareOp, json_first: bool, wanted: &str, value: &str, column: &str) -> String {
    let sign = operator(if json_first { op } else { op.swapped() });
    let condition = format!("({} = '{wanted}' AND {value} {sign} {column})", kind(json));
    if op == CompareOp::NotEqual {
        format!("({condition} OR ({json} = 'null'::jsonb AND {column} IS NOT NULL))")
    } else {
        condition
    }
}

fn is_in(field: &Field, list: &[Literal], negated: bool, params: &mut Params) -> Option<String> {
    if matches!(field, Field::Time(_)) {
        return None;
    }
    let mut terms = Vec::new();
    for literal in list {
        let term = compare(field, CompareOp::Equal, literal, params)?;
        if term != NEVER {
            terms.push(term);
        }
    }
    let found = if terms.is_empty() {
        NEVER.to_owned()
    } else {
        format!("({})", terms.join(" OR "))
    };
    if !negated {
        return Some(found);
    }
    let primitive = match field {
        Field::Json(json) => format!("{} IN {PRIMITIVES}", kind(json)),
        other => format!("{} IS NOT NULL", sql_of(other)),
    };
    Some(format!("({primitive} AND {found} IS NOT TRUE)"))
}

fn type_test(field: &Field, test: TypeTest, negated: bool) -> String {
    let is_null = |sql: &str| format!("({sql} IS {}NULL)", if negated { "" } else { "NOT " });
    let constant = if negated { "(1 = 1)" } else { NEVER };
    match (field, test) {
        (Field::Json(json), test) => {
            let kinds = match test {
                TypeTest::Null => "('null')",
                TypeTest::Bool => "('boolean')",
                TypeTest::Number => "('number')",
                TypeTest::String => "('string')",
                TypeTest::Object => "('object')",
                TypeTest::Array => "('array')",
                TypeTest::Primitive => PRIMITIVES,
            };
            format!(
                "({} IN {kinds}{})",
                kind(json),
                if negated { " IS NOT TRUE" } else { "" }
            )
        }
        (Field::Text(sql) | Field::Time(sql), TypeTest::String | TypeTest::Primitive)
        | (Field::Number(sql), TypeTest::Number | TypeTest::Primitive)
        | (Field::Bool(sql), TypeTest::Bool | TypeTest::Primitive) => is_null(sql),
        _ => constant.to_owned(),
    }
}

fn text_test(
    field: &Field,
    test: TextTest,
    part: &str,
    negated: bool,
    params: &mut Params,
) -> Option<String> {
    let (text, guard) = match field {
        Field::Text(sql) => ((*sql).to_owned(), format!("{sql} IS NOT NULL")),
        Field::Json(json) => (text_of(json), format!("{} = 'string'", kind(json))),
        Field::Time(_) => return None,
        _ => return Some(NEVER.to_owned()),
    };
    let condition = match test {
        _ if part.is_empty() => "1 = 1".to_owned(),
        TextTest::StartsWith => {
            let from = text_param(part, params)?;
            match after_prefix(part) {
                Some(end) => format!("{text} >= ${from} AND {text} < ${}", text_param(&end, params)?),
                None => format!("{text} >= ${from}"),
            }
        }
        TextTest::EndsWith => format!(
            "right({text}, {}) = ${}",
            part.chars().count(),
            text_param(part, params)?
        ),
        TextTest::Contains => format!("strpos({text}, ${}) > 0", text_param(part, params)?),
    };
    Some(if negated {
        format!("({guard} AND NOT ({condition}))")
    } else {
        format!("({guard} AND {condition})")
    })
}

fn element(value: &Literal, params: &mut Params) -> Option<String> {
    Some(match value {
        Literal::Undefined => NEVER.to_owned(),
        Literal::Null => "e.value = 'null'::jsonb".to_owned(),
        Literal::Bool(value) => format!("e.value = '{value}'::jsonb"),
        Literal::Number(value) => format!(
            "{} = ${}",
            number_of("e.value"),
            params.push(Param::Number(*value))
        ),
        Literal::String(text) => {
            format!("e.value = to_jsonb(${}::text)", text_param(text, params)?)
        }
    })
}
