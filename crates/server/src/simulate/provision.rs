//! `holdfast simulate --provision`: devices that know only the id scope and what they prove themselves with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use holdfast_program::failure::{Failure, Kind};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::bench::devices::{Device, Place};
use crate::bench::fleet::{Endpoint, Fleet, TlsClient, Trust, client_config};
use crate::bench::provision::group::{Attestation, Group, Proof, Service};
use crate::bench::provision::mqtt::{Assigned, Job, Registering, register_all};
use crate::bench::target::{host_and_port, resolve};
use crate::cli::output;
use crate::cli::profile::{Login, Wanted};

/// Registrations under way at once.
const AT_ONCE: usize = 64;

/// Where devices connect to on a hub that is not the one the command line names.
const MQTT_PORT: u16 = 8_883;

/// How devices come to their hub.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Provisioning")]
pub(super) struct ProvisionOptions {
    /// Bring the devices up through device provisioning, with an enrollment group of their own
    #[arg(long)]
    pub(super) provision: bool,
    /// How they prove themselves
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Attestation::SymmetricKey, requires = "provision")]
    attestation: Attestation,
    /// Group that is there already, with keys, instead of one of their own
    #[arg(
        long,
        value_name = "ID",
        requires = "provision",
        conflicts_with = "attestation"
    )]
    group: Option<String>,
}

/// Devices on their hubs, and what to delete at the end.
pub(super) struct Provisioned {
    pub(super) devices: Vec<Device>,
    seconds: f64,
    service: Service,
    /// The group, if it was made for the run.
    own_group: Option<Group>,
    /// Devices by hub.
    hubs: BTreeMap<String, usize>,
}

impl ProvisionOptions {
    /// Registers `count` devices called `{prefix}{number}` over MQTT.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses a device.
    pub(super) fn bring_up(
        &self,
        wanted: &Wanted,
        hub: &Login,
        prefix: &str,
        count: usize,
        plain: bool,
        stop: &AtomicBool,
    ) -> anyhow::Result<Provisioned> {
        let (service, login) = Service::find(wanted)?;
        let (group, is_own) = match &self.group {
            Some(id) => (Group::existing(&service, id)?, false),
            None => (
                Group::create(&service, &group_name(prefix), self.attestation)?,
                true,
            ),
        };
        if self.attestation == Attestation::X509 && plain {
            return Err(Failure::usage("devices with certificates need TLS: leave --plain out").into());
        }
        let bar = output::progress(count as u64, "provisioning devices");
        let begun = Instant::now();
        let registered = register(&group, &login, prefix, count, stop, &|| bar.inc(1));
        bar.finish_and_clear();
        let mut registered = registered?;
        let seconds = begun.elapsed().as_secs_f64();
        registered.sort_by_key(|(job, _)| job.number);
        let mut hubs = BTreeMap::new();
        let mut devices = Vec::with_capacity(count);
        for (job, assigned) in registered {
            *hubs.entry(assigned.hub.clone()).or_default() += 1;
            devices.push(device(job.proof, assigned, hub)?);
        }
        Ok(Provisioned {
            devices,
            seconds,
            service,
            own_group: is_own.then_some(group),
            hubs,
        })
    }
}

impl Provisioned {
    /// Forgets the registrations. Devices on other hubs than the one of `--login` stay there.
    pub(super) fn clean_up(&self) -> anyhow::Result<()> {
        match &self.own_group {
            Some(group) => group.delete(&self.service),
            None => Ok(()),
        }
    }

    /// For people: `1200 on hub-a, 800 on hub-b, 900 a second`.
    pub(super) fn line(&self, devices: usize) -> String {
        let each = self
            .hubs
            .iter()
            .map(|(hub, devices)| format!("{devices} on {hub}"));
        let hubs = each.collect::<Vec<_>>().join(", ");
        format!("{hubs}, {:.0} a second", rate(devices, self.seconds))
    }

    /// For scripts.
    pub(super) fn summary(&self, devices: usize) -> Value {
        json!({
            "seconds": (self.seconds * 1e3).round() / 1e3,
            "perSecond": rate(devices, self.seconds).round(),
            "hubs": self.hubs,
        })
    }
}

/// A group is named like its devices.
fn group_name(prefix: &str) -> String {
    format!("{prefix}group")
}

fn register(
    group: &Group,
    login: &Login,
    prefix: &str,
    count: usize,
    stop: &AtomicBool,
    progress: &dyn Fn(),
) -> anyhow::Result<Vec<(Job, Assigned)>> {
    let trust = trust_of(login);
    let endpoint = endpoint(&login.host, login.mqtt_port, trust)?;
    let clock = Instant::now();
    let mut fleet = Fleet::new(&endpoint, AT_ONCE.min(count), 1, 0, clock)?;
    let mut registering = Registering::new(group, &endpoint, trust, AT_ONCE.min(count), clock);
    let width = count.saturating_sub(1).to_string().len();
    let (mut number, mut done) = (0, Vec::with_capacity(count));
    let next = || {
        if number == count || stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let registration_id = format!("{prefix}{number:0width$}");
        number += 1;
        Ok(Some(Job {
            number: number - 1,
            proof: group.proof(&registration_id)?,
            registration_id,
        }))
    };
    register_all(&mut registering, &mut fleet, next, |one| {
        progress();
        done.push((one.job, one.assigned));
    })?;
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new(
            Kind::Failed,
            format!("interrupted; {} devices are registered", done.len()),
        )
        .into());
    }
    Ok(done)
}

fn trust_of(login: &Login) -> Trust<'_> {
    login.ca.as_deref().map_or(Trust::System, Trust::Ca)
}

fn endpoint(host: &str, port: u16, trust: Trust<'_>) -> anyhow::Result<Endpoint> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::usage(format!("{host:?} is no host name")))?;
    Ok(Endpoint {
        address: resolve(&host_and_port(host, port))?,
        tls: Some(TlsClient {
            config: client_config(trust, true)?,
            name,
        }),
    })
}

/// The device as its hub knows it. It needs a place of its own when that is another hub, or when it has a certificate.
fn device(proof: Proof, assigned: Assigned, hub: &Login) -> anyhow::Result<Device> {
    let is_elsewhere = !assigned.hub.eq_ignore_ascii_case(&hub.host);
    let port = if is_elsewhere { MQTT_PORT } else { hub.mqtt_port };
    let mut place = None;
    if is_elsewhere || matches!(proof, Proof::Certificate(_)) {
        let mut endpoint = endpoint(&assigned.hub, port, trust_of(hub))
            .with_context(|| format!("{} was assigned to {}", assigned.device_id, assigned.hub))?;
        if let (Some(config), Some(tls)) = (proof.tls(trust_of(hub))?, &mut endpoint.tls) {
            tls.config = config;
        }
        place = Some(Arc::new(Place {
            host: assigned.hub,
            endpoint,
        }));
    }
    Ok(Device {
        id: assigned.device_id,
        key: match proof {
            Proof::Key(key) => Some(key),
            Proof::Certificate(_) => None,
        },
        place,
    })
}

/// Registrations per second.
fn rate(devices: usize, seconds: f64) -> f64 {
    devices as f64 / seconds.max(1e-3)
}
