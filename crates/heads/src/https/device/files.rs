//! File upload: a device asks for a place, and tells how its upload went (rest.md section 15.4). The blob itself goes to
//! the storage account, not through here.

use axum::body::Body;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::file::{FileGateway, UploadGrant, UploadResult};
use holdfast_ports::gateway::Admitted;
use holdfast_wire::dto::{UploadEndDto, UploadGrantDto, UploadRequestDto};
use http::Response;
use http::header::HOST;
use http::request::Parts;

use super::{DeviceHttps, Failure, read_body, reply};
use crate::https::HttpsConfig;

impl DeviceHttps {
    fn files(&self) -> Result<&dyn FileGateway, Error> {
        self.files.as_deref().ok_or_else(|| {
            Error::new(
                ErrorCode::DefaultStorageEndpointNotConfigured,
                "the hub has no storage for file upload",
            )
        })
    }

    pub(super) async fn begin_upload(
        &self,
        admitted: &Admitted,
        head: &Parts,
        body: Body,
        config: &HttpsConfig,
    ) -> Result<Response<Body>, Failure> {
        let files = self.files()?;
        let body = read_body(&head.headers, body, config.body_timeout).await?;
        let name = UploadRequestDto::parse(&body)?;
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let grant = files
            .begin_upload(&admitted.origin.identity, &name, host.map(without_port))
            .await?;
        Ok(reply::json(dto(grant).to_json()))
    }

    pub(super) async fn end_upload(
        &self,
        admitted: &Admitted,
        correlation_id: Option<&str>,
        head: &Parts,
        body: Body,
        config: &HttpsConfig,
    ) -> Result<Response<Body>, Failure> {
        let files = self.files()?;
        let body = read_body(&head.headers, body, config.body_timeout).await?;
        let end = UploadEndDto::parse(&body, correlation_id)?;
        let result = UploadResult {
            correlation_id: end.correlation_id,
            is_success: end.is_success,
            status_code: end.status_code,
            status_description: end.status_description,
        };
        files.end_upload(&admitted.origin.identity, result).await?;
        Ok(reply::no_content())
    }
}

/// The host of a `Host` header.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn dto(grant: UploadGrant) -> UploadGrantDto {
    UploadGrantDto {
        correlation_id: grant.correlation_id,
        host_name: grant.host_name,
        container_name: grant.container_name,
        blob_name: grant.blob_name,
        sas_token: grant.sas_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_ports() {
        for (header, host) in [
            ("hub.test", "hub.test"),
            ("hub.test:8443", "hub.test"),
            ("[::1]", "[::1]"),
            ("[::1]:443", "[::1]"),
        ] {
            assert_eq!(without_port(header), host);
        }
    }
}
