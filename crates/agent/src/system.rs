//! Resources of the machine and of this process, for metrics and for `GET /systeminfo/resources`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Disks that are looked at.
const DISKS_MAX: usize = 32;

/// Space on one file system.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Disk {
    /// Device, e.g. `/dev/sda1`.
    pub name: String,
    /// Bytes that an ordinary user may still take.
    pub available_space: u64,
    /// Bytes in all.
    pub total_space: u64,
    /// File system, e.g. `ext4`.
    pub file_system: String,
    /// `SSD`, `HDD`, or `Unknown`.
    pub file_type: String,
}

/// One reading.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Resources {
    /// Since the machine was started.
    pub host_uptime: Duration,
    /// Since this process was started.
    pub process_uptime: Duration,
    /// Load of all processors since the last reading, per cent; of the machine's whole life in the first.
    pub used_cpu_percent: f64,
    /// Bytes.
    pub used_memory: u64,
    /// Bytes.
    pub total_memory: u64,
    /// File systems on disks.
    pub disks: Vec<Disk>,
}

/// Takes readings.
#[derive(Debug, Default)]
pub struct Meter {
    busy: u64,
    all: u64,
}

impl Meter {
    /// A reading of now. What the system does not tell is zero.
    pub fn read(&mut self) -> Resources {
        let host_uptime = uptime();
        let (total_memory, used_memory) = memory();
        Resources {
            host_uptime,
            process_uptime: host_uptime.saturating_sub(process_start()),
            used_cpu_percent: self.cpu(),
            used_memory,
            total_memory,
            disks: disks(),
        }
    }

    fn cpu(&mut self) -> f64 {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let numbers: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|number| number.parse().ok())
            .collect();
        let all: u64 = numbers.iter().take(8).sum();
        let idle: u64 = numbers.iter().skip(3).take(2).sum();
        let busy = all.saturating_sub(idle);
        let (passed, worked) = (all.saturating_sub(self.all), busy.saturating_sub(self.busy));
        (self.all, self.busy) = (all, busy);
        #[allow(clippy::cast_precision_loss)]
        if passed == 0 {
            0.0
        } else {
            worked as f64 * 100.0 / passed as f64
        }
    }
}

fn uptime() -> Duration {
    fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(Duration::ZERO, |seconds| {
            Duration::from_secs_f64(seconds.max(0.0))
        })
}

/// From the machine's start to this process's.
fn process_start() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program may have spaces; what follows its closing bracket begins with field 3, and the start is 22.
    let ticks = text
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok())
        .unwrap_or(0);
    Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

/// Total and used bytes; what could be freed at once does not count as used.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    let total = value("MemTotal");
    (total, total.saturating_sub(value("MemAvailable")))
}

fn disks() -> Vec<Disk> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut disks = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split_whitespace();
        let (Some(name), Some(place), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let is_disk = name.starts_with("/dev/") || (place == "/" && kind == "overlay");
        if !is_disk || disks.len() == DISKS_MAX || !seen.insert(name) {
            continue;
        }
        let Ok(space) = rustix::fs::statvfs(place) else {
            continue;
        };
        disks.push(Disk {
            name: name.to_owned(),
            available_space: space.f_bavail.saturating_mul(space.f_frsize),
            total_space: space.f_blocks.saturating_mul(space.f_frsize),
            file_system: kind.to_owned(),
            file_type: disk_type(name),
        });
    }
    disks
}

fn disk_type(device: &str) -> String {
    let base = device
        .trim_start_matches("/dev/")
        .trim_end_matches(|c: char| c.is_ascii_digit());
    match fs::read_to_string(format!("/sys/block/{base}/queue/rotational"))
        .unwrap_or_default()
        .trim()
    {
        "0" => "SSD",
        "1" => "HDD",
        _ => "Unknown",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_make_sense() {
        let mut meter = Meter::default();
        let reading = meter.read();
        assert!(reading.host_uptime > Duration::ZERO);
        assert!(reading.process_uptime <= reading.host_uptime);
        assert!(reading.process_uptime < Duration::from_secs(24 * 3600));
        assert!(reading.used_memory > 0 && reading.used_memory < reading.total_memory);
        assert!((0.0..=100.0).contains(&reading.used_cpu_percent));
        for disk in &reading.disks {
            assert!(disk.available_space <= disk.total_space, "{disk:?}");
        }
        assert!((0.0..=100.0).contains(&meter.read().used_cpu_percent));
    }
}
