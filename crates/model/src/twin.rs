//! Device and module twins: sections, merge rules, metadata, versions, limits.

use serde_json::{Map, Value};

use crate::time::Timestamp;

/// One property section (desired or reported) with its metadata and version.
#[derive(Clone, PartialEq, Debug)]
pub struct Section {
    /// The properties, without any `$…` member.
    pub properties: Map<String, Value>,
    /// `$metadata`: mirrors the structure of the properties (rest.md 6.3).
    pub metadata: Map<String, Value>,
    /// `$version`, starting at 1.
    pub version: u64,
}

/// A twin: tags, desired and reported properties.
#[derive(Clone, PartialEq, Debug)]
pub struct Twin {
    /// Tags, service side only.
    pub tags: Map<String, Value>,
    /// Desired properties, written by services.
    pub desired: Section,
    /// Reported properties, written by the device.
    pub reported: Section,
    /// Raised with every change of tags or desired; its text form is the entity tag.
    pub version: u64,
    /// Model id the device announced at its last connect.
    pub model_id: Option<String>,
}

impl Section {
    /// An empty section at version 1 whose root metadata carries `now`.
    #[must_use]
    pub fn empty(now: Timestamp) -> Self {
        let mut metadata = Map::new();
        metadata.insert("$lastUpdated".into(), Value::String(now.to_string()));
        Section {
            properties: Map::new(),
            metadata,
            version: 1,
        }
    }
}

impl Twin {
    /// The twin of a newly created identity.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Twin {
            tags: Map::new(),
            desired: Section::empty(now),
            reported: Section::empty(now),
            version: 1,
            model_id: None,
        }
    }
}
