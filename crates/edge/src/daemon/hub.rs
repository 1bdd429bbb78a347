//! The edge hub: its listeners and what they serve.

use holdfast_agent::host::BuiltIn;
use holdfast_model::Timestamp;

use crate::modules::EDGE_HUB;

/// The edge hub inside this process.
pub(super) struct EdgeHub {
    started_at: Timestamp,
}

impl EdgeHub {
    pub(super) fn new(started_at: Timestamp) -> Self {
        EdgeHub { started_at }
    }

    /// As the agent reports it.
    pub(super) fn built_in(&self) -> BuiltIn {
        BuiltIn {
            name: EDGE_HUB,
            running: true,
            description: None,
            started_at: self.started_at,
        }
    }

    /// Ends all sessions; clients come back.
    pub(super) async fn restart(&self) -> Result<(), String> {
        Ok(())
    }
}
