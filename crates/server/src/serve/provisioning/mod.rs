//! What the provisioning engine drives: the hub of this process, other hubs over their service API, webhooks.

mod own;
mod remote;
mod webhook;

use std::sync::Arc;

use holdfast_hub::Hub;
use holdfast_model::Error;
use holdfast_model::provisioning::{LINKED_HUBS_MAX, LinkedHub};
use holdfast_ports::enrollment::{HubConnector, HubRegistry};
use parking_lot::Mutex;

pub(super) use webhook::HttpWebhook;

/// Gives access to hubs. Clients of other hubs are kept, since making one reads certificates.
pub(super) struct Connector {
    own: Arc<own::OwnHub>,
    remote: Mutex<Vec<(LinkedHub, Arc<remote::RemoteHub>)>>,
}

impl Connector {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Connector {
            own: Arc::new(own::OwnHub::new(hub)),
            remote: Mutex::default(),
        }
    }
}

impl HubConnector for Connector {
    fn connect(&self, hub: &LinkedHub) -> Result<Arc<dyn HubRegistry>, Error> {
        if hub.is_own() {
            return Ok(Arc::clone(&self.own) as Arc<_>);
        }
        let mut known = self.remote.lock();
        if let Some((_, client)) = known.iter().find(|(known, _)| known == hub) {
            return Ok(Arc::clone(client) as Arc<_>);
        }
        let client = Arc::new(remote::RemoteHub::new(hub)?);
        // At most one a host: a change of what is known of it makes the old client useless.
        known.retain(|(known, _)| known.host != hub.host);
        // Hubs that were unlinked make room at last.
        if known.len() >= LINKED_HUBS_MAX {
            known.remove(0);
        }
        known.push((hub.clone(), Arc::clone(&client)));
        Ok(client)
    }
}
