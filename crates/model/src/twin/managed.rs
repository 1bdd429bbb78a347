//! What automatic device management does to a twin (rest.md section 12, edge.md 2.7).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ChangeMode, Twin, TwinChange};
use crate::error::Error;
use crate::time::Timestamp;

/// How far a configuration or deployment has got at one twin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum ConfigurationStatus {
    /// The twin meets the condition; others outrank the configuration, or its content cannot be written.
    Targeted,
    /// The content has been written.
    Applied,
}

impl ConfigurationStatus {
    /// As it stands in twins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ConfigurationStatus::Targeted => "Targeted",
            ConfigurationStatus::Applied => "Applied",
        }
    }
}

/// A place in the desired properties: the names from the root to it, none for the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PropertyPath(Vec<String>);

/// What stands before every path.
const ROOT: &str = "properties.desired";

impl PropertyPath {
    /// All desired properties.
    pub const ROOT: PropertyPath = PropertyPath(Vec::new());

    /// Reads `properties.desired` or `properties.desired.a.b`; `None` for anything else, empty names included.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(ROOT)?;
        if rest.is_empty() {
            return Some(Self::ROOT);
        }
        let names: Vec<String> = rest.strip_prefix('.')?.split('.').map(str::to_owned).collect();
        let fits = names
            .iter()
            .all(|name| !name.is_empty() && !name.starts_with('$'));
        fits.then_some(PropertyPath(names))
    }

    /// Whether it is all desired properties.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names from the root.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Display for PropertyPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(ROOT)?;
        self.0.iter().try_for_each(|name| write!(f, ".{name}"))
    }
}

/// One value that management puts at a path; it takes the place of whatever is there.
#[derive(Clone, PartialEq, Debug)]
pub struct Write {
    /// Where.
    pub path: PropertyPath,
    /// What; an object when the path is the root.
    pub value: Value,
}

/// What management has written to a twin: kept with the twin, so that it can be taken back when the configuration no
/// longer applies, also after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Managed {
    /// Names the plan that was carried out; see [`ManagedPlan::name`].
    pub plan: String,
    /// The places written.
    pub paths: Vec<PropertyPath>,
}

/// What management wants of a twin.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ManagedPlan {
    /// Names the configurations that make up `writes`, in their order. A twin whose last plan had the same name is left
    /// alone: what an operator changes by hand afterwards stays until the plan changes.
    pub name: String,
    /// What the twin shows under `configurations`.
    pub statuses: BTreeMap<String, ConfigurationStatus>,
    /// What to write, in order.
    pub writes: Vec<Write>,
    /// Whether what an earlier plan wrote stays when this one writes nothing: a device that loses its last deployment
    /// keeps its modules, a device that loses its last configuration gets its properties removed.
    pub keeps_content: bool,
}

impl Twin {
    /// Whether [`Twin::manage`] with `plan` would change anything.
    #[must_use]
    pub fn meets(&self, plan: &ManagedPlan) -> bool {
        let name = self.managed.as_ref().map_or("", |managed| managed.plan.as_str());
        self.configurations == plan.statuses && name == plan.name
    }

    /// Brings the twin to `plan`: takes back what the last plan wrote, writes what this one wants, notes the statuses.
    /// Desired properties change only where the content differs, in one change. Returns that change as a merge patch
    /// when there was one.
    ///
    /// # Errors
    /// `ArgumentInvalid` when the content breaks a rule of rest.md 6.4 (size above all); then nothing has changed.
    pub fn manage(
        &mut self,
        plan: &ManagedPlan,
        now: Timestamp,
    ) -> Result<Option<Map<String, Value>>, Error> {
        if self.meets(plan) {
            return Ok(None);
        }
        let before = self.managed.as_ref().map_or("", |managed| managed.plan.as_str());
        let mut patch = None;
        if before != plan.name {
            let wanted = self.managed_content(plan);
            let change = difference(&self.desired.properties, &wanted);
            if !change.is_empty() {
                let change = TwinChange {
                    tags: None,
                    desired: Some(change),
                };
                self.apply(ChangeMode::Patch, &change, now)?;
                patch = change.desired;
            }
            self.managed = managed(plan);
        }
        self.configurations.clone_from(&plan.statuses);
        Ok(patch)
    }

    /// The desired properties as `plan` wants them.
    fn managed_content(&self, plan: &ManagedPlan) -> Map<String, Value> {
        let mut content = self.desired.properties.clone();
        let keep = plan.keeps_content && plan.writes.is_empty();
        let old = self.managed.iter().flat_map(|managed| &managed.paths);
        for path in old.filter(|_| !keep) {
            remove(&mut content, path.names());
        }
        for write in &plan.writes {
            put(&mut content, write.path.names(), &write.value);
        }
        content
    }
}

/// What is remembered of a plan; nothing for one that wants nothing.
fn managed(plan: &ManagedPlan) -> Option<Box<Managed>> {
    if plan.name.is_empty() {
        return None;
    }
    let paths: BTreeSet<&PropertyPath> = plan.writes.iter().map(|write| &write.path).collect();
    Some(Box::new(Managed {
        plan: plan.name.clone(),
        paths: paths.into_iter().cloned().collect(),
    }))
}

/// Removes what is at `path`, and the objects above it that become empty by that.
fn remove(object: &mut Map<String, Value>, path: &[String]) {
    match path {
        [] => object.clear(),
        [name] => {
            object.remove(name);
        }
        [name, rest @ ..] => {
            if let Some(Value::Object(inner)) = object.get_mut(name) {
                remove(inner, rest);
                if inner.is_empty() {
                    object.remove(name);
                }
            }
        }
    }
}

/// Puts `value` at `path`, making the objects above it.
fn put(object: &mut Map<String, Value>, path: &[String], value: &Value) {
    match path {
        [] => {
            *object = value.as_object().cloned().unwrap_or_default();
        }
        [name] => {
            object.insert(name.clone(), value.clone());
        }
        [name, rest @ ..] => {
            let slot = object.entry(name.clone()).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            if let Value::Object(inner) = slot {
                put(inner, rest, value);
            }
        }
    }
}

/// The merge patch that makes `to` of `from`.
fn difference(from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in to {
        match (from.get(name), value) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(name.clone(), Value::Object(difference(old, new)));
            }
            (_, new) => {
                patch.insert(name.clone(), new.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(name: &str, writes: &[(&str, Value)]) -> ManagedPlan {
        ManagedPlan {
            name: name.into(),
            statuses: [(name.to_owned(), ConfigurationStatus::Applied)].into(),
            writes: writes
                .iter()
                .map(|(path, value)| Write {
                    path: PropertyPath::parse(path).expect("a path"),
                    value: value.clone(),
                })
                .collect(),
            keeps_content: false,
        }
    }

    fn twin(desired: Value) -> Twin {
        let mut twin = Twin::new(Timestamp::from_seconds(1));
        let change = TwinChange {
            tags: None,
            desired: desired.as_object().cloned(),
        };
        twin.apply(ChangeMode::Patch, &change, Timestamp::from_seconds(1))
            .expect("valid");
        twin
    }

    fn manage(twin: &mut Twin, plan: &ManagedPlan) -> Option<Value> {
        twin.manage(plan, Timestamp::from_seconds(2))
            .expect("valid")
            .map(Value::Object)
    }

    #[test]
    fn paths_are_read_strictly() {
        for good in ["properties.desired", "properties.desired.a.b"] {
            assert_eq!(PropertyPath::parse(good).expect(good).to_string(), good);
        }
        for bad in [
            "",
            "properties",
            "tags.a",
            "properties.desiredx",
            "properties.desired.",
            "properties.desired..a",
            "properties.desired.$version",
        ] {
            assert_eq!(PropertyPath::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_plan_writes_its_paths_and_the_next_one_takes_them_back() {
        let mut twin = twin(json!({"own": 1, "a": {"kept": true}}));
        let first = plan(
            "one",
            &[
                ("properties.desired.a.b", json!({"x": 1, "y": 2})),
                ("properties.desired.c", json!(5)),
            ],
        );
        let patch = manage(&mut twin, &first);
        assert_eq!(patch, Some(json!({"a": {"b": {"x": 1, "y": 2}}, "c": 5})));
        assert_eq!(twin.configurations["one"], ConfigurationStatus::Applied);
        assert_eq!(manage(&mut twin, &first), None, "a second time does nothing");

        let second = plan("two", &[("properties.desired.a.b", json!({"x": 1, "z": 3}))]);
        let patch = manage(&mut twin, &second);
        assert_eq!(
            patch,
            Some(json!({"a": {"b": {"y": null, "z": 3}}, "c": null})),
            "only what differs"
        );
        let version = twin.desired.version;
        let patch = manage(&mut twin, &ManagedPlan::default());
        assert_eq!(patch, Some(json!({"a": {"b": null}})));
        assert_eq!(twin.desired.version, version + 1);
        assert_eq!(
            Value::Object(twin.desired.properties.clone()),
            json!({"own": 1, "a": {"kept": true}})
        );
        assert!(twin.configurations.is_empty() && twin.managed.is_none());
    }

    #[test]
    fn what_an_operator_changes_by_hand_stays_until_the_plan_changes() {
        let mut twin = twin(json!({}));
        let first = plan("one", &[("properties.desired.a", json!(1))]);
        manage(&mut twin, &first);
        let change = TwinChange {
            tags: None,
            desired: json!({"a": 2}).as_object().cloned(),
        };
        twin.apply(ChangeMode::Patch, &change, Timestamp::from_seconds(3))
            .expect("valid");
        assert_eq!(manage(&mut twin, &first), None);
        assert_eq!(twin.desired.properties["a"], 2);
    }

    #[test]
    fn content_may_outlive_its_plan() {
        let mut twin = twin(json!({"own": 1}));
        manage(
            &mut twin,
            &plan("base", &[("properties.desired", json!({"m": {}}))]),
        );
        assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"m": {}}));
        let none = ManagedPlan {
            keeps_content: true,
            ..ManagedPlan::default()
        };
        assert_eq!(manage(&mut twin, &none), None);
        assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"m": {}}));
        assert!(twin.managed.is_none());
    }

    #[test]
    fn content_that_breaks_a_rule_changes_nothing() {
        let mut twin = twin(json!({"own": 1}));
        let before = twin.clone();
        let big = plan("big", &[("properties.desired.a", json!("x".repeat(5_000)))]);
        assert!(twin.manage(&big, Timestamp::from_seconds(2)).is_err());
        assert_eq!(twin, before);
    }
}
