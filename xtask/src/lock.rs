//! A machine-wide lock for what only one may use at a time: TCP ports 443, 5671 and 8883, which SDKs do not let
//! a test choose, and the making of a shared environment.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

/// Held until dropped. The kernel lets go of it too when the process ends in any way.
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock for the fixed TCP ports. The Python suite (`tests/clients/python/hub.py`) takes the same file
/// itself, so do not hold it while that runs.
pub(crate) fn fixed_ports() -> Result<Lock> {
    take(
        &std::env::temp_dir().join("holdfast-ports.lock"),
        "TCP ports 443, 5671 and 8883",
    )
}

/// Takes the lock at `path`, waiting for whoever has it.
pub(crate) fn take(path: &Path, what: &str) -> Result<Lock> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let open = || File::options().create(true).append(true).open(path);
    let file = open().with_context(|| format!("cannot open the lock file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            crate::say(&format!(
                "  waiting: another run uses {what} (lock file {})",
                path.display()
            ));
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let path = std::env::temp_dir().join(format!("holdfast-lock-test-{}", std::process::id()));
        let first = take(&path, "x").unwrap();
        let other = File::options().append(true).open(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(first);
        other.try_lock().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
