//! Configurations of devices and modules, and edge deployments (rest.md section 12, edge.md 2.7).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode};
use crate::limits;
use crate::time::Timestamp;
use crate::twin::{PropertyPath, Write};

pub use crate::twin::ConfigurationStatus;

/// The module whose desired properties are the deployment itself.
pub const EDGE_AGENT: &str = "$edgeAgent";
/// The module whose desired properties are the routes.
pub const EDGE_HUB: &str = "$edgeHub";

/// A configuration or an edge deployment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Configuration {
    /// Its id; see [`check_fleet_id`].
    pub id: String,
    /// Free text of the creator's tool, such as `2.0`.
    pub schema_version: Option<String>,
    /// Names and values for people.
    pub labels: BTreeMap<String, String>,
    /// What it writes; never changes.
    pub content: Content,
    /// Which twins it is for: a condition, `*` for all, empty for none.
    pub target_condition: String,
    /// The higher one wins.
    pub priority: u32,
    /// Names and query texts.
    pub metrics: BTreeMap<String, String>,
    /// When it was created; of two with the same priority the later one wins.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Raised with every change; its text form is the entity tag.
    pub version: u64,
}

impl Configuration {
    /// What decides which of two wins: the greater one.
    #[must_use]
    pub fn rank(&self) -> (u32, Timestamp, &str) {
        (self.priority, self.created_at, &self.id)
    }

    /// Names this configuration among all there ever were, also those of the same id.
    #[must_use]
    pub fn plan_name(&self) -> String {
        format!("{}@{}", self.id, self.created_at.as_micros())
    }
}

/// What a configuration writes: values by path (`properties.desired…`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// Into device twins.
    Device(Map<String, Value>),
    /// Into module twins.
    Module(Map<String, Value>),
    /// Into the twins of modules of edge devices, by module id.
    Edge(BTreeMap<String, Map<String, Value>>),
}

/// How an edge deployment meets others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layering {
    /// Describes the device whole; one applies.
    Base,
    /// Adds to a base of lower priority.
    Layer,
}

impl Content {
    /// Checks the content as that of a configuration: paths, layering rules, names of modules.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidConfigurationContent`] with the place and the rule.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Content::Device(entries) | Content::Module(entries) => writes(entries, "the content").map(drop),
            Content::Edge(modules) => {
                check_modules(modules)?;
                match self.layering() {
                    Layering::Base => check_base(modules),
                    Layering::Layer => check_layer(modules),
                }
            }
        }
    }

    /// Whether an edge deployment is whole: `$edgeAgent` or `$edgeHub` is given as plain `properties.desired`.
    #[must_use]
    pub fn layering(&self) -> Layering {
        let Content::Edge(modules) = self else {
            return Layering::Base;
        };
        let whole = |id: &str| modules.get(id).is_some_and(has_root);
        if whole(EDGE_AGENT) || whole(EDGE_HUB) {
            Layering::Base
        } else {
            Layering::Layer
        }
    }

    /// What it writes into the twin of a device or module; empty for an edge deployment. Entries that break a rule are
    /// left out: [`Content::check`] has refused them.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        match self {
            Content::Device(entries) | Content::Module(entries) => writes(entries, "").unwrap_or_default(),
            Content::Edge(_) => Vec::new(),
        }
    }

    /// What an edge deployment writes, by module id.
    #[must_use]
    pub fn module_writes(&self) -> BTreeMap<&str, Vec<Write>> {
        let Content::Edge(modules) = self else {
            return BTreeMap::new();
        };
        modules
            .iter()
            .map(|(id, entries)| (id.as_str(), writes(entries, "").unwrap_or_default()))
            .collect()
    }
}

fn has_root(entries: &Map<String, Value>) -> bool {
    entries.contains_key("properties.desired")
}

/// Reads values by path; a plain `properties.desired` comes first.
fn writes(entries: &Map<String, Value>, place: &str) -> Result<Vec<Write>, Error> {
    if entries.is_empty() {
        return Err(invalid(format!("{place} is empty")));
    }
    let mut all = entries
        .iter()
        .map(|(key, value)| {
            let path = PropertyPath::parse(key).ok_or_else(|| {
                invalid(format!(
                    "{place}: {key:?} is not a path of desired properties, such as properties.desired.interval"
                ))
            })?;
            if path.is_root() && !value.is_object() {
                return Err(invalid(format!("{place}: {key:?} must be an object")));
            }
            let value = without_nulls(value)
                .ok_or_else(|| invalid(format!("{place}: {key:?} must not be null")))?;
            Ok(Write { path, value })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    all.sort_by(|a, b| a.path.cmp(&b.path));
    let inside = all
        .windows(2)
        .find(|pair| pair[1].path.names().starts_with(pair[0].path.names()));
    if let Some([outer, inner]) = inside {
        return Err(invalid(format!(
            "{place}: {} lies inside {}; give one of them",
            inner.path, outer.path
        )));
    }
    Ok(all)
}

/// A value without the members that are null, which a twin cannot hold; `None` for null itself.
fn without_nulls(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(members) => Some(Value::Object(
            members
                .iter()
                .filter(|(name, _)| !name.starts_with('$'))
                .filter_map(|(name, value)| Some((name.clone(), without_nulls(value)?)))
                .collect(),
        )),
        other => Some(other.clone()),
    }
}

fn check_modules(modules: &BTreeMap<String, Map<String, Value>>) -> Result<(), Error> {
    if modules.is_empty() {
        return Err(invalid("modulesContent is empty"));
    }
    if modules.len() > limits::DEPLOYMENT_MODULES_MAX {
        return Err(invalid(format!(
            "modulesContent has {} modules; at most {} are allowed, $edgeAgent and $edgeHub included",
            modules.len(),
            limits::DEPLOYMENT_MODULES_MAX
        )));
    }
    for (id, entries) in modules {
        if let Err(error) = crate::Identity::module("d", id) {
            return Err(invalid(format!("modulesContent.{id}: {error}")));
        }
        if id.starts_with('$') && id != EDGE_AGENT && id != EDGE_HUB {
            return Err(invalid(format!(
                "modulesContent.{id}: module ids that start with '$' are reserved"
            )));
        }
        writes(entries, &format!("modulesContent.{id}"))?;
    }
    Ok(())
}

fn check_base(modules: &BTreeMap<String, Map<String, Value>>) -> Result<(), Error> {
    for id in [EDGE_AGENT, EDGE_HUB] {
        if !modules.get(id).is_some_and(has_root) {
            return Err(invalid(format!(
                "modulesContent.{id}: a deployment needs $edgeAgent and $edgeHub, each with \"properties.desired\"; a \
                 layered one has neither, only paths below it"
            )));
        }
    }
    Ok(())
}

fn check_layer(modules: &BTreeMap<String, Map<String, Value>>) -> Result<(), Error> {
    for (id, collection) in [(EDGE_AGENT, "modules"), (EDGE_HUB, "routes")] {
        for write in modules.get(id).into_iter().flat_map(|entries| {
            // Read once before, so it can be read again.
            writes(entries, "").unwrap_or_default()
        }) {
            let names = write.path.names();
            if names.len() < 2 || names[0] != collection {
                return Err(invalid(format!(
                    "modulesContent.{id}: a layered deployment may set properties.desired.{collection}.<name> there, not \
                     {}",
                    write.path
                )));
            }
        }
    }
    Ok(())
}

/// Checks the id of a configuration or deployment: 1 to 128 characters, no upper case letters, no space, none of
/// `& ^ [ ] { } \ | " < > /` (rest.md section 12).
///
/// # Errors
/// [`ErrorCode::ArgumentInvalid`].
pub fn check_configuration_id(id: &str) -> Result<(), Error> {
    check_fleet_id("configuration id", id)?;
    match id.chars().find(char::is_ascii_uppercase) {
        None => Ok(()),
        Some(bad) => Err(Error::new(
            ErrorCode::ArgumentInvalid,
            format!("the configuration id has the upper case letter {bad:?}; use lower case"),
        )),
    }
}

/// Checks an id: 1 to 128 printable ASCII characters, no space, none of `& ^ [ ] { } \ | " < > /`.
///
/// # Errors
/// [`ErrorCode::ArgumentInvalid`].
pub fn check_fleet_id(what: &str, id: &str) -> Result<(), Error> {
    let wrong = |text: String| Error::new(ErrorCode::ArgumentInvalid, text);
    if id.is_empty() || id.len() > limits::FLEET_ID_LEN_MAX {
        return Err(wrong(format!(
            "the {what} must have 1 to {} characters",
            limits::FLEET_ID_LEN_MAX
        )));
    }
    match id
        .chars()
        .find(|c| !c.is_ascii_graphic() || "&^[]{}\\|\"<>/".contains(*c))
    {
        None => Ok(()),
        Some(bad) => Err(wrong(format!(
            "the {what} has the character {bad:?}, which is not allowed"
        ))),
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidConfigurationContent, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edge(value: Value) -> Content {
        Content::Edge(serde_json::from_value(value).expect("modules"))
    }

    #[test]
    fn contents_are_checked() {
        let device = |value: Value| Content::Device(value.as_object().cloned().expect("an object"));
        for good in [
            device(json!({"properties.desired.a.b": {"x": 1}, "properties.desired.c": 2})),
            edge(
                json!({"$edgeAgent": {"properties.desired": {"modules": {}}}, "$edgeHub": {"properties.desired": {}}}),
            ),
            edge(
                json!({"$edgeAgent": {"properties.desired.modules.m": {"type": "docker"}}, "m": {"properties.desired": {"x": 1}}}),
            ),
            edge(json!({"$edgeHub": {"properties.desired.routes.up": "FROM /* INTO $upstream"}})),
        ] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        for (bad, why) in [
            (device(json!({})), "empty"),
            (device(json!({"tags.a": 1})), "not a path"),
            (device(json!({"properties.desired": 1})), "object"),
            (device(json!({"properties.desired.a": null})), "null"),
            (
                device(json!({"properties.desired.a": 1, "properties.desired.a.b": 1})),
                "lies inside",
            ),
            (edge(json!({})), "empty"),
            (
                edge(json!({"$edgeAgent": {"properties.desired": {}}})),
                "$edgeHub",
            ),
            (edge(json!({"$other": {"properties.desired": {}}})), "reserved"),
            (edge(json!({"a b": {"properties.desired": {}}})), "character"),
            (
                edge(json!({"$edgeAgent": {"properties.desired.runtime": {}}})),
                "modules.<name>",
            ),
            (
                edge(json!({"$edgeAgent": {"properties.desired.systemModules.edgeHub": {}}})),
                "modules.<name>",
            ),
            (
                edge(json!({"$edgeHub": {"properties.desired.routes": {}}})),
                "routes.<name>",
            ),
        ] {
            let error = bad.check().expect_err(why);
            assert_eq!(error.code, ErrorCode::InvalidConfigurationContent);
            assert!(error.message.contains(why), "{error} lacks {why}");
        }
    }

    #[test]
    fn ids_are_checked() {
        assert!(check_configuration_id("line-4_v2.1").is_ok());
        for bad in ["", "A", "a b", "a/b", "a[b", "ä", &"x".repeat(129)] {
            assert!(check_configuration_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_fleet_id("job id", "Job-A").is_ok());
    }
}
