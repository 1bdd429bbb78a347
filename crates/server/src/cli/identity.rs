//! What devices and modules have in common: show, update, delete, keys.

use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::client::{Client, identity_path};
use super::credentials::KeyName;
use super::output::{Format, progress};

/// Most identities in one bulk request (rest.md 5.4).
pub(crate) const BULK_MAX: usize = 100;

/// Names a device or a module.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) device: &'a str,
    pub(crate) module: Option<&'a str>,
}

impl Name<'_> {
    pub(crate) fn path(self) -> String {
        identity_path("/devices", self.device, self.module)
    }

    pub(crate) fn twin_path(self) -> String {
        identity_path("/twins", self.device, self.module)
    }
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.module {
            None => write!(f, "device {}", self.device),
            Some(module) => write!(f, "module {}/{module}", self.device),
        }
    }
}

/// Reads the record, changes it and writes it back under its entity tag, so that no change of others is lost.
pub(crate) fn update(
    client: &Client,
    name: Name<'_>,
    etag: Option<&str>,
    change: impl FnOnce(&mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let mut record = client.get(name.path()).send()?;
    let current = record["etag"].as_str().unwrap_or("*").to_owned();
    change(&mut record)?;
    let etag = etag.unwrap_or(&current);
    client.put(name.path()).if_match(Some(etag)).json(record).send()
}

/// Deletes and says so.
pub(crate) fn delete(
    client: &Client,
    names: &[Name<'_>],
    etag: Option<&str>,
    output: Format,
) -> anyhow::Result<()> {
    for name in names {
        client.delete(name.path()).if_match(etag).send()?;
        output.outcome(
            &format!("{name} deleted"),
            &json!({ "deviceId": name.device, "moduleId": name.module, "deleted": true }),
        )?;
    }
    Ok(())
}

/// Shows, makes anew or swaps keys.
pub(crate) fn keys(
    client: &Client,
    name: Name<'_>,
    regenerate: Option<KeyName>,
    swap: bool,
    output: Format,
) -> anyhow::Result<()> {
    if let Some(key) = regenerate {
        let body = json!({
            "policyKey": key.as_policy_key(),
            "devices": [{ "id": name.device, "moduleId": name.module }],
        });
        let answer = client.post("/devices/keys/regenerate").json(body).send()?;
        if let Some(error) = answer["errors"].as_array().and_then(|errors| errors.first()) {
            return Err(bulk_failure(error).into());
        }
    }
    let record = if swap {
        update(client, name, None, |record| {
            let keys = &mut record["authentication"]["symmetricKey"];
            let primary = keys["primaryKey"].take();
            keys["primaryKey"] = keys["secondaryKey"].take();
            keys["secondaryKey"] = primary;
            Ok(())
        })?
    } else {
        client.get(name.path()).send()?
    };
    let keys = &record["authentication"]["symmetricKey"];
    if keys["primaryKey"].is_null() {
        return Err(
            Failure::new(Kind::Failed, format!("{name} has no symmetric keys"))
                .hint("it authenticates with certificates; `update --auth sas` gives it keys")
                .into(),
        );
    }
    output.object(keys)
}

/// Sends entries to the bulk registry in requests of 100, with a progress bar; returns the errors.
pub(crate) fn bulk(client: &Client, entries: &[Value], what: &'static str) -> anyhow::Result<Vec<Value>> {
    let bar = progress(entries.len() as u64, what);
    let mut errors = Vec::new();
    for part in entries.chunks(BULK_MAX) {
        let answer = client.post("/devices").json(Value::Array(part.to_vec())).send()?;
        if let Some(list) = answer["errors"].as_array() {
            errors.extend(list.iter().cloned());
        }
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(errors)
}

/// A failure from one entry of a bulk answer's `errors`.
pub(crate) fn bulk_failure(error: &Value) -> Failure {
    let code = error["errorCode"]
        .as_str()
        .map_or_else(|| error["errorCode"].to_string(), str::to_owned);
    let id = error["deviceId"]
        .as_str()
        .or(error["id"].as_str())
        .unwrap_or_default();
    let status = error["errorStatus"].as_str().unwrap_or_default();
    let kind = match code.as_str() {
        "DeviceNotFound" | "ModuleNotFound" | "404001" | "404010" => Kind::NotFound,
        "DeviceAlreadyExists"
        | "ModuleAlreadyExistsOnDevice"
        | "PreconditionFailed"
        | "409001"
        | "409301"
        | "412001" => Kind::Conflict,
        _ => Kind::Failed,
    };
    Failure::new(kind, format!("{id}: {status} ({code})"))
}
