//! `/healthz`, `/readyz` and `/metrics`, for machines that watch the hub. They tell no names and no data.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use holdfast_observe::{Health, Registry, metrics};

#[derive(Clone)]
struct Watched {
    health: Health,
    registry: Arc<Registry>,
}

/// The three paths.
pub(super) fn router(health: Health, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Watched { health, registry })
}

/// Alive: 200, else 503 with the reason, and whoever watches should restart the process.
async fn healthz(State(watched): State<Watched>) -> impl IntoResponse {
    reply(watched.health.is_alive(), &watched.health)
}

/// Ready: 200, else 503 with the components that are not well.
async fn readyz(State(watched): State<Watched>) -> impl IntoResponse {
    reply(watched.health.is_ready(), &watched.health)
}

fn reply(good: bool, health: &Health) -> impl IntoResponse + use<> {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = health.snapshot().to_json();
    (
        status,
        [(header::CONTENT_TYPE, "application/json; charset=utf-8")],
        body,
    )
}

async fn scrape(State(watched): State<Watched>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
        watched.registry.render(),
    )
}
