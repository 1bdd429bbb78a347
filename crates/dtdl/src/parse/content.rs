//! The contents of interfaces: telemetry, properties, commands, components, relationships.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Reader, kind};
use crate::fault::clip;
use crate::model::{Content, ContentKind, Payload, Schema};

/// Most contents of one interface in DTDL v2, and most elements in v3.
const CONTENTS_MAX_V2: usize = 300;
const CONTENTS_MAX_V3: usize = 100_000;
/// Greatest multiplicity of a relationship in DTDL v2.
const MULTIPLICITY_MAX_V2: u64 = 500;

impl Reader {
    pub(super) fn contents(&mut self, value: Option<&Value>) -> Vec<Content> {
        let items = match value {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let most = if self.language.is_v2() {
            CONTENTS_MAX_V2
        } else {
            CONTENTS_MAX_V3
        };
        if items.len() > most {
            self.faults.note(format!(
                "contents has {} elements; at most {most} are allowed",
                items.len()
            ));
            return Vec::new();
        }
        let mut names = HashSet::new();
        let mut contents = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let name = item.get("name").and_then(Value::as_str).map(clip);
            let step = match &name {
                None => format!(" contents[{index}]"),
                Some(name) => format!(" contents[{index}] {name:?}"),
            };
            let content = self.step(&step, |reader| reader.content(item));
            if let Some(content) = content {
                if !names.insert(content.name.clone()) {
                    self.faults
                        .note(format!("two contents are called {:?}", content.name));
                }
                contents.push(content);
            }
        }
        contents
    }

    fn content(&mut self, value: &Value) -> Option<Content> {
        let Value::Object(object) = value else {
            self.faults
                .note(format!("a content must be a JSON object, not {}", kind(value)));
            return None;
        };
        const KINDS: &[&str] = &["Telemetry", "Property", "Command", "Component", "Relationship"];
        let own = self.metamodel_type(object, KINDS)?;
        let (_, semantic) = self.types(object);
        self.element_id(object);
        let display_name = self.texts(object);
        let name = self.name(object);
        let (mut semantic_types, mut unit) = (Vec::new(), None);
        let kind = match own {
            "Telemetry" | "Property" => {
                let schema = self.content_schema(object, own);
                let numeric = match &schema {
                    Some(Schema::Primitive(primitive)) => primitive.is_numeric(),
                    // What it refers to is not known here; what is wrong was noted.
                    Some(Schema::Reference(_)) | None => true,
                    Some(_) => false,
                };
                (semantic_types, unit) = self.quantity(object, &semantic, numeric);
                let schema = schema?;
                if own == "Telemetry" {
                    ContentKind::Telemetry { schema }
                } else {
                    ContentKind::Property {
                        schema,
                        writable: self.writable(object),
                    }
                }
            }
            "Command" => self.command(object),
            "Component" => self.component(object)?,
            _ => self.relationship(object),
        };
        if !semantic.is_empty() && semantic_types.is_empty() && !self.language.foreign {
            self.faults.note(format!(
                "a {own} has no semantic types, such as {:?}",
                clip(semantic[0])
            ));
        }
        Some(Content {
            name: name?,
            display_name,
            semantic_types,
            unit,
            kind,
        })
    }

    fn content_schema(&mut self, object: &Map<String, Value>, own: &str) -> Option<Schema> {
        let members: &[&str] = if own == "Property" {
            &["name", "schema", "unit", "writable"]
        } else {
            &["name", "schema", "unit"]
        };
        self.members(object, members);
        let schema = self.member_schema(object, "schema", 0)?;
        if own == "Property" && self.language.is_v2() && has_array(&schema) {
            self.faults
                .note("the schema of a Property of DTDL v2 may have no Array and no geospatial schema in it");
        }
        Some(schema)
    }

    fn writable(&mut self, object: &Map<String, Value>) -> bool {
        match object.get("writable") {
            None => false,
            Some(Value::Bool(writable)) => *writable,
            Some(other) => {
                self.faults
                    .note(format!("writable must be true or false, not {}", kind(other)));
                false
            }
        }
    }

    fn command(&mut self, object: &Map<String, Value>) -> ContentKind {
        self.members(object, &["name", "request", "response", "commandType"]);
        if let Some(command_type) = object.get("commandType") {
            if !self.language.is_v2() {
                self.faults.note("commandType is not part of DTDL v3");
            } else if !matches!(command_type.as_str(), Some("synchronous" | "asynchronous")) {
                self.faults
                    .note("commandType must be \"synchronous\" or \"asynchronous\"");
            }
        }
        ContentKind::Command {
            request: self.payload(object, "request", "CommandRequest"),
            response: self.payload(object, "response", "CommandResponse"),
        }
    }

    fn payload(&mut self, object: &Map<String, Value>, member: &str, v3_type: &str) -> Option<Payload> {
        let value = object.get(member)?;
        self.step(&format!(" {member}"), |reader| {
            let Value::Object(payload) = value else {
                reader
                    .faults
                    .note(format!("must be a JSON object, not {}", kind(value)));
                return None;
            };
            let own = if reader.language.is_v2() {
                "CommandPayload"
            } else {
                v3_type
            };
            reader.implied_type(payload, &[own]);
            reader.members(payload, &["name", "schema"]);
            reader.element_id(payload);
            reader.texts(payload);
            let name = reader.name(payload);
            let schema = reader.member_schema(payload, "schema", 0);
            Some(Payload {
                name: name?,
                schema: schema?,
            })
        })
    }

    fn component(&mut self, object: &Map<String, Value>) -> Option<ContentKind> {
        self.members(object, &["name", "schema"]);
        let language = self.language;
        let Some(schema) = object.get("schema") else {
            self.faults
                .note("schema is missing: the interface of the component");
            return None;
        };
        let schema = self.step(" schema", |reader| reader.interface_reference(schema, language))?;
        Some(ContentKind::Component { schema })
    }

    fn relationship(&mut self, object: &Map<String, Value>) -> ContentKind {
        const MEMBERS: &[&str] = &[
            "name",
            "target",
            "minMultiplicity",
            "maxMultiplicity",
            "properties",
            "writable",
        ];
        self.members(object, MEMBERS);
        self.writable(object);
        let (least, most) = (
            self.multiplicity(object, "minMultiplicity"),
            self.multiplicity(object, "maxMultiplicity"),
        );
        if let Some(least) = least
            && self.language.is_v2()
            && least != 0
        {
            self.faults.note("minMultiplicity must be 0 in DTDL v2");
        }
        if let Some(most) = most {
            if self.language.is_v2() && !(1..=MULTIPLICITY_MAX_V2).contains(&most) {
                self.faults.note(format!(
                    "maxMultiplicity must be 1 to {MULTIPLICITY_MAX_V2} in DTDL v2"
                ));
            } else if most == 0 || least.is_some_and(|least| least > most) {
                self.faults
                    .note("maxMultiplicity must be at least 1, and not below minMultiplicity");
            }
        }
        self.step(" properties", |reader| {
            for content in reader.contents(object.get("properties")) {
                if !matches!(content.kind, ContentKind::Property { .. }) {
                    reader.faults.note(format!(
                        "{:?} is a {}; a relationship has properties only",
                        content.name,
                        content.kind.type_name()
                    ));
                }
            }
        });
        let target = match object.get("target") {
            None => None,
            Some(Value::String(text)) => self.step(" target", |reader| reader.reference(text)),
            Some(other) => {
                self.faults.note(format!(
                    "target must be the id of an interface, not {}",
                    kind(other)
                ));
                None
            }
        };
        ContentKind::Relationship { target }
    }

    fn multiplicity(&mut self, object: &Map<String, Value>, member: &str) -> Option<u64> {
        let value = object.get(member)?;
        let number = value.as_u64();
        if number.is_none() {
            self.faults.note(format!(
                "{member} must be a whole number of at least 0, not {value}"
            ));
        }
        number
    }
}

/// Whether a schema has a list in it. What it refers to is checked with the set of models.
pub(crate) fn has_array(schema: &Schema) -> bool {
    match schema {
        Schema::Array(_) | Schema::Geospatial(_) => true,
        Schema::Map(value) => has_array(value),
        Schema::Object(fields) => fields.iter().any(|(_, schema)| has_array(schema)),
        Schema::Primitive(_) | Schema::Enum(_) | Schema::Reference(_) => false,
    }
}
