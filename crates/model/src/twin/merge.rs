//! Merge and replacement of a section with its metadata (rest.md 6.3).

use serde_json::{Map, Value};

use crate::error::Error;
use crate::limits;
use crate::time::Timestamp;
use crate::twin::validate;
use crate::twin::{ChangeMode, Section};

pub(super) const LAST_UPDATED: &str = "$lastUpdated";
pub(super) const LAST_UPDATED_VERSION: &str = "$lastUpdatedVersion";

/// Which property section: they differ in metadata and in the name used in messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Desired,
    Reported,
}

impl Side {
    const fn path(self) -> &'static str {
        match self {
            Side::Desired => "properties.desired",
            Side::Reported => "properties.reported",
        }
    }
}

/// Metadata members of everything touched by one change.
struct Stamp {
    at: String,
    version: Option<u64>,
}

/// Metadata times always carry seven fractional digits (rest.md 6.3.4), where [`Timestamp`] prints none for a whole
/// second.
pub(super) fn stamp_text(now: Timestamp) -> String {
    let mut text = now.to_string();
    if !text.contains('.') {
        text.truncate(text.len() - 1);
        text.push_str(".0000000Z");
    }
    text
}

impl Stamp {
    fn put(&self, metadata: &mut Map<String, Value>) {
        metadata.insert(LAST_UPDATED.into(), Value::String(self.at.clone()));
        if let Some(version) = self.version {
            metadata.insert(LAST_UPDATED_VERSION.into(), version.into());
        }
    }

    fn leaf(&self) -> Value {
        let mut metadata = Map::new();
        self.put(&mut metadata);
        Value::Object(metadata)
    }
}

/// The tags after a change; `None` when it changes nothing.
pub(super) fn tags(
    old: &Map<String, Value>,
    change: &Map<String, Value>,
    mode: ChangeMode,
) -> Result<Option<Map<String, Value>>, Error> {
    let change = validate::check(change, "tags")?;
    let mut new = match mode {
        ChangeMode::Patch if change.is_empty() => return Ok(None),
        ChangeMode::Patch => old.clone(),
        ChangeMode::Replace => Map::new(),
    };
    merge(&mut new, None, &change);
    validate::check_size(&new, "tags", limits::TWIN_TAGS_BYTES_MAX)?;
    Ok(Some(new))
}

/// The section after a change, one version up; `None` when it changes nothing.
pub(super) fn section(
    old: &Section,
    change: &Map<String, Value>,
    mode: ChangeMode,
    side: Side,
    now: Timestamp,
) -> Result<Option<Section>, Error> {
    let change = validate::check(change, side.path())?;
    let mut new = match mode {
        ChangeMode::Patch if change.is_empty() => return Ok(None),
        ChangeMode::Patch => old.clone(),
        ChangeMode::Replace => Section {
            properties: Map::new(),
            metadata: Map::new(),
            version: old.version,
        },
    };
    new.version += 1;
    let stamp = Stamp {
        at: stamp_text(now),
        version: (side == Side::Desired).then_some(new.version),
    };
    merge(&mut new.properties, Some((&mut new.metadata, &stamp)), &change);
    validate::check_size(&new.properties, side.path(), limits::TWIN_SECTION_BYTES_MAX)?;
    Ok(Some(new))
}

/// Merges `patch` into `target` and keeps `metadata`, where there is any, in step. The patch has passed
/// [`validate::check`], which bounds the recursion.
fn merge(
    target: &mut Map<String, Value>,
    mut metadata: Option<(&mut Map<String, Value>, &Stamp)>,
    patch: &Map<String, Value>,
) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
                if let Some((metadata, _)) = &mut metadata {
                    metadata.remove(key);
                }
            }
            Value::Object(patch) => {
                let inner = object_at(target, key);
                match &mut metadata {
                    None => merge(inner, None, patch),
                    Some((metadata, stamp)) => {
                        merge(inner, Some((object_at(metadata, key), stamp)), patch);
                    }
                }
            }
            leaf => {
                target.insert(key.clone(), leaf.clone());
                if let Some((metadata, stamp)) = &mut metadata {
                    metadata.insert(key.clone(), stamp.leaf());
                }
            }
        }
    }
    if let Some((metadata, stamp)) = metadata {
        stamp.put(metadata);
    }
}

/// The object at `key`, made empty first if there is anything else. In metadata the entry of a former leaf is an
/// object too, with stamps only; the merge replaces those.
fn object_at<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = map.entry(key).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(inner) => inner,
        _ => unreachable!("made an object above"),
    }
}
