//! The machine in words: what the daemon tells of it in the names and units of the management API.

use std::time::Duration;

use holdfast_docker::usage;
use serde_json::Value;

use crate::commands::output::{self, Column};
use crate::time_text;

/// Names for people, and the members that stand behind each.
const NAMES: &[(&str, &[&str])] = &[
    ("version", &["version"]),
    ("engine", &["server_version"]),
    ("provisioning", &["provisioning"]),
    (
        "system",
        &[
            "operating_system",
            "operating_system_version",
            "operating_system_variant",
            "operating_system_build",
        ],
    ),
    ("kernel", &["osType", "kernel_release"]),
    ("kernel build", &["kernel_version"]),
    ("architecture", &["architecture"]),
    ("processors", &["cpus"]),
    ("memory", &["total_memory"]),
    ("virtualized", &["virtualized"]),
    ("machine", &["system_vendor", "product_name"]),
];
const DISKS: &[Column] = &[
    Column::end_of("DISK", 12),
    Column::whole("FREE"),
    Column::whole("SIZE"),
    Column::whole("TYPE"),
];
const MODULES: &[Column] = &[
    Column::cut_to("MODULE", 12),
    Column::whole("CPU"),
    Column::whole("MEMORY"),
    Column::whole("LIMIT"),
    Column::whole("PROCESSES"),
];

/// `/systeminfo`; what is not known here keeps its own name.
pub(super) fn info(told: &Value) -> Vec<(String, String)> {
    let text = |key: &str| {
        let value = told.get(key)?;
        Some(match key {
            "total_memory" => size(value.as_u64().unwrap_or_default()),
            "provisioning" => provisioning(value),
            _ => plain(value),
        })
    };
    let mut pairs: Vec<(String, String)> = NAMES
        .iter()
        .filter_map(|(name, keys)| {
            let parts: Vec<String> = keys.iter().filter_map(|key| text(key)).collect();
            (!parts.is_empty()).then(|| ((*name).to_owned(), parts.join(" ")))
        })
        .collect();
    let known = |key: &str| NAMES.iter().any(|(_, keys)| keys.contains(&key));
    let others = told.as_object().into_iter().flatten();
    let others = others.filter(|(key, _)| !known(key));
    pairs.extend(others.map(|(key, value)| (key.clone(), plain(value))));
    pairs
}

fn provisioning(value: &Value) -> String {
    let again = match (
        value["alwaysReprovisionOnStartup"].as_bool(),
        value["dynamicReprovisioning"].as_bool(),
    ) {
        (Some(true), _) => "; asked again at every start",
        (_, Some(true)) => "; follows the service when that answers differently",
        _ => "",
    };
    let kind = value["type"].as_str().unwrap_or("unknown");
    // Who is told its hub has nobody to ask.
    match kind {
        "manual" => kind.to_owned(),
        _ => format!("{kind}{again}"),
    }
}

/// `/systeminfo/resources`.
pub(super) fn print_resources(told: &Value) -> anyhow::Result<()> {
    output::fields(&summary(told))?;
    let disks = disks(told);
    if !disks.is_empty() {
        output::line("")?;
        output::table(DISKS, &disks)?;
    }
    let modules = modules(told);
    if !modules.is_empty() {
        output::line("")?;
        output::table(MODULES, &modules)?;
    }
    Ok(())
}

fn summary(told: &Value) -> Vec<(String, String)> {
    let number = |name: &str| told[name].as_u64().unwrap_or_default();
    let span = |name: &str| time_text::in_words(Duration::from_secs(number(name)));
    let (used, total) = (number("used_ram"), number("total_ram"));
    let percent = used.saturating_mul(100).checked_div(total).unwrap_or_default();
    let pair = |name: &str, text: String| (name.to_owned(), text);
    vec![
        pair("machine up", span("host_uptime")),
        pair("daemon up", span("process_uptime")),
        pair("processors", format!("{} % busy", plain(&told["used_cpu"]))),
        pair(
            "memory",
            format!("{} of {} used ({percent} %)", size(used), size(total)),
        ),
    ]
}

fn disks(told: &Value) -> Vec<Vec<String>> {
    let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), size);
    let disks = told["disks"].as_array().into_iter().flatten();
    disks
        .map(|disk| {
            vec![
                plain(&disk["name"]),
                bytes(&disk["available_space"]),
                bytes(&disk["total_space"]),
                plain(&disk["file_system"]),
            ]
        })
        .collect()
}

/// The engine's statistics, which stand there as text.
fn modules(told: &Value) -> Vec<Vec<String>> {
    let text = told["docker_stats"].as_str().unwrap_or("[]");
    let stats: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let row = |raw: Value| {
        let name = raw["name"]
            .as_str()
            .unwrap_or("?")
            .trim_start_matches('/')
            .to_owned();
        let read = usage::read(&name, raw).ok()?;
        Some(vec![
            name,
            format!("{:.1} %", read.cpu_percent),
            size(read.memory_bytes),
            size(read.memory_limit_bytes),
            read.pids.to_string(),
        ])
    };
    stats.into_iter().filter_map(row).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `7.8 GiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in units {
        // 1,023.96 KiB would be printed as 1024.0.
        if value < 1_023.95 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (8_375_186_227, "7.8 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_machine_is_told_in_words_and_nothing_is_left_out() {
        let told = json!({
            "osType": "linux", "kernel_release": "6.1.0", "kernel_version": "#1 SMP", "operating_system": "debian",
            "operating_system_version": "12", "architecture": "x86_64", "cpus": 4, "total_memory": 8_375_186_227_u64,
            "version": "0.1.0", "site": "hall 3",
            "provisioning": {"type": "dps", "dynamicReprovisioning": true, "alwaysReprovisionOnStartup": false},
        });
        let pairs = info(&told);
        let find = |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, text)| text.as_str())
        };
        assert_eq!(find("system"), Some("debian 12"));
        assert_eq!(find("kernel"), Some("linux 6.1.0"));
        assert_eq!(find("memory"), Some("7.8 GiB"));
        assert_eq!(find("site"), Some("hall 3"));
        assert_eq!(
            find("provisioning"),
            Some("dps; follows the service when that answers differently")
        );
        assert_eq!(find("engine"), None);
        assert!(!pairs.iter().any(|(_, text)| text.contains('{')), "{pairs:?}");
    }

    #[test]
    fn resources_are_rows() {
        let stats = json!([{
            "name": "/sensor", "cpu_stats": {"cpu_usage": {"total_usage": 0}}, "pids_stats": {"current": 3},
            "memory_stats": {"usage": 5_242_880, "limit": 67_108_864},
        }]);
        let told = json!({
            "host_uptime": 90_000, "process_uptime": 61, "used_cpu": "12.50", "used_ram": 1_073_741_824_u64,
            "total_ram": 4_294_967_296_u64, "docker_stats": stats.to_string(),
            "disks": [{"name": "/dev/sda1", "available_space": 1_048_576, "total_space": 2_097_152, "file_system": "ext4"}],
        });
        let lines: Vec<String> = summary(&told).into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            lines,
            [
                "1 day",
                "1 minute",
                "12.50 % busy",
                "1.0 GiB of 4.0 GiB used (25 %)"
            ]
        );
        assert_eq!(disks(&told), [["/dev/sda1", "1.0 MiB", "2.0 MiB", "ext4"]]);
        assert_eq!(modules(&told), [["sensor", "0.0 %", "5.0 MiB", "64.0 MiB", "3"]]);
        assert!(modules(&json!({"docker_stats": "["})).is_empty());
    }
}
