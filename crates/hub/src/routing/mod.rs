//! Routing inside the engine: the operator's definition, the table compiled from it, and the twins that conditions ask
//! for.

mod senders;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use holdfast_model::routing::{
    ENDPOINTS_MAX, ENRICHMENTS_MAX, EndpointDefinition, ROUTES_MAX, RoutingDefinition,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::settings::SettingsStore;
use holdfast_ports::{StoreError, StoreResult};
use holdfast_routing::RouteTable;
use holdfast_routing::dispatcher::reader_name;
use tokio::sync::watch;

use crate::Hub;
use crate::IfMatch;
use crate::failure::invalid;
pub(crate) use senders::Senders;

/// Where the definition is kept among the settings.
const SETTING: &str = "routing";

/// What the engine holds of routing.
#[derive(Debug)]
pub(crate) struct Routing {
    table: ArcSwap<RouteTable>,
    definition: watch::Sender<Arc<RoutingDefinition>>,
    pub(crate) senders: Senders,
}

impl Routing {
    /// Reads the definition that was stored last.
    pub(crate) async fn load(settings: &dyn SettingsStore) -> StoreResult<Self> {
        let definition = match settings.value(SETTING).await? {
            None => RoutingDefinition::default(),
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                StoreError::Unavailable(format!("the stored routes cannot be read: {error}"))
            })?,
        };
        // It compiled when it was stored, so only another release of the query language can refuse it now.
        let table = RouteTable::compile(&definition)
            .map_err(|fault| StoreError::Unavailable(format!("the stored routes do not compile: {fault}")))?;
        let senders = Senders::default();
        senders.set_wanted(table.asks_for_twins());
        Ok(Routing {
            table: ArcSwap::from_pointee(table),
            definition: watch::Sender::new(Arc::new(definition)),
            senders,
        })
    }

    pub(crate) fn table(&self) -> Guard<Arc<RouteTable>> {
        self.table.load()
    }
}

impl Hub {
    /// What is defined about routing now, and from now on: the receiver is told of every change.
    #[must_use]
    pub fn routing(&self) -> watch::Receiver<Arc<RoutingDefinition>> {
        self.routing.definition.subscribe()
    }

    /// The compiled routes in force.
    #[must_use]
    pub fn route_table(&self) -> Arc<RouteTable> {
        self.routing.table.load_full()
    }

    /// Changes the definition, durably; the next event is decided by it. `change` gets a copy, and nothing happens when
    /// it refuses.
    ///
    /// # Errors
    /// What `change` says; `ArgumentInvalid` when a route does not compile, names an endpoint that does not exist, or
    /// there are too many of something; `ServiceUnavailable`.
    pub async fn change_routing<T>(
        &self,
        change: impl FnOnce(&mut RoutingDefinition) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let changed = self.change_routing_if(IfMatch::Absent, change).await;
        changed.map(|(result, _)| result)
    }

    /// As [`Hub::change_routing`], if the definition has the version that `if_match` says. Returns the new version too.
    ///
    /// # Errors
    /// `PreconditionFailed`, and as [`Hub::change_routing`].
    pub async fn change_routing_if<T>(
        &self,
        if_match: IfMatch,
        change: impl FnOnce(&mut RoutingDefinition) -> Result<T, Error> + Send,
    ) -> Result<(T, u64), Error> {
        let _changing = self.settings_changes.lock().await;
        let mut definition = RoutingDefinition::clone(&self.routing.definition.borrow());
        if_match.check(definition.version)?;
        let result = change(&mut definition)?;
        check_counts(&definition)?;
        let table = RouteTable::compile(&definition).map_err(|fault| invalid(fault.to_string()))?;
        definition.version += 1;
        let text = serde_json::to_string(&definition).map_err(|error| {
            Error::new(
                ErrorCode::ServerError,
                format!("routes cannot be written: {error}"),
            )
        })?;
        if table.asks_for_twins() {
            // From here on every login and every change of a twin is noted, so that none is missed while those of
            // senders who are there already are read.
            self.routing.senders.set_wanted(true);
            self.note_all_senders().await?;
        }
        self.begin_at_the_end(&definition).await?;
        self.stores
            .settings
            .set_value(SETTING, &text)
            .await
            .map_err(|error| self.store_error("save routes", error))?;
        let wanted = table.asks_for_twins();
        self.routing.table.store(Arc::new(table));
        self.routing.senders.set_wanted(wanted);
        let version = definition.version;
        self.routing.definition.send_replace(Arc::new(definition));
        Ok((result, version))
    }
}

impl Hub {
    /// A new endpoint takes what comes from now on: its checkpoint is set before the first event is marked for it.
    async fn begin_at_the_end(&self, definition: &RoutingDefinition) -> Result<(), Error> {
        let before = Arc::clone(&self.routing.definition.borrow());
        let is_new = |endpoint: &&EndpointDefinition| {
            !before
                .endpoints
                .iter()
                .any(|known| known.name == endpoint.name && known.number == endpoint.number)
        };
        for endpoint in definition.endpoints.iter().filter(is_new) {
            let reader = reader_name(&endpoint.name);
            for partition in 0..self.stores.log.partitions() {
                let next = self.stores.log.info(partition).map_or(0, |info| info.next);
                self.stores
                    .checkpoints
                    .save_checkpoint(&reader, partition, next)
                    .await
                    .map_err(|error| self.store_error("save checkpoint", error))?;
            }
        }
        Ok(())
    }
}

fn check_counts(definition: &RoutingDefinition) -> Result<(), Error> {
    for (what, count, max) in [
        ("routes", definition.routes.len(), ROUTES_MAX),
        ("endpoints", definition.endpoints.len(), ENDPOINTS_MAX),
        ("enrichments", definition.enrichments.len(), ENRICHMENTS_MAX),
    ] {
        if count > max {
            return Err(invalid(format!("a hub has at most {max} {what}")));
        }
    }
    Ok(())
}
