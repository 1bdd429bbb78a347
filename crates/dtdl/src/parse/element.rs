//! What all elements have: types, ids, names, texts for people.

use serde_json::{Map, Value};

use super::{Reader, kind};
use crate::dtmi::{Dtmi, ELEMENT_ID_MAX};
use crate::fault::clip;
use crate::quantities;

/// Types of the language's own; the others are semantic.
const METAMODEL: &[&str] = &[
    "Interface",
    "Telemetry",
    "Property",
    "Command",
    "Component",
    "Relationship",
    "CommandPayload",
    "CommandRequest",
    "CommandResponse",
    "Array",
    "Enum",
    "EnumValue",
    "Field",
    "Map",
    "MapKey",
    "MapValue",
    "Object",
];
/// Members that every element may have.
const EVERYWHERE: &[&str] = &["@id", "@type", "comment", "description", "displayName"];
/// Longest comment and description.
const TEXT_LEN_MAX: usize = 512;

impl Reader {
    /// The types of an element: the one of the language, which must be one of `allowed`, and semantic ones.
    pub(super) fn types<'a>(&mut self, object: &'a Map<String, Value>) -> (Option<&'a str>, Vec<&'a str>) {
        let texts: Vec<&str> = match object.get("@type") {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            Some(other) => {
                self.faults.note(format!(
                    "@type must be a text or a list of texts, not {}",
                    kind(other)
                ));
                Vec::new()
            }
        };
        let (own, semantic): (Vec<&str>, Vec<&str>) =
            texts.into_iter().partition(|text| METAMODEL.contains(text));
        if own.len() > 1 {
            self.faults
                .note(format!("@type names more than one element: {}", own.join(", ")));
        }
        (own.first().copied(), semantic)
    }

    /// Checks that the element has one of these types; `None` when it has no type that may be left out.
    pub(super) fn metamodel_type<'a>(
        &mut self,
        object: &'a Map<String, Value>,
        allowed: &[&str],
    ) -> Option<&'a str> {
        let (own, _) = self.types(object);
        match own {
            Some(own) if allowed.contains(&own) => Some(own),
            Some(own) => {
                self.faults
                    .note(format!("@type is {own:?}; allowed here: {}", allowed.join(", ")));
                None
            }
            None => {
                self.faults
                    .note(format!("@type is missing; allowed here: {}", allowed.join(", ")));
                None
            }
        }
    }

    /// Checks the type of an element whose type follows from its place, so that it may be left out.
    pub(super) fn implied_type(&mut self, object: &Map<String, Value>, allowed: &[&str]) {
        if object.contains_key("@type") {
            self.metamodel_type(object, allowed);
        }
    }

    /// Notes members that the element does not have.
    pub(super) fn members(&mut self, object: &Map<String, Value>, own: &[&str]) {
        if self.language.foreign {
            // Whatever the extension brings.
            return;
        }
        for name in object.keys() {
            if !own.contains(&name.as_str()) && !EVERYWHERE.contains(&name.as_str()) {
                self.faults
                    .note(format!("there is no member {:?} in this element", clip(name)));
            }
        }
    }

    /// Checks comment and description; gives the display name.
    pub(super) fn texts(&mut self, object: &Map<String, Value>) -> Option<String> {
        if let Some(comment) = object.get("comment") {
            self.text_of("comment", comment, TEXT_LEN_MAX);
        }
        if let Some(description) = object.get("description") {
            self.localized("description", description, TEXT_LEN_MAX);
        }
        let display_name_max = if self.language.is_v2() { 64 } else { 512 };
        let name = object.get("displayName")?;
        self.localized("displayName", name, display_name_max)
    }

    /// A text, or texts by language.
    fn localized(&mut self, member: &str, value: &Value, len_max: usize) -> Option<String> {
        let Value::Object(texts) = value else {
            return self.text_of(member, value, len_max);
        };
        for (language, text) in texts {
            let tag = !language.is_empty()
                && language.len() <= 35
                && language
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !tag {
                self.faults
                    .note(format!("{member}: {:?} is no language tag", clip(language)));
            }
            self.text_of(member, text, len_max);
        }
        let first = texts.get("en").or_else(|| texts.values().next());
        first.and_then(Value::as_str).map(str::to_owned)
    }

    fn text_of(&mut self, member: &str, value: &Value, len_max: usize) -> Option<String> {
        let Some(text) = value.as_str() else {
            self.faults
                .note(format!("{member} must be a text, not {}", kind(value)));
            return None;
        };
        let length = text.chars().count();
        if length > len_max {
            self.faults.note(format!(
                "{member} has {length} characters; at most {len_max} are allowed"
            ));
        }
        Some(text.to_owned())
    }

    /// The member `name`, checked; `None` when it is missing or wrong, which is noted.
    pub(super) fn name(&mut self, object: &Map<String, Value>) -> Option<String> {
        let name = match object.get("name") {
            None => {
                self.faults.note("name is missing");
                return None;
            }
            Some(Value::String(name)) => name,
            Some(other) => {
                self.faults
                    .note(format!("name must be a text, not {}", kind(other)));
                return None;
            }
        };
        let len_max = if self.language.is_v2() { 64 } else { 512 };
        let bytes = name.as_bytes();
        let shape = bytes.first().is_some_and(u8::is_ascii_alphabetic)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        if !shape {
            self.faults.note(format!(
                "name {:?} must begin with a letter, end with a letter or digit, and have letters, digits and underscores \
                 only",
                clip(name)
            ));
            return None;
        }
        if name.len() > len_max {
            self.faults.note(format!(
                "name has {} characters; at most {len_max} are allowed",
                name.len()
            ));
            return None;
        }
        Some(name.clone())
    }

    /// Checks the id of an element that need not have one.
    pub(super) fn element_id(&mut self, object: &Map<String, Value>) -> Option<Dtmi> {
        match object.get("@id")? {
            Value::String(text) => self.own_id(text, ELEMENT_ID_MAX),
            other => {
                self.faults
                    .note(format!("@id must be a text, not {}", kind(other)));
                None
            }
        }
    }

    /// An id that the document gives to an element of its own.
    pub(super) fn own_id(&mut self, text: &str, len_max: usize) -> Option<Dtmi> {
        if text.len() > len_max {
            self.faults.note(format!(
                "@id has {} characters; at most {len_max} are allowed",
                text.len()
            ));
            return None;
        }
        let id = self.reference(text)?;
        if let Some(why) = id.reserved() {
            self.faults.note(format!("@id {id}: {why}"));
        }
        Some(id)
    }

    /// An id of something, perhaps in another document.
    pub(super) fn reference(&mut self, text: &str) -> Option<Dtmi> {
        let id = match Dtmi::parse(text) {
            Ok(id) => id,
            Err(error) => {
                self.faults.note(error.to_string());
                return None;
            }
        };
        if self.language.is_v2() {
            match id.version() {
                None => self.faults.note(format!("{id}: DTDL v2 needs a version")),
                Some(version) if version.minor.is_some() => {
                    self.faults.note(format!("{id}: DTDL v2 has no minor versions"))
                }
                Some(_) => {}
            }
        }
        Some(id)
    }

    /// Semantic types and unit of a telemetry or property; `numeric` is whether its schema is a number.
    pub(super) fn quantity(
        &mut self,
        object: &Map<String, Value>,
        semantic: &[&str],
        numeric: bool,
    ) -> (Vec<String>, Option<String>) {
        let unit = object.get("unit");
        if !self.language.quantitative && !self.language.foreign && (unit.is_some() || !semantic.is_empty()) {
            self.faults.note(
                "semantic types and units of DTDL v3 need the extension dtmi:dtdl:extension:quantitativeTypes;1 in @context",
            );
        }
        let mut units = None;
        for name in semantic {
            match quantities::units_of(name) {
                Some(found) => units = Some(found),
                None if self.language.foreign => {}
                None => self
                    .faults
                    .note(format!("there is no semantic type {:?}", clip(name))),
            }
        }
        if units.is_some() && !numeric {
            self.faults
                .note("a semantic type needs a schema of numbers: double, float, integer or long");
        }
        let unit = match unit {
            None => None,
            Some(Value::String(unit)) => {
                match units {
                    Some(units) if !quantities::is_unit_of(units, unit) => self.faults.note(format!(
                        "{:?} is no unit of {}; those are {units}",
                        clip(unit),
                        semantic.join(", ")
                    )),
                    None if !self.language.foreign => {
                        self.faults.note("unit needs a semantic type beside it in @type");
                    }
                    _ => {}
                }
                Some(unit.clone())
            }
            Some(other) => {
                self.faults
                    .note(format!("unit must be a text, not {}", kind(other)));
                None
            }
        };
        (semantic.iter().map(|name| (*name).to_owned()).collect(), unit)
    }
}
