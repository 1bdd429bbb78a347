//! Schemas: primitive, geospatial, and the complex ones.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Reader, kind};
use crate::dtmi::Dtmi;
use crate::fault::clip;
use crate::model::{Geometry, Primitive, Schema};

/// Levels of complex schemas in one another.
const DEPTH_MAX: usize = 5;
/// Most values of an Enum and fields of an Object in DTDL v2.
const ENUM_VALUES_MAX_V2: usize = 100;
const FIELDS_MAX_V2: usize = 30;
/// Longest text value of an Enum.
const ENUM_TEXT_MAX: usize = 4_096;
const COMPLEX: &[&str] = &["Array", "Enum", "Map", "Object"];

impl Reader {
    /// The `schemas` of an interface: complex schemas with ids.
    pub(super) fn named_schemas(&mut self, value: Option<&Value>) -> Vec<(Dtmi, Schema)> {
        let items = match value {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut schemas: Vec<(Dtmi, Schema)> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let named = self.step(&format!(" schemas[{index}]"), |reader| {
                let Value::Object(object) = item else {
                    reader
                        .faults
                        .note(format!("must be a complex schema, not {}", kind(item)));
                    return None;
                };
                if !object.contains_key("@id") {
                    reader
                        .faults
                        .note("@id is missing: a schema of the interface is there to be referred to");
                }
                let schema = reader.complex(object, 0)?;
                let id = object.get("@id").and_then(Value::as_str);
                Some((Dtmi::parse(id?).ok()?, schema))
            });
            if let Some((id, schema)) = named {
                if schemas.iter().any(|(known, _)| *known == id) {
                    self.faults.note(format!("schemas has {id} twice"));
                }
                schemas.push((id, schema));
            }
        }
        schemas
    }

    /// The schema that stands in a member of an element, which must have it.
    pub(super) fn member_schema(
        &mut self,
        object: &Map<String, Value>,
        member: &str,
        depth: usize,
    ) -> Option<Schema> {
        let Some(value) = object.get(member) else {
            self.faults.note(format!("{member} is missing"));
            return None;
        };
        self.step(&format!(" {member}"), |reader| reader.schema(value, depth))
    }

    fn schema(&mut self, value: &Value, depth: usize) -> Option<Schema> {
        match value {
            Value::String(text) => self.schema_named(text),
            Value::Object(object) => self.complex(object, depth),
            other => {
                self.faults.note(format!(
                    "must be the name of a schema, an id or an object, not {}",
                    kind(other)
                ));
                None
            }
        }
    }

    fn schema_named(&mut self, text: &str) -> Option<Schema> {
        if let Some(primitive) = Primitive::parse(text) {
            return Some(Schema::Primitive(primitive));
        }
        if let Some(geometry) = Geometry::parse(text) {
            return Some(Schema::Geospatial(geometry));
        }
        // The ids of the language's own schemas.
        for prefix in ["dtmi:dtdl:instance:Schema:", "dtmi:standard:schema:geospatial:"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let name = rest.split(';').next().unwrap_or_default();
                let known = Primitive::parse(name)
                    .map(Schema::Primitive)
                    .or_else(|| Geometry::parse(name).map(Schema::Geospatial));
                if known.is_some() {
                    return known;
                }
            }
        }
        if !text.starts_with("dtmi:") {
            self.faults
                .note(format!("there is no schema {:?}; others need an id", clip(text)));
            return None;
        }
        self.reference(text).map(Schema::Reference)
    }

    fn complex(&mut self, object: &Map<String, Value>, depth: usize) -> Option<Schema> {
        if depth >= DEPTH_MAX {
            self.faults
                .note(format!("schemas stand in one another more than {DEPTH_MAX} deep"));
            return None;
        }
        let own = self.metamodel_type(object, COMPLEX)?;
        self.element_id(object);
        self.texts(object);
        match own {
            "Array" => {
                self.members(object, &["elementSchema"]);
                let element = self.member_schema(object, "elementSchema", depth + 1)?;
                Some(Schema::Array(Box::new(element)))
            }
            "Enum" => {
                self.members(object, &["valueSchema", "enumValues"]);
                self.enumeration(object)
            }
            "Map" => {
                self.members(object, &["mapKey", "mapValue"]);
                self.map(object, depth)
            }
            _ => {
                self.members(object, &["fields"]);
                self.object(object, depth)
            }
        }
    }

    fn map(&mut self, object: &Map<String, Value>, depth: usize) -> Option<Schema> {
        let key = self.map_part(object, "mapKey", "MapKey", depth);
        if key.is_some_and(|key| key != Schema::Primitive(Primitive::String)) {
            self.faults.note("the schema of a mapKey must be string");
        }
        let value = self.map_part(object, "mapValue", "MapValue", depth)?;
        Some(Schema::Map(Box::new(value)))
    }

    fn map_part(
        &mut self,
        object: &Map<String, Value>,
        member: &str,
        own: &str,
        depth: usize,
    ) -> Option<Schema> {
        let Some(Value::Object(part)) = object.get(member) else {
            self.faults
                .note(format!("{member} is missing or no object with name and schema"));
            return None;
        };
        self.step(&format!(" {member}"), |reader| {
            reader.implied_type(part, &[own]);
            reader.members(part, &["name", "schema"]);
            reader.element_id(part);
            reader.texts(part);
            reader.name(part);
            reader.member_schema(part, "schema", depth + 1)
        })
    }

    fn object(&mut self, object: &Map<String, Value>, depth: usize) -> Option<Schema> {
        let items = self.items(object, "fields", FIELDS_MAX_V2)?;
        let mut names = HashSet::new();
        let mut fields = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let field = self.step(&format!(" fields[{index}]"), |reader| {
                let Value::Object(field) = item else {
                    reader
                        .faults
                        .note(format!("must be a JSON object, not {}", kind(item)));
                    return None;
                };
                reader.implied_type(field, &["Field"]);
                reader.members(field, &["name", "schema", "unit"]);
                reader.element_id(field);
                reader.texts(field);
                let name = reader.name(field);
                let schema = reader.member_schema(field, "schema", depth + 1);
                let (_, semantic) = reader.types(field);
                let numeric = match &schema {
                    Some(Schema::Primitive(primitive)) => primitive.is_numeric(),
                    Some(Schema::Reference(_)) | None => true,
                    Some(_) => false,
                };
                reader.quantity(field, &semantic, numeric);
                Some((name?, schema?))
            });
            if let Some((name, schema)) = field {
                if !names.insert(name.clone()) {
                    self.faults.note(format!("two fields are called {name:?}"));
                }
                fields.push((name, schema));
            }
        }
        Some(Schema::Object(fields))
    }

    fn enumeration(&mut self, object: &Map<String, Value>) -> Option<Schema> {
        let value_schema = object.get("valueSchema").and_then(Value::as_str);
        let Some(of_text) = (match value_schema {
            Some("string") => Some(true),
            Some("integer") => Some(false),
            _ => None,
        }) else {
            self.faults
                .note("valueSchema of an Enum must be \"integer\" or \"string\"");
            return None;
        };
        let items = self.items(object, "enumValues", ENUM_VALUES_MAX_V2)?;
        let mut names = HashSet::new();
        let mut values: Vec<(String, Value)> = Vec::with_capacity(items.len());
        let mut known = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let value = self.step(&format!(" enumValues[{index}]"), |reader| {
                reader.enum_value(item, of_text)
            });
            let Some((name, value)) = value else { continue };
            if !names.insert(name.clone()) {
                self.faults
                    .note(format!("two values of the Enum are called {name:?}"));
            }
            if !known.insert(value.to_string()) {
                self.faults.note(format!(
                    "the Enum has the value {} twice",
                    clip(&value.to_string())
                ));
            }
            values.push((name, value));
        }
        Some(Schema::Enum(values))
    }

    fn enum_value(&mut self, item: &Value, of_text: bool) -> Option<(String, Value)> {
        let Value::Object(object) = item else {
            self.faults
                .note(format!("must be a JSON object, not {}", kind(item)));
            return None;
        };
        self.implied_type(object, &["EnumValue"]);
        self.members(object, &["name", "enumValue"]);
        self.element_id(object);
        self.texts(object);
        let name = self.name(object);
        let value = object.get("enumValue")?;
        let right = match value {
            Value::String(text) => of_text && text.len() <= ENUM_TEXT_MAX,
            Value::Number(number) => {
                !of_text && number.as_i64().is_some_and(|value| i32::try_from(value).is_ok())
            }
            _ => false,
        };
        if !right {
            let wanted = if of_text {
                "a text"
            } else {
                "an integer of 4 bytes"
            };
            self.faults.note(format!("enumValue must be {wanted}"));
            return None;
        }
        Some((name?, value.clone()))
    }

    /// The items of a list that DTDL v2 demands and bounds.
    fn items<'a>(
        &mut self,
        object: &'a Map<String, Value>,
        member: &str,
        most_v2: usize,
    ) -> Option<&'a [Value]> {
        let v2 = self.language.is_v2();
        let items = match object.get(member) {
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None if v2 => {
                self.faults.note(format!("{member} is missing"));
                return None;
            }
            None => &[],
        };
        if v2 && items.len() > most_v2 {
            self.faults.note(format!(
                "{member} has {} items; DTDL v2 allows {most_v2}",
                items.len()
            ));
            return None;
        }
        Some(items)
    }
}
