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

/// The `holdfast` program to run: the one named by `HOLDFAST_BIN`, else our release build.
pub(crate) fn holdfast() -> PathBuf {
    holdfast_given().unwrap_or_else(|| target().join("release").join("holdfast"))
}

/// The program named by `HOLDFAST_BIN`, for example an installed one.
pub(crate) fn holdfast_given() -> Option<PathBuf> {
    std::env::var_os("HOLDFAST_BIN").map(PathBuf::from)
}

/// The `holdfast-edge` program to run: the one named by `HOLDFAST_EDGE_BIN`, else ours of the profile `size`.
pub(crate) fn edge() -> PathBuf {
    edge_given().unwrap_or_else(|| target().join("size").join("holdfast-edge"))
}

/// The edge program named by `HOLDFAST_EDGE_BIN`.
pub(crate) fn edge_given() -> Option<PathBuf> {
    std::env::var_os("HOLDFAST_EDGE_BIN").map(PathBuf::from)
}

/// Logs of the children of this run.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// The cargo that runs us, called as a person would call it: `cargo run` tells a program about its package in
/// variables that build scripts watch (ring's does), so passing them on would rebuild what a plain `cargo build`
/// has built.
pub(crate) fn cargo() -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.current_dir(root()).env("CARGO_TARGET_DIR", target());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(tells_of_our_package) {
            command.env_remove(name);
        }
    }
    command
}

fn tells_of_our_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_BIN_")
        || matches!(
            variable,
            "CARGO_MANIFEST_DIR"
                | "CARGO_MANIFEST_PATH"
                | "CARGO_CRATE_NAME"
                | "CARGO_PRIMARY_PACKAGE"
                | "OUT_DIR"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_this_package_are_not_passed_on() {
        assert!(tells_of_our_package("CARGO_PKG_NAME"));
        assert!(tells_of_our_package("CARGO_MANIFEST_DIR"));
        assert!(!tells_of_our_package("CARGO_HOME"));
        let command = cargo();
        let kept = command.get_envs().find(|(name, _)| *name == "CARGO_TARGET_DIR");
        assert_eq!(kept.and_then(|(_, value)| value), Some(target().as_os_str()));
    }
}
