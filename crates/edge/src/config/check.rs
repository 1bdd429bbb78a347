//! Rules across values and ranges, alike for both kinds of files.

use std::net::IpAddr;
use std::time::Duration;

use holdfast_program::failure::Failure;

use super::{EdgeCa, Provisioning, Settings, bad};

/// Longest path of a unix socket, without the zero at its end.
const SOCKET_PATH_MAX: usize = 107;
/// Most repeats of a request: with their pauses they take minutes.
const RETRIES_MAX: u32 = 10;
/// Above that the keep-alive of the protocols does it all.
const PROBE_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Checks what both kinds of files have in common.
pub(super) fn check(settings: &Settings, name: &str) -> Result<(), Failure> {
    check_host(name, "hostname", &settings.hostname)?;
    if let Some(parent) = &settings.parent_hostname {
        check_host(name, "parent_hostname", parent)?;
        if parent.eq_ignore_ascii_case(&settings.hostname) {
            return Err(bad(
                name,
                "parent_hostname",
                parent,
                "a device cannot be its own parent",
                "name the host of the edge device above this one, or remove the key",
            ));
        }
    }
    for alias in &settings.listen.names {
        check_host(name, "hub.names", alias)?;
    }
    check_provisioning(settings, name)?;
    check_authority(settings, name)?;
    check_paths(settings, name)?;
    check_ports(settings, name)?;
    if settings.engine.network.is_empty() || settings.engine.network.contains(char::is_whitespace) {
        return Err(bad(
            name,
            "engine.network",
            &settings.engine.network,
            "is not a name of a network",
            "the default is azure-iot-edge",
        ));
    }
    if settings.upstream.timeout < Duration::from_secs(1) {
        return Err(bad(
            name,
            "upstream.timeout",
            &settings.upstream.timeout.as_millis(),
            "no request could ever be answered",
            "the default is 10s",
        ));
    }
    let probe_after = settings.upstream.probe_after;
    if !(Duration::from_secs(1)..=PROBE_AFTER_MAX).contains(&probe_after) {
        return Err(bad(
            name,
            "upstream.probe_after",
            &probe_after.as_millis(),
            "milliseconds are not between a second and an hour",
            "the default is 10s",
        ));
    }
    if settings.upstream.retries > RETRIES_MAX {
        return Err(bad(
            name,
            "upstream.retries (cloud_retries)",
            &settings.upstream.retries,
            "repeats of one request are too many",
            "choose at most 10; the default is 1, and what failed is tried again later anyhow",
        ));
    }
    if settings.images.enabled && settings.images.every < Duration::from_secs(3600) {
        return Err(bad(
            name,
            "images.every",
            &settings.images.every.as_secs(),
            "seconds between two removals of images are too few",
            "choose an hour or more; the default is 1d",
        ));
    }
    if settings.rollback.enabled && settings.rollback.after < Duration::from_secs(10) {
        return Err(bad(
            name,
            "agent.rollback_after",
            &settings.rollback.after.as_secs(),
            "seconds are too few for modules to become healthy",
            "choose 10s or more, or agent.rollback = false",
        ));
    }
    Ok(())
}

fn check_provisioning(settings: &Settings, name: &str) -> Result<(), Failure> {
    match &settings.provisioning {
        Provisioning::Manual { hub, device_id, .. } => {
            check_host(name, "provisioning: the hub's host name", hub)?;
            holdfast_model::Identity::device(device_id)
                .map(drop)
                .map_err(|_| {
                    bad(
                        name,
                        "provisioning: the device id",
                        device_id,
                        "is not a device id",
                        "1 to 128 letters, digits and - . _ : @ ! * ' ( ) , = % # $ ? + ;",
                    )
                })
        }
        Provisioning::Dps {
            endpoint, id_scope, ..
        } => {
            if !endpoint.starts_with("https://") {
                return Err(bad(
                    name,
                    "provisioning.global_endpoint",
                    endpoint,
                    "is not an https:// address",
                    "for example https://hub.example.org; a hub of ours is its own provisioning service",
                ));
            }
            if id_scope.is_empty() {
                return Err(bad(
                    name,
                    "provisioning.id_scope",
                    id_scope,
                    "is empty",
                    "`holdfast dps show` prints it",
                ));
            }
            Ok(())
        }
    }
}

fn check_authority(settings: &Settings, name: &str) -> Result<(), Failure> {
    let (EdgeCa::SelfSigned {
        life,
        renew_at_percent,
        retry_percent,
        common_name,
        ..
    }
    | EdgeCa::LocalCa {
        life,
        renew_at_percent,
        retry_percent,
        common_name,
        ..
    }) = &settings.edge_ca
    else {
        return Ok(());
    };
    if *life < Duration::from_secs(86_400) {
        return Err(bad(
            name,
            "edge_ca: days of life",
            &(life.as_secs_f64() / 86_400.0),
            "is less than a day",
            "the default is 90 days",
        ));
    }
    if !(1..=99).contains(renew_at_percent) || !(1..=50).contains(retry_percent) {
        return Err(bad(
            name,
            "edge_ca.auto_renew",
            &format!("{renew_at_percent}%, {retry_percent}%"),
            "renewal must lie within the certificate's life",
            "the defaults are threshold = \"80%\" and retry = \"4%\"",
        ));
    }
    if common_name
        .as_ref()
        .is_some_and(|common| common.eq_ignore_ascii_case(&settings.hostname))
    {
        return Err(bad(
            name,
            "edge_ca.common_name",
            &settings.hostname,
            "equals the host name, so that clients could not tell the authority from the server",
            "choose another name",
        ));
    }
    Ok(())
}

fn check_paths(settings: &Settings, name: &str) -> Result<(), Failure> {
    for (key, path) in [
        ("api.workload", &settings.sockets.workload),
        ("api.management", &settings.sockets.management),
        ("engine.socket", &settings.engine.socket),
    ] {
        if path.as_os_str().len() > SOCKET_PATH_MAX || !path.is_absolute() {
            return Err(bad(
                name,
                key,
                &path.display(),
                "is not a path of a unix socket (absolute, at most 107 bytes)",
                "for example unix:///run/holdfast-edge/mgmt.sock",
            ));
        }
    }
    if !settings.home.is_absolute() {
        return Err(bad(
            name,
            "device.home",
            &settings.home.display(),
            "is not an absolute path",
            "containers mount folders below it; the default is /var/lib/holdfast-edge",
        ));
    }
    Ok(())
}

fn check_ports(settings: &Settings, name: &str) -> Result<(), Failure> {
    let ports = [
        ("MQTT", settings.listen.mqtt),
        ("AMQP", settings.listen.amqp),
        ("HTTPS", settings.listen.https),
        ("metrics", settings.listen.metrics.map(|address| address.port())),
    ];
    for (index, (one, port)) in ports.iter().enumerate() {
        for (other, same) in &ports[index + 1..] {
            if port.is_some_and(|port| port != 0) && port == same {
                return Err(bad(
                    name,
                    "hub",
                    &port.unwrap_or_default(),
                    &format!("is the port of {one} and of {other}"),
                    "give each its own port; 8883, 5671, 443 and 9600 are what clients expect",
                ));
            }
        }
    }
    Ok(())
}

/// A name that can stand in a connection string, a certificate and a token.
fn check_host(name: &str, key: &str, host: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // A hub on another port than the usual ones is not reached by its name alone.
    let fits = host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(label));
    if fits {
        return Ok(());
    }
    Err(bad(
        name,
        key,
        &host,
        "is not a host name",
        "give a name such as edge1.example.org, or an IP address, without scheme and port",
    ))
}
