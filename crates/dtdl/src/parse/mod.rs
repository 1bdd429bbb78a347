//! Model documents: JSON-LD with the contexts of DTDL v2 and v3.
//!
//! A document is one interface or a list of interfaces. Interfaces that stand inside others (in a component or in
//! `extends`) come out beside them, with references in their place. Reading goes on behind a fault, so that a document
//! tells all of its faults at once; what refers to other models is for [`crate::set`] to check.

mod content;
mod element;
mod schema;

use serde_json::{Map, Value};

use crate::dtmi::{Dtmi, INTERFACE_ID_MAX};
use crate::fault::{Fault, Faults};
use crate::model::{Dialect, Interface};

pub(crate) use content::has_array;

/// Largest document: DTDL v3 bounds the text of an interface by it.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;

const CONTEXT_V2: &str = "dtmi:dtdl:context;2";
const CONTEXT_V3: &str = "dtmi:dtdl:context;3";
const QUANTITATIVE: &str = "dtmi:dtdl:extension:quantitativeTypes;1";
/// Deepest nesting of interfaces in interfaces.
const NESTING_MAX: usize = 10;

/// Reads a document. The first interface is the one that the document is about.
///
/// # Errors
/// Everything that is wrong with it, at most [`crate::fault::FAULTS_MAX`] faults.
pub fn parse_document(text: &str) -> Result<Vec<Interface>, Vec<Fault>> {
    let whole = |rule: String| {
        vec![Fault {
            place: String::new(),
            rule,
        }]
    };
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(whole(format!(
            "the document has {} bytes; at most {DOCUMENT_BYTES_MAX} are allowed",
            text.len()
        )));
    }
    // serde_json bounds the nesting at 128 levels.
    let document: Value =
        serde_json::from_str(text).map_err(|error| whole(format!("the document is not JSON: {error}")))?;
    let items = match &document {
        Value::Array(items) if items.is_empty() => {
            return Err(whole("the list of interfaces is empty".into()));
        }
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut reader = Reader {
        faults: Faults::default(),
        interfaces: Vec::new(),
        language: Language::default(),
        nesting: 0,
    };
    for (index, item) in items.iter().enumerate() {
        // What a document is about comes first, before what stands inside of it.
        let place = reader.interfaces.len();
        if items.len() == 1 {
            reader.interface(item, None, place);
        } else {
            reader.step(&format!("[{index}] "), |reader| {
                reader.interface(item, None, place)
            });
        }
    }
    let faults = reader.faults.into_found();
    if faults.is_empty() {
        Ok(reader.interfaces)
    } else {
        Err(faults)
    }
}

/// The language of an element and the extensions it may use.
#[derive(Clone, Copy, Default, Debug)]
struct Language {
    dialect: Option<Dialect>,
    /// Semantic types and units are known.
    quantitative: bool,
    /// Another extension is in use, whose types and members are not known here.
    foreign: bool,
}

impl Language {
    fn is_v2(self) -> bool {
        self.dialect != Some(Dialect::V3)
    }
}

/// Reads one document.
struct Reader {
    faults: Faults,
    interfaces: Vec<Interface>,
    language: Language,
    nesting: usize,
}

impl Reader {
    /// Reads an interface and keeps it at `place`; gives its id if it has one. `outer` is the language around it.
    fn interface(&mut self, value: &Value, outer: Option<Language>, place: usize) -> Option<Dtmi> {
        let Value::Object(object) = value else {
            self.faults
                .note(format!("an interface must be a JSON object, not {}", kind(value)));
            return None;
        };
        if self.nesting >= NESTING_MAX {
            self.faults.note(format!(
                "interfaces stand inside one another more than {NESTING_MAX} deep"
            ));
            return None;
        }
        self.language = self.context(object.get("@context"), outer)?;
        let id = self.interface_id(object);
        let gap = if self.nesting > 0 { " " } else { "" };
        let step = id
            .as_ref()
            .map_or_else(|| format!("{gap}(no @id)"), |id| format!("{gap}{id}"));
        self.nesting += 1;
        self.step(&step, |reader| reader.interface_body(object, id.as_ref(), place));
        self.nesting -= 1;
        id
    }

    fn interface_body(&mut self, object: &Map<String, Value>, id: Option<&Dtmi>, place: usize) {
        self.metamodel_type(object, &["Interface"]);
        self.members(object, &["@context", "contents", "extends", "schemas"]);
        let display_name = self.texts(object);
        let language = self.language;
        let schemas = self.named_schemas(object.get("schemas"));
        let contents = self.contents(object.get("contents"));
        let extends = self.extends(object.get("extends"));
        // Interfaces inside may have had a language of their own.
        self.language = language;
        let (Some(id), Some(dialect)) = (id, language.dialect) else {
            return;
        };
        if self.interfaces.iter().any(|known| known.id == *id) {
            self.faults.note("the document defines this interface twice");
            return;
        }
        let place = place.min(self.interfaces.len());
        self.interfaces.insert(
            place,
            Interface {
                id: id.clone(),
                dialect,
                display_name,
                extends,
                contents,
                schemas,
            },
        );
    }

    /// Which language a context means; the one around it when there is none.
    fn context(&mut self, context: Option<&Value>, outer: Option<Language>) -> Option<Language> {
        let texts: Vec<&str> = match (context, outer) {
            (None, Some(outer)) => return Some(outer),
            (None, None) => {
                self.faults
                    .note(format!("@context is missing: {CONTEXT_V2:?} or {CONTEXT_V3:?}"));
                return None;
            }
            (Some(Value::String(text)), _) => vec![text],
            (Some(Value::Array(items)), _) => items.iter().filter_map(Value::as_str).collect(),
            (Some(other), _) => {
                self.faults.note(format!(
                    "@context must be a text or a list of texts, not {}",
                    kind(other)
                ));
                return None;
            }
        };
        let dialect = match texts.first() {
            Some(&CONTEXT_V3) => Dialect::V3,
            _ if texts.contains(&CONTEXT_V2) => Dialect::V2,
            _ => {
                self.faults.note(format!(
                    "@context must hold {CONTEXT_V2:?}, or {CONTEXT_V3:?} before all extensions"
                ));
                return None;
            }
        };
        let others = texts
            .iter()
            .filter(|text| **text != CONTEXT_V2 && **text != CONTEXT_V3);
        let quantitative = dialect == Dialect::V2 || texts.contains(&QUANTITATIVE);
        Some(Language {
            dialect: Some(dialect),
            quantitative,
            foreign: others.clone().any(|text| *text != QUANTITATIVE),
        })
    }

    fn interface_id(&mut self, object: &Map<String, Value>) -> Option<Dtmi> {
        match object.get("@id") {
            None => {
                self.faults.note("@id is missing: an interface needs one");
                None
            }
            Some(Value::String(text)) => self.own_id(text, INTERFACE_ID_MAX),
            Some(other) => {
                self.faults
                    .note(format!("@id must be a text, not {}", kind(other)));
                None
            }
        }
    }

    fn extends(&mut self, value: Option<&Value>) -> Vec<Dtmi> {
        let items = match value {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let language = self.language;
        if language.is_v2() && items.len() > 2 {
            self.faults.note(format!(
                "extends names {} interfaces; DTDL v2 allows 2",
                items.len()
            ));
        }
        let mut extends = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let step = format!(" extends[{index}]");
            if let Some(id) = self.step(&step, |reader| reader.interface_reference(item, language)) {
                if extends.contains(&id) {
                    self.faults.note(format!("extends names {id} twice"));
                } else {
                    extends.push(id);
                }
            }
        }
        extends
    }

    /// An interface by its id, or in place.
    fn interface_reference(&mut self, value: &Value, language: Language) -> Option<Dtmi> {
        match value {
            Value::String(text) => self.reference(text),
            Value::Object(object) if object.len() == 1 && object.contains_key("@id") => {
                let text = object.get("@id").and_then(Value::as_str);
                text.and_then(|text| self.reference(text))
            }
            inline => {
                let place = self.interfaces.len();
                let id = self.interface(inline, Some(language), place);
                self.language = language;
                id
            }
        }
    }

    /// Runs a check one step deeper in the document.
    fn step<T>(&mut self, step: &str, check: impl FnOnce(&mut Self) -> T) -> T {
        let mut faults = std::mem::take(&mut self.faults);
        let result = faults.within(format_args!("{step}"), |faults| {
            std::mem::swap(&mut self.faults, faults);
            let result = check(self);
            std::mem::swap(&mut self.faults, faults);
            result
        });
        self.faults = faults;
        result
    }
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
