//! What a configuration has reached: system metrics and metrics of its own (languages.md 1.7).

use std::sync::Arc;

use holdfast_model::configuration::{Configuration, Content};
use holdfast_model::{Error, Timestamp};
use holdfast_ports::configuration::Reach;
use holdfast_ports::query::{Item, PageRequest};
use holdfast_query::twin::{Condition, Filter, Select, Source, parse, parse_condition};
use serde_json::Value;

use super::Configurations;

/// Rows asked for in one step of counting groups.
const PAGE: usize = 1_000;

/// A configuration with the results of its metrics.
#[derive(Clone, Debug)]
pub struct ConfigurationView {
    /// The configuration.
    pub configuration: Arc<Configuration>,
    /// Metrics that the hub makes.
    pub system: Vec<Metric>,
    /// Metrics of its own.
    pub custom: Vec<Metric>,
}

/// A query and its result.
#[derive(Clone, PartialEq, Debug)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its text.
    pub query: String,
    /// Its result.
    pub result: MetricValue,
}

/// What a metric comes to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MetricValue {
    /// A number of rows, or a whole figure.
    Count(u64),
    /// Another figure of an aggregate.
    Number(f64),
    /// The query could not be answered now (too long under way, too many at once).
    Unknown,
}

/// Results that were worked out a moment ago.
pub(super) struct Shown {
    /// Monotonic milliseconds until which they are shown again.
    until: u64,
    version: u64,
    created_at: Timestamp,
    system: Vec<Metric>,
    custom: Vec<Metric>,
}

impl Configurations {
    pub(super) async fn view(&self, configuration: Arc<Configuration>) -> Result<ConfigurationView, Error> {
        let began = self.drivers.clock.monotonic_millis();
        let recent = self.shown.lock().get(&configuration.id).and_then(|shown| {
            let same = shown.version == configuration.version && shown.created_at == configuration.created_at;
            (same && began < shown.until).then(|| (shown.system.clone(), shown.custom.clone()))
        });
        let (system, custom) = match recent {
            Some(recent) => recent,
            None => {
                let system = self.system_metrics(&configuration).await?;
                let custom = self.custom_metrics(&configuration).await;
                let now = self.drivers.clock.monotonic_millis();
                let took = now.saturating_sub(began);
                let shown = Shown {
                    until: now.saturating_add(took.saturating_mul(self.config.metrics_rest.into())),
                    version: configuration.version,
                    created_at: configuration.created_at,
                    system: system.clone(),
                    custom: custom.clone(),
                };
                self.shown.lock().insert(configuration.id.clone(), shown);
                (system, custom)
            }
        };
        Ok(ConfigurationView {
            configuration,
            system,
            custom,
        })
    }

    async fn system_metrics(&self, configuration: &Configuration) -> Result<Vec<Metric>, Error> {
        let id = &configuration.id;
        let (reach, is_edge) = match configuration.content {
            Content::Device(_) => (Reach::Devices, false),
            Content::Module(_) => (Reach::Modules, false),
            Content::Edge(_) => (Reach::EdgeAgents, true),
        };
        let counted = self.drivers.store.count_configured(id, reach).await;
        let counted = counted.map_err(|error| self.store_error("count twins", id, error))?;
        let metric = |name: &str, query: String, result| Metric {
            name: name.to_owned(),
            query,
            result,
        };
        let mut metrics = vec![
            metric(
                "appliedCount",
                applied_query(configuration),
                MetricValue::Count(counted.applied),
            ),
            metric(
                "targetedCount",
                targeted_query(configuration),
                MetricValue::Count(counted.targeted),
            ),
        ];
        if is_edge {
            for (name, comparison) in [("reportedFailedCount", "!="), ("reportedSuccessfulCount", "=")] {
                let query = format!(
                    "{} and properties.desired.$version = properties.reported.lastDesiredVersion and \
                     properties.reported.lastDesiredStatus.code {comparison} 200",
                    applied_query(configuration)
                );
                let result = self.answer(&query).await;
                metrics.push(metric(name, query, result));
            }
        }
        Ok(metrics)
    }

    async fn custom_metrics(&self, configuration: &Configuration) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for (name, query) in &configuration.metrics {
            metrics.push(Metric {
                name: name.clone(),
                query: query.clone(),
                result: self.answer(query).await,
            });
        }
        metrics
    }

    /// The number of rows, or the aggregate.
    async fn answer(&self, query: &str) -> MetricValue {
        let Ok(select) = parse(query) else {
            return MetricValue::Unknown;
        };
        if select.is_aggregated() {
            return self.aggregate(&select).await;
        }
        let filter = match select.filter {
            None => Filter::All,
            Some(filter) => Filter::Expr(filter),
        };
        let condition = Condition::new(select.source, filter);
        match self.drivers.query.count_targets(&condition).await {
            Ok(count) => MetricValue::Count(count.min(select.top.unwrap_or(u64::MAX))),
            Err(_) => MetricValue::Unknown,
        }
    }

    /// The one figure of a query without groups, else the number of groups.
    async fn aggregate(&self, select: &Select) -> MetricValue {
        let (mut cursor, mut rows) = (None, 0);
        loop {
            let request = PageRequest { cursor, limit: PAGE };
            let Ok(page) = self.drivers.query.query(select, request).await else {
                return MetricValue::Unknown;
            };
            if select.group_by.is_empty() {
                return match page.items.first() {
                    Some(Item::Raw(row)) => row.values().next().map_or(MetricValue::Unknown, figure),
                    _ => MetricValue::Unknown,
                };
            }
            rows += page.items.len() as u64;
            cursor = page.next;
            if cursor.is_none() {
                return MetricValue::Count(rows);
            }
        }
    }
}

fn figure(value: &Value) -> MetricValue {
    match (value.as_u64(), value.as_f64()) {
        (Some(count), _) => MetricValue::Count(count),
        (None, Some(number)) => MetricValue::Number(number),
        (None, None) => MetricValue::Unknown,
    }
}

/// The text that stands behind `targetedCount`.
fn targeted_query(configuration: &Configuration) -> String {
    let condition = configuration.target_condition.trim();
    let is_edge = matches!(configuration.content, Content::Edge(_));
    match parse_condition(condition) {
        Ok(parsed) if parsed.source == Source::Modules => {
            format!("select deviceId, moduleId {condition}")
        }
        Ok(parsed) if parsed.filter == Filter::All && is_edge => {
            "select deviceId from devices where capabilities.iotEdge = true".to_owned()
        }
        Ok(parsed) if parsed.filter == Filter::All => "select deviceId from devices".to_owned(),
        // Nothing is targeted; no device has an empty id.
        Ok(parsed) if parsed.filter == Filter::None => {
            "select deviceId from devices where deviceId = ''".to_owned()
        }
        _ => format!("select deviceId from devices where {condition}"),
    }
}

/// The text that stands behind `appliedCount`.
fn applied_query(configuration: &Configuration) -> String {
    let shown = format!("configurations.[[{}]].status = 'Applied'", configuration.id);
    match configuration.content {
        Content::Device(_) => format!("select deviceId from devices where {shown}"),
        Content::Module(_) => format!("select deviceId, moduleId from devices.modules where {shown}"),
        Content::Edge(_) => {
            format!("select deviceId from devices.modules where moduleId = '$edgeAgent' and {shown}")
        }
    }
}
