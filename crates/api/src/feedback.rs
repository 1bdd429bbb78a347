//! `/messages/serviceBound/feedback`: outcomes of cloud-to-device messages (REST contract, section 8).

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use holdfast_model::c2d::LockToken;
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::dto::feedback_json;
use holdfast_wire::{etag, headers};

use crate::Api;
use crate::reply::{Failure, Reply, no_content};

/// Receives a batch of feedback records under a lock, or 204 when none is due. Right: ServiceConnect.
#[utoipa::path(get, path = "/messages/serviceBound/feedback", tag = "Cloud-to-device messages",
    responses((status = 200, description = "records; ETag is the lock token"), (status = 204, description = "none")))]
pub(crate) async fn receive(State(api): State<Api>) -> Reply {
    let Some(batch) = api.hub.receive_feedback().await? else {
        return no_content();
    };
    let mut response = Response::new(Body::from(feedback_json(&batch.records)));
    let out = response.headers_mut();
    out.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(headers::FEEDBACK_BATCH),
    );
    if let Ok(tag) = HeaderValue::from_str(&etag::quoted(&batch.lock.to_string())) {
        out.insert(header::ETAG, tag);
    }
    Ok(response)
}

/// Removes a received batch. Right: ServiceConnect.
#[utoipa::path(delete, path = "/messages/serviceBound/feedback/{token}", tag = "Cloud-to-device messages",
    responses((status = 204, description = "removed"), (status = 412, description = "the lock has ended")))]
pub(crate) async fn complete(State(api): State<Api>, Path(token): Path<String>) -> Reply {
    api.hub.settle_feedback(lock(&token)?, true).await?;
    no_content()
}

/// Gives a received batch back. Right: ServiceConnect.
#[utoipa::path(post, path = "/messages/serviceBound/feedback/{token}/abandon", tag = "Cloud-to-device messages",
    responses((status = 204, description = "given back"), (status = 412, description = "the lock has ended")))]
pub(crate) async fn abandon(State(api): State<Api>, Path(token): Path<String>) -> Reply {
    api.hub.settle_feedback(lock(&token)?, false).await?;
    no_content()
}

fn lock(token: &str) -> Result<LockToken, Failure> {
    let unknown = || Error::new(ErrorCode::DeviceMessageLockLost, "the lock token is unknown");
    Ok(LockToken::parse(token).ok_or_else(unknown)?)
}
