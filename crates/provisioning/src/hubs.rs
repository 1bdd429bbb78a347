//! Linked hubs: the hubs that devices are assigned to. The own hub is always among them.

use std::sync::Arc;

use holdfast_model::credential::SymmetricKey;
use holdfast_model::provisioning::{HUB_WEIGHT_RANGE, LINKED_HUBS_MAX, LinkedHub, OWN_HUB};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;
use holdfast_ports::enrollment::HubRegistry;

use crate::Provisioning;
use crate::failure::invalid;

/// What an operator says about a linked hub. Members that are `None` stay as they are, or take their default.
#[derive(Clone, Debug, Default)]
pub struct LinkedHubSpec {
    /// Share of hashed allocation.
    pub weight: Option<u32>,
    /// Whether enrollments that name no hubs may choose it.
    pub apply_allocation: Option<bool>,
    /// For the lowest-latency policy.
    pub latency_ms: Option<u32>,
    /// Policy of the hub with its key; needed for a hub that is not the own one.
    pub policy: Option<(String, SymmetricKey)>,
    /// Port of its HTTPS.
    pub https_port: Option<u16>,
    /// PEM of the authority of its certificate.
    pub ca_certificate: Option<String>,
}

impl Provisioning {
    /// All linked hubs, the own one first. [`LinkedHub::host`] is as stored; see [`Provisioning::host_name`].
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn linked_hubs(&self) -> Result<Vec<LinkedHub>, Error> {
        let stored = self.drivers.store.linked_hubs().await;
        let mut hubs = stored.map_err(|error| self.store_error("read linked hubs", error))?;
        if !hubs.iter().any(LinkedHub::is_own) {
            hubs.push(LinkedHub::own());
        }
        hubs.sort_by(|a, b| (!a.is_own(), &a.host).cmp(&(!b.is_own(), &b.host)));
        Ok(hubs)
    }

    /// One linked hub.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub async fn linked_hub(&self, host: &str) -> Result<LinkedHub, Error> {
        let wanted = self.stored_host(host);
        let hubs = self.linked_hubs().await?;
        let found = hubs.into_iter().find(|hub| hub.host == wanted);
        found.ok_or_else(|| no_hub(host))
    }

    /// Links a hub, or changes what is known of it.
    ///
    /// # Errors
    /// `ArgumentInvalid`.
    pub async fn put_linked_hub(&self, host: &str, spec: LinkedHubSpec) -> Result<LinkedHub, Error> {
        let host = self.stored_host(host);
        let hubs = self.linked_hubs().await?;
        let present = hubs.iter().find(|hub| hub.host == host);
        if present.is_none() && hubs.len() >= LINKED_HUBS_MAX {
            return Err(invalid(format!(
                "there can be {LINKED_HUBS_MAX} linked hubs at most"
            )));
        }
        let before = present.cloned().unwrap_or_else(|| LinkedHub {
            host: host.clone(),
            ..LinkedHub::own()
        });
        let hub = LinkedHub {
            weight: spec.weight.unwrap_or(before.weight),
            apply_allocation: spec.apply_allocation.unwrap_or(before.apply_allocation),
            latency_ms: spec.latency_ms.or(before.latency_ms),
            policy: spec.policy.or(before.policy),
            https_port: spec.https_port.unwrap_or(before.https_port),
            ca_certificate: spec.ca_certificate.or(before.ca_certificate),
            host,
        };
        if !(HUB_WEIGHT_RANGE.0..=HUB_WEIGHT_RANGE.1).contains(&hub.weight) {
            let (least, most) = HUB_WEIGHT_RANGE;
            return Err(invalid(format!("allocationWeight must be {least} to {most}")));
        }
        match (hub.is_own(), hub.policy.is_some()) {
            (true, true) => return Err(invalid("the hub of this process needs no connection string")),
            (false, false) => return Err(invalid("another hub needs its connectionString")),
            _ => {}
        }
        // Whether what is known of it can be used at all.
        self.drivers.connector.connect(&hub)?;
        let stored = self.drivers.store.put_linked_hub(hub.clone()).await;
        stored.map_err(|error| self.store_error("save linked hub", error))?;
        self.hub_linked.notify_one();
        Ok(hub)
    }

    /// Unlinks a hub. Devices that are on it stay there until they register again.
    ///
    /// # Errors
    /// `ResourceNotFound`; `InvalidOperation` for the own hub.
    pub async fn delete_linked_hub(&self, host: &str) -> Result<(), Error> {
        let wanted = self.stored_host(host);
        if wanted == OWN_HUB {
            return Err(Error::new(
                ErrorCode::InvalidOperation,
                "the hub of this process is always linked; set applyAllocationPolicy to false to keep devices off it",
            ));
        }
        let deleted = self.drivers.store.delete_linked_hub(&wanted).await;
        deleted.map_err(|error| match error {
            StoreError::Missing => no_hub(host),
            other => self.store_error("delete linked hub", other),
        })
    }

    /// The host name to tell, of a host as stored.
    #[must_use]
    pub fn host_name<'a>(&'a self, stored: &'a str) -> &'a str {
        match stored {
            OWN_HUB => self.config.host_names.first().map_or(stored, String::as_str),
            other => other,
        }
    }

    /// A host name as it is stored: [`OWN_HUB`] for every name of this process, lower case for others.
    pub(crate) fn stored_host(&self, name: &str) -> String {
        let name = name.trim();
        let own = |known: &String| known.eq_ignore_ascii_case(name);
        match name == OWN_HUB || self.config.host_names.iter().any(own) {
            true => OWN_HUB.to_owned(),
            false => name.to_ascii_lowercase(),
        }
    }

    /// Access to the hub with this stored host; `None` when it is not linked.
    pub(crate) async fn connect(&self, stored: &str) -> Result<Option<Arc<dyn HubRegistry>>, Error> {
        let hubs = self.linked_hubs().await?;
        let found = hubs.iter().find(|hub| hub.host == stored);
        found.map(|hub| self.drivers.connector.connect(hub)).transpose()
    }
}

fn no_hub(host: &str) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!("the hub {host:?} is not linked"),
    )
}
