//! Typed access to members of an object, with errors that name the path.

use serde_json::{Map, Value};

use super::ManifestError;

/// An object and where it stands.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn root(object: &'a Map<String, Value>) -> Self {
        Fields {
            object,
            path: String::new(),
        }
    }

    pub(super) fn at(object: &'a Map<String, Value>, path: String) -> Self {
        Fields { object, path }
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    pub(super) fn wrong(&self, name: &str, problem: impl Into<String>) -> ManifestError {
        ManifestError::format(self.path(name), problem)
    }

    /// A member; `null` is as good as none.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.object.iter().filter(|(_, value)| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ManifestError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, format!("{} instead of a text", kind(other)))),
        }
    }

    pub(super) fn needed_text(&self, name: &str) -> Result<&'a str, ManifestError> {
        self.text(name)?.ok_or_else(|| self.wrong(name, "missing"))
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ManifestError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => self.as_object(name, value).map(Some),
        }
    }

    pub(super) fn as_object(&self, name: &str, value: &'a Value) -> Result<Fields<'a>, ManifestError> {
        match value {
            Value::Object(object) => Ok(Fields {
                object,
                path: self.path(name),
            }),
            other => Err(self.wrong(name, format!("{} instead of an object", kind(other)))),
        }
    }

    /// One of a few words, in any case.
    pub(super) fn word<T: Copy>(
        &self,
        name: &str,
        words: &[(&str, T)],
        default: Option<T>,
    ) -> Result<T, ManifestError> {
        let Some(text) = self.text(name)? else {
            return default.ok_or_else(|| self.wrong(name, "missing"));
        };
        words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text))
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.wrong(name, format!("{text:?} is not one of {}", known.join(", ")))
            })
    }
}

/// What a value is, in words.
pub(super) const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
