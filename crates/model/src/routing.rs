//! Routes, endpoints and enrichments as operators define them (languages.md 2.1, 2.7, 2.8).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::EventSource;
use crate::time::Timestamp;

/// Most routes of a hub.
pub const ROUTES_MAX: usize = 100;
/// Most endpoints of a hub besides the built-in one.
pub const ENDPOINTS_MAX: usize = 63;
/// Most enrichments of a hub.
pub const ENRICHMENTS_MAX: usize = 20;
/// Longest name of a route or endpoint, characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Name of the built-in endpoint.
pub const EVENTS: &str = "events";
/// Names that no endpoint can have.
pub const RESERVED_NAMES: &[&str] = &[EVENTS, "fileNotifications", "$default"];

/// Whether a text can name a route or an endpoint: 1 to 64 letters, digits, `.`, `_`, `-`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Where a route takes its events from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum RouteSource {
    /// Telemetry of devices and modules.
    DeviceMessages,
    /// Changes of device and module twins.
    TwinChangeEvents,
    /// Identities created and deleted.
    DeviceLifecycleEvents,
    /// Jobs.
    DeviceJobLifecycleEvents,
    /// Devices connected and disconnected.
    DeviceConnectionStateEvents,
    /// Changes of digital twins.
    DigitalTwinChangeEvents,
}

impl RouteSource {
    /// Every source.
    pub const ALL: &'static [RouteSource] = &[
        RouteSource::DeviceMessages,
        RouteSource::TwinChangeEvents,
        RouteSource::DeviceLifecycleEvents,
        RouteSource::DeviceJobLifecycleEvents,
        RouteSource::DeviceConnectionStateEvents,
        RouteSource::DigitalTwinChangeEvents,
    ];

    /// The contract's spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RouteSource::DeviceMessages => "DeviceMessages",
            RouteSource::TwinChangeEvents => "TwinChangeEvents",
            RouteSource::DeviceLifecycleEvents => "DeviceLifecycleEvents",
            RouteSource::DeviceJobLifecycleEvents => "DeviceJobLifecycleEvents",
            RouteSource::DeviceConnectionStateEvents => "DeviceConnectionStateEvents",
            RouteSource::DigitalTwinChangeEvents => "DigitalTwinChangeEvents",
        }
    }

    /// From any spelling in the contract's words: tools write them in lower case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let same = |source: &&RouteSource| source.as_str().eq_ignore_ascii_case(text);
        Self::ALL.iter().find(same).copied()
    }

    /// The kind of event that it takes.
    #[must_use]
    pub const fn event(self) -> EventSource {
        match self {
            RouteSource::DeviceMessages => EventSource::Telemetry,
            RouteSource::TwinChangeEvents => EventSource::TwinChange,
            RouteSource::DeviceLifecycleEvents => EventSource::DeviceLifecycle,
            RouteSource::DeviceJobLifecycleEvents => EventSource::JobLifecycle,
            RouteSource::DeviceConnectionStateEvents => EventSource::ConnectionState,
            RouteSource::DigitalTwinChangeEvents => EventSource::DigitalTwinChange,
        }
    }
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Unique name; see [`is_name`].
    pub name: String,
    /// Which events it looks at.
    pub source: RouteSource,
    /// Which of them take it; `true` for all.
    pub condition: String,
    /// Where they go: one name.
    pub endpoint_names: Vec<String>,
    /// Whether it is in force.
    pub is_enabled: bool,
}

/// Where telemetry goes that takes no route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackRoute {
    /// Which telemetry; `true` for all.
    pub condition: String,
    /// Whether it is in force.
    pub is_enabled: bool,
}

impl Default for FallbackRoute {
    fn default() -> Self {
        FallbackRoute {
            condition: "true".to_owned(),
            is_enabled: true,
        }
    }
}

/// A property that is added to what goes to some endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrichment {
    /// Name of the application property: letters, digits, `-`, `_`, `.`.
    pub key: String,
    /// A fixed text, `$iothubname`, or a path `$twin.tags.…`, `$twin.properties.desired.…`, `$twin.properties.reported.…`.
    pub value: String,
    /// Where the property is added; at least one.
    pub endpoint_names: Vec<String>,
}

/// An endpoint besides the built-in one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDefinition {
    /// Unique name; see [`is_name`].
    pub name: String,
    /// Its number in [`crate::event::EndpointSet`], 1 to 63; the hub gives it.
    pub number: u8,
    /// When it was made.
    pub created_at: Timestamp,
    /// What kind it is, such as `http` or `storage`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its kind's own settings, with secrets.
    pub settings: Value,
}

/// Everything about routing that an operator defines; stored and replaced as one.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoutingDefinition {
    /// Raised with every change.
    pub version: u64,
    /// Routes in the order of their definition.
    pub routes: Vec<Route>,
    /// The fallback route.
    pub fallback_route: FallbackRoute,
    /// Enrichments.
    pub enrichments: Vec<Enrichment>,
    /// Endpoints.
    pub endpoints: Vec<EndpointDefinition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sources() {
        for good in ["a", "A.b_c-9", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "ü", "a/b", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
        for source in RouteSource::ALL {
            assert_eq!(RouteSource::parse(&source.as_str().to_lowercase()), Some(*source));
        }
        assert_eq!(RouteSource::parse("Invalid"), None);
    }

    #[test]
    fn a_new_hub_sends_everything_to_the_built_in_endpoint() {
        let definition: RoutingDefinition = serde_json::from_str("{}").expect("defaults");
        assert_eq!(definition, RoutingDefinition::default());
        assert!(definition.fallback_route.is_enabled);
    }
}
