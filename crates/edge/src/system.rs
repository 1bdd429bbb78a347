//! What is told of this machine: system information, use of resources, product information (edge.md section 18).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_agent::runtime::ModuleRuntime;
use holdfast_program::failure::Failure;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use crate::config::{Provisioning, Reprovisioning, Settings};

/// Version of the daemon.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long the engine may take to tell its version before it is left out.
const ENGINE_PATIENCE: Duration = Duration::from_secs(3);

/// This machine.
pub struct SystemInfo {
    started: Instant,
    provisioning: Value,
    additional: BTreeMap<String, String>,
}

impl SystemInfo {
    /// Reads what does not change.
    ///
    /// # Errors
    /// When the file of additional information cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        Ok(SystemInfo {
            started: Instant::now(),
            provisioning: json!({
                "type": match settings.provisioning {
                    Provisioning::Manual { .. } => "manual",
                    Provisioning::Dps { .. } => "dps",
                },
                "dynamicReprovisioning": settings.reprovisioning == Reprovisioning::Dynamic,
                "alwaysReprovisionOnStartup": settings.reprovisioning == Reprovisioning::AlwaysOnStartup,
            }),
            additional: match &settings.additional_info {
                None => BTreeMap::new(),
                Some(path) => additional(path)?,
            },
        })
    }

    /// `GET /systeminfo`. What is not known is left out.
    pub async fn describe(&self, runtime: &Arc<dyn ModuleRuntime>) -> Value {
        let mut info = machine();
        info.insert("version".to_owned(), VERSION.into());
        if let Some(version) = engine_version(runtime).await {
            info.insert("server_version".to_owned(), version.into());
        }
        info.insert("provisioning".to_owned(), self.provisioning.clone());
        for (key, value) in &self.additional {
            info.entry(key.clone()).or_insert_with(|| value.clone().into());
        }
        Value::Object(info)
    }

    /// `GET /systeminfo/resources`.
    pub async fn resources(&self, runtime: &Arc<dyn ModuleRuntime>) -> Value {
        let mut stats = Vec::new();
        if let Ok(containers) = runtime.list().await {
            for container in containers.iter().filter(|container| container.pid.is_some()) {
                if let Ok(reading) = runtime.stats(&container.name).await {
                    stats.push(reading.raw);
                }
            }
        }
        let memory = memory();
        let total = memory.get("MemTotal").copied().unwrap_or_default();
        let available = memory.get("MemAvailable").copied().unwrap_or_default();
        json!({
            "host_uptime": uptime(),
            "process_uptime": self.started.elapsed().as_secs(),
            "used_cpu": used_cpu().await,
            "used_ram": total.saturating_sub(available),
            "total_ram": total,
            "disks": disks(),
            "docker_stats": Value::Array(stats).to_string(),
        })
    }

    /// What a client of the hub announces of itself, values URL-encoded.
    pub async fn product_info(&self, client: &str, runtime: &Arc<dyn ModuleRuntime>) -> String {
        let info = self.describe(runtime).await;
        let mut text = format!("{client}/{VERSION} (");
        let pairs = [
            ("kernel", "osType"),
            ("architecture", "architecture"),
            ("version", "version"),
            ("server_version", "server_version"),
            ("kernel_version", "kernel_release"),
            ("operating_system", "operating_system"),
            ("cpus", "cpus"),
            ("total_memory", "total_memory"),
            ("virtualized", "virtualized"),
        ];
        let of_machine = pairs
            .iter()
            .filter_map(|(name, key)| Some((*name, info.get(key)?.clone())));
        let additional = self
            .additional
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone().into()));
        for (name, value) in of_machine.chain(additional) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!(
                "{name}={};",
                utf8_percent_encode(&value, NON_ALPHANUMERIC)
            ));
        }
        text.push(')');
        text
    }
}

async fn engine_version(runtime: &Arc<dyn ModuleRuntime>) -> Option<String> {
    let info = tokio::time::timeout(ENGINE_PATIENCE, runtime.info())
        .await
        .ok()?
        .ok()?;
    Some(info.version)
}

fn additional(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("additional_info: cannot use {}: {error}", path.display()))
            .hint("give a TOML file with key = \"value\" lines")
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
    toml::from_str(&text).map_err(|error| unusable(&error.message()))
}

fn machine() -> Map<String, Value> {
    let uname = rustix::system::uname();
    let mut info = Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            info.insert(key.to_owned(), value.into());
        }
    };
    put("osType", Some("linux".to_owned()));
    put(
        "kernel_release",
        Some(uname.release().to_string_lossy().into_owned()),
    );
    put(
        "kernel_version",
        Some(uname.version().to_string_lossy().into_owned()),
    );
    let release = os_release();
    put("operating_system", release.get("ID").cloned());
    put("operating_system_version", release.get("VERSION_ID").cloned());
    put("operating_system_variant", release.get("VARIANT_ID").cloned());
    put("operating_system_build", release.get("BUILD_ID").cloned());
    put(
        "architecture",
        Some(uname.machine().to_string_lossy().into_owned()),
    );
    put("product_name", dmi("product_name"));
    put("system_vendor", dmi("sys_vendor"));
    put("virtualized", Some(virtualized().to_owned()));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    info.insert("cpus".to_owned(), cpus.into());
    let total = memory().get("MemTotal").copied().unwrap_or_default();
    info.insert("total_memory".to_owned(), total.into());
    info
}

fn dmi(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// `yes`, `no`, or `unknown`, from what the processor tells.
fn virtualized() -> &'static str {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text)
            if text
                .lines()
                .any(|line| line.starts_with("flags") && line.contains(" hypervisor")) =>
        {
            "yes"
        }
        Ok(text) if text.contains("flags") => "no",
        _ => "unknown",
    }
}

fn os_release() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// `/proc/meminfo` in bytes.
fn memory() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((name.to_owned(), kib * 1_024))
        })
        .collect()
}

/// Seconds since the machine started.
#[must_use]
pub fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or_default()
}

/// Per cent of all processors that were busy over a quarter of a second.
async fn used_cpu() -> String {
    let Some((busy, all)) = cpu_ticks() else {
        return "0".to_owned();
    };
    tokio::time::sleep(Duration::from_millis(250)).await;
    let Some((busy_then, all_then)) = cpu_ticks() else {
        return "0".to_owned();
    };
    let (busy, all) = (busy_then.saturating_sub(busy), all_then.saturating_sub(all));
    format!("{:.2}", busy as f64 * 100.0 / all.max(1) as f64)
}

fn cpu_ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let numbers: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|number| number.parse().ok())
        .collect();
    let all: u64 = numbers.iter().take(8).sum();
    let idle = numbers.get(3)? + numbers.get(4)?;
    Some((all - idle, all))
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Device.
    pub name: String,
    /// Bytes that may be written.
    pub available: u64,
    /// Bytes in all.
    pub total: u64,
    /// Type, such as `ext4`.
    pub file_system: String,
}

/// Real file systems, each device once.
#[must_use]
pub fn mounted() -> Vec<Disk> {
    let text = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut disks: Vec<Disk> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(place), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let real = device.starts_with("/dev/") || (place == "/" && device != "rootfs");
        if !real || disks.iter().any(|disk| disk.name == device) {
            continue;
        }
        if let Ok(state) = rustix::fs::statvfs(place.replace("\\040", " ").as_str()) {
            disks.push(Disk {
                name: device.to_owned(),
                available: state.f_bavail * state.f_frsize,
                total: state.f_blocks * state.f_frsize,
                file_system: kind.to_owned(),
            });
        }
    }
    disks
}

fn disks() -> Vec<Value> {
    let tell = |disk: Disk| {
        json!({
            "name": disk.name,
            "available_space": disk.available,
            "total_space": disk.total,
            "file_system": disk.file_system,
            "file_type": "Unknown",
        })
    };
    mounted().into_iter().map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let info = machine();
        for key in [
            "osType",
            "kernel_release",
            "architecture",
            "cpus",
            "total_memory",
            "virtualized",
        ] {
            assert!(info.contains_key(key), "{key}: {info:?}");
        }
        assert!(info["total_memory"].as_u64().unwrap() > 1 << 20);
        assert!(uptime() > 0);
        assert!(mounted().iter().all(|disk| disk.total >= disk.available));
    }
}
