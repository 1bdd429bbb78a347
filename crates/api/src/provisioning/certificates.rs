//! `/holdfast/v1/provisioning/certificates`: the certificate authorities that `caReferences` name. They are the hub's own
//! (`/holdfast/v1/certificates`), under rights of the provisioning service.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;

use crate::Api;
use crate::certificates::{self, CertificateDto, CertificatePut, Proof};
use crate::reply::Reply;

/// Lists certificate authorities. Right: ServiceConfig.
#[utoipa::path(get, path = "/holdfast/v1/provisioning/certificates", tag = "Provisioning",
    responses((status = 200, body = Vec<CertificateDto>)))]
pub(crate) async fn list(api: State<Api>) -> Reply {
    certificates::list(api).await
}

/// Reads a certificate authority. Right: ServiceConfig.
#[utoipa::path(get, path = "/holdfast/v1/provisioning/certificates/{name}", tag = "Provisioning",
    responses((status = 200, body = CertificateDto)))]
pub(crate) async fn get(api: State<Api>, name: Path<String>) -> Reply {
    certificates::get(api, name).await
}

/// Uploads a CA certificate. Right: ServiceConfig.
#[utoipa::path(put, path = "/holdfast/v1/provisioning/certificates/{name}", tag = "Provisioning",
    request_body = CertificatePut, responses((status = 200, body = CertificateDto)))]
pub(crate) async fn put(api: State<Api>, name: Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    certificates::put(api, name, headers, bytes).await
}

/// Makes the code that a proof must carry as its common name. Right: ServiceConfig.
#[utoipa::path(post, path = "/holdfast/v1/provisioning/certificates/{name}/generateVerificationCode",
    tag = "Provisioning", responses((status = 200, body = CertificateDto)))]
pub(crate) async fn generate_code(api: State<Api>, name: Path<String>, headers: HeaderMap) -> Reply {
    certificates::generate_code(api, name, headers).await
}

/// Verifies an authority by a proof. Right: ServiceConfig.
#[utoipa::path(post, path = "/holdfast/v1/provisioning/certificates/{name}/verify", tag = "Provisioning",
    request_body = Proof,
    responses((status = 200, body = CertificateDto), (status = 400, description = "the proof is not one")))]
pub(crate) async fn verify(api: State<Api>, name: Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    certificates::verify(api, name, headers, bytes).await
}

/// Deletes a certificate authority. Right: ServiceConfig.
#[utoipa::path(delete, path = "/holdfast/v1/provisioning/certificates/{name}", tag = "Provisioning",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(api: State<Api>, name: Path<String>, headers: HeaderMap) -> Reply {
    certificates::delete(api, name, headers).await
}
