//! What of the original's identity service others still call: its `iotedge` and `aziotctl` ask who the device is, and ask
//! for reprovisioning (edge.md section 14).

use std::sync::Arc;

use holdfast_ports::BoxFuture;
use http::Method;
use serde_json::{Value, json};

use super::management::Control;
use super::route::{check_method, check_version_of, not_found};
use super::{Answer, Api, Call};
use crate::certificates::Certificates;

/// Versions of the identity service.
const VERSIONS: [&str; 4] = ["2020-09-01", "2021-12-01", "2022-01-01", "2022-08-01"];

/// The API.
pub struct IdentityApi {
    /// Host name of the hub.
    pub hub: String,
    /// Host that the device talks to: the hub, or its parent.
    pub gateway: String,
    /// This device.
    pub device_id: String,
    /// `sas` or `x509`.
    pub authentication: &'static str,
    /// `manual` or `dps`.
    pub source: &'static str,
    /// For the trust bundle.
    pub certificates: Arc<Certificates>,
    /// The daemon.
    pub control: Arc<dyn Control>,
}

impl Api for IdentityApi {
    fn answer<'a>(&'a self, call: Call) -> BoxFuture<'a, Answer> {
        Box::pin(async move { self.route(&call).unwrap_or_else(|answer| answer) })
    }
}

impl IdentityApi {
    fn route(&self, call: &Call) -> Result<Answer, Answer> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        check_version_of(call, &VERSIONS, VERSIONS[0])?;
        match path.as_slice() {
            ["identities", "identity"] => {
                check_method(call, &[Method::GET])?;
                Ok(Answer::json(200, &self.device()))
            }
            ["identities", "device"] => {
                check_method(call, &[Method::POST])?;
                Ok(Answer::json(200, &self.device()))
            }
            ["identities", "provisioning"] => {
                check_method(call, &[Method::GET])?;
                Ok(Answer::json(
                    200,
                    &json!({
                        "source": self.source,
                        "auth": self.authentication,
                        "iothub_hostname": self.hub,
                        "device_id": self.device_id,
                    }),
                ))
            }
            ["identities", "device", "reprovision"] => {
                check_method(call, &[Method::POST])?;
                self.control.reprovision();
                Ok(Answer::empty(204))
            }
            ["trust-bundle"] => {
                check_method(call, &[Method::GET])?;
                let bundle = self.certificates.trust_bundle();
                let bundle = bundle.map_err(|error| Answer::error(500, &error.to_string()))?;
                Ok(Answer::json(200, &json!({ "certificate": bundle })))
            }
            _ => Err(not_found()),
        }
    }

    fn device(&self) -> Value {
        json!({
            "type": "aziot",
            "spec": {
                "hubName": self.hub,
                "gatewayHost": self.gateway,
                "deviceId": self.device_id,
                "auth": { "type": self.authentication },
            },
        })
    }
}
