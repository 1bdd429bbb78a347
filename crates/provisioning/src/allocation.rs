//! Choosing a hub (languages.md 6.2).

use bytes::Bytes;
use holdfast_model::provisioning::{
    AllocationPolicy, Attestation, Enrollment, InitialTwin, LinkedHub, Registration,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::provisioning::Registrant;
use ring::digest;
use serde_json::{Map, Value, json};

use crate::Provisioning;
use crate::register::Entry;

/// A hub that was chosen.
pub(crate) struct Choice {
    /// As stored.
    pub(crate) host: String,
    /// What a webhook wants the twin to be.
    pub(crate) twin: Option<InitialTwin>,
    /// For the device, from a webhook.
    pub(crate) payload: Option<Value>,
}

impl Choice {
    fn of(host: &str) -> Self {
        Choice {
            host: host.to_owned(),
            twin: None,
            payload: None,
        }
    }
}

impl Provisioning {
    /// Chooses the hub of a device.
    ///
    /// # Errors
    /// `CustomAllocationIotHubNotSpecified` without a hub to choose from; `CustomAllocationFailed`.
    pub(crate) async fn choose(
        &self,
        entry: &Entry,
        registrant: &Registrant,
        previous: Option<&Registration>,
        payload: Option<&Value>,
    ) -> Result<Choice, Error> {
        let enrollment = &entry.enrollment;
        let hubs = self.linked_hubs().await?;
        let candidates = self.candidates(enrollment, hubs);
        let key = registrant.registration_id.key();
        let none = || no_hub("no linked hub takes devices of this enrollment");
        match enrollment.allocation.unwrap_or_default() {
            AllocationPolicy::Hashed => {
                let chosen = hashed(&key, candidates.iter());
                chosen.map(|hub| Choice::of(&hub.host)).ok_or_else(none)
            }
            AllocationPolicy::GeoLatency => {
                let nearest = self.nearest(&candidates);
                // A device stays where it is for as long as no hub is nearer.
                let present = previous.and_then(|previous| previous.hub.as_ref());
                let stays = nearest.iter().find(|hub| Some(&hub.host) == present);
                let chosen = stays.copied().or_else(|| hashed(&key, nearest.iter().copied()));
                chosen.map(|hub| Choice::of(&hub.host)).ok_or_else(none)
            }
            AllocationPolicy::Static => match &candidates[..] {
                [hub] => Ok(Choice::of(&hub.host)),
                _ => Err(no_hub("the one hub of the static allocation is not linked")),
            },
            AllocationPolicy::Custom => {
                self.ask_webhook(entry, registrant, previous, payload, &candidates)
                    .await
            }
        }
    }

    fn candidates(&self, enrollment: &Enrollment, hubs: Vec<LinkedHub>) -> Vec<LinkedHub> {
        let named: Vec<String> = match &enrollment.hub_host_name {
            Some(one) if enrollment.hubs.is_empty() => vec![self.stored_host(one)],
            _ => enrollment
                .hubs
                .iter()
                .map(|name| self.stored_host(name))
                .collect(),
        };
        hubs.into_iter()
            .filter(|hub| match named.is_empty() {
                true => hub.apply_allocation,
                false => named.contains(&hub.host),
            })
            .collect()
    }

    async fn ask_webhook(
        &self,
        entry: &Entry,
        registrant: &Registrant,
        previous: Option<&Registration>,
        payload: Option<&Value>,
        candidates: &[LinkedHub],
    ) -> Result<Choice, Error> {
        let custom = entry
            .enrollment
            .custom
            .as_ref()
            .ok_or_else(|| failed("the enrollment has no customAllocationDefinition"))?;
        let body = self.webhook_request(entry, registrant, previous, payload, candidates);
        let body = Bytes::from(body.to_string());
        let timeout = self.config.webhook_timeout;
        let call = self.drivers.webhook.call(&custom.webhook_url, body, timeout);
        // The caller keeps the time too: a webhook must not hold a registration for longer.
        let answer = tokio::time::timeout(timeout + timeout / 2, call).await;
        let outcome = match answer {
            Ok(Ok((200..=299, body))) => self.read_answer(&body, candidates),
            Ok(Ok((status, _))) => Err(failed(&format!("the webhook answered with status {status}"))),
            Ok(Err(reason)) => Err(failed(&format!("the webhook could not be asked: {reason}"))),
            Err(_) => Err(failed("the webhook did not answer in time")),
        };
        if outcome.is_err() {
            self.metrics.webhooks_failed.inc();
        }
        outcome
    }

    fn read_answer(&self, body: &[u8], candidates: &[LinkedHub]) -> Result<Choice, Error> {
        let answer: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| failed("the webhook's answer is not a JSON object"))?;
        let host = answer
            .get("iotHubHostName")
            .and_then(Value::as_str)
            .filter(|host| !host.is_empty())
            .ok_or_else(|| no_hub("the webhook named no iotHubHostName"))?;
        let stored = self.stored_host(host);
        if !candidates.iter().any(|hub| hub.host == stored) {
            return Err(no_hub("the webhook named a hub that is not linked"));
        }
        let object = |value: Option<&Value>| match value {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(object)) => Ok(object.clone()),
            Some(_) => Err(failed("the webhook's initialTwin is malformed")),
        };
        let twin = match answer.get("initialTwin").filter(|twin| !twin.is_null()) {
            None => None,
            Some(twin) => Some(InitialTwin {
                tags: object(twin.get("tags"))?,
                desired: object(twin.pointer("/properties/desired"))?,
            }),
        };
        let payload = answer.get("payload").filter(|payload| !payload.is_null());
        Ok(Choice {
            host: stored,
            twin,
            payload: payload.cloned(),
        })
    }

    /// The documented request; no key and no certificate is in it.
    fn webhook_request(
        &self,
        entry: &Entry,
        registrant: &Registrant,
        previous: Option<&Registration>,
        payload: Option<&Value>,
        candidates: &[LinkedHub],
    ) -> Value {
        let enrollment = &entry.enrollment;
        let policy = enrollment.reprovision();
        let kind = match &enrollment.attestation {
            Attestation::SymmetricKey { .. } => "symmetricKey",
            Attestation::Tpm { .. } => "tpm",
            _ => "x509",
        };
        let mut described = json!({
            "attestation": { "type": kind },
            "capabilities": { "iotEdge": enrollment.iot_edge },
            "provisioningStatus": if enrollment.enabled { "enabled" } else { "disabled" },
            "reprovisionPolicy": {
                "updateHubAssignment": policy.update_hub_assignment,
                "migrateDeviceData": policy.migrate_device_data,
            },
            "createdDateTimeUtc": enrollment.created_at.to_string(),
            "lastUpdatedDateTimeUtc": enrollment.updated_at.to_string(),
            "allocationPolicy": "custom",
            "iotHubs": enrollment.hubs,
            "customAllocationDefinition": enrollment.custom.as_ref().map(|custom| json!({
                "webhookUrl": custom.webhook_url, "apiVersion": custom.api_version })),
        });
        let mut context = json!({ "registrationId": registrant.registration_id.as_str() });
        context[kind] = json!({});
        if let Some(payload) = payload {
            context["payload"] = payload.clone();
        }
        if let Some((hub, device)) =
            previous.and_then(|one| Some((one.hub.as_ref()?, one.device_id.as_ref()?)))
        {
            context["currentIotHubHostName"] = self.host_name(hub).into();
            context["currentDeviceId"] = device.as_str().into();
        }
        let hubs: Vec<&str> = candidates.iter().map(|hub| self.host_name(&hub.host)).collect();
        let member = match &entry.group {
            Some(group) => {
                described["enrollmentGroupId"] = group.as_str().into();
                "enrollmentGroup"
            }
            None => {
                described["registrationId"] = registrant.registration_id.as_str().into();
                "individualEnrollment"
            }
        };
        json!({ member: described, "deviceRuntimeContext": context, "linkedHubs": hubs })
    }
}

/// Weighted rendezvous hashing: stable in the id, and a hub that comes or goes moves its own share only.
fn hashed<'a>(key: &str, hubs: impl Iterator<Item = &'a LinkedHub>) -> Option<&'a LinkedHub> {
    hubs.map(|hub| (score(key, hub), hub))
        .max_by(|(a, left), (b, right)| a.total_cmp(b).then_with(|| left.host.cmp(&right.host)))
        .map(|(_, hub)| hub)
}

fn score(key: &str, hub: &LinkedHub) -> f64 {
    let digest = digest::digest(&digest::SHA256, format!("{key}\0{}", hub.host).as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    // 53 bits, so that the fraction is exact; never 0, whose logarithm is not finite.
    let fraction = ((u64::from_be_bytes(first) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(hub.weight) / fraction.ln()
}

fn failed(why: &str) -> Error {
    Error::new(
        ErrorCode::CustomAllocationFailed,
        format!("Custom allocation failed: {why}"),
    )
}

pub(crate) fn no_hub(why: &str) -> Error {
    Error::new(ErrorCode::CustomAllocationIotHubNotSpecified, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_weights_and_a_new_hub_takes_only_its_own() {
        let hub = |host: &str, weight| LinkedHub {
            host: host.to_owned(),
            weight,
            ..LinkedHub::own()
        };
        let hubs = [hub("a", 1), hub("b", 3)];
        let grown = [hub("a", 1), hub("b", 3), hub("c", 1)];
        let (mut b, mut moved) = (0, 0);
        for n in 0..4_000 {
            let key = format!("device-{n}");
            let before = hashed(&key, hubs.iter()).map(|hub| hub.host.clone());
            let after = hashed(&key, grown.iter()).map(|hub| hub.host.clone());
            b += i32::from(before.as_deref() == Some("b"));
            if before != after {
                assert_eq!(after.as_deref(), Some("c"));
                moved += 1;
            }
        }
        assert!((2_800..3_200).contains(&b), "{b}");
        assert!((650..950).contains(&moved), "{moved}");
    }
}
