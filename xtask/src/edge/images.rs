//! Images, made on the spot and kept in a registry's storage under a name made from what they are made of.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::engine::Engine;
use super::registry::{PASSWORD, Registry, USER};
use crate::process::{output, run};
use crate::setup::fingerprint;
use crate::{lock, paths, say, setup};

/// Debian release of the modules' file system, and what is in it besides the minimum.
const RELEASE: &str = "bookworm";
const PACKAGES: &str = "python3,nodejs";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Not needed in a container: half of its size.
const LEFT_OUT: [&str; 6] = [
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./usr/lib/x86_64-linux-gnu/perl-base/unicore/*",
];
/// Name of the Debian image while images are built on it.
const DEBIAN: &str = "holdfast-test-debian";
/// Versions of the sensor: two images that differ, for updates.
const SENSOR_VERSIONS: [&str; 2] = ["1", "2"];

/// Storage of a registry that holds all images; made when it is not there. `HOLDFAST_EDGE_IMAGES` names one that was made
/// before, as `HOLDFAST_BIN` names a program.
pub(crate) fn storage() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("HOLDFAST_EDGE_IMAGES") {
        let given = PathBuf::from(given);
        say(&format!(
            "Using the images in {} (HOLDFAST_EDGE_IMAGES)",
            given.display()
        ));
        return Ok(given);
    }
    let sensor = build_sensor()?;
    let debian = debian_name();
    let key = key(&sensor, &debian)?;
    let dir = super::cache().join(format!("images-{key:016x}"));
    let done = dir.join("complete");
    if done.is_file() {
        return Ok(dir);
    }
    let _lock = lock::take(
        &super::cache().join("images.lock"),
        "the images of the edge suite",
    )?;
    if done.is_file() {
        return Ok(dir);
    }
    remove_older(&dir)?;
    let work = super::cache().join("images.work");
    remove(&work)?;
    std::fs::create_dir_all(&work)?;
    let tar = debian_tar(&debian)?;
    say("Building the images of the modules");
    let python = python_context(&work)?;
    let node = node_context(&work)?;
    let sensor = sensor_context(&work, &sensor)?;
    let mut engine = Engine::start(&work.join("engine"), None, None, &paths::logs())?;
    let registry = Registry::start(&dir, Ipv4Addr::LOCALHOST, &work.join("registry"), &paths::logs())?;
    let pushed = fill(&engine, &registry.address(), &tar, [&python, &node, &sensor]);
    engine.stop()?;
    drop(registry);
    pushed?;
    remove(&work)?;
    std::fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))?;
    Ok(dir)
}

fn fill(engine: &Engine, registry: &str, tar: &Path, contexts: [&Path; 3]) -> Result<()> {
    output(engine.docker().arg("import").arg(tar).arg(DEBIAN))?;
    output(
        engine
            .docker()
            .args(["login", "--username", USER, "--password", PASSWORD, registry]),
    )?;
    let [python, node, sensor] = contexts;
    build(engine, python, &format!("{registry}/python-module:1"), "1")?;
    build(engine, node, &format!("{registry}/node-module:1"), "1")?;
    for version in SENSOR_VERSIONS {
        build(
            engine,
            sensor,
            &format!("{registry}/holdfast-simulated-sensor:{version}"),
            version,
        )?;
    }
    Ok(())
}

fn build(engine: &Engine, context: &Path, name: &str, version: &str) -> Result<()> {
    let argument = format!("VERSION={version}");
    output(
        engine
            .docker()
            .args(["build", "--quiet", "--build-arg", &argument, "--tag", name])
            .arg(context),
    )?;
    output(engine.docker().args(["push", "--quiet", name]))?;
    Ok(())
}

/// Our sensor, linked so that it runs in an empty file system.
fn build_sensor() -> Result<PathBuf> {
    say("Building the simulated sensor (release, static)");
    let mut cargo = paths::cargo();
    cargo.args(["rustc", "--release", "--package", "holdfast-simulated-sensor"]);
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    run(&mut cargo).context("cannot build the simulated sensor")?;
    Ok(paths::target().join("release/holdfast-simulated-sensor"))
}

fn debian_name() -> String {
    let recipe = format!("{RELEASE} {PACKAGES} {}", LEFT_OUT.join(" "));
    format!("debian-{:016x}", fingerprint(recipe.as_bytes()))
}

/// A name for all that goes into the images.
fn key(sensor: &Path, debian: &str) -> Result<u64> {
    let mut bytes = debian.as_bytes().to_vec();
    bytes.extend(std::fs::read(sensor).with_context(|| format!("cannot read {}", sensor.display()))?);
    let root = paths::root().join("tests/edge/images");
    for file in sources(&root)? {
        // The same in every checkout.
        let name = file.strip_prefix(&root).unwrap_or(&file);
        bytes.extend_from_slice(name.as_os_str().as_encoded_bytes());
        bytes.extend(std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(fingerprint(&bytes))
}

/// Files below a folder, in order, without installed packages.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && path.file_name() != Some(OsStr::new("node_modules")) {
            files.extend(sources(&path)?);
        } else if path.is_file() && path.extension() != Some(OsStr::new("md")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The file system of a small Debian, as a tar.
fn debian_tar(name: &str) -> Result<PathBuf> {
    let tar = super::cache().join(format!("{name}.tar"));
    if tar.is_file() {
        return Ok(tar);
    }
    say("Making a small Debian for the modules with debootstrap (some 80 megabytes to fetch, once)");
    let root = super::cache().join("debian.work");
    remove(&root)?;
    let log = super::cache().join("debootstrap.log");
    // With mounts of its own: what it mounts in there goes with it, also when it is killed, and is in nobody's way.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "debootstrap"]);
    command.args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE]);
    command.arg(&root).arg(MIRROR);
    command.stdout(std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
    run(&mut command).with_context(|| format!("debootstrap failed; see {}", log.display()))?;
    let unfinished = tar.with_extension("part");
    let mut command = Command::new("tar");
    command
        .arg("--create")
        .arg("--file")
        .arg(&unfinished)
        .arg("--directory")
        .arg(&root);
    for path in LEFT_OUT {
        command.arg(format!("--exclude={path}"));
    }
    run(command.arg(".")).context("cannot pack the file system")?;
    std::fs::rename(&unfinished, &tar)?;
    remove(&root)?;
    Ok(tar)
}

fn copied(from: &str, work: &Path) -> Result<PathBuf> {
    let context = work.join(from);
    std::fs::create_dir_all(&context)?;
    for file in sources(&paths::root().join("tests/edge/images").join(from))? {
        let name = file.file_name().context("a file without a name")?;
        std::fs::copy(&file, context.join(name))?;
    }
    Ok(context)
}

fn sensor_context(work: &Path, sensor: &Path) -> Result<PathBuf> {
    let context = copied("simulated-sensor", work)?;
    std::fs::copy(sensor, context.join("holdfast-simulated-sensor"))?;
    run(Command::new("strip").arg(context.join("holdfast-simulated-sensor"))).context("cannot strip")?;
    Ok(context)
}

fn python_context(work: &Path) -> Result<PathBuf> {
    let context = copied("python-module", work)?;
    let python = setup::python()?;
    run(Command::new(python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
        ])
        .args(["--root-user-action=ignore", "--target"])
        .arg(context.join("site"))
        .arg("--requirement")
        .arg(context.join("requirements.txt")))
    .context("cannot fetch the Python SDK")?;
    Ok(context)
}

fn node_context(work: &Path) -> Result<PathBuf> {
    let context = copied("node-module", work)?;
    setup::node_program()?;
    run(Command::new("npm")
        .args([
            "ci",
            "--ignore-scripts",
            "--omit=dev",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ])
        .current_dir(&context))
    .context("cannot fetch the Node.js SDK")?;
    Ok(context)
}

/// Images of earlier sources are of no use any more.
fn remove_older(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(super::cache()).into_iter().flatten().flatten();
    for entry in entries {
        let ours = entry.file_name().to_string_lossy().starts_with("images-");
        if ours && entry.path() != *dir {
            remove(&entry.path())?;
        }
    }
    remove(dir)
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", dir.display())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_in_order_and_without_prose() {
        let files = sources(&paths::root().join("tests/edge/images")).unwrap();
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        assert!(names.iter().any(|name| name.ends_with("python-module/module.py")));
        assert!(
            names
                .iter()
                .all(|name| !name.contains("/node_modules/") && !name.ends_with(".md"))
        );
        assert!(names.is_sorted());
    }
}
