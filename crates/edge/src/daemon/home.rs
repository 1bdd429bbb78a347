//! The folder of everything that is kept: its parts, and that only one process uses it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use holdfast_program::failure::{Failure, Kind};
use holdfast_program::files::{self, PRIVATE};

use crate::config::Settings;

const LOCK: &str = "holdfast-edge.lock";

/// Makes the folders of `device.home` and keeps other processes out as long as what it returns is kept.
///
/// A second daemon would put its sockets in the place of the first one's and take them away at its end.
///
/// # Errors
/// When a folder cannot be made, or another process uses them.
pub(super) fn take(settings: &Settings) -> Result<File, Failure> {
    // Others must pass through to the sockets of modules.
    files::make_dir(&settings.home, 0o755)?;
    let lock = lock(&settings.home)?;
    files::make_dir(&settings.identity_folder(), 0o700)?;
    files::make_dir(&settings.home.join("hub"), 0o700)?;
    files::make_dir(&settings.workload_folders(), 0o755)?;
    Ok(lock)
}

/// The kernel's lock, which ends with the process however that dies; the text in the file is for people.
fn lock(home: &Path) -> Result<File, Failure> {
    let path = home.join(LOCK);
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::storage(format!("cannot lock {}: {error}", path.display()))
            .hint("run as root, or choose a folder of your own (device.home, --home, --data-dir)")
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(&path)
        .map_err(|error| unusable(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let _ = file.read_to_string(&mut process);
            return Err(Failure::new(
                Kind::Conflict,
                format!(
                    "another holdfast-edge (process {}) uses {}",
                    process.trim(),
                    home.display()
                ),
            )
            .hint("stop that one first (systemctl stop holdfast-edge), or choose another folder (device.home, --home, --data-dir)"));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // The lock counts; on a full disk it has no text.
    let _ = write(&mut file);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let first = lock(home.path()).unwrap();
        let refused = lock(home.path()).unwrap_err();
        assert!(
            refused.message.contains(&std::process::id().to_string()),
            "{refused:?}"
        );
        drop(first);
        lock(home.path()).unwrap();
    }
}
