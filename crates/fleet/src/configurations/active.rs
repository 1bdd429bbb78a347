//! The configurations in use, with their conditions read.

use std::sync::Arc;

use holdfast_hub::Listening;
use holdfast_model::configuration::{Configuration, Content};
use holdfast_query::twin::{Condition, Filter, Path, Root, Segment, Source, TwinRow, parse_condition};

/// All configurations at one moment.
#[derive(Debug)]
pub(super) struct Active {
    /// Which moment.
    pub(super) generation: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    configuration: Arc<Configuration>,
    condition: Condition,
}

impl Entry {
    /// The condition by which targets are searched for: for a deployment edge devices only, so that `*` does not look at
    /// a whole fleet of others.
    fn search(&self) -> Condition {
        const EDGE: &str = "capabilities.iotEdge = true";
        let text = match (&self.configuration.content, &self.condition.filter) {
            (Content::Edge(_), Filter::All) => EDGE.to_owned(),
            (Content::Edge(_), Filter::Expr(_)) => {
                format!("({}) AND {EDGE}", self.configuration.target_condition)
            }
            _ => return self.condition.clone(),
        };
        // Longer than a condition may be: the search finds more than it needs to, which does no harm.
        parse_condition(&text).unwrap_or_else(|_| self.condition.clone())
    }
}

impl Active {
    pub(super) fn new(generation: u64, all: Vec<Configuration>) -> Self {
        let entries = all.into_iter().map(|configuration| {
            // It was checked when it came in. One that a later release reads no more targets nothing.
            let condition = parse_condition(&configuration.target_condition)
                .unwrap_or_else(|_| Condition::new(Source::Devices, Filter::None));
            Entry {
                configuration: Arc::new(configuration),
                condition,
            }
        });
        Active {
            generation,
            entries: entries.collect(),
        }
    }

    pub(super) fn configurations(&self) -> Vec<Arc<Configuration>> {
        let all = self.entries.iter();
        all.map(|entry| Arc::clone(&entry.configuration)).collect()
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Configuration>> {
        let mut all = self.entries.iter();
        let found = all.find(|entry| entry.configuration.id == id)?;
        Some(Arc::clone(&found.configuration))
    }

    /// What targets anybody, each condition once.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let mut conditions: Vec<Condition> = Vec::new();
        for entry in &self.entries {
            let condition = entry.search();
            if condition.filter != Filter::None && !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        conditions
    }

    /// Which changes of devices and modules can matter.
    pub(super) fn concerned(&self) -> Listening {
        if self.entries.is_empty() {
            return Listening::Off;
        }
        let mut reported = false;
        for entry in &self.entries {
            if let Filter::Expr(expression) = &entry.condition.filter {
                expression.visit_paths(&mut |path| reported |= reaches_reported(path));
            }
        }
        match reported {
            true => Listening::Everything,
            false => Listening::WithoutReports,
        }
    }

    /// Whether there are configurations of modules.
    pub(super) fn has_module_configurations(&self) -> bool {
        let mut all = self.entries.iter();
        all.any(|entry| matches!(entry.configuration.content, Content::Module(_)))
    }

    /// Whether a condition looks at the number of waiting messages, which is not part of a twin.
    pub(super) fn counts_messages(&self) -> bool {
        self.entries.iter().any(|entry| {
            let paths = entry.condition.undocumented_paths();
            paths
                .iter()
                .any(|path| path.root == Root::CloudToDeviceMessageCount)
        })
    }

    /// Configurations of devices that target this one.
    pub(super) fn of_device(&self, row: &TwinRow<'_>) -> Vec<Arc<Configuration>> {
        self.matching(row, |content| matches!(content, Content::Device(_)))
    }

    /// Deployments that target this device; none unless it is an edge device.
    pub(super) fn of_edge_device(&self, row: &TwinRow<'_>) -> Vec<Arc<Configuration>> {
        if !row.record.iot_edge {
            return Vec::new();
        }
        self.matching(row, |content| matches!(content, Content::Edge(_)))
    }

    /// Configurations of modules that target this one; none for the reserved modules, whose content deployments own.
    pub(super) fn of_module(&self, row: &TwinRow<'_>) -> Vec<Arc<Configuration>> {
        if row.record.identity.is_system_module() {
            return Vec::new();
        }
        self.matching(row, |content| matches!(content, Content::Module(_)))
    }

    fn matching(&self, row: &TwinRow<'_>, kind: fn(&Content) -> bool) -> Vec<Arc<Configuration>> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| kind(&entry.configuration.content) && entry.condition.matches(row))
            .map(|entry| Arc::clone(&entry.configuration))
            .collect()
    }
}

/// Whether what stands there may change with the reported properties.
fn reaches_reported(path: &Path) -> bool {
    let first = path.rest.first();
    path.root == Root::Properties && first.is_none_or(|first| *first == Segment::Name("reported".into()))
}

#[cfg(test)]
mod tests {
    use holdfast_model::Timestamp;

    use super::*;

    fn active(condition: &str, content: Content) -> Active {
        let configuration = Configuration {
            id: "c".into(),
            schema_version: None,
            labels: [].into(),
            content,
            target_condition: condition.into(),
            priority: 1,
            metrics: [].into(),
            created_at: Timestamp::from_seconds(1),
            updated_at: Timestamp::from_seconds(1),
            version: 1,
        };
        Active::new(1, vec![configuration])
    }

    #[test]
    fn deployments_are_searched_for_among_edge_devices() {
        let searched = |condition: &str| active(condition, Content::Edge([].into())).conditions();
        let meant = |text: &str| vec![parse_condition(text).expect("a condition")];
        assert_eq!(searched("*"), meant("capabilities.iotEdge = true"));
        assert_eq!(
            searched("tags.a = 1 OR tags.b = 2"),
            meant("(tags.a = 1 OR tags.b = 2) AND capabilities.iotEdge = true")
        );
        assert_eq!(searched(""), Vec::new());
    }

    #[test]
    fn reports_matter_only_to_conditions_on_them() {
        let content = || Content::Device(serde_json::Map::new());
        let concerned = |condition: &str| active(condition, content()).concerned();
        assert_eq!(Active::new(1, Vec::new()).concerned(), Listening::Off);
        assert_eq!(concerned("tags.a = 1"), Listening::WithoutReports);
        assert_eq!(concerned("*"), Listening::WithoutReports);
        assert_eq!(
            concerned("tags.a = 1 OR NOT is_defined(properties.reported.b)"),
            Listening::Everything
        );
    }
}
