//! Which keys of the original's file mean something, which are accepted and do nothing here, and which nobody knows.

use toml::{Table, Value};

/// Keys that are obeyed. `*` stands for one name, `**` for everything below.
const OBEYED: &[&str] = &[
    "hostname",
    "parent_hostname",
    "trust_bundle_cert",
    "manifest_trust_bundle_cert",
    "allow_elevated_docker_permissions",
    "auto_reprovisioning_mode",
    "imported_master_encryption_key",
    "additional_info",
    "iotedge_max_requests.management",
    "iotedge_max_requests.workload",
    "cloud_timeout_sec",
    "cloud_retries",
    "prefer_module_identity_cache",
    "provisioning.source",
    "provisioning.connection_string",
    "provisioning.iothub_hostname",
    "provisioning.device_id",
    "provisioning.authentication.method",
    "provisioning.authentication.device_id_pk.value",
    "provisioning.authentication.device_id_pk.uri",
    "provisioning.authentication.identity_pk",
    "provisioning.authentication.identity_cert",
    "provisioning.authentication.identity_cert.**",
    "provisioning.global_endpoint",
    "provisioning.id_scope",
    "provisioning.payload.uri",
    "provisioning.attestation.method",
    "provisioning.attestation.registration_id",
    "provisioning.attestation.symmetric_key.value",
    "provisioning.attestation.symmetric_key.uri",
    "provisioning.attestation.identity_pk",
    "provisioning.attestation.identity_cert",
    "provisioning.attestation.identity_cert.**",
    "tpm.tcti",
    "tpm.hierarchy_authorization.owner",
    "tpm.hierarchy_authorization.endorsement",
    "cert_issuance.local_ca.cert",
    "cert_issuance.local_ca.pk",
    "agent.config.image",
    "agent.config.auth.serveraddress",
    "agent.config.auth.username",
    "agent.config.auth.password",
    "agent.env.*",
    "connect.workload_uri",
    "listen.workload_uri",
    "listen.management_uri",
    "watchdog.max_retries",
    "edge_ca.cert",
    "edge_ca.pk",
    "edge_ca.method",
    "edge_ca.common_name",
    "edge_ca.subject.CN",
    "edge_ca.expiry_days",
    "edge_ca.auto_generated_edge_ca_expiry_days",
    "edge_ca.auto_renew.rotate_key",
    "edge_ca.auto_renew.threshold",
    "edge_ca.auto_renew.retry",
    "image_garbage_collection.enabled",
    "image_garbage_collection.cleanup_recurrence",
    "image_garbage_collection.image_age_cleanup_threshold",
    "image_garbage_collection.cleanup_time",
    "moby_runtime.uri",
    "moby_runtime.network",
    "moby_runtime.network.name",
    "moby_runtime.network.ipv6",
    "moby_runtime.network.ipam.config.**",
    "moby_runtime.network.ipam.config",
    "holdfast.**",
];

/// Keys of the original that do nothing here, with the reason.
const IDLE: &[(&str, &str)] = &[
    ("agent.name", "the agent is part of this daemon"),
    ("agent.type", "the agent is part of this daemon"),
    (
        "agent.imagePullPolicy",
        "the agent is part of this daemon, its image is never pulled",
    ),
    (
        "agent.config.createOptions.**",
        "the agent is part of this daemon, it has no container",
    ),
    (
        "agent.config.createOptions",
        "the agent is part of this daemon, it has no container",
    ),
    (
        "connect.management_uri",
        "modules find no management socket unless they mount it",
    ),
    ("aziot_max_requests.**", "there are no separate identity services"),
    ("aziot_keys.**", "keys are kept in files"),
    (
        "tpm.auth_key_index",
        "the key is kept in a file that only this TPM can use, and takes no room in it",
    ),
    (
        "cert_issuance.est.**",
        "certificates are not fetched over EST yet",
    ),
    ("preloaded_keys.**", "keys are kept in files of this daemon"),
    ("preloaded_certs.**", "certificates are named where they are used"),
    (
        "provisioning.dynamic_reprovisioning",
        "auto_reprovisioning_mode has replaced it",
    ),
    (
        "moby_runtime.content_trust.**",
        "images are not checked for signatures",
    ),
    ("edge_ca.subject.**", "only CN of the subject is used"),
];

/// Sentences about keys that do nothing or that nobody knows, in the order of their names.
pub(super) fn judge(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    collect(table, "", &mut names);
    names.sort();
    names.iter().filter_map(|name| words(name)).collect()
}

fn words(name: &str) -> Option<String> {
    if OBEYED.iter().any(|pattern| fits(pattern, name)) {
        return None;
    }
    match IDLE.iter().find(|(pattern, _)| fits(pattern, name)) {
        Some((_, reason)) => Some(format!("{name} does nothing here: {reason}")),
        None => Some(format!("{name} is not a known key, so it does nothing")),
    }
}

/// Names of all values in a table, dotted.
fn collect(table: &Table, above: &str, names: &mut Vec<String>) {
    for (key, value) in table {
        let name = if above.is_empty() {
            key.clone()
        } else {
            format!("{above}.{key}")
        };
        match value {
            Value::Table(inner) if !inner.is_empty() => collect(inner, &name, names),
            Value::Array(items) if items.iter().any(Value::is_table) => {
                for item in items.iter().filter_map(Value::as_table) {
                    collect(item, &name, names);
                }
            }
            _ => names.push(name),
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), names.next()) {
            (Some("**"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(one), Some(other)) if one == other => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        assert!(fits("agent.env.*", "agent.env.X"));
        assert!(!fits("agent.env.*", "agent.env"));
        assert!(fits("aziot_keys.**", "aziot_keys.pkcs11_base_slot"));
        assert!(!fits("aziot_keys.**", "aziot_keys"));
        assert!(!fits("hostname", "hostname.x"));
    }
}
