//! The configurations in use, with their conditions read.

use std::sync::Arc;

use holdfast_model::configuration::{Configuration, Content};
use holdfast_query::twin::{Condition, Filter, Root, Source, TwinRow, parse_condition};

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
            if !conditions.contains(&entry.condition) {
                conditions.push(entry.condition.clone());
            }
        }
        conditions
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
