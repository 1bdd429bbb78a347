//! A device twin against the model that the device announces (languages.md 7.4).

use serde_json::{Map, Value};

use crate::dtmi::Dtmi;
use crate::fault::{Fault, Faults, clip};
use crate::model::{Content, ContentKind, Schema};
use crate::parse::kind;
use crate::set::ModelSet;
use crate::value;

/// Marks an object of a twin as component.
const COMPONENT_MARK: &str = "__t";

/// Which section of a twin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Desired,
    Reported,
}

/// Everything that the desired and reported properties of a twin have against the model `id`, at most
/// [`crate::fault::FAULTS_MAX`] faults. Properties of the model that have no value are no fault.
#[must_use]
pub fn check_twin(
    models: &ModelSet,
    id: &Dtmi,
    desired: &Map<String, Value>,
    reported: &Map<String, Value>,
) -> Vec<Fault> {
    let mut found = Vec::new();
    for (name, section, properties) in [
        ("desired", Section::Desired, desired),
        ("reported", Section::Reported, reported),
    ] {
        let mut faults = Faults::at(name);
        check_members(models, id, section, properties, &mut faults);
        found.extend(faults.into_found());
    }
    found.truncate(crate::fault::FAULTS_MAX);
    found
}

fn check_members(
    models: &ModelSet,
    id: &Dtmi,
    section: Section,
    members: &Map<String, Value>,
    faults: &mut Faults,
) {
    for (name, value) in members {
        if name.starts_with('$') || name == COMPONENT_MARK {
            continue;
        }
        faults.within(format_args!(".{}", clip(name)), |faults| {
            match models.content(id, name) {
                None => faults.note(format!(
                    "the model {id} has no property or component of this name"
                )),
                Some(content) => check_member(models, content, section, value, faults),
            }
        });
    }
}

fn check_member(models: &ModelSet, content: &Content, section: Section, value: &Value, faults: &mut Faults) {
    match &content.kind {
        ContentKind::Property { writable: false, .. } if section == Section::Desired => {
            faults.note("the property is read-only: only the device may set it");
        }
        ContentKind::Property { schema, writable } => {
            if *writable && section == Section::Reported && is_acknowledgement(models, schema, value) {
                check_acknowledgement(models, schema, value, faults);
            } else {
                value::check(models, schema, value, faults);
            }
        }
        ContentKind::Component { schema } => match value {
            Value::Object(members) => {
                if members.get(COMPONENT_MARK).and_then(Value::as_str) != Some("c") {
                    faults.note("a component must carry \"__t\":\"c\"");
                }
                check_members(models, schema, section, members, faults);
            }
            other => faults.note(format!("a component must be an object, not {}", kind(other))),
        },
        other => faults.note(format!(
            "this is a {} of the model, no property",
            other.type_name()
        )),
    }
}

/// A device answers a desired value with `{"value":…,"ac":…,"av":…}`. An object schema may have such fields itself.
fn is_acknowledgement(models: &ModelSet, schema: &Schema, value: &Value) -> bool {
    let own_fields = match models.resolve(schema) {
        Some(Schema::Object(fields)) => fields.iter().any(|(name, _)| name == "value"),
        _ => false,
    };
    !own_fields && unwrap_acknowledgement(value).is_some()
}

/// The value in an acknowledgement; `None` if it is none.
pub(crate) fn unwrap_acknowledgement(value: &Value) -> Option<&Value> {
    let members = value.as_object()?;
    let known = |name: &String| matches!(name.as_str(), "value" | "ac" | "av" | "ad");
    let is_one = members.contains_key("ac") && members.contains_key("av") && members.keys().all(known);
    is_one.then(|| members.get("value"))?
}

fn check_acknowledgement(models: &ModelSet, schema: &Schema, value: &Value, faults: &mut Faults) {
    for (name, what) in [("ac", "the code"), ("av", "the version")] {
        if value.get(name).and_then(Value::as_i64).is_none() {
            faults.note(format!(
                "{what} of the acknowledgement, {name:?}, must be a whole number"
            ));
        }
    }
    if value.get("ad").is_some_and(|text| !text.is_string()) {
        faults.note("the description of the acknowledgement, \"ad\", must be a text");
    }
    if let Some(inner) = value.get("value") {
        faults.within(format_args!(".value"), |faults| {
            value::check(models, schema, inner, faults);
        });
    }
}
