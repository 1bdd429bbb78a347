//! What a process uses, read from `/proc`. The metrics of this process and `holdfast bench` share it.

use std::fs;
use std::io;

/// Memory, files and CPU time of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes, as the kernel's quick count has it (a few pages off per CPU).
    pub rss_bytes: u64,
    /// Highest resident memory so far, in bytes.
    pub rss_bytes_max: u64,
    /// CPU seconds in user mode, of all threads, ended ones included.
    pub user_seconds: f64,
    /// CPU seconds in the kernel for this process.
    pub system_seconds: f64,
    /// Open file descriptors; 0 when the process belongs to another user.
    pub open_fds: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// CPU seconds in user mode and in the kernel together.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// What the process `pid` uses now.
///
/// # Errors
/// When there is no such process, or no `/proc` on this system.
pub fn usage(pid: u32) -> io::Result<Usage> {
    usage_at(&format!("/proc/{pid}"))
}

/// What this process uses now.
///
/// # Errors
/// When there is no `/proc` on this system.
pub fn own_usage() -> io::Result<Usage> {
    usage_at("/proc/self")
}

/// Memory of the process `pid` with shared pages counted in proportion (PSS), exact but slower than
/// [`usage`]: the kernel walks the page tables.
///
/// # Errors
/// When there is no such process, it belongs to another user, or the system has no `/proc`.
pub fn pss_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_field(&text, "Pss:").ok_or_else(|| malformed("smaps_rollup"))
}

fn usage_at(dir: &str) -> io::Result<Usage> {
    let status = fs::read_to_string(format!("{dir}/status"))?;
    let stat = fs::read_to_string(format!("{dir}/stat"))?;
    let (user_ticks, system_ticks) = cpu_ticks(&stat).ok_or_else(|| malformed("stat"))?;
    let seconds_per_tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage {
        // A zombie and a kernel thread have no memory lines.
        rss_bytes: kib_field(&status, "VmRSS:").unwrap_or(0),
        rss_bytes_max: kib_field(&status, "VmHWM:").unwrap_or(0),
        user_seconds: user_ticks as f64 * seconds_per_tick,
        system_seconds: system_ticks as f64 * seconds_per_tick,
        open_fds: fs::read_dir(format!("{dir}/fd")).map_or(0, |entries| entries.count() as u64),
        threads: field(&status, "Threads:").unwrap_or(0),
    })
}

/// Fields 14 and 15 of `/proc/PID/stat`. The second field, the program's name in parentheses, may hold spaces
/// and parentheses of its own, so counting starts after the last one.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    field(text, name).map(|kib| kib * 1024)
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("cannot read the process's {file} file"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 100_000, "{usage:?}");
        assert!(usage.rss_bytes_max >= usage.rss_bytes / 2, "{usage:?}");
        assert!(usage.open_fds >= 3, "{usage:?}");
        assert!(usage.threads >= 1, "{usage:?}");
        assert!(pss_bytes(std::process::id()).unwrap() > 100_000);
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let before = own_usage().unwrap().cpu_seconds();
        let mut x = 1u64;
        while own_usage().unwrap().cpu_seconds() < before + 0.03 {
            for i in 0..1_000_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
        }
        assert_ne!(x, 0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_fields() {
        let stat = "42 (a) (b c) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0";
        assert_eq!(cpu_ticks(stat), Some((111, 222)));
        assert_eq!(cpu_ticks("42"), None);
    }

    #[test]
    fn no_such_process_is_an_error() {
        assert_eq!(usage(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
