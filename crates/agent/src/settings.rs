//! Settings of the agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Map;

use crate::body::Surroundings;
use crate::gc::ImageCollection;
use crate::manifest::Registry;
use crate::reported::{AgentVersion, Platform};
use crate::restart::RestartRules;
use crate::runtime::NetworkSpec;
use crate::state::{Plain, Seal};

/// Taking back deployments that do not become healthy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rollback {
    /// Within this time all modules have to run and be well. Time in which commands are being carried out (images are pulled,
    /// containers end) does not count. 5 minutes.
    pub healthy_within: Duration,
    /// They are well when they have been for so long. 20 s.
    pub stable_for: Duration,
    /// After so many starts of the daemon without becoming healthy a deployment is taken back, too. 5.
    pub starts_max: u32,
}

impl Default for Rollback {
    fn default() -> Self {
        Rollback {
            healthy_within: Duration::from_secs(300),
            stable_for: Duration::from_secs(20),
            starts_max: 5,
        }
    }
}

/// Settings; [`Settings::new`] has the defaults.
#[derive(Clone)]
pub struct Settings {
    /// Where modules run. `gateway_address` is filled in by the agent when it knows the network.
    pub surroundings: Surroundings,
    /// The module network; its name is also in `surroundings`.
    pub network: NetworkSpec,
    /// Folder of the agent's state; made when missing, mode 0700.
    pub state_folder: PathBuf,
    /// Encrypts deployments on disk. Default: plain, mode 0600.
    pub seal: Arc<dyn Seal>,
    /// Of the agent, reported.
    pub version: AgentVersion,
    /// Of the machine, reported.
    pub platform: Platform,
    /// The agent's own environment (`[agent.env]`): settings under the names of edge.md 16 and
    /// `DockerRegistryAuth__0__serverAddress` and so on. `systemModules.edgeAgent.env` has precedence.
    pub env: BTreeMap<String, String>,
    /// `None`: deployments are never taken back.
    pub rollback: Option<Rollback>,
    /// `None`: images are never removed.
    pub image_collection: Option<ImageCollection>,
    /// Pulls side by side. 3.
    pub pulls_max: usize,
    /// Time for a module to end before it is killed. 10 s.
    pub stop_grace: Duration,
    /// A module is started at the latest so long after it could have been, when modules of a lower `startupOrder` are still
    /// being pulled. 30 s.
    pub order_wait: Duration,
    /// Containers are looked at at least so often, whatever the engine tells. 60 s.
    pub tick: Duration,
    /// Time between reports at least. 1 s.
    pub report_interval: Duration,
    /// Time between readings of resource use. 5 minutes.
    pub stats_interval: Duration,
    /// Id of the machine's run ([`crate::state::boot_id`]).
    pub boot: String,
}

impl Settings {
    /// With the defaults.
    #[must_use]
    pub fn new(surroundings: Surroundings, state_folder: PathBuf) -> Self {
        Settings {
            network: NetworkSpec {
                name: surroundings.network.clone(),
                options: Map::new(),
            },
            surroundings,
            state_folder,
            seal: Arc::new(Plain),
            version: AgentVersion::default(),
            platform: Platform::default(),
            env: BTreeMap::new(),
            rollback: Some(Rollback::default()),
            image_collection: Some(ImageCollection::default()),
            pulls_max: 3,
            stop_grace: Duration::from_secs(10),
            order_wait: Duration::from_secs(30),
            tick: Duration::from_secs(60),
            report_interval: Duration::from_secs(1),
            stats_interval: Duration::from_secs(300),
            boot: crate::state::boot_id(),
        }
    }
}

/// What environment variables set (edge.md 16), in any case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tuning {
    pub(crate) rules: RestartRules,
    pub(crate) refresh: Duration,
    pub(crate) log_level: Option<String>,
    pub(crate) upstream_protocol: Option<String>,
    pub(crate) registries: Vec<Registry>,
    /// `ModuleUpdateMode=WaitForAllPulls`: all images of a deployment are pulled before any module is touched.
    pub(crate) pulls_first: bool,
}

impl Tuning {
    /// Later sources have precedence. A value that makes no sense is passed over.
    pub(crate) fn read<'a>(sources: impl Iterator<Item = &'a BTreeMap<String, String>>) -> Self {
        let mut all: BTreeMap<String, &str> = BTreeMap::new();
        for source in sources {
            for (name, value) in source {
                all.insert(name.to_ascii_lowercase(), value);
            }
        }
        let number = |name: &str| {
            all.get(&name.to_ascii_lowercase())
                .and_then(|text| text.trim().parse::<u32>().ok())
        };
        let text = |name: &str| {
            all.get(&name.to_ascii_lowercase())
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let mut rules = RestartRules::default();
        if let Some(max) = number("MaxRestartCount") {
            rules.restarts_max = max;
        }
        if let Some(minutes) = number("IntensiveCareTimeInMinutes") {
            rules.intensive_care = Duration::from_secs(u64::from(minutes) * 60);
        }
        if let Some(seconds) = number("CoolOffTimeUnitInSeconds") {
            rules.cool_off_unit = Duration::from_secs(u64::from(seconds));
        }
        let refresh = number("ConfigRefreshFrequencySecs").unwrap_or(3600).max(10);
        Tuning {
            rules,
            refresh: Duration::from_secs(u64::from(refresh)),
            log_level: text("RuntimeLogLevel"),
            upstream_protocol: text("UpstreamProtocol"),
            registries: registries(&all),
            pulls_first: text("ModuleUpdateMode")
                .is_some_and(|mode| mode.eq_ignore_ascii_case("WaitForAllPulls")),
        }
    }
}

/// `DockerRegistryAuth__<n>__serverAddress|username|password`.
fn registries(all: &BTreeMap<String, &str>) -> Vec<Registry> {
    let get = |number: usize, name: &str| all.get(&format!("dockerregistryauth__{number}__{name}"));
    (0..crate::manifest::limits::REGISTRIES_MAX)
        .map_while(|number| get(number, "serveraddress").map(|address| (number, address)))
        .map(|(number, address)| {
            let value = |name| get(number, name).map_or("", |text| *text).to_owned();
            Registry {
                name: format!("DockerRegistryAuth__{number}"),
                address: (*address).to_owned(),
                username: value("username"),
                password: value("password"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_any_case_the_deployment_first() {
        let map = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let own = map(&[
            ("MAXRESTARTCOUNT", "3"),
            ("RuntimeLogLevel", "warn"),
            ("DockerRegistryAuth__0__serverAddress", "r.example"),
            ("DockerRegistryAuth__0__username", "u"),
            ("DockerRegistryAuth__0__password", "p"),
            ("CoolOffTimeUnitInSeconds", "soon"),
        ]);
        let deployed = map(&[("MaxRestartCount", "5"), ("runtimeloglevel", "debug")]);
        let tuning = Tuning::read([&own, &deployed].into_iter());
        assert_eq!(tuning.rules.restarts_max, 5);
        assert_eq!(tuning.rules.cool_off_unit, Duration::from_secs(10));
        assert_eq!(tuning.log_level.as_deref(), Some("debug"));
        assert!(!tuning.pulls_first);
        let mode = map(&[("moduleupdatemode", "waitforallpulls")]);
        assert!(Tuning::read([&mode].into_iter()).pulls_first);
        assert_eq!(tuning.registries.len(), 1);
        assert_eq!(tuning.registries[0].address, "r.example");
        assert!(!format!("{tuning:?}").contains("\"p\""));
    }
}
