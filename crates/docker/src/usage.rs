//! Resource use of a container, from the engine's statistics (control groups of version 1 and 2).

use std::collections::BTreeMap;

use holdfast_agent::runtime::ContainerStats;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Stats {
    cpu_stats: Cpu,
    precpu_stats: Cpu,
    memory_stats: Memory,
    pids_stats: Pids,
    networks: Option<BTreeMap<String, Interface>>,
    blkio_stats: Block,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cpu {
    cpu_usage: CpuUsage,
    system_cpu_usage: u64,
    online_cpus: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CpuUsage {
    total_usage: u64,
    percpu_usage: Option<Vec<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Memory {
    usage: u64,
    limit: u64,
    stats: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pids {
    current: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Interface {
    rx_bytes: u64,
    tx_bytes: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Block {
    io_service_bytes_recursive: Option<Vec<Operation>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Operation {
    op: String,
    value: u64,
}

impl Cpu {
    fn cores(&self) -> u64 {
        match self.online_cpus {
            0 => self
                .cpu_usage
                .percpu_usage
                .as_ref()
                .map_or(1, |cores| cores.len().max(1) as u64),
            cores => cores,
        }
    }
}

impl Stats {
    /// Per cent of one core between the engine's two samples; 0 when there is but one.
    fn cpu_percent(&self) -> f64 {
        let used = self.cpu_stats.cpu_usage.total_usage;
        let used = used.saturating_sub(self.precpu_stats.cpu_usage.total_usage);
        let passed = self
            .cpu_stats
            .system_cpu_usage
            .saturating_sub(self.precpu_stats.system_cpu_usage);
        if passed == 0 || self.precpu_stats.system_cpu_usage == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a percentage needs no 53 bits")]
        let share = used as f64 / passed as f64 * self.cpu_stats.cores() as f64;
        share * 100.0
    }

    /// Without file cache that can be given back at any time: version 1 calls it `total_inactive_file`, version 2
    /// `inactive_file`.
    fn memory_bytes(&self) -> u64 {
        let cache = ["total_inactive_file", "inactive_file"]
            .iter()
            .find_map(|name| self.memory_stats.stats.get(*name).and_then(Value::as_u64));
        let usage = self.memory_stats.usage;
        cache
            .filter(|cache| *cache < usage)
            .map_or(usage, |cache| usage - cache)
    }

    fn disk(&self, operation: &str) -> u64 {
        let operations = self
            .blkio_stats
            .io_service_bytes_recursive
            .as_deref()
            .unwrap_or_default();
        let matching = operations
            .iter()
            .filter(|entry| entry.op.eq_ignore_ascii_case(operation));
        matching.fold(0, |sum, entry| sum.saturating_add(entry.value))
    }
}

/// Reads the engine's statistics. What is not there is 0.
///
/// # Errors
/// When it is no such document.
pub fn read(name: &str, raw: Value) -> Result<ContainerStats, serde_json::Error> {
    let stats = Stats::deserialize(&raw)?;
    let networks = stats.networks.as_ref();
    let sum = |of: fn(&Interface) -> u64| {
        let interfaces = networks.into_iter().flat_map(BTreeMap::values);
        interfaces.fold(0, |sum: u64, interface| sum.saturating_add(of(interface)))
    };
    Ok(ContainerStats {
        name: name.to_owned(),
        cpu_percent: stats.cpu_percent(),
        memory_bytes: stats.memory_bytes(),
        memory_limit_bytes: stats.memory_stats.limit,
        pids: stats.pids_stats.current,
        network_in_bytes: sum(|interface| interface.rx_bytes),
        network_out_bytes: sum(|interface| interface.tx_bytes),
        disk_read_bytes: stats.disk("read"),
        disk_write_bytes: stats.disk("write"),
        raw,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(stats: Value) -> Value {
        json!({
            "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1000, "online_cpus": 2},
            "memory_stats": {"usage": 1000, "limit": 5000, "stats": stats},
            "pids_stats": {"current": 3},
            "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 10, "tx_bytes": 20}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"op": "Read", "value": 5}, {"op": "write", "value": 6}, {"op": "Write", "value": 1}, {"op": "Total", "value": 12}]}
        })
    }

    #[test]
    fn both_versions_of_control_groups() {
        for (stats, memory) in [
            (json!({"total_inactive_file": 400, "inactive_file": 1}), 600),
            (json!({"inactive_file": 100}), 900),
            (json!({}), 1000),
            (json!({"inactive_file": 2000}), 1000),
        ] {
            let read = read("m", sample(stats)).unwrap();
            assert_eq!(read.memory_bytes, memory);
            assert!((read.cpu_percent - 20.0).abs() < 1e-9, "{}", read.cpu_percent);
            assert_eq!((read.network_in_bytes, read.network_out_bytes), (11, 22));
            assert_eq!((read.disk_read_bytes, read.disk_write_bytes), (5, 7));
            assert_eq!((read.pids, read.memory_limit_bytes), (3, 5000));
        }
    }

    #[test]
    fn a_stopped_container_uses_nothing() {
        let raw = json!({"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}, "networks": null,
                         "blkio_stats": {"io_service_bytes_recursive": null}});
        let read = read("m", raw).unwrap();
        assert_eq!((read.memory_bytes, read.disk_read_bytes), (0, 0));
        assert!(read.cpu_percent.abs() < f64::EPSILON);
    }
}
