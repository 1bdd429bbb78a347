//! Registrations over HTTPS: PUT, then GET of the operation, on a connection that stays open.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::group::{Group, Proof};
use super::mqtt::{Assigned, read_answer};
use crate::bench::http::HttpsConnection;
use crate::cli::client::segment;
use crate::cli::profile::Login;

/// Longest wait for an operation.
const PATIENCE: Duration = Duration::from_secs(60);

/// The version of the SDKs for Node.js.
const API_VERSION: &str = "2021-06-01";

/// Connects: anonymously for devices with keys, as the device for one with a certificate.
pub(crate) fn connect(login: &Login, proof: &Proof) -> anyhow::Result<HttpsConnection> {
    let trust = login
        .ca
        .as_deref()
        .map_or(crate::bench::fleet::Trust::System, crate::bench::fleet::Trust::Ca);
    match proof.tls(trust)? {
        None => HttpsConnection::open(login),
        Some(config) => HttpsConnection::open_with(login, config),
    }
}

/// Registers one device.
///
/// # Errors
/// When the service refuses it.
pub(crate) fn register(
    connection: &mut HttpsConnection,
    group: &Group,
    registration_id: &str,
    proof: &Proof,
) -> anyhow::Result<Assigned> {
    let token = group.token(registration_id, proof);
    let token = token.as_deref().unwrap_or_default();
    let resource = group.resource(&segment(registration_id));
    let path = format!("/{resource}/register?api-version={API_VERSION}");
    let body = json!({ "registrationId": registration_id }).to_string();
    let (status, answer) = connection.request("PUT", &path, token, body.as_bytes())?;
    expect(registration_id, status, 202, answer)?;
    let answer: Value = serde_json::from_slice(answer).context("the answer is not JSON")?;
    let operation = answer.get("operationId").and_then(Value::as_str);
    let operation = operation.context("the answer names no operation")?;
    let path = format!(
        "/{resource}/operations/{}?api-version={API_VERSION}",
        segment(operation)
    );
    let begun = Instant::now();
    loop {
        let (status, answer) = connection.request("GET", &path, token, b"")?;
        match status {
            202 if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(100)),
            _ => {
                expect(registration_id, status, 200, answer)?;
                return read_answer(registration_id, answer)?.context("status 200, but not assigned");
            }
        }
    }
}

fn expect(registration_id: &str, status: u16, wanted: u16, answer: &[u8]) -> anyhow::Result<()> {
    if status == wanted {
        return Ok(());
    }
    let text = String::from_utf8_lossy(answer);
    Err(Failure::new(
        Kind::Failed,
        format!("the service refused {registration_id} (HTTP {status}): {text}"),
    )
    .into())
}
