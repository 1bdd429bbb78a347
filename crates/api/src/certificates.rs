//! `/holdfast/v1/certificates`: certificate authorities of devices, with the resource shape and the steps of IoT Hub's
//! management API (REST contract, section 18): upload, code, proof, verified.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::settings::CertificateAuthority;
use holdfast_wire::etag;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Api;
use crate::extract::{body, identity_match};
use crate::reply::{Failure, Reply, json, json_tagged, no_content};

/// A certificate to upload.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CertificatePut {
    /// PEM, or base64 of DER.
    certificate: String,
    /// The operator vouches for it: no proof needed.
    #[serde(default)]
    is_verified: bool,
}

/// A certificate issued by the authority for the verification code.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Proof {
    /// PEM, or base64 of DER.
    certificate: String,
}

/// An authority.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateDto {
    name: String,
    etag: String,
    #[serde(rename = "type")]
    kind: &'static str,
    properties: CertificateProperties,
}

/// What is known of an authority.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateProperties {
    /// Common name of the subject.
    subject: String,
    /// RFC 1123.
    expiry: String,
    /// SHA-1, hex.
    thumbprint: String,
    is_verified: bool,
    created: String,
    updated: String,
    /// Base64 of DER.
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification_code: Option<String>,
}

/// Lists certificate authorities. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/certificates", tag = "Certificates",
    responses((status = 200, body = Vec<CertificateDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let authorities = api.hub.authorities().await?;
    json(&authorities.iter().map(dto).collect::<Result<Vec<_>, _>>()?)
}

/// Reads a certificate authority. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/certificates/{name}", tag = "Certificates",
    responses((status = 200, body = CertificateDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    answer(&api.hub.authority(&name).await?)
}

/// Uploads a CA certificate. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/certificates/{name}", tag = "Certificates", request_body = CertificatePut,
    responses((status = 200, body = CertificateDto)))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let wanted: CertificatePut = body(&bytes)?;
    let certificate = decode(&wanted.certificate)?;
    let if_match = identity_match(&headers);
    answer(
        &api.hub
            .put_authority(&name, &certificate, wanted.is_verified, if_match)
            .await?,
    )
}

/// Makes the code that a proof must carry as its common name. Right: RegistryWrite.
#[utoipa::path(post, path = "/holdfast/v1/certificates/{name}/generateVerificationCode", tag = "Certificates",
    responses((status = 200, body = CertificateDto)))]
pub(crate) async fn generate_code(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Reply {
    answer(
        &api.hub
            .generate_verification_code(&name, identity_match(&headers))
            .await?,
    )
}

/// Verifies an authority by a proof. Right: RegistryWrite.
#[utoipa::path(post, path = "/holdfast/v1/certificates/{name}/verify", tag = "Certificates", request_body = Proof,
    responses((status = 200, body = CertificateDto), (status = 400, description = "the proof is not one")))]
pub(crate) async fn verify(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let proof = decode(&body::<Proof>(&bytes)?.certificate)?;
    answer(
        &api.hub
            .verify_authority(&name, &proof, identity_match(&headers))
            .await?,
    )
}

/// Deletes a certificate authority. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/certificates/{name}", tag = "Certificates",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    api.hub.delete_authority(&name, identity_match(&headers)).await?;
    no_content()
}

/// The engine takes PEM and DER; over JSON, DER comes as base64.
fn decode(text: &str) -> Result<Vec<u8>, Failure> {
    if text.contains("-----BEGIN") {
        return Ok(text.as_bytes().to_vec());
    }
    let bad = |_| {
        Error::new(
            ErrorCode::ArgumentInvalid,
            "certificate is neither PEM nor base64",
        )
    };
    Ok(STANDARD
        .decode(text.split_whitespace().collect::<String>())
        .map_err(bad)?)
}

fn answer(authority: &CertificateAuthority) -> Reply {
    json_tagged(&dto(authority)?, &etag::of_identity(authority.version))
}

fn dto(authority: &CertificateAuthority) -> Result<CertificateDto, Failure> {
    let unreadable = |_| Error::new(ErrorCode::ServerError, "the stored certificate cannot be read");
    let (_, parsed) = X509Certificate::from_der(&authority.certificate).map_err(unreadable)?;
    let common_name = parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    Ok(CertificateDto {
        name: authority.name.clone(),
        etag: etag::of_identity(authority.version),
        kind: "Holdfast/Certificates",
        properties: CertificateProperties {
            subject: common_name.unwrap_or_default().to_owned(),
            expiry: parsed.validity().not_after.to_rfc2822().unwrap_or_default(),
            thumbprint: thumbprint(&authority.certificate),
            is_verified: authority.verified,
            created: authority.created_at.to_string(),
            updated: authority.updated_at.to_string(),
            certificate: STANDARD.encode(&authority.certificate),
            verification_code: authority.verification_code.clone(),
        },
    })
}

fn thumbprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}
