//! The flags that enrollments and groups share.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::super::input;

/// What a repeated registration may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Reprovision {
    /// Choose a hub again and take the twin along
    Migrate,
    /// Choose a hub again and begin with the initial twin
    Reset,
    /// Stay on the hub
    Never,
}

/// How a hub is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Allocation {
    /// In proportion to the weights of the hubs
    Hashed,
    /// The one with the least latency
    GeoLatency,
    /// The one that --hub names
    Static,
    /// The one that a webhook names
    Custom,
}

#[derive(Args, Debug, Clone, Default)]
pub(in crate::cli) struct SettingsArgs {
    /// Whether devices may register
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
    /// Whether devices are IoT Edge devices
    #[arg(long, value_name = "true|false")]
    edge: Option<bool>,
    /// Hub to choose from, may be given several times; all linked hubs if not given
    #[arg(long = "hub", value_name = "HOST")]
    hubs: Vec<String>,
    /// How a hub is chosen
    #[arg(long, value_enum)]
    allocation: Option<Allocation>,
    /// URL of the webhook, for the allocation custom
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// What a repeated registration may change
    #[arg(long, value_enum)]
    reprovision: Option<Reprovision>,
    /// Tags of a new twin: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    tags: Option<String>,
    /// Desired properties of a new twin: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    desired: Option<String>,
}

impl SettingsArgs {
    /// Writes what was given into the body of an enrollment.
    pub(super) fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        if let Some(enabled) = self.enabled {
            body["provisioningStatus"] = if enabled { "enabled" } else { "disabled" }.into();
        }
        if let Some(edge) = self.edge {
            body["capabilities"] = json!({ "iotEdge": edge });
        }
        if !self.hubs.is_empty() {
            body["iotHubs"] = json!(self.hubs);
        }
        if let Some(allocation) = self.allocation {
            body["allocationPolicy"] = match allocation {
                Allocation::Hashed => "hashed",
                Allocation::GeoLatency => "geoLatency",
                Allocation::Static => "static",
                Allocation::Custom => "custom",
            }
            .into();
        }
        if let Some(url) = &self.webhook {
            body["customAllocationDefinition"] = json!({ "webhookUrl": url, "apiVersion": "2021-10-01" });
        }
        if let Some(reprovision) = self.reprovision {
            body["reprovisionPolicy"] = json!({
                "updateHubAssignment": reprovision != Reprovision::Never,
                "migrateDeviceData": reprovision == Reprovision::Migrate,
            });
        }
        if let Some(tags) = &self.tags {
            body["initialTwin"]["tags"] = input::object("--tags", tags)?;
        }
        if let Some(desired) = &self.desired {
            body["initialTwin"]["properties"]["desired"] = input::object("--desired", desired)?;
        }
        Ok(())
    }
}
