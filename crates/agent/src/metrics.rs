//! Metrics of the agent under the names that users of IoT Edge know (edge.md section 19).
//!
//! Rendered as Prometheus text by [`Metrics::render`]; every line carries the common labels. Labels are module names and
//! versions of the deployment and names of commands, so their number is bounded by the deployment's limits; a module that
//! is removed takes its lines along.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::ContainerStats;
use crate::system::Resources;

/// Values of which a summary computes quantiles.
const SAMPLES_MAX: usize = 128;
const QUANTILES: [f64; 4] = [0.1, 0.5, 0.9, 0.99];
/// Labels of one metric; more are not counted. Above what a deployment and its updates make.
const SERIES_MAX: usize = 1024;

/// Quantiles over the last [`SAMPLES_MAX`] values, sum and count over all.
#[derive(Clone, Debug, Default)]
struct Summary {
    samples: Vec<f32>,
    next: usize,
    sum: f64,
    count: u64,
}

impl Summary {
    fn observe(&mut self, value: f64) {
        #[allow(clippy::cast_possible_truncation)]
        let sample = value as f32;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(sample);
        } else {
            self.samples[self.next] = sample;
        }
        self.next = (self.next + 1) % SAMPLES_MAX;
        self.sum += value;
        self.count += 1;
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f32::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = ((sorted.len() as f64 * quantile).ceil() as usize).saturating_sub(1);
        sorted.get(index).map_or(f64::NAN, |value| f64::from(*value))
    }
}

/// How long a module should have run and how long it did.
#[derive(Clone, Copy, Debug, Default)]
struct Availability {
    expected: Duration,
    running: Duration,
}

/// Common labels and what the agent says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetricLabels {
    /// Host name of the hub.
    pub iothub: String,
    /// Device id.
    pub edge_device: String,
    /// A GUID per run of the daemon.
    pub instance_number: String,
    /// Version of the agent, for `edgeAgent_metadata`.
    pub version: String,
}

#[derive(Debug, Default)]
struct Inner {
    syncs: u64,
    unsuccessful_syncs: u64,
    module_start: BTreeMap<(String, String), u64>,
    module_stop: BTreeMap<(String, String), u64>,
    module_prepare: BTreeMap<(String, String), u64>,
    methods: BTreeMap<String, u64>,
    command_latency: BTreeMap<&'static str, Summary>,
    deployment_time: Summary,
    availability: BTreeMap<String, Availability>,
    stats: BTreeMap<String, ContainerStats>,
    cpu: BTreeMap<String, Summary>,
    resources: Option<Resources>,
    host_information: String,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    labels: MetricLabels,
    inner: Mutex<Inner>,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new(labels: MetricLabels) -> Self {
        Metrics {
            labels,
            inner: Mutex::new(Inner::default()),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn synced(&self, success: bool) {
        self.with(|inner| {
            inner.syncs += 1;
            inner.unsuccessful_syncs += u64::from(!success);
        });
    }

    pub(crate) fn module_started(&self, module: &str, version: &str) {
        self.with(|inner| count(&mut inner.module_start, (module.to_owned(), version.to_owned())));
    }

    pub(crate) fn module_stopped(&self, module: &str, version: &str) {
        self.with(|inner| count(&mut inner.module_stop, (module.to_owned(), version.to_owned())));
    }

    pub(crate) fn module_prepared(&self, module: &str, version: &str) {
        self.with(|inner| count(&mut inner.module_prepare, (module.to_owned(), version.to_owned())));
    }

    pub(crate) fn method_called(&self, method: &'static str) {
        self.with(|inner| count(&mut inner.methods, method.to_owned()));
    }

    pub(crate) fn command_took(&self, command: &'static str, took: Duration) {
        self.with(|inner| {
            inner
                .command_latency
                .entry(command)
                .or_default()
                .observe(took.as_secs_f64());
        });
    }

    pub(crate) fn deployment_took(&self, took: Duration) {
        self.with(|inner| inner.deployment_time.observe(took.as_secs_f64()));
    }

    pub(crate) fn ran(&self, module: &str, expected: Duration, running: bool) {
        self.with(|inner| {
            if inner.availability.len() >= SERIES_MAX && !inner.availability.contains_key(module) {
                return;
            }
            let availability = inner.availability.entry(module.to_owned()).or_default();
            availability.expected += expected;
            if running {
                availability.running += expected;
            }
        });
    }

    /// Forgets modules and versions that are no longer deployed, so that names of the past do not gather. `version_of` tells
    /// the version of a module that is.
    pub(crate) fn keep_modules(&self, version_of: impl Fn(&str) -> Option<String>) {
        self.with(|inner| {
            let is_current =
                |(module, version): &(String, String)| version_of(module).as_ref() == Some(version);
            inner.module_start.retain(|key, _| is_current(key));
            inner.module_stop.retain(|key, _| is_current(key));
            inner.module_prepare.retain(|key, _| is_current(key));
            let is_deployed = |module: &str| version_of(module).is_some();
            inner.availability.retain(|module, _| is_deployed(module));
            inner.stats.retain(|module, _| is_deployed(module));
            inner
                .cpu
                .retain(|module, _| is_deployed(module) || module == "host");
        });
    }

    pub(crate) fn container(&self, mut stats: ContainerStats) {
        stats.raw = serde_json::Value::Null;
        self.with(|inner| {
            inner
                .cpu
                .entry(stats.name.clone())
                .or_default()
                .observe(stats.cpu_percent);
            inner.stats.insert(stats.name.clone(), stats);
        });
    }

    pub(crate) fn machine(&self, resources: Resources) {
        self.with(|inner| {
            inner
                .cpu
                .entry("host".to_owned())
                .or_default()
                .observe(resources.used_cpu_percent);
            inner.resources = Some(resources);
        });
    }

    /// Text of the label `host_information` of `edgeAgent_metadata`: JSON.
    pub fn set_host_information(&self, json: String) {
        self.with(|inner| inner.host_information = json);
    }

    /// Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = Page {
            text: String::with_capacity(4096),
            common: format!(
                "iothub=\"{}\",edge_device=\"{}\",instance_number=\"{}\"",
                escape(&self.labels.iothub),
                escape(&self.labels.edge_device),
                escape(&self.labels.instance_number)
            ),
        };
        self.with(|inner| {
            counters(&mut page, inner);
            availability(&mut page, inner);
            latencies(&mut page, inner);
            machine(&mut page, inner);
            containers(&mut page, inner);
            page.head("edgeAgent_metadata", "gauge", "Version of the agent and of its host");
            let labels = format!(
                "edge_agent_version=\"{}\",experimental_features=\"{{}}\",host_information=\"{}\",{TELEMETRY}",
                escape(&self.labels.version),
                escape(&inner.host_information)
            );
            page.line("edgeAgent_metadata", &labels, 0.0);
        });
        page.text
    }
}

/// On everything but the machine's own numbers, as in the original.
const TELEMETRY: &str = "ms_telemetry=\"True\"";

fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if counts.len() < SERIES_MAX || counts.contains_key(&key) {
        *counts.entry(key).or_default() += 1;
    }
}

/// A page of Prometheus text.
struct Page {
    text: String,
    common: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{{}{comma}{labels}}} {value}", self.common);
    }

    fn summary(&mut self, name: &str, labels: &str, summary: &Summary) {
        let comma = if labels.is_empty() { "" } else { "," };
        for quantile in QUANTILES {
            let with = format!("{labels}{comma}quantile=\"{quantile}\"");
            self.line(name, &with, summary.quantile(quantile));
        }
        self.line(&format!("{name}_sum"), labels, summary.sum);
        self.line(&format!("{name}_count"), labels, float(summary.count));
    }
}

#[allow(clippy::cast_precision_loss)]
const fn float(value: u64) -> f64 {
    value as f64
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn counters(page: &mut Page, inner: &Inner) {
    for (name, help, value) in [
        (
            "edgeAgent_iothub_syncs_total",
            "Reads of the twin and reports to it",
            inner.syncs,
        ),
        (
            "edgeAgent_unsuccessful_iothub_syncs_total",
            "Reads of the twin and reports to it that failed",
            inner.unsuccessful_syncs,
        ),
    ] {
        page.head(name, "counter", help);
        page.line(name, TELEMETRY, float(value));
    }
    for (name, help, counts) in [
        (
            "edgeAgent_module_start_total",
            "Starts of modules",
            &inner.module_start,
        ),
        (
            "edgeAgent_module_stop_total",
            "Stops of modules",
            &inner.module_stop,
        ),
        (
            "edgeAgent_module_prepare_update_total",
            "Updates of modules that were prepared",
            &inner.module_prepare,
        ),
    ] {
        page.head(name, "counter", help);
        for ((module, version), value) in counts {
            let labels = format!(
                "module_name=\"{}\",module_version=\"{}\",{TELEMETRY}",
                escape(module),
                escape(version)
            );
            page.line(name, &labels, float(*value));
        }
    }
    let name = "edgeagent_direct_method_invocations_count";
    page.head(name, "counter", "Direct methods of the agent that were called");
    for (method, value) in &inner.methods {
        let labels = format!("method_name=\"{}\",{TELEMETRY}", escape(method));
        page.line(name, &labels, float(*value));
    }
}

fn availability(page: &mut Page, inner: &Inner) {
    type Pick = fn(&Availability) -> Duration;
    let metrics: [(&str, &str, Pick); 2] = [
        (
            "edgeAgent_total_time_running_correctly_seconds",
            "Time for which the module ran as it should",
            |availability| availability.running,
        ),
        (
            "edgeAgent_total_time_expected_running_seconds",
            "Time for which the module should have run",
            |availability| availability.expected,
        ),
    ];
    for (name, help, pick) in metrics {
        page.head(name, "gauge", help);
        for (module, availability) in &inner.availability {
            let labels = format!("module_name=\"{}\",{TELEMETRY}", escape(module));
            page.line(name, &labels, pick(availability).as_secs_f64());
        }
    }
}

fn latencies(page: &mut Page, inner: &Inner) {
    let name = "edgeAgent_command_latency_seconds";
    page.head(name, "summary", "Time that a command took");
    for (command, summary) in &inner.command_latency {
        page.summary(name, &format!("command=\"{command}\",{TELEMETRY}"), summary);
    }
    let name = "edgeAgent_deployment_time_seconds";
    page.head(name, "summary", "Time from a deployment to its being carried out");
    page.summary(name, TELEMETRY, &inner.deployment_time);
}

fn machine(page: &mut Page, inner: &Inner) {
    let Some(resources) = &inner.resources else {
        return;
    };
    for (name, help, value) in [
        (
            "edgeAgent_host_uptime_seconds",
            "Time since the machine was started",
            resources.host_uptime,
        ),
        (
            "edgeAgent_iotedged_uptime_seconds",
            "Time since the daemon was started",
            resources.process_uptime,
        ),
    ] {
        page.head(name, "gauge", help);
        page.line(name, TELEMETRY, float(value.as_secs()));
    }
    for (name, help, total) in [
        (
            "edgeAgent_available_disk_space_bytes",
            "Space left on a disk",
            false,
        ),
        ("edgeAgent_total_disk_space_bytes", "Size of a disk", true),
    ] {
        page.head(name, "gauge", help);
        for disk in &resources.disks {
            let labels = format!(
                "disk_name=\"{}\",disk_filesystem=\"{}\",disk_filetype=\"{}\",{TELEMETRY}",
                escape(&disk.name),
                escape(&disk.file_system),
                escape(&disk.file_type)
            );
            let value = if total {
                disk.total_space
            } else {
                disk.available_space
            };
            page.line(name, &labels, float(value));
        }
    }
}

fn containers(page: &mut Page, inner: &Inner) {
    type Pick = fn(&ContainerStats) -> u64;
    let host = |pick: fn(&Resources) -> u64| inner.resources.as_ref().map(pick);
    let metrics: [(&str, &str, Pick, Option<u64>); 7] = [
        (
            "edgeAgent_used_memory_bytes",
            "Memory in use, without inactive file cache",
            |stats| stats.memory_bytes,
            host(|resources| resources.used_memory),
        ),
        (
            "edgeAgent_total_memory_bytes",
            "Memory that may be used",
            |stats| stats.memory_limit_bytes,
            host(|resources| resources.total_memory),
        ),
        (
            "edgeAgent_created_pids_total",
            "Processes of a module",
            |stats| stats.pids,
            None,
        ),
        (
            "edgeAgent_total_network_in_bytes",
            "Bytes that a module received",
            |stats| stats.network_in_bytes,
            None,
        ),
        (
            "edgeAgent_total_network_out_bytes",
            "Bytes that a module sent",
            |stats| stats.network_out_bytes,
            None,
        ),
        (
            "edgeAgent_total_disk_read_bytes",
            "Bytes that a module read from disks",
            |stats| stats.disk_read_bytes,
            None,
        ),
        (
            "edgeAgent_total_disk_write_bytes",
            "Bytes that a module wrote to disks",
            |stats| stats.disk_write_bytes,
            None,
        ),
    ];
    for (name, help, pick, host) in metrics {
        page.head(name, "gauge", help);
        if let Some(value) = host {
            page.line(name, &format!("module_name=\"host\",{TELEMETRY}"), float(value));
        }
        for (module, stats) in &inner.stats {
            let labels = format!("module_name=\"{}\",{TELEMETRY}", escape(module));
            page.line(name, &labels, float(pick(stats)));
        }
    }
    let name = "edgeAgent_used_cpu_percent";
    page.head(name, "summary", "Use of processors, per cent of one");
    for (module, summary) in &inner.cpu {
        let labels = format!("module_name=\"{}\",{TELEMETRY}", escape(module));
        page.summary(name, &labels, summary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_forget_the_old_but_count_all() {
        let mut summary = Summary::default();
        for value in 0..1000 {
            summary.observe(f64::from(value));
        }
        assert_eq!(summary.count, 1000);
        assert!((summary.sum - 499_500.0).abs() < 0.1);
        assert!(summary.quantile(0.1) >= 872.0, "only the last 128 are kept");
        assert!((summary.quantile(0.99) - 998.0).abs() < 1.5);
        assert!(Summary::default().quantile(0.5).is_nan());
    }

    #[test]
    fn every_line_has_the_common_labels() {
        let metrics = Metrics::new(MetricLabels {
            iothub: "hub.example".to_owned(),
            edge_device: "quo\"te".to_owned(),
            instance_number: "i-1".to_owned(),
            version: "1.0".to_owned(),
        });
        metrics.synced(false);
        metrics.module_started("sensor", "v1");
        metrics.module_stopped("gone", "");
        metrics.command_took("create", Duration::from_millis(250));
        metrics.ran("sensor", Duration::from_secs(5), true);
        metrics.ran("sensor", Duration::from_secs(5), false);
        metrics.container(ContainerStats {
            name: "sensor".to_owned(),
            memory_bytes: 7,
            ..ContainerStats::default()
        });
        metrics.set_host_information("{\"os\":\"linux\"}".to_owned());
        metrics.module_started("sensor", "v0");
        metrics.keep_modules(|module| (module == "sensor").then(|| "v1".to_owned()));
        let text = metrics.render();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(
                line.contains("{iothub=\"hub.example\",edge_device=\"quo\\\"te\",instance_number=\"i-1\""),
                "{line}"
            );
        }
        for expected in [
            "edgeAgent_unsuccessful_iothub_syncs_total{",
            "module_name=\"sensor\",module_version=\"v1\",ms_telemetry=\"True\"} 1",
            "edgeAgent_command_latency_seconds_count{",
            "quantile=\"0.99\"} 0.25",
            "edgeAgent_used_memory_bytes{",
            "host_information=\"{\\\"os\\\":\\\"linux\\\"}\"",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(!text.contains("gone") && !text.contains("v0"));
        let running = text
            .lines()
            .find(|line| line.starts_with("edgeAgent_total_time_running_correctly_seconds{"))
            .unwrap();
        assert!(running.ends_with(" 5"), "{running}");
    }
}
