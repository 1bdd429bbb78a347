//! `/statistics/…` (REST contract, section 5.3).

use axum::extract::State;
use holdfast_wire::dto::{RegistryStatisticsDto, ServiceStatisticsDto};

use crate::Api;
use crate::reply::{Reply, json};

/// Counts devices. Right: RegistryRead.
#[utoipa::path(get, path = "/statistics/devices", tag = "Statistics",
    responses((status = 200, body = RegistryStatisticsDto)))]
pub(crate) async fn devices(State(api): State<Api>) -> Reply {
    json(&RegistryStatisticsDto::from(api.hub.registry_statistics().await?))
}

/// Counts connected devices. Right: ServiceConnect.
#[utoipa::path(get, path = "/statistics/service", tag = "Statistics",
    responses((status = 200, body = ServiceStatisticsDto)))]
pub(crate) async fn service(State(api): State<Api>) -> Reply {
    json(&ServiceStatisticsDto {
        connected_device_count: api.hub.connected_devices() as u64,
    })
}
