//! Device and module twins: sections, merge rules, metadata, versions, limits (rest.md section 6).
//!
//! Everything here is pure: the engine runs it inside a store's transaction. A change is checked completely before
//! anything is touched, so a refused change leaves the twin as it was.

mod managed;
mod merge;
mod validate;
mod view;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::Error;
use crate::time::Timestamp;

pub use managed::{ConfigurationStatus, Managed, ManagedPlan, PropertyPath, Write};
pub use validate::parse_object;
pub use view::desired_notification;

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
    /// The configurations and deployments whose condition this twin meets, by id. Automatic device management writes it;
    /// it has no part in `version`.
    pub configurations: BTreeMap<String, ConfigurationStatus>,
    /// What automatic device management has written here; `None` for a twin it has not touched.
    pub managed: Option<Box<Managed>>,
}

/// How a change meets what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeMode {
    /// Objects merge recursively, null removes (HTTP PATCH).
    Patch,
    /// The new content takes the place of the old one (HTTP PUT).
    Replace,
}

/// A service's change of a twin. A section that is `None` stays as it is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TwinChange {
    /// New content of the tags, or changes to them.
    pub tags: Option<Map<String, Value>>,
    /// New content of the desired properties, or changes to them.
    pub desired: Option<Map<String, Value>>,
}

impl Section {
    /// An empty section at version 1 whose root metadata carries `now`.
    #[must_use]
    pub fn empty(now: Timestamp) -> Self {
        let mut metadata = Map::new();
        metadata.insert(merge::LAST_UPDATED.into(), Value::String(merge::stamp_text(now)));
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
            configurations: BTreeMap::new(),
            managed: None,
        }
    }

    /// Applies a service's change: the sections named in `change` are patched or replaced, each changed section's
    /// version goes up by one, and the twin's version by one if anything was changed at all.
    ///
    /// A patch without members (after dropping `$…` members) is no change; any other patch counts, even if every
    /// value was there already (rest.md 6.3). A replacement always counts.
    ///
    /// # Errors
    /// `ArgumentInvalid` with the path of the member that breaks a rule of rest.md 6.4; nothing is changed then.
    pub fn apply(&mut self, mode: ChangeMode, change: &TwinChange, now: Timestamp) -> Result<(), Error> {
        let tags = match &change.tags {
            Some(tags) => merge::tags(&self.tags, tags, mode)?,
            None => None,
        };
        let desired = match &change.desired {
            Some(desired) => merge::section(&self.desired, desired, mode, merge::Side::Desired, now)?,
            None => None,
        };
        if tags.is_some() || desired.is_some() {
            self.version += 1;
        }
        if let Some(tags) = tags {
            self.tags = tags;
        }
        if let Some(desired) = desired {
            self.desired = desired;
        }
        Ok(())
    }

    /// Merges what a device reports; returns the section's version afterwards. A patch without members is no change.
    ///
    /// # Errors
    /// As [`Twin::apply`].
    pub fn report(&mut self, patch: &Map<String, Value>, now: Timestamp) -> Result<u64, Error> {
        let changed = merge::section(
            &self.reported,
            patch,
            ChangeMode::Patch,
            merge::Side::Reported,
            now,
        )?;
        if let Some(changed) = changed {
            self.reported = changed;
        }
        Ok(self.reported.version)
    }
}
