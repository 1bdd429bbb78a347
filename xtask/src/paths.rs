//! Where things are: the checkout, the build output, the programs built.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    // At run time first: a binary in a shared build directory may have been compiled in another checkout.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's build directory: `CARGO_TARGET_DIR` when set, else `target` in the checkout.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative path as relative to where it was called.
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from(dir)),
        None => root().join("target"),
    }
}

/// The release build of `holdfast`.
pub(crate) fn holdfast() -> PathBuf {
    target().join("release").join("holdfast")
}

/// Logs of the children of this run.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// The cargo that runs us.
pub(crate) fn cargo() -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.current_dir(root());
    command
}
