//! Settings of a device action.

use holdfast_model::Identity;
use holdfast_query::twin::{Condition, parse_condition};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::request::Template;
use crate::endpoints::{bounded, filled, settings};

/// Most targets of one event.
const TARGETS_MAX: usize = 100;

/// A direct method to call.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MethodAction {
    /// Its name.
    pub name: String,
    /// Its payload, with places to fill in. Default: none.
    #[serde(default)]
    pub payload: Value,
    /// How long to wait for a target that is not connected, 0 to 10 s. Default 0.
    #[serde(default)]
    pub connect_timeout_seconds: u64,
    /// How long to wait for the answer, 5 to 10 s. Default 10.
    #[serde(default = "ten")]
    pub response_timeout_seconds: u64,
}

const fn ten() -> u64 {
    10
}

/// A patch to make.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PatchAction {
    /// Changes to the tags, with places to fill in; null removes.
    pub tags: Option<Map<String, Value>>,
    /// Changes to the desired properties, with places to fill in; null removes.
    pub desired: Option<Map<String, Value>>,
}

/// Settings of the kind `action`. Exactly one of `method` and `patch` is given; without `devices` and `query` the action
/// is on the device or module that the event is of.
///
/// A text `{{path}}` in a payload or patch stands for a value of the event: `deviceId`, `moduleId`, `source`,
/// `enqueuedTime`, `properties.<name>`, `body` or `body.<path>`. Alone it becomes the value with its type (null when
/// there is none), within a longer text its text.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ActionConfig {
    /// The direct method to call.
    pub method: Option<MethodAction>,
    /// The patch to make.
    pub patch: Option<PatchAction>,
    /// Devices (`device`) and modules (`device/module`) to act on, at most 100.
    pub devices: Option<Vec<String>>,
    /// Condition on twins, as target conditions have it: the action is on all that match, at most `targetsMax`.
    pub query: Option<String>,
    /// Most targets of a query, 1 to 100; if there are more, the event is refused. Default 100.
    pub targets_max: usize,
    /// How often actions may follow from each other's twin changes, 0 to 8. At 0 no action answers a twin change that an
    /// action has made. Default 0.
    pub hops_max: u8,
    /// Most actions on one target in a minute, 1 to 600; events beyond are refused. Default 10.
    pub rate_per_minute: u32,
}

impl Default for ActionConfig {
    fn default() -> Self {
        ActionConfig {
            method: None,
            patch: None,
            devices: None,
            query: None,
            targets_max: TARGETS_MAX,
            hops_max: 0,
            rate_per_minute: 10,
        }
    }
}

/// What is done.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Call {
        method: MethodAction,
        payload: Template,
    },
    Patch {
        tags: Option<Template>,
        desired: Option<Template>,
    },
}

/// On whom.
#[derive(Clone, Debug)]
pub(super) enum Targets {
    Source,
    These(Vec<Identity>),
    Query(Box<Condition>),
}

impl ActionConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: ActionConfig = settings(given)?;
        config.act()?;
        config.targets()?;
        bounded("targetsMax", config.targets_max as u64, 1, TARGETS_MAX as u64)?;
        bounded("hopsMax", config.hops_max.into(), 0, 8)?;
        bounded("ratePerMinute", config.rate_per_minute.into(), 1, 600)?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    pub(super) fn act(&self) -> Result<Act, String> {
        match (&self.method, &self.patch) {
            (Some(method), None) => {
                holdfast_model::method::check_method_name(&method.name)
                    .map_err(|error| format!("method.name: {}", error.message))?;
                bounded(
                    "method.connectTimeoutSeconds",
                    method.connect_timeout_seconds,
                    0,
                    10,
                )?;
                bounded(
                    "method.responseTimeoutSeconds",
                    method.response_timeout_seconds,
                    5,
                    10,
                )?;
                Ok(Act::Call {
                    method: method.clone(),
                    payload: Template::parse(&method.payload)
                        .map_err(|error| format!("method.payload: {error}"))?,
                })
            }
            (None, Some(patch)) => {
                let section = |name: &str, section: &Option<Map<String, Value>>| {
                    let template = section
                        .clone()
                        .map(|section| Template::parse(&Value::Object(section)));
                    template
                        .transpose()
                        .map_err(|error| format!("patch.{name}: {error}"))
                };
                if patch.tags.is_none() && patch.desired.is_none() {
                    return Err("patch: give tags or desired, or both".to_owned());
                }
                Ok(Act::Patch {
                    tags: section("tags", &patch.tags)?,
                    desired: section("desired", &patch.desired)?,
                })
            }
            _ => Err("give either method or patch".to_owned()),
        }
    }

    pub(super) fn targets(&self) -> Result<Targets, String> {
        match (&self.devices, &self.query) {
            (None, None) => Ok(Targets::Source),
            (Some(_), Some(_)) => Err("devices and query cannot be given together".to_owned()),
            (Some(devices), None) => {
                bounded("number of devices", devices.len() as u64, 1, TARGETS_MAX as u64)?;
                let identity = |text: &String| {
                    Identity::parse(text).map_err(|error| format!("devices: {text:?}: {error}"))
                };
                devices
                    .iter()
                    .map(identity)
                    .collect::<Result<_, _>>()
                    .map(Targets::These)
            }
            (None, Some(query)) => {
                let condition = parse_condition(query).map_err(|error| format!("query: {error}"))?;
                Ok(Targets::Query(Box::new(condition)))
            }
        }
    }
}
