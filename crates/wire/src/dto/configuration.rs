//! Configurations and edge deployments (REST contract, section 12).

use std::collections::BTreeMap;

use holdfast_model::configuration::{Configuration, Content};
use holdfast_model::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use utoipa::ToSchema;

use super::{TimeDto, invalid, null_as_default};
use crate::etag;

/// A configuration in an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationDto {
    /// Its id.
    pub id: String,
    /// Free text of the creator's tool.
    pub schema_version: Option<String>,
    /// Names and values for people.
    pub labels: BTreeMap<String, String>,
    /// What it writes.
    pub content: ConfigurationContentDto,
    /// Which twins it is for.
    pub target_condition: String,
    /// When it was created.
    pub created_time_utc: TimeDto,
    /// When it last changed.
    pub last_updated_time_utc: TimeDto,
    /// The higher one wins.
    pub priority: u32,
    /// Metrics that the hub makes.
    pub system_metrics: ConfigurationMetricsDto,
    /// Metrics of its own.
    pub metrics: ConfigurationMetricsDto,
    /// Tag, not quoted.
    pub etag: String,
}

/// What a configuration writes; one of the members.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationContentDto {
    /// Values by path (`properties.desired.…`), for device twins.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Map::is_empty"
    )]
    #[schema(value_type = Object)]
    pub device_content: Map<String, Value>,
    /// The same for module twins.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Map::is_empty"
    )]
    #[schema(value_type = Object)]
    pub module_content: Map<String, Value>,
    /// The same by module id, for the modules of edge devices.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schema(value_type = Object)]
    pub modules_content: BTreeMap<String, Map<String, Value>>,
}

/// Metrics by name.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ConfigurationMetricsDto {
    /// What they come to; one that could not be worked out is missing.
    #[schema(value_type = Object)]
    pub results: BTreeMap<String, Number>,
    /// Their texts.
    pub queries: BTreeMap<String, String>,
}

/// Body of a PUT.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationPut {
    /// As in the path.
    #[serde(default)]
    pub id: Option<String>,
    /// Free text.
    #[serde(default)]
    pub schema_version: Option<String>,
    /// Names and values for people.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Needed to create one; the same or absent in an update.
    #[serde(default)]
    pub content: Option<ConfigurationContentDto>,
    /// Condition, `*` or empty.
    #[serde(default)]
    pub target_condition: Option<String>,
    /// 0 or more.
    #[serde(default)]
    pub priority: Option<i64>,
    /// Only `queries` counts.
    #[serde(default)]
    pub metrics: Option<MetricsPut>,
}

/// Metrics in a PUT.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct MetricsPut {
    /// Texts by name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub queries: BTreeMap<String, String>,
}

/// Body of `testQueries`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationQueriesTestInput {
    /// A condition.
    #[serde(default)]
    pub target_condition: Option<String>,
    /// Metrics by name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub custom_metric_queries: BTreeMap<String, String>,
}

/// Answer of `testQueries`.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationQueriesTestResponse {
    /// Null when the condition can be used.
    pub target_condition_error: Option<String>,
    /// Of the metrics that cannot be used.
    pub custom_metric_query_errors: BTreeMap<String, String>,
}

impl ConfigurationContentDto {
    /// The content as the contract writes it.
    #[must_use]
    pub fn from_model(content: &Content) -> Self {
        let mut dto = ConfigurationContentDto::default();
        match content {
            Content::Device(entries) => dto.device_content.clone_from(entries),
            Content::Module(entries) => dto.module_content.clone_from(entries),
            Content::Edge(modules) => dto.modules_content.clone_from(modules),
        }
        dto
    }

    /// The content that is meant; `None` when no member holds anything.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidConfigurationContent`] when more than one does.
    pub fn into_model(self) -> Result<Option<Content>, Error> {
        let given = (
            !self.device_content.is_empty(),
            !self.module_content.is_empty(),
            !self.modules_content.is_empty(),
        );
        match given {
            (false, false, false) => Ok(None),
            (true, false, false) => Ok(Some(Content::Device(self.device_content))),
            (false, true, false) => Ok(Some(Content::Module(self.module_content))),
            (false, false, true) => Ok(Some(Content::Edge(self.modules_content))),
            _ => Err(Error::new(
                ErrorCode::InvalidConfigurationContent,
                "content has more than one of deviceContent, moduleContent and modulesContent; make a configuration of each",
            )),
        }
    }
}

impl ConfigurationDto {
    /// A configuration; the caller fills in the metrics.
    #[must_use]
    pub fn new(configuration: &Configuration) -> Self {
        ConfigurationDto {
            id: configuration.id.clone(),
            schema_version: configuration.schema_version.clone(),
            labels: configuration.labels.clone(),
            content: ConfigurationContentDto::from_model(&configuration.content),
            target_condition: configuration.target_condition.clone(),
            created_time_utc: TimeDto(configuration.created_at),
            last_updated_time_utc: TimeDto(configuration.updated_at),
            priority: configuration.priority,
            system_metrics: ConfigurationMetricsDto::default(),
            metrics: ConfigurationMetricsDto::default(),
            etag: etag::of_identity(configuration.version),
        }
    }
}

impl ConfigurationPut {
    /// The priority, checked.
    ///
    /// # Errors
    /// [`ErrorCode::ArgumentInvalid`].
    pub fn checked_priority(&self) -> Result<Option<u32>, Error> {
        let Some(priority) = self.priority else {
            return Ok(None);
        };
        match u32::try_from(priority) {
            Ok(priority) if i32::try_from(priority).is_ok() => Ok(Some(priority)),
            _ => Err(invalid(format!(
                "priority must be within [0; {}], not {priority}",
                i32::MAX
            ))),
        }
    }

    /// Checks that the body is about the resource of the path.
    ///
    /// # Errors
    /// [`ErrorCode::ArgumentInvalid`].
    pub fn check_id(&self, id: &str) -> Result<(), Error> {
        match self.id.as_deref() {
            None | Some("") => Ok(()),
            Some(own) if own == id => Ok(()),
            Some(own) => Err(invalid(format!("the body has the id {own:?}, the path {id:?}"))),
        }
    }
}
