//! Values against schemas.

use serde_json::Value;

use crate::fault::{Faults, clip};
use crate::model::{Geometry, Primitive, Schema};
use crate::parse::kind;
use crate::set::ModelSet;

/// Deepest nesting of values that is looked into: twins have ten levels.
const DEPTH_MAX: usize = 24;

/// Notes what a value has against its schema.
pub(crate) fn check(models: &ModelSet, schema: &Schema, value: &Value, faults: &mut Faults) {
    check_within(models, schema, value, 0, faults);
}

fn check_within(models: &ModelSet, schema: &Schema, value: &Value, depth: usize, faults: &mut Faults) {
    if depth > DEPTH_MAX {
        faults.note("nested too deep to be checked");
        return;
    }
    let Some(schema) = models.resolve(schema) else {
        faults.note("its schema is not in the models");
        return;
    };
    match (schema, value) {
        (Schema::Primitive(primitive), value) => check_primitive(*primitive, value, faults),
        (Schema::Geospatial(geometry), value) => check_geometry(*geometry, value, faults),
        (Schema::Enum(values), value) => {
            if !values.iter().any(|(_, known)| known == value) {
                let known: Vec<String> = values
                    .iter()
                    .take(20)
                    .map(|(_, known)| known.to_string())
                    .collect();
                faults.note(format!(
                    "{} is not one of {}",
                    clip(&value.to_string()),
                    known.join(", ")
                ));
            }
        }
        (Schema::Array(element), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                faults.within(format_args!("[{index}]"), |faults| {
                    check_within(models, element, item, depth + 1, faults);
                });
            }
        }
        (Schema::Map(of), Value::Object(members)) => {
            for (key, value) in members {
                faults.within(format_args!(".{}", clip(key)), |faults| {
                    check_within(models, of, value, depth + 1, faults);
                });
            }
        }
        (Schema::Object(fields), Value::Object(members)) => {
            for (key, value) in members {
                faults.within(format_args!(".{}", clip(key)), |faults| {
                    match fields.iter().find(|(name, _)| name == key) {
                        Some((_, schema)) => check_within(models, schema, value, depth + 1, faults),
                        None => faults.note("the model's object has no such field"),
                    }
                });
            }
        }
        (Schema::Array(_), other) => faults.note(format!("must be a list, not {}", kind(other))),
        (Schema::Map(_) | Schema::Object(_), other) => {
            faults.note(format!("must be an object, not {}", kind(other)));
        }
        // Resolved above; a reference to a reference is none.
        (Schema::Reference(id), _) => faults.note(format!("the schema {id} is not in the models")),
    }
}

fn check_primitive(primitive: Primitive, value: &Value, faults: &mut Faults) {
    let text = |right: fn(&str) -> bool| value.as_str().is_some_and(right);
    let right = match primitive {
        Primitive::Boolean => value.is_boolean(),
        Primitive::String => value.is_string(),
        Primitive::Double => value.is_number(),
        Primitive::Float => value
            .as_f64()
            .is_some_and(|number| number.abs() <= f64::from(f32::MAX)),
        Primitive::Integer => whole(value).is_some_and(|number| i32::try_from(number).is_ok()),
        Primitive::Long => whole(value).is_some(),
        Primitive::Date => text(is_date),
        Primitive::Time => text(is_time),
        Primitive::DateTime => text(is_date_time),
        Primitive::Duration => text(is_duration),
    };
    if right {
        return;
    }
    let wanted = match primitive {
        Primitive::Boolean => "true or false",
        Primitive::String => "a text",
        Primitive::Double => "a number",
        Primitive::Float => "a number of 4 bytes",
        Primitive::Integer => "a whole number of 4 bytes",
        Primitive::Long => "a whole number of 8 bytes",
        Primitive::Date => "a date such as 2026-08-01",
        Primitive::Time => "a time such as 10:00:00Z",
        Primitive::DateTime => "a date and time such as 2026-08-01T10:00:00Z",
        Primitive::Duration => "a duration such as PT1H30M",
    };
    faults.note(format!(
        "must be {wanted} ({}), not {}",
        primitive.as_str(),
        clip(&value.to_string())
    ));
}

/// Whole numbers may be written with a fraction of zero.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // Beyond 2^53 a double says nothing of units any more.
        (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    })
}

/// `count` digits at the start, within `range`; the rest behind them.
fn digits(text: &str, count: usize, range: std::ops::RangeInclusive<u32>) -> Option<(u32, &str)> {
    let (head, rest) = text.split_at_checked(count)?;
    if !head.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = head.parse().ok()?;
    range.contains(&number).then_some((number, rest))
}

fn date(text: &str) -> Option<&str> {
    let (year, rest) = digits(text, 4, 0..=9_999)?;
    let (month, rest) = digits(rest.strip_prefix('-')?, 2, 1..=12)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let (_, rest) = digits(rest.strip_prefix('-')?, 2, 1..=days)?;
    Some(rest)
}

fn time(text: &str) -> Option<&str> {
    let (_, rest) = digits(text, 2, 0..=23)?;
    let (_, rest) = digits(rest.strip_prefix(':')?, 2, 0..=59)?;
    // A leap second is one.
    let (_, mut rest) = digits(rest.strip_prefix(':')?, 2, 0..=60)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction
            .bytes()
            .position(|byte| !byte.is_ascii_digit())
            .unwrap_or(fraction.len());
        if end == 0 {
            return None;
        }
        rest = &fraction[end..];
    }
    if let Some(rest) = rest.strip_prefix(['Z', 'z']) {
        return Some(rest);
    }
    let (_, rest) = digits(rest.strip_prefix(['+', '-'])?, 2, 0..=23)?;
    let (_, rest) = digits(rest.strip_prefix(':')?, 2, 0..=59)?;
    Some(rest)
}

fn is_date(text: &str) -> bool {
    date(text) == Some("")
}

fn is_time(text: &str) -> bool {
    time(text) == Some("")
}

fn is_date_time(text: &str) -> bool {
    date(text)
        .and_then(|rest| rest.strip_prefix(['T', 't', ' ']))
        .and_then(time)
        == Some("")
}

/// ISO 8601: `P1Y2M3W4DT5H6M7.5S`, at least one part, in this order.
fn is_duration(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('P') else {
        return false;
    };
    let (days, times) = match rest.split_once('T') {
        None => (rest, None),
        Some((days, times)) => (days, Some(times)),
    };
    let parts = |text: &str, units: &str| -> Option<usize> {
        let (mut rest, mut units, mut count) = (text, units, 0);
        while !rest.is_empty() {
            let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
            let (number, unit) = rest.split_at(end);
            let unit = unit.chars().next()?;
            let fraction = number.contains('.');
            if number.is_empty() || number.parse::<f64>().is_err() || (fraction && rest.len() != end + 1) {
                return None;
            }
            units = &units[units.find(unit)? + 1..];
            rest = &rest[end + 1..];
            count += 1;
        }
        Some(count)
    };
    match (parts(days, "YMWD"), times.map(|times| parts(times, "HMS"))) {
        (Some(days), None) => days > 0,
        (Some(_), Some(Some(times))) => times > 0,
        _ => false,
    }
}

/// `{"type":"Point","coordinates":[…]}` with the nesting of the geometry.
fn check_geometry(geometry: Geometry, value: &Value, faults: &mut Faults) {
    let (name, levels) = match geometry {
        Geometry::Point => ("Point", 0),
        Geometry::MultiPoint => ("MultiPoint", 1),
        Geometry::LineString => ("LineString", 1),
        Geometry::MultiLineString => ("MultiLineString", 2),
        Geometry::Polygon => ("Polygon", 2),
        Geometry::MultiPolygon => ("MultiPolygon", 3),
    };
    let coordinates = value.get("coordinates");
    let right = value.get("type").and_then(Value::as_str) == Some(name)
        && coordinates.is_some_and(|coordinates| is_position(coordinates, levels));
    if !right {
        faults.note(format!(
            "must be a GeoJSON geometry {{\"type\":{name:?},\"coordinates\":…}}, not {}",
            clip(&value.to_string())
        ));
    }
}

fn is_position(value: &Value, levels: usize) -> bool {
    let Some(items) = value.as_array() else {
        return false;
    };
    if levels == 0 {
        return (2..=3).contains(&items.len()) && items.iter().all(Value::is_number);
    }
    items.iter().all(|item| is_position(item, levels - 1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fits(schema: &Schema, value: &Value) -> bool {
        let mut faults = Faults::default();
        check(&ModelSet::default(), schema, value, &mut faults);
        faults.into_found().is_empty()
    }

    #[test]
    fn primitive_values() {
        let good_and_bad = [
            (
                Primitive::Boolean,
                vec![json!(true)],
                vec![json!("true"), json!(1), Value::Null],
            ),
            (Primitive::Double, vec![json!(1), json!(1e300)], vec![json!("1")]),
            (
                Primitive::Float,
                vec![json!(1.5), json!(-3e38)],
                vec![json!(1e39)],
            ),
            (
                Primitive::Integer,
                vec![json!(2_147_483_647), json!(-5), json!(3.0)],
                vec![json!(2_147_483_648_u64), json!(1.5), json!("5")],
            ),
            (
                Primitive::Long,
                vec![json!(i64::MAX), json!(4.0)],
                vec![json!(u64::MAX), json!(0.1)],
            ),
            (Primitive::String, vec![json!("")], vec![json!(1)]),
            (
                Primitive::Date,
                vec![json!("2026-08-01"), json!("2024-02-29")],
                vec![
                    json!("2023-02-29"),
                    json!("2026-13-01"),
                    json!("2026-8-1"),
                    json!("2026-08-01Z"),
                    json!("é026-08-01"),
                ],
            ),
            (
                Primitive::Time,
                vec![json!("10:00:00Z"), json!("23:59:60.123+05:30")],
                vec![
                    json!("24:00:00Z"),
                    json!("10:00:00"),
                    json!("10:00Z"),
                    json!("10:00:00.Z"),
                ],
            ),
            (
                Primitive::DateTime,
                vec![
                    json!("2026-08-01T10:00:00Z"),
                    json!("2026-08-01T10:00:00.5-08:00"),
                ],
                vec![json!("2026-08-01"), json!("2026-08-01T10:00:00"), json!(5)],
            ),
            (
                Primitive::Duration,
                vec![
                    json!("PT1H"),
                    json!("P1Y2M3DT4H5M6.7S"),
                    json!("P2W"),
                    json!("PT0.5S"),
                ],
                vec![
                    json!("P"),
                    json!("PT"),
                    json!("1H"),
                    json!("PT1X"),
                    json!("PT1M1H"),
                    json!("PT1.5H1M"),
                    json!("P.D"),
                    json!("PTü"),
                ],
            ),
        ];
        for (primitive, good, bad) in good_and_bad {
            for value in good {
                assert!(
                    fits(&Schema::Primitive(primitive), &value),
                    "{primitive:?} {value}"
                );
            }
            for value in bad {
                assert!(
                    !fits(&Schema::Primitive(primitive), &value),
                    "{primitive:?} {value}"
                );
            }
        }
    }

    #[test]
    fn geometries() {
        let point = Schema::Geospatial(Geometry::Point);
        assert!(fits(
            &point,
            &json!({"type": "Point", "coordinates": [1.0, 2, 3]})
        ));
        assert!(!fits(&point, &json!({"type": "Point", "coordinates": [1.0]})));
        assert!(!fits(
            &point,
            &json!({"type": "Polygon", "coordinates": [1.0, 2]})
        ));
        assert!(!fits(&point, &json!([1, 2])));
        let polygon = Schema::Geospatial(Geometry::Polygon);
        assert!(fits(
            &polygon,
            &json!({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]})
        ));
        assert!(!fits(
            &polygon,
            &json!({"type": "Polygon", "coordinates": [[0, 0]]})
        ));
    }
}
