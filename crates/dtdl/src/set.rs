//! Models that belong together: what one refers to, the others define.

use std::collections::{BTreeMap, BTreeSet};

use crate::dtmi::Dtmi;
use crate::fault::{Fault, Faults};
use crate::model::{Content, ContentKind, Dialect, Interface, Schema};
use crate::parse::{has_array, parse_document};

/// Most interfaces of a set: as many as DTDL v3 allows in one hierarchy.
pub const INTERFACES_MAX: usize = 1_024;
/// Levels of `extends`.
const EXTENDS_DEPTH_MAX: usize = 10;
/// Most contents of an interface with those it extends, in DTDL v2 and v3.
const CONTENTS_MAX_V2: usize = 300;
const CONTENTS_MAX_V3: usize = 100_000;

/// Interfaces by id, and the schemas they define.
#[derive(Clone, Default, Debug)]
pub struct ModelSet {
    interfaces: BTreeMap<Dtmi, Interface>,
    schemas: BTreeMap<Dtmi, Schema>,
}

impl ModelSet {
    /// Adds the interfaces of a document; gives the id of the one it is about. Interfaces that are there already stay.
    ///
    /// # Errors
    /// What is wrong with the document itself; nothing is added then.
    pub fn add_document(&mut self, text: &str) -> Result<Dtmi, Vec<Fault>> {
        let interfaces = parse_document(text)?;
        let about = interfaces.first().map(|interface| interface.id.clone());
        if self.interfaces.len() + interfaces.len() > INTERFACES_MAX {
            return Err(vec![Fault {
                place: String::new(),
                rule: format!("the models refer to more than {INTERFACES_MAX} interfaces"),
            }]);
        }
        for interface in interfaces {
            for (id, schema) in &interface.schemas {
                self.schemas.entry(id.clone()).or_insert_with(|| schema.clone());
            }
            self.interfaces.entry(interface.id.clone()).or_insert(interface);
        }
        about.ok_or_else(Vec::new)
    }

    /// An interface.
    #[must_use]
    pub fn interface(&self, id: &Dtmi) -> Option<&Interface> {
        self.interfaces.get(id)
    }

    /// Interfaces that are referred to and not there. Targets of relationships need not be.
    #[must_use]
    pub fn missing(&self) -> BTreeSet<&Dtmi> {
        let mut wanted: BTreeSet<&Dtmi> = BTreeSet::new();
        for interface in self.interfaces.values() {
            wanted.extend(&interface.extends);
            wanted.extend(
                interface
                    .contents
                    .iter()
                    .filter_map(|content| match &content.kind {
                        ContentKind::Component { schema } => Some(schema),
                        _ => None,
                    }),
            );
        }
        wanted.retain(|id| !self.interfaces.contains_key(*id));
        wanted
    }

    /// Checks what no document can be checked for alone: that everything referred to is there, inheritance, components,
    /// names over a whole hierarchy.
    #[must_use]
    pub fn check(&self) -> Vec<Fault> {
        let mut found = Vec::new();
        for interface in self.interfaces.values() {
            let mut faults = Faults::at(interface.id.to_string());
            self.check_interface(interface, &mut faults);
            found.extend(faults.into_found());
        }
        found.truncate(crate::fault::FAULTS_MAX);
        found
    }

    /// The contents of an interface with those it extends, its own first. Unknown interfaces count as empty.
    #[must_use]
    pub fn contents(&self, id: &Dtmi) -> Vec<&Content> {
        let mut contents = Vec::new();
        for interface in self.hierarchy(id) {
            contents.extend(&interface.contents);
        }
        contents
    }

    /// A content of an interface or of one it extends.
    #[must_use]
    pub fn content(&self, id: &Dtmi, name: &str) -> Option<&Content> {
        self.hierarchy(id)
            .into_iter()
            .flat_map(|interface| &interface.contents)
            .find(|content| content.name == name)
    }

    /// The schema that a schema means: itself, or what it refers to.
    #[must_use]
    pub fn resolve<'a>(&'a self, schema: &'a Schema) -> Option<&'a Schema> {
        match schema {
            Schema::Reference(id) => self.schemas.get(id),
            other => Some(other),
        }
    }

    /// An interface with all that it extends, each once.
    fn hierarchy(&self, id: &Dtmi) -> Vec<&Interface> {
        let mut seen: Vec<&Interface> = self.interface(id).into_iter().collect();
        let mut next = 0;
        while let Some(interface) = seen.get(next) {
            next += 1;
            for id in &interface.extends {
                if let Some(above) = self.interface(id)
                    && !seen.iter().any(|known| known.id == above.id)
                {
                    seen.push(above);
                }
            }
        }
        seen
    }

    fn check_interface(&self, interface: &Interface, faults: &mut Faults) {
        for (index, id) in interface.extends.iter().enumerate() {
            if !self.interfaces.contains_key(id) {
                faults.within(format_args!(" extends[{index}]"), |faults| {
                    faults.note(format!("the interface {id} is not there"));
                });
            }
        }
        match self.levels(&interface.id) {
            None => faults.note("the interface extends itself"),
            Some(levels) if levels > EXTENDS_DEPTH_MAX => faults.note(format!(
                "extends is {levels} levels deep; at most {EXTENDS_DEPTH_MAX} are allowed"
            )),
            Some(_) => {}
        }
        self.check_names(interface, faults);
        for (index, content) in interface.contents.iter().enumerate() {
            faults.within(format_args!(" contents[{index}] {:?}", content.name), |faults| {
                self.check_content(interface.dialect, content, faults);
            });
        }
        for (id, schema) in &interface.schemas {
            faults.within(format_args!(" schema {id}"), |faults| {
                self.check_references(schema, &mut vec![id], faults);
            });
        }
    }

    fn check_names(&self, interface: &Interface, faults: &mut Faults) {
        let contents = self.contents(&interface.id);
        let most = match interface.dialect {
            Dialect::V2 => CONTENTS_MAX_V2,
            Dialect::V3 => CONTENTS_MAX_V3,
        };
        if contents.len() > most {
            faults.note(format!(
                "with what it extends the interface has {} contents; at most {most} are allowed",
                contents.len()
            ));
        }
        let own: BTreeSet<&str> = interface
            .contents
            .iter()
            .map(|content| content.name.as_str())
            .collect();
        let mut above = BTreeSet::new();
        for content in contents.iter().skip(interface.contents.len()) {
            if own.contains(content.name.as_str()) || !above.insert(content.name.as_str()) {
                faults.note(format!(
                    "{:?} is the name of two contents, counting those of the interfaces it extends",
                    content.name
                ));
            }
        }
    }

    fn check_content(&self, dialect: Dialect, content: &Content, faults: &mut Faults) {
        match &content.kind {
            ContentKind::Telemetry { schema } => self.check_references(schema, &mut Vec::new(), faults),
            ContentKind::Property { schema, .. } => {
                self.check_references(schema, &mut Vec::new(), faults);
                if dialect == Dialect::V2 && self.resolve(schema).is_some_and(has_array) && !has_array(schema)
                {
                    faults.note("the schema of a Property of DTDL v2 may have no Array and no geospatial schema in it");
                }
            }
            ContentKind::Command { request, response } => {
                for payload in [request, response].into_iter().flatten() {
                    self.check_references(&payload.schema, &mut Vec::new(), faults);
                }
            }
            ContentKind::Component { schema } => {
                if !self.interfaces.contains_key(schema) {
                    faults.note(format!("the interface {schema} is not there"));
                }
                let nested = self
                    .contents(schema)
                    .into_iter()
                    .find(|inner| matches!(inner.kind, ContentKind::Component { .. }));
                if let Some(nested) = nested {
                    faults.note(format!(
                        "the interface of a component may have no components itself; {schema} has {:?}",
                        nested.name
                    ));
                }
            }
            ContentKind::Relationship { .. } => {}
        }
    }

    /// `above` are the schemas with ids that this one stands in.
    fn check_references<'a>(&'a self, schema: &'a Schema, above: &mut Vec<&'a Dtmi>, faults: &mut Faults) {
        match schema {
            Schema::Primitive(_) | Schema::Geospatial(_) | Schema::Enum(_) => {}
            Schema::Array(inner) | Schema::Map(inner) => self.check_references(inner, above, faults),
            Schema::Object(fields) => {
                for (_, schema) in fields {
                    self.check_references(schema, above, faults);
                }
            }
            Schema::Reference(id) if above.contains(&id) => {
                faults.note(format!("the schema {id} is part of itself"))
            }
            Schema::Reference(id) if above.len() >= EXTENDS_DEPTH_MAX => {
                faults.note(format!("schemas refer to one another too deep, at {id}"));
            }
            Schema::Reference(id) => match self.schemas.get(id) {
                None => faults.note(format!("the schema {id} is not there")),
                Some(found) => {
                    above.push(id);
                    self.check_references(found, above, faults);
                    above.pop();
                }
            },
        }
    }

    /// Levels of `extends` below an interface; `None` when it comes back to itself.
    fn levels(&self, id: &Dtmi) -> Option<usize> {
        let mut level: BTreeSet<&Dtmi> = self.interface(id)?.extends.iter().collect();
        let mut levels = 0;
        while !level.is_empty() {
            levels += 1;
            if level.contains(id) {
                return None;
            }
            // A circle that does not lead back here is told where it does.
            if levels > INTERFACES_MAX {
                return Some(0);
            }
            level = level
                .into_iter()
                .filter_map(|id| self.interface(id))
                .flat_map(|interface| &interface.extends)
                .collect();
        }
        Some(levels)
    }
}
