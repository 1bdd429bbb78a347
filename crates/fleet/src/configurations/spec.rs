//! What a service says of a configuration, and its checks.

use std::collections::BTreeMap;

use holdfast_model::configuration::{Configuration, Content};
use holdfast_model::limits::{CONFIGURATION_LABELS_MAX, CONFIGURATION_METRICS_MAX, QUERY_BYTES_MAX};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_query::twin::{Filter, Source, parse, parse_condition};

/// Longest name or value of a label, and longest name of a metric, bytes.
const LABEL_BYTES_MAX: usize = 256;

/// Longest content as JSON text, bytes: what all modules of a deployment can hold, within reason.
const CONTENT_BYTES_MAX: usize = 1024 * 1024;

/// A configuration as a service describes it. What is `None` stays as it is in an update.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ConfigurationSpec {
    /// Free text of the creator's tool.
    pub schema_version: Option<String>,
    /// Names and values for people.
    pub labels: Option<BTreeMap<String, String>>,
    /// What it writes; needed to create one, cannot change afterwards.
    pub content: Option<Content>,
    /// Which twins it is for.
    pub target_condition: Option<String>,
    /// The higher one wins. Default 0.
    pub priority: Option<u32>,
    /// Names and query texts.
    pub metrics: Option<BTreeMap<String, String>>,
}

impl ConfigurationSpec {
    pub(super) fn create(self, id: &str, now: Timestamp) -> Result<Configuration, Error> {
        let content = self.content.ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidConfigurationContent,
                "a configuration needs content: deviceContent, moduleContent or modulesContent",
            )
        })?;
        content.check()?;
        check_size(&content)?;
        let made = Configuration {
            id: id.to_owned(),
            schema_version: self.schema_version,
            labels: self.labels.unwrap_or_default(),
            content,
            target_condition: self.target_condition.unwrap_or_default(),
            priority: self.priority.unwrap_or(0),
            metrics: self.metrics.unwrap_or_default(),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        check(&made)?;
        Ok(made)
    }

    pub(super) fn update(self, present: &Configuration, now: Timestamp) -> Result<Configuration, Error> {
        if self.content.is_some_and(|content| content != present.content) {
            return Err(Error::new(
                ErrorCode::CannotModifyImmutableConfigurationContent,
                "the content of a configuration cannot change; create another one with a higher priority",
            ));
        }
        let updated = Configuration {
            labels: self.labels.unwrap_or_else(|| present.labels.clone()),
            target_condition: self
                .target_condition
                .unwrap_or_else(|| present.target_condition.clone()),
            priority: self.priority.unwrap_or(present.priority),
            metrics: self.metrics.unwrap_or_else(|| present.metrics.clone()),
            updated_at: now,
            version: present.version + 1,
            ..present.clone()
        };
        check(&updated)?;
        Ok(updated)
    }
}

/// Everything but the content, which has been checked when it came in.
fn check(configuration: &Configuration) -> Result<(), Error> {
    let wrong = |text: String| Error::new(ErrorCode::ArgumentInvalid, text);
    if configuration.labels.len() > CONFIGURATION_LABELS_MAX {
        return Err(wrong(format!(
            "a configuration can have {CONFIGURATION_LABELS_MAX} labels at most"
        )));
    }
    let long = |text: &String| text.len() > LABEL_BYTES_MAX;
    let version = configuration.schema_version.as_ref();
    if configuration
        .labels
        .iter()
        .any(|(name, value)| long(name) || long(value))
        || version.is_some_and(long)
    {
        return Err(wrong(format!(
            "names and values of labels, and schemaVersion, can have {LABEL_BYTES_MAX} bytes at most"
        )));
    }
    check_condition(&configuration.target_condition, &configuration.content)?;
    if configuration.metrics.len() > CONFIGURATION_METRICS_MAX {
        return Err(Error::new(
            ErrorCode::InvalidConfigurationCustomMetricsQuery,
            format!("a configuration can have {CONFIGURATION_METRICS_MAX} metrics at most"),
        ));
    }
    for (name, query) in &configuration.metrics {
        if name.is_empty() || long(name) {
            return Err(Error::new(
                ErrorCode::InvalidConfigurationCustomMetricsQuery,
                format!("the name of a metric has 1 to {LABEL_BYTES_MAX} bytes"),
            ));
        }
        check_metric(query).map_err(|why| {
            Error::new(
                ErrorCode::InvalidConfigurationCustomMetricsQuery,
                format!("the metric {name:?}: {why}"),
            )
        })?;
    }
    Ok(())
}

fn check_size(content: &Content) -> Result<(), Error> {
    let bytes = serde_json::to_vec(content).map_or(usize::MAX, |text| text.len());
    if bytes <= CONTENT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::InvalidConfigurationContent,
        format!("the content has {bytes} bytes; at most {CONTENT_BYTES_MAX} are allowed"),
    ))
}

fn check_condition(text: &str, content: &Content) -> Result<(), Error> {
    let wrong = |why: String| Error::new(ErrorCode::InvalidConfigurationTargetCondition, why);
    let condition =
        condition_of(text).map_err(|why| wrong(format!("the target condition cannot be used: {why}")))?;
    let of_modules = matches!(content, Content::Module(_));
    match (of_modules, condition.source, &condition.filter) {
        (_, _, Filter::None) | (true, Source::Modules, _) | (false, Source::Devices, _) => Ok(()),
        (true, ..) => Err(wrong(
            "the target condition of a configuration of modules begins with FROM devices.modules WHERE".to_owned(),
        )),
        (false, ..) => Err(wrong(
            "the target condition of a configuration of devices or a deployment is about devices, not FROM devices.modules"
                .to_owned(),
        )),
    }
}

fn condition_of(text: &str) -> Result<holdfast_query::twin::Condition, String> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(format!(
            "it has {} bytes; at most {QUERY_BYTES_MAX} are allowed",
            text.len()
        ));
    }
    parse_condition(text).map_err(|error| error.to_string())
}

fn check_metric(text: &str) -> Result<(), String> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(format!(
            "it has {} bytes; at most {QUERY_BYTES_MAX} are allowed",
            text.len()
        ));
    }
    match parse(text) {
        Ok(select) if select.source == Source::Jobs => {
            Err("it must be about devices or devices.modules".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Texts to be tried before a configuration is made of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigurationTest {
    /// A target condition of either kind.
    pub target_condition: Option<String>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, String>,
}

/// What is wrong with them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigurationTestResult {
    /// `None` when the condition can be used.
    pub target_condition: Option<String>,
    /// Of the metrics that cannot be used.
    pub metrics: BTreeMap<String, String>,
}

impl ConfigurationTest {
    /// Tries the texts.
    #[must_use]
    pub fn run(&self) -> ConfigurationTestResult {
        let condition = self.target_condition.as_deref().unwrap_or_default();
        let metrics = self.metrics.iter();
        ConfigurationTestResult {
            target_condition: condition_of(condition).err(),
            metrics: metrics
                .filter_map(|(name, query)| Some((name.clone(), check_metric(query).err()?)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(condition: &str) -> ConfigurationSpec {
        let content = json!({"properties.desired.a": 1});
        ConfigurationSpec {
            content: Some(Content::Device(content.as_object().cloned().unwrap_or_default())),
            target_condition: Some(condition.to_owned()),
            priority: Some(5),
            ..ConfigurationSpec::default()
        }
    }

    fn fails(spec: ConfigurationSpec) -> Error {
        spec.create("c", Timestamp::from_seconds(1))
            .expect_err("it must be refused")
    }

    #[test]
    fn conditions_are_checked_with_their_place() {
        for good in ["", "*", "tags.a = 1", "deviceId IN ['a','b']"] {
            assert!(
                spec(good).create("c", Timestamp::from_seconds(1)).is_ok(),
                "{good}"
            );
        }
        let error = fails(spec("tags.a = "));
        assert_eq!(error.code, ErrorCode::InvalidConfigurationTargetCondition);
        assert!(error.message.contains("line 1, column"), "{error}");
        let error = fails(spec("FROM devices.modules WHERE tags.a = 1"));
        assert_eq!(error.code, ErrorCode::InvalidConfigurationTargetCondition);
        let error = fails(spec(&format!("tags.a = '{}'", "x".repeat(9_000))));
        assert!(error.message.contains("8192"), "{error}");
        let mut module = spec("*");
        module.content = Some(Content::Module(
            json!({"properties.desired.a": 1})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        ));
        assert_eq!(
            fails(module.clone()).code,
            ErrorCode::InvalidConfigurationTargetCondition
        );
        module.target_condition = Some("from devices.modules where moduleId = 'm'".into());
        assert!(module.create("c", Timestamp::from_seconds(1)).is_ok());
    }

    #[test]
    fn the_content_cannot_change() {
        let made = spec("*").create("c", Timestamp::from_seconds(1)).expect("valid");
        let same = spec("tags.b = 2")
            .update(&made, Timestamp::from_seconds(2))
            .expect("valid");
        assert_eq!((same.version, same.target_condition.as_str()), (2, "tags.b = 2"));
        let other = ConfigurationSpec {
            content: Some(Content::Device(
                json!({"properties.desired.a": 2})
                    .as_object()
                    .cloned()
                    .unwrap_or_default(),
            )),
            ..ConfigurationSpec::default()
        };
        let error = other
            .update(&made, Timestamp::from_seconds(2))
            .expect_err("other content");
        assert_eq!(error.code, ErrorCode::CannotModifyImmutableConfigurationContent);
    }

    #[test]
    fn metrics_are_checked() {
        let metrics = |count: usize, query: &str| ConfigurationSpec {
            metrics: Some((0..count).map(|n| (format!("m{n}"), query.to_owned())).collect()),
            ..spec("*")
        };
        let query = "SELECT deviceId FROM devices WHERE properties.reported.ok = true";
        assert!(metrics(5, query).create("c", Timestamp::from_seconds(1)).is_ok());
        for bad in [
            metrics(6, query),
            metrics(1, "SELECT"),
            metrics(1, "SELECT * FROM devices.jobs"),
        ] {
            assert_eq!(fails(bad).code, ErrorCode::InvalidConfigurationCustomMetricsQuery);
        }
    }

    #[test]
    fn texts_can_be_tried() {
        let test = ConfigurationTest {
            target_condition: Some("tags.a = 1 AND".into()),
            metrics: [
                ("good".to_owned(), "SELECT COUNT() AS n FROM devices".to_owned()),
                ("bad".to_owned(), "SELECT".to_owned()),
            ]
            .into(),
        };
        let result = test.run();
        assert!(result.target_condition.is_some_and(|why| why.contains("column")));
        assert_eq!(result.metrics.keys().collect::<Vec<_>>(), ["bad"]);
        assert_eq!(
            ConfigurationTest::default().run(),
            ConfigurationTestResult::default()
        );
    }
}
